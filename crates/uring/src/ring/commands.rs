//! What the callers ask for: handshakes, operators' requests.

use super::Ring;
use crate::connection::{Begin, State};
use crate::core::Core;
use crate::options::ConnectionId;
use crate::shared::{Command, HANDSHAKE_BYTES_MAX, RingEvent, STOP_TOKEN, slot_of};
use ringfence_cache::units::ExportSlot;
use ringfence_cache::{Event, RequestError};
use ringfence_wire::{ExportLimits, ReplyStyle};
use std::sync::atomic::Ordering;

/// How long a peer may take to read the last bytes of a handshake.
const LAST_BYTES_NS: u64 = 10_000_000_000;

impl<C: Core> Ring<C> {
    pub(super) fn take_commands(&mut self) {
        while let Some(command) = self.commands.pop() {
            self.execute(command);
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Listen { fd, listener, tcp } => self.listen(fd, listener, tcp),
            Command::Receive { connection, length, deadline_ns } => {
                self.start_receiving(connection, length, deadline_ns);
            }
            Command::Send { connection } => {
                if let Some(slot) = self.handshaking(connection) {
                    self.touch(slot);
                }
            }
            Command::Begin { connection, export, structured_replies, read_only } => {
                self.end_handshake(connection, export, structured_replies, read_only);
            }
            Command::Close { connection } => self.close(connection),
            Command::Release { connection } => self.release(slot_of(connection) as u16),
            Command::Control { token, action } => self.feed(Event::Control { token, action }),
            Command::Stop { limit_ns } => self.begin_stopping(limit_ns),
        }
    }

    /// The slot, if the connection still has it and is in its handshake.
    fn handshaking(&self, connection: ConnectionId) -> Option<u16> {
        let slot = slot_of(connection);
        let known = self.connections.get(slot)?;
        let current = known.id() == connection && known.state == State::Handshake;
        current.then_some(slot as u16)
    }

    fn start_receiving(&mut self, connection: ConnectionId, length: u32, deadline_ns: u64) {
        let Some(slot) = self.handshaking(connection) else { return };
        assert!((1..=HANDSHAKE_BYTES_MAX).contains(&length), "checked by the runtime");
        let handshake = &mut self.connections[usize::from(slot)].handshake;
        if handshake.wanted > 0 {
            return self.begin_closing(slot, "two receives at a time");
        }
        handshake.wanted = length;
        handshake.got = 0;
        handshake.deadline_ns = Some(deadline_ns);
        self.wake_by(deadline_ns);
        self.touch(slot);
    }

    fn end_handshake(
        &mut self,
        connection: ConnectionId,
        export: ExportSlot,
        structured_replies: bool,
        read_only: bool,
    ) {
        let Some(slot) = self.handshaking(connection) else { return };
        let Some(limits) = self.exports[export.index()] else {
            return self.begin_closing(slot, "no such export");
        };
        let limits = ExportLimits { read_only: limits.read_only || read_only, ..limits };
        let style = if structured_replies { ReplyStyle::Structured } else { ReplyStyle::Simple };
        let deadline_ns = self.now.monotonic_ns + LAST_BYTES_NS;
        let handshake = &mut self.connections[usize::from(slot)].handshake;
        handshake.begin = Some(Begin { export, limits, style });
        handshake.deadline_ns = Some(deadline_ns);
        self.wake_by(deadline_ns);
        self.touch(slot);
    }

    fn close(&mut self, connection: ConnectionId) {
        if let Some(slot) = self.handshaking(connection) {
            let deadline_ns = self.now.monotonic_ns + LAST_BYTES_NS;
            let handshake = &mut self.connections[usize::from(slot)].handshake;
            handshake.close = true;
            handshake.deadline_ns = Some(deadline_ns);
            self.wake_by(deadline_ns);
            self.touch(slot);
            return;
        }
        let slot = slot_of(connection);
        if self.connections.get(slot).is_some_and(|known| known.id() == connection) {
            self.begin_closing(slot as u16, "closed by the server");
        }
    }

    /// Sends and receives what a handshake has to; begins the next phase when all is sent.
    pub(super) fn advance_handshake(&mut self, slot: u16) {
        let index = usize::from(slot);
        if !self.connections[index].handshake.sending {
            let (bytes, length) = self.shared.to_send(index);
            if length > 0 {
                self.connections[index].handshake.sending = true;
                let socket = self.connections[index].socket();
                self.kernel.push_send(u32::from(slot), socket, bytes, length);
                return self.receive_handshake(slot);
            }
            let handshake = self.connections[index].handshake;
            if handshake.close {
                return self.begin_closing(slot, "closed by the server");
            }
            if let Some(begin) = handshake.begin
                && !self.connections[index].receiving
            {
                if handshake.wanted > 0 {
                    return self.begin_closing(slot, "the transmission began during a receive");
                }
                self.connections[index].begin(begin);
                self.shared.counters.connected(begin.export);
                return self.make_runnable(slot);
            }
        }
        self.receive_handshake(slot);
    }

    fn receive_handshake(&mut self, slot: u16) {
        let connection = &mut self.connections[usize::from(slot)];
        let handshake = connection.handshake;
        if !connection.receiving && handshake.wanted > 0 {
            connection.receiving = true;
            let length = handshake.wanted - handshake.got;
            let buffer = connection.window.buffer().part(handshake.got, length);
            self.kernel.push_receive(u32::from(slot), connection.socket(), buffer);
        }
    }

    /// Handshake bytes came.
    pub(super) fn received_handshake(&mut self, slot: u16, length: u32) {
        let connection = &mut self.connections[usize::from(slot)];
        let id = connection.id();
        let handshake = &mut connection.handshake;
        handshake.got += length;
        if handshake.got == handshake.wanted {
            handshake.wanted = 0;
            handshake.deadline_ns = None;
            let length = handshake.got;
            self.tell(RingEvent::Received { connection: id, length });
        }
        self.touch(slot);
    }

    /// Something has to be looked at by then.
    pub(super) fn wake_by(&mut self, deadline_ns: u64) {
        let earlier = self.handshake_deadline_ns.is_none_or(|known| deadline_ns < known);
        if earlier {
            self.handshake_deadline_ns = Some(deadline_ns);
        }
    }

    /// Ends handshakes that took too long. Walks over all connections, but only when a deadline
    /// that once was the earliest has passed.
    pub(super) fn expire_handshakes(&mut self) {
        let now_ns = self.now.monotonic_ns;
        if self.handshake_deadline_ns.is_none_or(|deadline_ns| now_ns < deadline_ns) {
            return;
        }
        self.handshake_deadline_ns = None;
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            match connection.handshake.deadline_ns {
                Some(deadline_ns) if connection.state == State::Handshake => {
                    if deadline_ns <= now_ns {
                        self.begin_closing(index as u16, "the handshake took too long");
                    } else {
                        self.wake_by(deadline_ns);
                    }
                }
                _ => {}
            }
        }
        self.accept_more();
    }

    /// An operator's request has ended.
    pub(super) fn control_done(&mut self, token: u32, result: Result<(), RequestError>) {
        if token == STOP_TOKEN {
            return self.engine_stopped(result);
        }
        self.shared.controls.fetch_sub(1, Ordering::Relaxed);
        self.tell(RingEvent::ControlDone { token, result });
    }
}
