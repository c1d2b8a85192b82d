//! ringfence-uring
