//! The engine of ringfence: a persistent write-back cache as a state machine.
//!
//! This crate has no I/O, no clock and no randomness: [`Engine::step`] takes an event and the
//! time, and queues [`Effect`]s. The ring executes them against the kernel, the simulator against
//! a model. `docs/format.md` has the log's format and its numbered rules, which the code cites.

pub mod canary;
mod check;
pub mod config;
pub mod counters;
mod describe;
mod engine;
mod error;
mod facts;
pub mod format;
pub mod geometry;
mod index;
mod layout;
pub mod limits;
mod policy;
mod prefetch;
pub mod quota;
pub mod reserve;
mod scan;
pub mod storage;
mod tier;
pub mod units;

pub use check::{
    CheckedCopy, CheckedExport, CheckedLog, CopyState, Finding, Report, Severity, check,
};
pub use config::{
    Config, ExportOptions, FormatOptions, Mode, OpenedExport, Order, OriginIdentity, Uuid,
};
pub use describe::{DescribedExport, Description, describe};
pub use engine::{
    Coming, Command, Control, Effect, Engine, Event, IoError, Notice, Piece, PieceContent,
    Recovery, Request, RequestError,
};
pub use error::{FormatError, OpenError};
pub use layout::format;
pub use reserve::{Reserve, ReservePlan, ReserveShape};
pub use storage::{ReadPiece, Storage, StorageError};
pub use units::{Buffer, ExportSlot, IoId, LayerId, Now, Sequence, Ticket};
