//! ringfence-sim
