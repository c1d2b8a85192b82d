//! The public interface: opening a cache, and talking to its ring from another thread.

use crate::error::RuntimeError;
use crate::options::{
    CacheDescription, ConnectionId, ControlAction, CounterLayout, Guard, Listening, OpenSpec,
    Opened, RuntimeEvent,
};
use std::path::Path;

/// An open engine with its ring thread. Its methods may be called from any thread.
pub struct Runtime {
    opened: Opened,
}

/// Opens a cache and starts its ring. Blocks: memory is touched and locked, the log recovered.
///
/// `bell` is called, from a thread of its own, when events wait for [`Runtime::drain_events`].
///
/// # Errors
/// See [`RuntimeError`].
pub fn open(
    _spec: &OpenSpec,
    _bell: Box<dyn Fn() + Send + 'static>,
) -> Result<Runtime, RuntimeError> {
    Err(RuntimeError::Stopped)
}

/// Formats a device or file; destroys what is on it. Blocks.
///
/// # Errors
/// See [`RuntimeError`].
pub fn format(_path: &Path, _segment_bytes: u64) -> Result<CacheDescription, RuntimeError> {
    Err(RuntimeError::Stopped)
}

/// Reads what a cache holds without changing it; `None` when the device holds no cache. Blocks.
///
/// # Errors
/// See [`RuntimeError`].
pub fn describe(_path: &Path) -> Result<Option<CacheDescription>, RuntimeError> {
    Err(RuntimeError::Stopped)
}

/// What would hold here: the guards, with io_uring itself as `io_uring`.
#[must_use]
pub fn probe() -> Vec<Guard> {
    Vec::new()
}

/// How to read [`Runtime::counters`].
#[must_use]
pub fn counter_layout() -> CounterLayout {
    CounterLayout {
        engine: Vec::new(),
        export_names: Vec::new(),
        exports_max: 0,
        operations: Vec::new(),
        duration_buckets_ns: Vec::new(),
        origin_operations: Vec::new(),
        pools: Vec::new(),
        values: 0,
    }
}

impl Runtime {
    /// What `open` found out.
    #[must_use]
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Binds and listens on `unix:PATH` or `HOST:PORT` (port 0: any).
    ///
    /// # Errors
    /// [`RuntimeError::Listen`] when the address is busy or makes no sense.
    pub fn listen(&self, _address: &str) -> Result<Listening, RuntimeError> {
        Err(RuntimeError::Stopped)
    }

    /// Asks for exactly `length` bytes of a handshake. One at a time per connection.
    ///
    /// # Errors
    /// When `length` is 0 or above 64 KiB, or the ring has stopped.
    pub fn receive(
        &self,
        _connection: ConnectionId,
        _length: u32,
        _deadline_ms: u64,
    ) -> Result<(), RuntimeError> {
        Err(RuntimeError::Stopped)
    }

    /// Sends handshake bytes; they are copied. A connection that is gone takes them silently.
    ///
    /// # Errors
    /// When more than 64 KiB would wait.
    pub fn send(&self, _connection: ConnectionId, _bytes: &[u8]) -> Result<(), RuntimeError> {
        Err(RuntimeError::Stopped)
    }

    /// The last call of a handshake: bytes sent so far go out, then the transmission phase begins.
    ///
    /// # Errors
    /// When there is no such export, or the ring has stopped.
    pub fn begin_transmission(
        &self,
        _connection: ConnectionId,
        _slot: u8,
        _structured_replies: bool,
        _read_only: bool,
    ) -> Result<(), RuntimeError> {
        Err(RuntimeError::Stopped)
    }

    /// Sends what is waiting, then closes.
    ///
    /// # Errors
    /// When the ring has stopped.
    pub fn close(&self, _connection: ConnectionId) -> Result<(), RuntimeError> {
        Err(RuntimeError::Stopped)
    }

    /// Starts an operator's action; [`RuntimeEvent::ControlDone`] with the token tells its end.
    ///
    /// # Errors
    /// When there is no such export, or the ring has stopped.
    pub fn control(
        &self,
        _token: u32,
        _action: ControlAction,
        _slot: Option<u8>,
    ) -> Result<(), RuntimeError> {
        Err(RuntimeError::Stopped)
    }

    /// Appends all events since the last call.
    pub fn drain_events(&self, _into: &mut Vec<RuntimeEvent>) {}

    /// Copies all counters, as [`counter_layout`] describes.
    ///
    /// # Panics
    /// When `into` is not [`CounterLayout::values`] long.
    pub fn counters(&self, _into: &mut [u64]) {}

    /// Stops accepting, lets requests finish (10 s at most), flushes the log, joins the threads.
    /// Blocks; a second call returns at once.
    ///
    /// # Errors
    /// When the last flush failed: what was not flushed before may be lost.
    pub fn shutdown(&self) -> Result<(), RuntimeError> {
        Err(RuntimeError::Stopped)
    }

    /// The same with another limit for requests in flight, for an exit that cannot wait.
    ///
    /// # Errors
    /// As [`Runtime::shutdown`].
    pub fn shutdown_within(&self, _limit_ms: u64) -> Result<(), RuntimeError> {
        Err(RuntimeError::Stopped)
    }
}
