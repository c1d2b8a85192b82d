//! Requests of more than one step: taken apart in order, answered as one.

use super::Ring;
use super::transmit::{NewStep, Progress};
use crate::connection::{Long, command_of};
use crate::core::Core;
use crate::counters::Op;
use crate::tickets::Step;
use crate::window::Run;
use ringfence_cache::limits::{STEP_BYTES_MAX, ZERO_STEP_BYTES_MAX};
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{Command, RequestError};
use ringfence_wire::{ErrorCode, Reply, ReplyStyle, data_chunk, simple_reply};

/// The next step ends on a block, so that the steps after it touch whole blocks only.
const fn step_length(offset: u64, remaining: u64, most: u64) -> u64 {
    let aligned = most - offset % BLOCK_BYTES_U64;
    if remaining < aligned { remaining } else { aligned }
}

impl<C: Core> Ring<C> {
    /// Takes the next step of a long request. `None` when all are taken and the requests after
    /// it may be looked at.
    pub(super) fn next_step(&mut self, slot: u16) -> Option<Progress> {
        let connection = &mut self.connections[usize::from(slot)];
        let style = connection.style;
        let long = connection.long.as_mut()?;
        // The data of a simple reply is one piece: nothing may come in between.
        let alone = long.op == Op::Read && style == ReplyStyle::Simple;
        if long.remaining == 0 {
            return (alone && long.outstanding > 0).then_some(Progress::Blocked);
        }
        if alone && connection.in_flight > 0 {
            return Some(Progress::Blocked);
        }
        if long.failed.is_some() && (long.op != Op::Read || long.cut) {
            return Some(self.skip_rest(slot));
        }
        let long = *long;
        if !self.has_room_for_reply(slot) || !self.has_ticket(slot, long.op) {
            return Some(Progress::Blocked);
        }
        Some(match long.op {
            Op::Read => self.next_read_step(slot, long),
            Op::Write => self.next_write_step(slot, long),
            Op::Trim | Op::WriteZeroes => {
                let length = step_length(long.offset, long.remaining, ZERO_STEP_BYTES_MAX);
                let command = match long.op {
                    Op::Trim => Command::Trim { fua: long.fua },
                    _ => Command::WriteZeroes { fua: long.fua, no_hole: long.no_hole },
                };
                self.submit_step(slot, long, length, 0, Run::default(), command)
            }
            Op::Flush => unreachable!("a flush has one step"),
        })
    }

    /// After an error: payload that is still to come is thrown away, anything else is not begun.
    fn skip_rest(&mut self, slot: u16) -> Progress {
        let connection = &mut self.connections[usize::from(slot)];
        let long = connection.long.as_mut().expect("a long request");
        if long.op == Op::Write {
            let unread = connection.window.unread();
            let length = unread.min(u32::try_from(long.remaining).unwrap_or(u32::MAX));
            connection.window.consume(length);
            long.remaining -= u64::from(length);
            if long.remaining > 0 {
                return Progress::NeedsBytes(1);
            }
        } else {
            long.remaining = 0;
        }
        self.finish_long(slot);
        Progress::Took(0)
    }

    fn next_read_step(&mut self, slot: u16, long: Long) -> Progress {
        let length = step_length(long.offset, long.remaining, u64::from(STEP_BYTES_MAX));
        let frames = &mut self.connections[usize::from(slot)].frames;
        let Some(run) = frames.grant(long.offset, length as u32) else {
            return Progress::Blocked;
        };
        let buffer = frames.run_buffer(run);
        let in_pieces = self.connections[usize::from(slot)].style == ReplyStyle::Structured;
        self.submit_step(slot, long, length, 0, run, Command::Read { buffer, in_pieces })
    }

    fn next_write_step(&mut self, slot: u16, long: Long) -> Progress {
        let length = step_length(long.offset, long.remaining, u64::from(STEP_BYTES_MAX)) as u32;
        let window = &mut self.connections[usize::from(slot)].window;
        if window.unread() < length {
            return Progress::NeedsBytes(length);
        }
        let buffer = window.peek(0, length);
        window.hold(length);
        let command = Command::Write { buffer, fua: long.fua };
        self.submit_step(slot, long, u64::from(length), length, Run::default(), command)
    }

    fn submit_step(
        &mut self,
        slot: u16,
        long: Long,
        length: u64,
        held: u32,
        run: Run,
        command: Command,
    ) -> Progress {
        let connection = &mut self.connections[usize::from(slot)];
        let current = connection.long.as_mut().expect("a long request");
        current.offset += length;
        current.remaining -= length;
        current.outstanding += 1;
        let (op, cookie, offset) = (long.op, long.cookie, long.offset);
        let step = NewStep { op, of_long: true, cookie, offset, length, held, run };
        self.submit(slot, step, command);
        Progress::Took(length)
    }

    /// A step of a long request has ended.
    pub(super) fn long_step_completed(
        &mut self,
        slot: u16,
        step: &Step,
        result: Result<(), RequestError>,
    ) {
        let connection = &mut self.connections[usize::from(slot)];
        let long = connection.long.as_mut().expect("the long request of its step");
        long.outstanding -= 1;
        if let Err(error) = result {
            long.failed.get_or_insert(super::finish::error_code(error));
            // A read of which some could be had goes on: its chunks tell what could not.
            if long.op != Op::Write && !step.has_content {
                long.remaining = 0;
                long.cut = true;
            }
        }
        if step.op == Op::Read && !step.in_pieces {
            match result {
                Ok(()) => self.push_read_step(slot, step),
                Err(_) => connection.frames.give_back(step.run),
            }
        }
        self.finish_long(slot);
    }

    /// The data of one step: a chunk, or the next piece of a simple reply.
    fn push_read_step(&mut self, slot: u16, step: &Step) {
        let connection = &mut self.connections[usize::from(slot)];
        let long = connection.long.as_mut().expect("the long request of its step");
        let length = step.length as u32;
        let skip = (step.offset % BLOCK_BYTES_U64) as u32;
        let buffer = connection.frames.run_buffer(step.run).part(skip, length);
        let data = Some((self.kernel.address(buffer), length, step.run));
        if connection.style == ReplyStyle::Structured {
            let done = long.remaining == 0 && long.outstanding == 0 && !long.cut;
            long.ended = done;
            let header = data_chunk(step.cookie, step.offset, length, done);
            connection.replies.push(&header, data);
        } else if std::mem::replace(&mut long.answered, true) {
            connection.replies.push(&[], data);
        } else {
            connection.replies.push(&simple_reply(step.cookie, Ok(())), data);
        }
    }

    /// Answers a long request when its last step has ended.
    fn finish_long(&mut self, slot: u16) {
        let duration_end_ns = self.now.monotonic_ns;
        let connection = &mut self.connections[usize::from(slot)];
        let Some(long) = connection.long else { return };
        if long.remaining > 0 || long.outstanding > 0 {
            return;
        }
        connection.long = None;
        let failed = long.failed.is_some();
        let duration_ns = duration_end_ns.saturating_sub(long.started_ns);
        let export = connection.export;
        self.shared.counters.request(export, long.op, long.total, duration_ns, failed);
        match (long.op, long.failed) {
            // The last data said it all.
            (Op::Read, None) => {}
            (Op::Read, Some(_)) if long.ended => {}
            (Op::Read, Some(_)) if long.answered => {
                self.begin_closing(slot, "a read failed after its reply had begun");
            }
            (op, failed) => {
                let result: Result<(), ErrorCode> = failed.map_or(Ok(()), Err);
                let reply = Reply::new(connection.style, command_of(op), long.cookie, result);
                connection.replies.push(&reply, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::step_length;

    #[test]
    fn all_steps_but_the_first_are_aligned() {
        let step = |offset, remaining| step_length(offset, remaining, 1 << 20);
        assert_eq!(step(0, 3 << 20), 1 << 20);
        assert_eq!(step(512, 3 << 20), (1 << 20) - 512);
        assert_eq!(step(1 << 20, 100), 100);
    }
}
