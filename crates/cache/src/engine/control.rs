//! What operators ask for: flush, drain, stop.

use super::Engine;
use super::api::{Control, Effect, RequestError};
use crate::units::{ExportSlot, Sequence};

/// Operators' requests that may wait at a time, a stop beside them.
pub const CONTROLS_MAX: usize = 64;

/// An operator's request that has not ended.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    token: u32,
    until: Until,
}

#[derive(Clone, Copy, Debug)]
enum Until {
    /// A sequence is durable.
    Durable(Sequence),
    /// The watermarks of these exports have reached a sequence, and are durable.
    Drained { exports: u64, sequence: Sequence },
    /// All watermarks and all records are durable.
    Stopped,
}

impl Engine {
    pub(super) fn start_control(&mut self, token: u32, action: Control) {
        // Whatever waits, a stop finds its place.
        if self.controls.len() >= CONTROLS_MAX && action != Control::Stop {
            return self.emit(Effect::ControlDone { token, result: Err(RequestError::NoSpace) });
        }
        let newest = self.log.newest();
        let until = match action {
            Control::Flush => {
                self.log.want_durable(newest);
                Until::Durable(newest)
            }
            Control::Drain(slot) => {
                let exports = self.start_drain(slot);
                Until::Drained { exports, sequence: newest }
            }
            Control::AcceptLoss(slot) => {
                self.exports.get_mut(slot).accept_loss();
                return self.emit(Effect::ControlDone { token, result: Ok(()) });
            }
            Control::Stop => {
                self.stopping = true;
                Until::Stopped
            }
        };
        self.controls.push(Waiting { token, until });
    }

    /// Asks for everything dirty of some exports to be destaged; returns them as a set.
    fn start_drain(&mut self, slot: Option<ExportSlot>) -> u64 {
        let newest = self.log.newest();
        let mut exports = 0;
        for each in self.exports.in_use().filter(|each| slot.is_none_or(|slot| slot == *each)) {
            let export = self.exports.get_mut(each);
            if export.configured {
                exports |= each.bit();
                export.destage_target = newest;
            }
        }
        self.log.want_durable(newest);
        exports
    }

    /// Answers the requests that have what they waited for.
    pub(super) fn run_controls(&mut self) {
        for _ in 0..self.controls.len() {
            let waiting = self.controls.pop().expect("counted");
            let result = match waiting.until {
                _ if self.latched => Some(Err(RequestError::Io)),
                Until::Durable(sequence) => (sequence <= self.log.durable()).then_some(Ok(())),
                Until::Drained { exports, sequence } => self.drained(exports, sequence),
                Until::Stopped => self.stopped(),
            };
            match result {
                Some(result) => {
                    let token = waiting.token;
                    self.emit(Effect::ControlDone { token, result });
                }
                None => self.controls.push(waiting),
            }
        }
    }

    /// Rule 22: only when what was asked for has settled and the watermarks are durable.
    fn drained(&mut self, exports: u64, sequence: Sequence) -> Option<Result<(), RequestError>> {
        let durable = self.log.durable();
        let mut done = true;
        for slot in self.exports.in_use().filter(|slot| exports & slot.bit() != 0) {
            let export = self.exports.get(slot);
            let on_origin = export.settled >= export.newest_dirty.min(sequence);
            if !on_origin && export.stands_still() {
                return Some(Err(RequestError::Io));
            }
            if on_origin && !export.watermark_is_durable(durable) {
                self.log.want_record(export.watermark_record());
            }
            done &= on_origin && export.watermark_is_durable(durable);
        }
        done.then_some(Ok(()))
    }

    fn stopped(&mut self) -> Option<Result<(), RequestError>> {
        let durable = self.log.durable();
        let mut watermarks_durable = true;
        for slot in self.exports.in_use() {
            let export = self.exports.get(slot);
            if !export.watermark_is_durable(durable) {
                watermarks_durable = false;
                self.log.want_record(export.watermark_record());
            }
        }
        self.log.want_durable(self.log.newest());
        (watermarks_durable && self.log.newest() <= durable).then_some(Ok(()))
    }
}
