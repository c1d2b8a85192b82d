//! ringfence-wire
