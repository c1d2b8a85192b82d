//! What is known of an export's origin: whether it answers, and what it owes.
//!
//! A request that an origin neither answers nor refuses cannot be taken back: what it holds stays
//! held (rule 30). From the export's limit on the origin counts as down, until all that is overdue
//! has ended; nobody else waits for it meanwhile, because every table that such a request holds a
//! slot of has a quota per export (decision 0012).

use super::Engine;
use super::api::{Effect, IoError, Notice};
use crate::counters::ExportCounter;
use crate::units::ExportSlot;

/// The first wait after an origin failed.
pub const BACKOFF_NS_MIN: u64 = 100_000_000;
/// The longest wait between two tries.
pub const BACKOFF_NS_MAX: u64 = 5_000_000_000;
/// Failures without an answer between them after which an origin is asked for one thing at a time:
/// more than a damaged place causes while the rest of it answers.
const FAILURES_UNTIL_MUTE: u32 = 4;

/// The state of one origin.
#[derive(Debug)]
pub struct OriginState {
    /// How long a request may take until the origin counts as down.
    pub timeout_ns: u64,
    /// When it is asked again after a failure.
    pub retry_at_ns: u64,
    /// Whether it answered last time.
    answered: bool,
    /// Failures since it last answered.
    failures: u32,
    /// Requests that are overdue.
    late: u32,
    /// How long to wait after the next failure.
    backoff_ns: u64,
    /// Whether destage failed twice at the same place, and has not come further since.
    stops_destage: bool,
}

impl OriginState {
    /// An origin that nothing is known against.
    pub const fn new() -> Self {
        Self {
            timeout_ns: u64::MAX,
            retry_at_ns: 0,
            answered: true,
            failures: 0,
            late: 0,
            backoff_ns: BACKOFF_NS_MIN,
            stops_destage: false,
        }
    }

    /// Whether it answers, as operators are told.
    pub const fn is_up(&self) -> bool {
        self.answered && self.late == 0
    }

    /// Whether nothing can be expected of it that would give others room.
    pub const fn is_away(&self) -> bool {
        !self.is_up() || self.stops_destage
    }

    /// Whether destage may ask it now.
    pub const fn may_be_asked(&self, now_ns: u64) -> bool {
        now_ns >= self.retry_at_ns
    }

    /// Whether it gives no answers at all.
    pub const fn is_mute(&self) -> bool {
        !self.answered && (self.failures >= FAILURES_UNTIL_MUTE || self.late > 0)
    }

    /// Requests that are overdue.
    pub const fn late(&self) -> u32 {
        self.late
    }

    const fn note_answer(&mut self) {
        self.answered = true;
        self.failures = 0;
        if !self.stops_destage {
            self.backoff_ns = BACKOFF_NS_MIN;
            self.retry_at_ns = 0;
        }
    }

    /// Whether destage comes no further with it.
    pub const fn stops_destage(&self) -> bool {
        self.stops_destage
    }

    /// Destage comes no further: what the origin answers to others does not bring it back sooner.
    pub const fn note_standstill(&mut self) {
        self.stops_destage = true;
    }

    /// Destage has come further than ever since the watermark rose.
    pub const fn note_progress(&mut self) {
        self.stops_destage = false;
        self.backoff_ns = BACKOFF_NS_MIN;
        self.retry_at_ns = 0;
    }

    fn note_failure(&mut self, now_ns: u64) {
        self.answered = false;
        self.failures = self.failures.saturating_add(1);
        self.rest(now_ns);
    }

    /// Is left alone for a while, longer each time.
    pub fn rest(&mut self, now_ns: u64) {
        self.retry_at_ns = now_ns + self.backoff_ns;
        self.backoff_ns = (self.backoff_ns * 2).min(BACKOFF_NS_MAX);
    }
}

impl Engine {
    /// An origin answered a request with an error.
    pub(super) fn origin_failed(&mut self, slot: ExportSlot, error: IoError) {
        self.counters.add_export(slot, ExportCounter::OriginErrors, 1);
        let now_ns = self.now.monotonic_ns;
        self.change_origin(slot, error, |origin| origin.note_failure(now_ns));
    }

    /// An origin did what it was asked.
    pub(super) fn origin_answered(&mut self, slot: ExportSlot) {
        self.change_origin(slot, IoError::TimedOut, OriginState::note_answer);
    }

    /// A request is overdue.
    pub(super) fn origin_is_late(&mut self, slot: ExportSlot) {
        let now_ns = self.now.monotonic_ns;
        self.change_origin(slot, IoError::TimedOut, |origin| {
            origin.late += 1;
            origin.note_failure(now_ns);
        });
    }

    /// A request that was overdue has ended after all, well or not.
    pub(super) fn origin_no_longer_late(&mut self, slot: ExportSlot) {
        self.change_origin(slot, IoError::TimedOut, |origin| origin.late -= 1);
    }

    /// Changes what is known of an origin, and tells if it went or came back.
    fn change_origin(
        &mut self,
        slot: ExportSlot,
        error: IoError,
        change: impl FnOnce(&mut OriginState),
    ) {
        let origin = &mut self.exports.get_mut(slot).origin;
        let was_up = origin.is_up();
        change(origin);
        let is_up = origin.is_up();
        if was_up == is_up {
            return;
        }
        self.counters.set_export(slot, ExportCounter::OriginUp, u64::from(is_up));
        self.emit(Effect::Notice(if is_up {
            Notice::OriginUp { export: slot }
        } else {
            Notice::OriginDown { export: slot, error }
        }));
    }
}
