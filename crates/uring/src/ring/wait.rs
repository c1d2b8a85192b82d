//! Between two turns: submitting, spinning, sleeping.

use super::Ring;
use super::kernel::{Completion, Tag, file};
use crate::clock::monotonic_ns;
use crate::connection::State;
use crate::core::Core;
use crate::counters::RingCounter;
use crate::spin;
use io_uring::{opcode, types};
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};

/// How long the end waits for a read that was just given what it waits for.
const WAKE_END_NS: u64 = 1_000_000_000;

impl<C: Core> Ring<C> {
    /// Waits until there is something to do.
    pub(super) fn wait(&mut self) {
        let has_work =
            [&self.runnable, &self.touched, &self.abandoning].map(|list| !list.is_empty());
        if has_work.contains(&true) || self.commands.has_items() {
            self.arm_spinning();
            self.kernel.submit();
            return;
        }
        let deadline_ns = self.deadline_ns();
        let idle_since_ns = monotonic_ns();
        let in_flight = self.tickets.in_flight() as u64;
        let found = !self.spinning.is_empty() && {
            self.kernel.submit();
            self.spin_until(idle_since_ns, deadline_ns)
        };
        if !found {
            self.arm_spinning();
            self.sleep(deadline_ns);
        }
        self.spin.idle(monotonic_ns().saturating_sub(idle_since_ns), in_flight);
    }

    fn sleep(&mut self, deadline_ns: Option<u64>) {
        self.shared.sleeping.store(true, Ordering::Relaxed);
        // A command put before the flag was seen rings no bell: look once more. The fence pairs
        // with the one in `Runtime::command`.
        fence(Ordering::SeqCst);
        if self.commands.has_items() {
            self.kernel.submit();
        } else {
            self.shared.counters.add(RingCounter::Sleeps, 1);
            self.kernel.wait(deadline_ns);
        }
        self.shared.sleeping.store(false, Ordering::Relaxed);
    }

    /// The earliest thing that happens by itself.
    fn deadline_ns(&self) -> Option<u64> {
        let deadlines =
            [self.core.deadline_ns(), self.handshake_deadline_ns, self.stop_deadline_ns()];
        deadlines.into_iter().flatten().min()
    }

    /// Looks for work for a while. Returns whether there is some, or a deadline has passed.
    fn spin_until(&mut self, start_ns: u64, deadline_ns: Option<u64>) -> bool {
        let Some(limit_ns) = self.spin.limit_ns() else { return false };
        let deadline_ns = deadline_ns.unwrap_or(u64::MAX);
        let end_ns = deadline_ns.min(start_ns + limit_ns);
        loop {
            if self.try_receive() || self.kernel.has_completions() || self.commands.has_items() {
                self.shared.counters.add(RingCounter::SpinHits, 1);
                self.kernel.submit();
                return true;
            }
            let now_ns = monotonic_ns();
            if now_ns >= end_ns {
                self.shared.counters.add(RingCounter::SpinMisses, 1);
                return now_ns >= deadline_ns;
            }
            std::hint::spin_loop();
        }
    }

    /// Tries the spinning connections directly: whether one has received something.
    fn try_receive(&mut self) -> bool {
        let mut hit = false;
        let mut position = 0;
        while position < self.spinning.len() {
            let slot = self.spinning[position];
            let connection = &mut self.connections[usize::from(slot)];
            let wanted = connection.wanted;
            let (Ok(room), Some(fd)) = (connection.window.room(wanted), connection.fd.as_ref())
            else {
                // Held bytes came back and the rest can move to the start, or it is closing.
                self.spinning.swap_remove(position);
                self.connections[usize::from(slot)].spinning = false;
                self.touch(slot);
                hit = true;
                continue;
            };
            self.shared.counters.add(RingCounter::SystemCalls, 1);
            // SAFETY: the room is part of the connection's window, and no receive is in flight.
            let result = unsafe {
                libc::recv(
                    fd.as_raw_fd(),
                    self.kernel.address(room).cast(),
                    super::transmit::receive_bytes(room, wanted) as usize,
                    libc::MSG_DONTWAIT,
                )
            };
            if result < 0 {
                let error = std::io::Error::last_os_error();
                if error.kind() == std::io::ErrorKind::WouldBlock {
                    position += 1;
                    continue;
                }
            }
            hit = true;
            self.spinning.swap_remove(position);
            self.connections[usize::from(slot)].spinning = false;
            let result = match result {
                0.. => i32::try_from(result).expect("no more than the room"),
                _ => -std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
            };
            self.received(slot, result);
        }
        hit
    }

    /// Whether a connection that wants to receive is tried directly first.
    pub(super) fn spins(&self) -> bool {
        self.spinning.len() < spin::CONNECTIONS_MAX
            && self.stopping.is_none()
            && self.spin.limit_ns().is_some()
    }

    /// The ring is going to sleep: the kernel receives for those that were tried in vain.
    fn arm_spinning(&mut self) {
        while let Some(slot) = self.spinning.pop() {
            let connection = &mut self.connections[usize::from(slot)];
            connection.spinning = false;
            if connection.state == State::Transmission {
                self.push_receive(slot);
            } else {
                self.touch(slot);
            }
        }
    }

    /// Lets the read that listens for commands end, and starts no other: it would keep the table
    /// of files in use. What else completes now has nobody left who would care.
    pub(super) fn end_wake(&mut self) {
        self.shared.command_signal.ring();
        let limit_ns = monotonic_ns() + WAKE_END_NS;
        let mut last = [Completion { tag: Tag::Io, index: 0, result: 0 }];
        while monotonic_ns() < limit_ns {
            self.kernel.wait(Some(limit_ns));
            while self.kernel.harvest(&mut last) > 0 {
                if last[0].tag == Tag::Wake {
                    return;
                }
            }
        }
    }

    /// Listens for the next command.
    pub(super) fn arm_wake(&mut self) {
        let value: *mut u64 = &raw mut *self.wake_value;
        let entry = opcode::Read::new(types::Fixed(file::WAKE), value.cast(), 8).build();
        self.kernel.push(Tag::Wake, 0, entry);
    }
}
