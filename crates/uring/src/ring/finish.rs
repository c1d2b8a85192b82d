//! The end of a step: what the engine gives back, and what the client is told.

use super::Ring;
use crate::clock::monotonic_ns;
use crate::connection::{State, command_of};
use crate::core::Core;
use crate::counters::Op;
use crate::tickets::Step;
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{RequestError, Ticket};
use ringfence_wire::{Command, ErrorCode, Reply, ReplyStyle, data_chunk, simple_reply};

/// What a client is told of an engine's error.
pub(super) const fn error_code(error: RequestError) -> ErrorCode {
    match error {
        RequestError::Io => ErrorCode::Io,
        RequestError::NoSpace => ErrorCode::NoSpace,
        RequestError::ReadOnly => ErrorCode::NotPermitted,
        RequestError::ShuttingDown => ErrorCode::Shutdown,
    }
}

impl<C: Core> Ring<C> {
    /// The engine has copied a write's payload.
    pub(super) fn payload_consumed(&mut self, ticket: Ticket) {
        let step = self.tickets.step_mut(ticket);
        let (slot, held) = (step.connection, std::mem::take(&mut step.held));
        self.connections[usize::from(slot)].window.release(held);
        // Usually the very step is being submitted, and its connection is served anyway.
        if !self.connections[usize::from(slot)].receiving {
            self.touch(slot);
        }
    }

    /// A step has ended.
    pub(super) fn step_completed(&mut self, ticket: Ticket, result: Result<(), RequestError>) {
        let step = self.tickets.give_back(ticket);
        assert_eq!(step.held, 0, "a write's payload is consumed before its completion");
        let slot = step.connection;
        self.feed_starved();
        let connection = &mut self.connections[usize::from(slot)];
        connection.in_flight -= 1;
        if connection.state == State::Transmission {
            if step.of_long {
                self.long_step_completed(slot, &step, result);
            } else {
                self.answer(slot, &step, result);
            }
        }
        self.unblock(slot);
    }

    /// A ticket is free: all who waited look again, in the order in which they asked. One alone
    /// might not want it any more, and the others would wait for ever.
    fn feed_starved(&mut self) {
        for position in 0..self.starved.len() {
            let slot = self.starved[position];
            self.connections[usize::from(slot)].starved = false;
            self.unblock(slot);
        }
        self.starved.clear();
    }

    fn answer(&mut self, slot: u16, step: &Step, result: Result<(), RequestError>) {
        let duration_ns = monotonic_ns().saturating_sub(step.started_ns);
        let connection = &mut self.connections[usize::from(slot)];
        let export = connection.export;
        self.shared.counters.request(export, step.op, step.length, duration_ns, result.is_err());
        if step.in_pieces {
            // Its chunks have said it all.
            return;
        }
        if step.op == Op::Read {
            if result.is_err() {
                connection.frames.give_back(step.run);
            } else {
                let length = step.length as u32;
                let skip = (step.offset % BLOCK_BYTES_U64) as u32;
                let buffer = connection.frames.run_buffer(step.run).part(skip, length);
                let data = Some((self.kernel.address(buffer), length, step.run));
                match connection.style {
                    ReplyStyle::Simple => {
                        connection.replies.push(&simple_reply(step.cookie, Ok(())), data);
                    }
                    ReplyStyle::Structured => {
                        let header = data_chunk(step.cookie, step.offset, length, true);
                        connection.replies.push(&header, data);
                    }
                }
                return;
            }
        }
        let result = result.map_err(error_code);
        let reply = Reply::new(connection.style, command_of(step.op), step.cookie, result);
        connection.replies.push(&reply, None);
    }

    /// Counts a request that was answered without the engine: it asks for nothing, or was refused.
    pub(super) fn count_at_once(&mut self, slot: u16, command: Command, failed: bool) {
        let op = match command {
            Command::Read => Op::Read,
            Command::Write => Op::Write,
            Command::Flush => Op::Flush,
            Command::Trim => Op::Trim,
            Command::WriteZeroes => Op::WriteZeroes,
            _ => return,
        };
        let export = self.connections[usize::from(slot)].export;
        self.shared.counters.request(export, op, 0, 0, failed);
    }

    /// The kernel sent something for a connection, or failed to.
    pub(super) fn sent(&mut self, slot: u16, result: i32) {
        let connection = &mut self.connections[usize::from(slot)];
        if connection.handshake.sending {
            connection.handshake.sending = false;
            if result > 0 {
                self.shared.sent(usize::from(slot), result.cast_unsigned());
            } else if !matches!(-result, libc::EINTR | libc::EAGAIN) {
                self.begin_closing(slot, "the connection broke");
            }
            return self.touch(slot);
        }
        let bytes = match result {
            0.. => result.cast_unsigned() as usize,
            _ if matches!(-result, libc::EINTR | libc::EAGAIN) => 0,
            _ => {
                connection.replies.failed();
                self.begin_closing(slot, "the connection broke");
                return self.touch(slot);
            }
        };
        if connection.state == State::Closing {
            connection.replies.failed();
            return self.touch(slot);
        }
        if let Some(rest) = connection.replies.sent(bytes) {
            return self.kernel.push_message(u32::from(slot), connection.socket(), rest);
        }
        for run in connection.replies.sent_runs() {
            connection.frames.give_back(*run);
        }
        self.unblock(slot);
    }
}
