//! The engine: a state machine, `step(event, now) → effects`.

mod api;

pub use api::{Command, Control, Effect, Event, IoError, Notice, Request, RequestError};

use crate::config::{Config, ExportOptions, OpenedExport};
use crate::counters::Counters;
use crate::error::OpenError;
use crate::reserve::{Reserve, ReservePlan};
use crate::storage::Storage;
use crate::units::Now;
use std::sync::Arc;

/// The cache of one device.
pub struct Engine {
    counters: Arc<Counters>,
}

impl Engine {
    /// Recovers the log, starts a new incarnation and is ready to serve.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        _storage: &mut dyn Storage,
        _reserve: Reserve,
        _plan: ReservePlan,
        _exports: &[ExportOptions],
        _config: Config,
        _now: Now,
    ) -> Result<(Self, Vec<OpenedExport>), OpenError> {
        unreachable!("the engine is being written")
    }

    /// The memory that the engine works in; connections keep their windows there too.
    pub fn reserve(&mut self) -> &mut Reserve {
        unreachable!("the engine is being written")
    }

    /// Takes one event. Effects are queued for [`Engine::next_effect`], which must be emptied
    /// before the next step.
    pub fn step(&mut self, _event: Event, _now: Now) {
        unreachable!("the engine is being written")
    }

    /// The next thing to do, in order.
    pub fn next_effect(&mut self) -> Option<Effect> {
        unreachable!("the engine is being written")
    }

    /// When [`Event::EndOfTurn`] is due even if nothing happens, in `monotonic_ns`.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        unreachable!("the engine is being written")
    }

    /// The counters, to be read from any thread.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Panics if the state contradicts itself. Slow: for tests and the simulator.
    pub fn check_invariants(&self) {}
}
