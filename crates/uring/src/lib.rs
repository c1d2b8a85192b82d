//! The ring of ringfence: one thread that owns the sockets, the devices and the reserve, and runs
//! the engine. Everything that is not about moving bytes is decided elsewhere.
//!
//! [`Runtime`] is the whole public interface; the Node-API binding wraps it.

#[cfg(feature = "napi")]
mod binding;
mod error;
mod options;
mod runtime;

pub use error::RuntimeError;
pub use options::{
    CacheDescription, ConnectionId, ControlAction, CounterLayout, DescribedExport, ExportSpec,
    Guard, Listening, OpenSpec, Opened, OpenedExport, RuntimeEvent, format_uuid,
};
pub use runtime::{Runtime, counter_layout, describe, format, open, probe};
