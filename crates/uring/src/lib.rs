//! The ring of ringfence: one thread that owns the sockets, the devices and the reserve, and runs
//! the engine. Everything that is not about moving bytes is decided elsewhere.
//!
//! [`Runtime`] is the whole public interface; the Node-API binding wraps it.

pub mod allocation;
pub mod attach;
#[cfg(feature = "napi")]
mod binding;
mod clock;
mod connection;
pub mod core;
mod counters;
mod device;
mod error;
mod guards;
mod identity;
mod memory;
mod net;
mod opening;
mod options;
mod origin;
mod queue;
mod replies;
mod ring;
mod ring_setup;
mod runtime;
mod shared;
mod signal;
mod spin;
mod storage;
mod thread;
mod tickets;
mod window;
mod yielding;

// What serves data breaks no rule on purpose.
const _: () =
    assert!(!ringfence_cache::canary::IS_BUILT_IN, "the feature `canary` is for the simulator");

pub use counters::counter_layout;
pub use error::RuntimeError;
pub use guards::probe;
pub use opening::{check, describe, format, open};
pub use options::{
    ConnectionId, ControlAction, CounterLayout, ExportSpec, Guard, Listening, OpenSpec, Opened,
    OpenedExport, RuntimeEvent, format_uuid,
};
pub use runtime::Runtime;
pub use thread::{CoreSpec, start_core};
