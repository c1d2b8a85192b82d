//! What the ring runs: the engine, or in tests something simpler with the same contract.

use ringfence_cache::{Coming, Effect, Engine, Event, Now, Piece, Reserve, Ticket};

/// A state machine with the engine's contract; see [`ringfence_cache::Event`] and
/// [`ringfence_cache::Effect`].
pub trait Core {
    /// The memory that it works in.
    fn reserve(&mut self) -> &mut Reserve;
    /// Takes one event.
    fn step(&mut self, event: Event, now: Now);
    /// The next thing to do, in order. Emptied before the next step.
    fn next_effect(&mut self) -> Option<Effect>;
    /// The next part of a read that is ready; see [`Effect::Pieces`].
    fn next_piece(&mut self, ticket: Ticket) -> Option<Piece>;
    /// An event is soon to come: advice.
    fn prefetch(&self, coming: Coming);
    /// When [`Event::EndOfTurn`] is due even if nothing happens.
    fn deadline_ns(&self) -> Option<u64>;
}

impl Core for Engine {
    fn reserve(&mut self) -> &mut Reserve {
        Self::reserve(self)
    }

    fn step(&mut self, event: Event, now: Now) {
        Self::step(self, event, now);
    }

    fn next_effect(&mut self) -> Option<Effect> {
        Self::next_effect(self)
    }

    fn next_piece(&mut self, ticket: Ticket) -> Option<Piece> {
        Self::next_piece(self, ticket)
    }

    fn prefetch(&self, coming: Coming) {
        Self::prefetch(self, coming);
    }

    fn deadline_ns(&self) -> Option<u64> {
        Self::deadline_ns(self)
    }
}
