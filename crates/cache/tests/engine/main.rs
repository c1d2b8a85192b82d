//! The engine over a device and origins in memory, by what a user of it sees.

mod abandoned;
mod bench;
mod carrying;
mod damage;
mod flushes;
mod kept;
mod latch;
mod lost_writes;
mod opening;
mod pieces;
mod room;
mod summaries;
mod tier;
mod unreadable;
mod writing;
mod zeroes;
