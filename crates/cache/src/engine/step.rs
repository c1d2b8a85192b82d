//! Where events go: one `match` per event, and what is done at the end of a turn.

use super::api::{Command, Effect, Event, IoError, Request, RequestError};
use super::exports::Exports;
use super::tables::IoOwner;
use super::{Engine, log::Privilege};
use crate::config::Mode;
use crate::counters::Counter;
use crate::geometry::LogAddress;
use crate::units::{BLOCK_BYTES_U64, IoId, Now, Sequence, Ticket};

/// What a request is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpState {
    /// The ticket is free.
    #[default]
    Free,
    /// Being looked at, or in a queue.
    Waiting,
    /// A read with pieces under way.
    Reading,
    /// A partial write that waits for the blocks it is merged with.
    Merging,
    /// Appended; waits for the device or for the origin.
    Appended,
}

/// The engine's side of a ticket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Op {
    pub request: Option<Request>,
    pub state: OpState,
    /// Pieces or blocks still under way.
    pub pending: u32,
    /// Of a read: those that come from the cache device.
    pub device_pending: u32,
    /// Of a write: the first failure among them.
    pub error: Option<RequestError>,
    /// A clean block was bad: start over (rule 31).
    pub restart: bool,
    /// When waiting ends in an error.
    pub deadline_ns: u64,
    /// What it waits for to become durable.
    pub sequence: Sequence,
    /// The slot of its merge.
    pub merge: Option<u32>,
    /// Nobody waits for its answer: it is not to be appended any more.
    pub abandoned: bool,
}

impl Op {
    /// The request.
    pub fn request(&self) -> Request {
        self.request.expect("a ticket in use")
    }

    /// Frees the ticket.
    pub fn end(&mut self) {
        assert!(self.merge.is_none(), "a merge outlives its write");
        *self = Self::default();
    }
}

/// The blocks that a range touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first block.
    pub first: u64,
    /// How many.
    pub blocks: u32,
}

impl Span {
    /// Of a request of at least one byte.
    pub fn of(request: &Request) -> Self {
        let first = request.offset / BLOCK_BYTES_U64;
        let last = (request.offset + request.length - 1) / BLOCK_BYTES_U64;
        Self { first, blocks: u32::try_from(last - first + 1).expect("a step") }
    }
}

impl Engine {
    /// Takes one event. Effects are queued for [`Engine::next_effect`], which must be emptied
    /// before the next step.
    pub fn step(&mut self, event: Event, now: Now) {
        self.now = now;
        match event {
            Event::Submit(request) => self.submit(request),
            Event::Abandon { ticket } => self.abandon(ticket),
            Event::IoDone { io, result } => self.io_done(io, result),
            Event::Control { token, action } => self.start_control(token, action),
            Event::EndOfTurn => self.end_turn(),
        }
    }

    fn submit(&mut self, request: Request) {
        let ticket = request.ticket;
        let op = &mut self.ops[ticket.0 as usize];
        assert!(op.state == OpState::Free, "ticket {} is in use", ticket.0);
        let wait_ns = self.exports.get(request.export).wait_ns_max;
        op.request = Some(request);
        op.state = OpState::Waiting;
        op.deadline_ns = self.now.monotonic_ns.saturating_add(wait_ns);
        self.last_request_ns = self.now.monotonic_ns;
        self.run(ticket);
    }

    /// Starts a request, or starts it over.
    pub(super) fn run(&mut self, ticket: Ticket) {
        let op = &mut self.ops[ticket.0 as usize];
        op.state = OpState::Waiting;
        op.pending = 0;
        op.restart = false;
        let request = op.request();
        let is_empty = request.length == 0 && request.command != Command::Flush;
        match request.command {
            Command::Write { .. } if is_empty => self.finish_write(ticket, Ok(())),
            _ if is_empty => self.complete(ticket, Ok(())),
            Command::Read { .. } => self.read(ticket),
            Command::Flush => self.flush(ticket),
            Command::Write { .. } | Command::WriteZeroes { .. } | Command::Trim { .. } => {
                self.admit_write(ticket);
            }
        }
    }

    /// Refuses what cannot be written now; everything else waits its turn for room.
    fn admit_write(&mut self, ticket: Ticket) {
        let request = self.ops[ticket.0 as usize].request();
        let export = self.exports.get_mut(request.export);
        let refusal = if self.stopping {
            Some(RequestError::ShuttingDown)
        } else if self.latched {
            Some(RequestError::Io)
        } else if export.mode == Mode::ReadOnly {
            Some(RequestError::ReadOnly)
        } else {
            None
        };
        if let Some(error) = refusal {
            return self.finish_write(ticket, Err(error));
        }
        let has_predecessors = !export.room_waiters.is_empty();
        // Room that was made since the last turn is for those who wait for it.
        if !has_predecessors && !self.exports.log_is_asked_for {
            self.write(ticket);
        } else {
            let export = self.exports.get_mut(request.export);
            self.links.push(&mut export.room_waiters, ticket);
        }
    }

    /// Ends a write that has not been appended, or is answered at once.
    pub(super) fn finish_write(&mut self, ticket: Ticket, result: Result<(), RequestError>) {
        let request = self.ops[ticket.0 as usize].request();
        if matches!(request.command, Command::Write { .. }) {
            self.emit(Effect::Consumed { ticket });
        }
        self.complete(ticket, result);
    }

    fn io_done(&mut self, io: IoId, result: Result<(), IoError>) {
        if self.log.waits_for_device() {
            self.device_waited_until_ns = self.now.monotonic_ns;
        }
        let owner = self.ios.end(io);
        match owner {
            IoOwner::ReadRun { ticket, first, blocks, address, again } => {
                let run = (first, blocks, LogAddress(address));
                self.read_run_done(ticket, run, again, result);
            }
            IoOwner::MergeRead { merge, which } => self.merge_read_done(merge, which, result),
            IoOwner::Records { first, count } => match result {
                Ok(()) => self.records_written(Sequence(first), count),
                Err(error) => self.latch(error),
            },
            IoOwner::DeviceFlush => match result {
                Ok(()) => self.device_flushed(),
                Err(error) => self.latch(error),
            },
            IoOwner::FooterWrite { segment_use } => match result {
                Ok(()) => self.log.footer_written(segment_use),
                Err(error) => self.latch(error),
            },
            IoOwner::SuperblockWrite => self.superblock_written(result),
            IoOwner::SuperblockFlush => self.superblock_flushed(result),
            IoOwner::Fetch { fetch } => self.fetch_done(fetch, result),
            IoOwner::DestageSummary { destager } => self.destage_summary_done(destager, result),
            IoOwner::DestageRead { destager, first, blocks, again } => {
                self.destage_read_done(destager, (first, blocks), again, result);
            }
            IoOwner::DestageWrite { destager, bytes } => {
                self.destage_write_done(destager, bytes, result);
            }
            IoOwner::DestageFlush { destager } => self.destage_flush_done(destager, result),
            IoOwner::ReclaimSummary => self.reclaim_summary_done(result),
            IoOwner::ReclaimRead { first, blocks, again } => {
                self.reclaim_read_done((first, blocks), again, result);
            }
        }
    }

    /// Does what can be done now: everything that arrived together is known.
    fn end_turn(&mut self) {
        self.run_fetch_waiters();
        self.run_room_waiters();
        self.run_fetches();
        self.reclaim.goes_on = false;
        self.run_reclaim();
        self.run_destage();
        if std::mem::take(&mut self.reclaim.look_again) {
            // An origin went away, or its destager is done: what stood in the way may be carried.
            self.run_reclaim();
        }
        self.run_controls();
        if !self.latched {
            if self.foresight.flush_is_next() {
                self.log.want_closed();
            }
            self.log.close_if_due(&mut self.reserve, &mut self.exports, self.now);
            self.submit_log_writes();
            self.run_superblock();
        }
        self.tell_partial_reads();
        self.publish();
    }

    fn submit_log_writes(&mut self) {
        while self.ios.free() > 0 {
            let Some(due) = self.log.next_write() else { break };
            let io = self.ios.start(IoOwner::Records { first: due.name, count: due.count });
            self.counters.add(Counter::Records, u64::from(due.count));
            self.device_write(io, due.device_offset, due.buffer);
        }
        if self.ios.free() > 0 && self.log.start_flush() {
            let io = self.ios.start(IoOwner::DeviceFlush);
            self.counters.add(Counter::DeviceFlushes, 1);
            self.emit(Effect::DeviceFlush { io });
        }
        while self.ios.free() > 0 {
            let Some(due) = self.log.next_footer(&mut self.reserve, &self.exports) else { break };
            let io = self.ios.start(IoOwner::FooterWrite { segment_use: due.name });
            self.device_write(io, due.device_offset, due.buffer);
        }
    }

    pub(super) fn device_write(&mut self, io: IoId, offset: u64, buffer: crate::units::Buffer) {
        self.counters.add(Counter::DeviceWrittenBytes, u64::from(buffer.length));
        self.emit(Effect::DeviceWrite { io, offset, buffer });
    }

    /// When [`Event::EndOfTurn`] is due even if nothing happens, in `monotonic_ns`.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        let reclaims = !self.latched && !self.stopping;
        let reclaim = self.reclaim.deadline_ns(self.now.monotonic_ns).filter(|_| reclaims);
        [
            self.log.deadline_ns().filter(|_| !self.latched),
            self.fetch_deadline_ns(),
            self.room_deadline_ns(),
            self.destage_deadline_ns(),
            self.destage_late_ns(),
            reclaim,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Room in the log for a step of so many entries and blocks.
    pub(super) fn ensure_room(
        &mut self,
        entries: u32,
        blocks: u32,
        privilege: Privilege,
    ) -> Result<(), super::log::NoRoom> {
        let exports: &mut Exports = &mut self.exports;
        self.log.ensure_room(entries, blocks, privilege, &mut self.reserve, exports, self.now)
    }
}
