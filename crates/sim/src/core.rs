//! What a world needs from the engine under test: exactly the engine's own contract.
//!
//! A trait, because the simulator itself is tested with small engines that have known defects.

use ringfence_cache::{
    Config, Effect, Event, ExportOptions, FormatOptions, Now, OpenError, OpenedExport, Piece,
    Reserve, ReservePlan, Storage, Ticket,
};

/// An engine under test.
pub trait Core: Sized {
    /// Writes an empty cache to a device.
    ///
    /// # Errors
    /// A sentence that says why it could not.
    fn format(storage: &mut dyn Storage, options: &FormatOptions) -> Result<(), String>;

    /// Recovers the cache of a device; see [`ringfence_cache::Engine::open`].
    ///
    /// # Errors
    /// See [`OpenError`].
    fn open(
        storage: &mut dyn Storage,
        reserve: Reserve,
        plan: ReservePlan,
        exports: &[ExportOptions],
        config: Config,
        now: Now,
    ) -> Result<(Self, Vec<OpenedExport>), OpenError>;

    /// The memory that requests and I/Os name buffers in.
    fn reserve(&mut self) -> &mut Reserve;

    /// Takes one event.
    fn step(&mut self, event: Event, now: Now);

    /// The next effect of the last step.
    fn next_effect(&mut self) -> Option<Effect>;

    /// The next part of a read that is ready; see [`Effect::Pieces`]. An engine that never says
    /// so has none.
    fn next_piece(&mut self, _ticket: Ticket) -> Option<Piece> {
        None
    }

    /// When [`Event::EndOfTurn`] is due even if nothing happens.
    fn deadline_ns(&self) -> Option<u64>;

    /// Blocks of reads that the memory tier had, since it was opened. An engine without one has
    /// none.
    fn tier_hits(&self) -> u64 {
        0
    }

    /// Panics if the state contradicts itself.
    fn check_invariants(&self);
}
