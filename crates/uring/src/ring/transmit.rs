//! The transmission phase: bytes to requests, requests to steps.

use super::Ring;
use crate::connection::{Long, State};
use crate::core::Core;
use crate::counters::{Op, RingCounter};
use crate::replies::REPLIES_MAX;
use crate::tickets::Step;
use crate::window::Run;
use ringfence_cache::limits::{STEP_BYTES_MAX, ZERO_STEP_BYTES_MAX};
use ringfence_cache::{Buffer, Coming, Command, Event, Request, units};
use ringfence_wire::layout::REQUEST_BYTES;
use ringfence_wire::{Cookie, Operation, Rejection, ReplyStyle, RequestHeader};

/// What a connection gets per turn before the next one has its chance.
const TURN_BYTES: u64 = 256 << 10;
const TURN_REQUESTS: u32 = 32;
/// What is received at once while requests are small. Their answers leave when it has been served,
/// and the client goes on with those while the ring takes the rest (decision 0025).
const SMALL_BYTES: u32 = 32 << 10;
const HEADER_BYTES: u32 = REQUEST_BYTES as u32;

/// How far the parser came.
pub(super) enum Progress {
    /// A request or a step of so many bytes was dealt with.
    Took(u64),
    /// More bytes have to be received: so many unread ones in all.
    NeedsBytes(u32),
    /// A completion, a sent reply or a ticket has to come back first.
    Blocked,
    /// The connection takes no more requests.
    Over,
}

/// A step that is about to be submitted.
pub(super) struct NewStep {
    pub op: Op,
    pub of_long: bool,
    pub cookie: Cookie,
    pub offset: u64,
    pub length: u64,
    pub held: u32,
    pub run: Run,
}

/// How much to receive at once, where the parser wants so many bytes.
pub(super) fn receive_bytes(room: Buffer, wanted: u32) -> u32 {
    room.length.min(if wanted > SMALL_BYTES { TURN_BYTES as u32 } else { SMALL_BYTES })
}

impl<C: Core> Ring<C> {
    /// The kernel received something for a connection, or failed to.
    pub(super) fn received(&mut self, slot: u16, result: i32) {
        let connection = &mut self.connections[usize::from(slot)];
        connection.receiving = false;
        let length = match result {
            1.. => result.cast_unsigned(),
            0 => {
                self.begin_closing(slot, "the client closed the connection");
                return self.touch(slot);
            }
            _ if matches!(-result, libc::EINTR | libc::EAGAIN) => return self.touch(slot),
            _ => {
                self.begin_closing(slot, "the connection broke");
                return self.touch(slot);
            }
        };
        match connection.state {
            State::Handshake => self.received_handshake(slot, length),
            State::Transmission => {
                connection.window.received(length);
                self.make_runnable(slot);
            }
            _ => self.touch(slot),
        }
    }

    /// Parses what a connection has received, up to its share of a turn.
    pub(super) fn serve(&mut self, slot: u16) {
        let (mut bytes, mut requests) = (0, 0);
        loop {
            if bytes >= TURN_BYTES || requests >= TURN_REQUESTS {
                self.make_runnable(slot);
                break;
            }
            match self.next_request(slot) {
                Progress::Took(more) => {
                    bytes += more;
                    requests += 1;
                }
                Progress::NeedsBytes(wanted) => {
                    self.connections[usize::from(slot)].wanted = wanted;
                    break;
                }
                Progress::Blocked => {
                    self.connections[usize::from(slot)].blocked = true;
                    self.shared.counters.add(RingCounter::ReceiveWaits, 1);
                    break;
                }
                Progress::Over => break,
            }
        }
        self.requests_in_turn += u64::from(requests);
        self.touch(slot);
    }

    fn next_request(&mut self, slot: u16) -> Progress {
        let connection = &mut self.connections[usize::from(slot)];
        if connection.state != State::Transmission || connection.leaving {
            return Progress::Over;
        }
        if connection.discard > 0 {
            let length = connection.discard.min(connection.window.unread());
            connection.window.consume(length);
            connection.discard -= length;
            if connection.discard > 0 {
                return Progress::NeedsBytes(1);
            }
        }
        if connection.long.is_some()
            && let Some(progress) = self.next_step(slot)
        {
            return progress;
        }
        let connection = &mut self.connections[usize::from(slot)];
        if connection.window.unread() < HEADER_BYTES {
            return Progress::NeedsBytes(HEADER_BYTES);
        }
        if !self.has_room_for_reply(slot) {
            return Progress::Blocked;
        }
        let connection = &self.connections[usize::from(slot)];
        let bytes = self.core.reserve().bytes(connection.window.peek(0, HEADER_BYTES));
        let header: &[u8; REQUEST_BYTES] = bytes.try_into().expect("a header's bytes");
        let Ok(header) = RequestHeader::decode(header) else {
            self.begin_closing(slot, "the client sent something that is no request");
            return Progress::Over;
        };
        // While stopping too: what has been received is served, and nothing more is received. An
        // ESHUTDOWN would be an I/O error to a kernel, which sends again what is not answered.
        match header.validate(connection.limits, connection.style) {
            Ok(request) => {
                if header.command != ringfence_wire::Command::Write {
                    self.prefetch_next(slot);
                }
                self.begin_request(slot, request)
            }
            Err(Rejection::Disconnect(_)) => {
                self.begin_closing(slot, "the client sent a write that is too large");
                Progress::Over
            }
            Err(Rejection::Answer(refusal)) => {
                let connection = &mut self.connections[usize::from(slot)];
                connection.window.consume(HEADER_BYTES);
                connection.discard = refusal.payload_bytes;
                let reply = refusal.reply(connection.style);
                connection.replies.push(&reply, None);
                self.count_at_once(slot, refusal.command, true);
                Progress::Took(u64::from(HEADER_BYTES))
            }
        }
    }

    /// Has fetched from memory what the request behind this one will look up. There is no payload
    /// between them: behind one the header itself would have to be fetched, which costs more.
    fn prefetch_next(&mut self, slot: u16) {
        let connection = &self.connections[usize::from(slot)];
        if connection.window.unread() < 2 * HEADER_BYTES {
            return;
        }
        let export = connection.export;
        let bytes = self.core.reserve().bytes(connection.window.peek(HEADER_BYTES, HEADER_BYTES));
        let header: &[u8; REQUEST_BYTES] = bytes.try_into().expect("a header's bytes");
        if let Ok(next) = RequestHeader::decode(header) {
            self.core.prefetch(Coming::Submit { export, offset: next.offset });
        }
    }

    /// Whether one more reply fits the batch that is gathering, with all that are to come.
    pub(super) fn has_room_for_reply(&self, slot: u16) -> bool {
        let connection = &self.connections[usize::from(slot)];
        // A long request may need a reply of its own beside those of its steps.
        connection.in_flight as usize + connection.replies.gathered() + 1 < REPLIES_MAX
    }

    /// Whether a ticket is free for a step. If not, the connection is told when one is.
    pub(super) fn has_ticket(&mut self, slot: u16, op: Op) -> bool {
        let connection = &mut self.connections[usize::from(slot)];
        if self.tickets.any_free(connection.export, op) {
            return true;
        }
        if !std::mem::replace(&mut connection.starved, true) {
            self.starved.push(slot);
        }
        false
    }

    fn begin_request(&mut self, slot: u16, request: ringfence_wire::Request) -> Progress {
        let cookie = request.cookie;
        let step = |op, offset, length: u64| NewStep {
            op,
            of_long: false,
            cookie,
            offset,
            length,
            held: 0,
            run: Run::default(),
        };
        let zero_length = match request.operation {
            Operation::Read { length, .. } | Operation::Write { length, .. } => length == 0,
            Operation::Trim { length, .. } | Operation::WriteZeroes { length, .. } => length == 0,
            Operation::Disconnect | Operation::Flush => false,
        };
        if zero_length {
            let connection = &mut self.connections[usize::from(slot)];
            connection.window.consume(HEADER_BYTES);
            let reply = request.reply(connection.style, Ok(()));
            connection.replies.push(&reply, None);
            self.count_at_once(slot, request.operation.command(), false);
            return Progress::Took(u64::from(HEADER_BYTES));
        }
        match request.operation {
            Operation::Disconnect => {
                self.connections[usize::from(slot)].leaving = true;
                Progress::Over
            }
            Operation::Flush => self.submit_plain(slot, step(Op::Flush, 0, 0), Command::Flush),
            Operation::Read { offset, length, dont_fragment } if length <= STEP_BYTES_MAX => {
                let step = step(Op::Read, offset, u64::from(length));
                self.submit_read(slot, step, dont_fragment)
            }
            Operation::Write { offset, length, fua } if length <= STEP_BYTES_MAX => {
                self.submit_write(slot, step(Op::Write, offset, u64::from(length)), fua)
            }
            Operation::Trim { offset, length, fua } if length <= ZERO_STEP_BYTES_MAX => {
                let step = step(Op::Trim, offset, length);
                self.submit_plain(slot, step, Command::Trim { fua })
            }
            Operation::WriteZeroes { offset, length, fua, no_hole }
                if length <= ZERO_STEP_BYTES_MAX =>
            {
                let step = step(Op::WriteZeroes, offset, length);
                self.submit_plain(slot, step, Command::WriteZeroes { fua, no_hole })
            }
            operation => self.begin_long(slot, cookie, operation),
        }
    }

    fn begin_long(&mut self, slot: u16, cookie: Cookie, operation: Operation) -> Progress {
        let (op, offset, total, fua, no_hole) = match operation {
            Operation::Read { offset, length, .. } => {
                (Op::Read, offset, u64::from(length), false, false)
            }
            Operation::Write { offset, length, fua } => {
                (Op::Write, offset, u64::from(length), fua, false)
            }
            Operation::Trim { offset, length, fua } => (Op::Trim, offset, length, fua, false),
            Operation::WriteZeroes { offset, length, fua, no_hole } => {
                (Op::WriteZeroes, offset, length, fua, no_hole)
            }
            Operation::Disconnect | Operation::Flush => unreachable!("these have one step"),
        };
        let started_ns = self.now.monotonic_ns;
        let connection = &mut self.connections[usize::from(slot)];
        if connection.long.is_some() {
            return Progress::Blocked;
        }
        connection.window.consume(HEADER_BYTES);
        connection.long = Some(Long {
            op,
            cookie,
            offset,
            remaining: total,
            total,
            outstanding: 0,
            failed: None,
            fua,
            no_hole,
            answered: false,
            cut: false,
            ended: false,
            started_ns,
        });
        Progress::Took(u64::from(HEADER_BYTES))
    }

    fn submit_plain(&mut self, slot: u16, step: NewStep, command: Command) -> Progress {
        if !self.has_ticket(slot, step.op) {
            return Progress::Blocked;
        }
        self.connections[usize::from(slot)].window.consume(HEADER_BYTES);
        self.submit(slot, step, command);
        Progress::Took(u64::from(HEADER_BYTES))
    }

    fn submit_read(&mut self, slot: u16, mut step: NewStep, whole: bool) -> Progress {
        if !self.has_ticket(slot, step.op) {
            return Progress::Blocked;
        }
        let Some(buffer) = self.grant(slot, &mut step) else { return Progress::Blocked };
        self.connections[usize::from(slot)].window.consume(HEADER_BYTES);
        let length = step.length;
        let style = self.connections[usize::from(slot)].style;
        let in_pieces = style == ReplyStyle::Structured && !whole;
        self.submit(slot, step, Command::Read { buffer, in_pieces });
        Progress::Took(length)
    }

    fn submit_write(&mut self, slot: u16, mut step: NewStep, fua: bool) -> Progress {
        let length = step.length as u32;
        let window = &self.connections[usize::from(slot)].window;
        if window.unread() < HEADER_BYTES + length {
            return Progress::NeedsBytes(HEADER_BYTES + length);
        }
        if !self.has_ticket(slot, step.op) {
            return Progress::Blocked;
        }
        let window = &mut self.connections[usize::from(slot)].window;
        let buffer = window.peek(HEADER_BYTES, length);
        step.held = HEADER_BYTES + length;
        window.hold(step.held);
        self.submit(slot, step, Command::Write { buffer, fua });
        Progress::Took(u64::from(length))
    }

    /// Frames for a read, all or none.
    pub(super) fn grant(&mut self, slot: u16, step: &mut NewStep) -> Option<Buffer> {
        let frames = &mut self.connections[usize::from(slot)].frames;
        step.run = frames.grant(step.offset, step.length as u32)?;
        Some(frames.run_buffer(step.run))
    }

    /// Hands a step to the engine.
    pub(super) fn submit(&mut self, slot: u16, step: NewStep, command: Command) {
        let connection = &mut self.connections[usize::from(slot)];
        connection.in_flight += 1;
        let export: units::ExportSlot = connection.export;
        let ticket = self.tickets.take(Step {
            connection: slot,
            export,
            op: step.op,
            of_long: step.of_long,
            cookie: step.cookie,
            offset: step.offset,
            length: step.length,
            held: step.held,
            run: step.run,
            in_pieces: false,
            has_content: false,
            started_ns: self.now.monotonic_ns,
        });
        // A kernel's client, which knows no structured replies, connects again and goes on as if
        // nothing had happened: it will never send again what it was told is written.
        let kept = connection.style == ReplyStyle::Simple;
        let (offset, length) = (step.offset, step.length);
        self.feed(Event::Submit(Request { ticket, export, command, offset, length, kept }));
    }

    /// Sends what is ready, receives what there is room for, ends what has ended.
    pub(super) fn advance_transmission(&mut self, slot: u16) {
        if let Some(message) = self.connections[usize::from(slot)].replies.start() {
            self.send(slot, message);
        }
        let connection = &mut self.connections[usize::from(slot)];
        if connection.state != State::Transmission {
            return;
        }
        if connection.leaving && connection.is_quiet() {
            return self.begin_closing(slot, "the client disconnected");
        }
        let idle = !connection.runnable && !connection.blocked;
        if self.stopping.is_some() && idle {
            // What a write lacks is not received any more: nothing would ever end it.
            if connection.is_answered() && !connection.is_delivering() {
                self.begin_closing(slot, "the server is stopping");
            }
            return;
        }
        if connection.receiving || connection.spinning || connection.leaving || !idle {
            return;
        }
        if self.spins() && self.make_room(slot).is_some() {
            self.connections[usize::from(slot)].spinning = true;
            self.spinning.push(slot);
        } else {
            self.push_receive(slot);
        }
    }

    /// Sends a batch of replies. While the ring spins there is no system call that it could ride
    /// with, so it goes out directly; what the socket has no room for is left to the kernel.
    fn send(&mut self, slot: u16, message: *const libc::msghdr) {
        let socket = self.connections[usize::from(slot)].socket();
        if self.spin.limit_ns().is_none() {
            return self.kernel.push_message(u32::from(slot), socket, message);
        }
        self.shared.counters.add(RingCounter::SystemCalls, 1);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message, its pieces and what they point to belong to the batch, which stays
        // as it is until `sent` has heard of it.
        let result = unsafe { libc::sendmsg(socket, message, flags) };
        if result >= 0 {
            return self.sent(slot, i32::try_from(result).expect("no more than a batch"));
        }
        // An error is told to the one who waits for it, the kernel's way.
        self.kernel.push_message(u32::from(slot), socket, message);
    }

    /// Lets the kernel receive, if there is room.
    pub(super) fn push_receive(&mut self, slot: u16) {
        let Some(room) = self.make_room(slot) else {
            // The engine holds payload: when it has copied that, the connection is touched.
            self.shared.counters.add(RingCounter::ReceiveWaits, 1);
            return;
        };
        let connection = &mut self.connections[usize::from(slot)];
        connection.receiving = true;
        let socket = connection.socket();
        let length = receive_bytes(room, connection.wanted);
        self.kernel.push_receive(u32::from(slot), socket, room.part(0, length));
    }

    fn make_room(&mut self, slot: u16) -> Option<Buffer> {
        let connection = &mut self.connections[usize::from(slot)];
        match connection.window.room(connection.wanted) {
            Ok(room) => Some(room),
            Err(None) => None,
            Err(Some(unread)) => {
                let whole = connection.window.buffer();
                let from = (unread.offset - whole.offset) as usize;
                let bytes = self.core.reserve().bytes_mut(whole);
                bytes.copy_within(from..from + unread.length as usize, 0);
                connection.window.moved();
                connection.window.room(connection.wanted).ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADER_BYTES, SMALL_BYTES, TURN_BYTES, receive_bytes};
    use ringfence_cache::Buffer;

    #[test]
    fn a_large_request_is_not_received_in_small_parts() {
        let room = |length| Buffer { offset: 4096, length };
        let large = HEADER_BYTES + (1 << 20);
        assert_eq!(receive_bytes(room(2 << 20), HEADER_BYTES), SMALL_BYTES);
        assert_eq!(receive_bytes(room(2 << 20), HEADER_BYTES + 4096), SMALL_BYTES);
        assert_eq!(receive_bytes(room(2 << 20), large), TURN_BYTES as u32);
        assert_eq!(receive_bytes(room(100), HEADER_BYTES), 100);
        assert_eq!(receive_bytes(room(100), large), 100);
    }
}
