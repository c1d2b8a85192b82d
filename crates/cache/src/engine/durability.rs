//! Who waits for a sequence: FLUSH and FUA until it is durable, kept requests until it is written.

use super::Engine;
use super::api::RequestError;
use super::step::OpState;
use super::tables::TicketQueue;
use crate::config::Mode;
use crate::units::{Sequence, Ticket};

impl Engine {
    /// A client's FLUSH: ends its epoch and waits for everything answered so far.
    pub(super) fn flush(&mut self, ticket: Ticket) {
        if self.latched {
            return self.complete(ticket, Err(RequestError::Io));
        }
        self.foresight.flushed();
        let slot = self.ops[ticket.0 as usize].request().export;
        let newest = self.log.newest();
        self.exports.end_epoch(slot, self.log.has_open_record());
        let op = &mut self.ops[ticket.0 as usize];
        op.state = OpState::Appended;
        let export = self.exports.get_mut(slot);
        if export.mode == Mode::Writethrough && export.is_dirty() {
            op.sequence = export.newest_dirty;
            export.destage_target = export.destage_target.max(op.sequence);
            self.links.push(&mut export.origin_waiters, ticket);
            self.log.want_durable(newest);
        } else if newest <= self.log.durable() {
            self.complete(ticket, Ok(()));
        } else {
            op.sequence = newest;
            self.log.want_durable(newest);
            self.links.push(&mut self.durable_waiters, ticket);
        }
    }

    /// The device has taken some records: answer those who waited for that.
    pub(super) fn records_written(&mut self, first: Sequence, count: u32) {
        self.log.records_written(first, count);
        let written = self.log.written();
        while let Some(ticket) = self.written_waiters.front() {
            if self.ops[ticket.0 as usize].sequence > written {
                break;
            }
            self.links.pop(&mut self.written_waiters);
            self.complete(ticket, Ok(()));
        }
    }

    /// A device flush has ended well: answer those who waited for what it covers.
    pub(super) fn device_flushed(&mut self) {
        self.log.flush_done();
        let durable = self.log.durable();
        while let Some(ticket) = self.durable_waiters.front() {
            if self.ops[ticket.0 as usize].sequence > durable {
                break;
            }
            self.links.pop(&mut self.durable_waiters);
            self.complete(ticket, Ok(()));
        }
    }

    /// Nothing becomes durable any more (rule 32).
    pub(super) fn fail_waiters_of_latch(&mut self) {
        let mut queue = std::mem::take(&mut self.durable_waiters);
        self.fail_all(&mut queue);
        let mut queue = std::mem::take(&mut self.written_waiters);
        self.fail_all(&mut queue);
        for slot in self.exports.in_use() {
            self.fail_origin_waiters(slot);
        }
        self.run_room_waiters();
    }

    /// Writethrough requests whose outcome is unknown; the data stays dirty (rule 23).
    pub(super) fn fail_origin_waiters(&mut self, slot: crate::units::ExportSlot) {
        let mut queue = std::mem::take(&mut self.exports.get_mut(slot).origin_waiters);
        self.fail_all(&mut queue);
    }

    fn fail_all(&mut self, queue: &mut TicketQueue) {
        while let Some(ticket) = self.links.pop(queue) {
            self.complete(ticket, Err(RequestError::Io));
        }
    }
}
