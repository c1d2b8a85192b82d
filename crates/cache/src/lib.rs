//! The engine of ringfence: a persistent write-back cache as a state machine.
//!
//! This crate has no I/O, no clock and no randomness: [`Engine::step`] takes an event and the
//! time, and queues [`Effect`]s. The ring executes them against the kernel, the simulator against
//! a model. `docs/format.md` has the log's format and its numbered rules, which the code cites.

pub mod config;
pub mod counters;
mod engine;
mod error;
pub mod limits;
pub mod reserve;
pub mod storage;
pub mod units;

pub use config::{
    Config, ExportOptions, FormatOptions, Mode, OpenedExport, Order, OriginIdentity, Uuid,
};
pub use engine::{Command, Control, Effect, Engine, Event, IoError, Notice, Request, RequestError};
pub use error::{FormatError, OpenError};
pub use reserve::{Reserve, ReservePlan};
pub use storage::{ReadPiece, Storage, StorageError};
pub use units::{Buffer, ExportSlot, IoId, LayerId, Now, Sequence, Ticket};
