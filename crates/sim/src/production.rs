//! The production engine as the engine under test: its own calls and nothing in between.

use crate::core::Core;
use ringfence_cache::counters::Counter;
use ringfence_cache::{
    Config, Effect, Engine, Event, ExportOptions, FormatOptions, Now, OpenError, OpenedExport,
    Piece, Reserve, ReservePlan, Storage, Ticket,
};

impl Core for Engine {
    fn format(storage: &mut dyn Storage, options: &FormatOptions) -> Result<(), String> {
        ringfence_cache::format(storage, options).map_err(|error| error.to_string())
    }

    fn open(
        storage: &mut dyn Storage,
        reserve: Reserve,
        plan: ReservePlan,
        exports: &[ExportOptions],
        config: Config,
        now: Now,
    ) -> Result<(Self, Vec<OpenedExport>), OpenError> {
        let opened = Self::open(storage, reserve, plan, exports, config, now)?;
        Ok((opened.0, opened.1.exports))
    }

    fn reserve(&mut self) -> &mut Reserve {
        self.reserve()
    }

    fn step(&mut self, event: Event, now: Now) {
        self.step(event, now);
    }

    fn next_effect(&mut self) -> Option<Effect> {
        self.next_effect()
    }

    fn next_piece(&mut self, ticket: Ticket) -> Option<Piece> {
        Self::next_piece(self, ticket)
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns()
    }

    fn tier_hits(&self) -> u64 {
        self.counters().get(Counter::TierHits)
    }

    fn check_invariants(&self) {
        self.check_invariants();
    }
}
