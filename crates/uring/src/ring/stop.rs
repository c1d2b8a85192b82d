//! The orderly end: no new connections, requests that have arrived finish, the log is flushed.

use super::{Ending, Ring};
use crate::connection::State;
use crate::core::Core;
use crate::shared::STOP_TOKEN;
use ringfence_cache::{Control, Event, RequestError};

/// How often a TCP connection is asked whether its client's machine has everything.
const DELIVERY_LOOK_NS: u64 = 2_000_000;

/// ```text
///  Requests ──all connections gone──▶ Engine ──ControlDone──▶ Ended
///      └─────── limit passed ───────▶    └──── limit passed ────▶
/// ```
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// What has been received is served; nothing more is received.
    Requests,
    /// The engine does its last flush.
    Engine,
    /// Nothing is left to do.
    Ended(Result<(), &'static str>),
}

/// How far the end has come.
#[derive(Clone, Copy, Debug)]
pub struct Stopping {
    phase: Phase,
    limit_ns: u64,
    deadline_ns: u64,
}

impl<C: Core> Ring<C> {
    pub(super) fn begin_stopping(&mut self, limit_ns: u64) {
        if self.stopping.is_some() {
            return;
        }
        let deadline_ns = self.now.monotonic_ns.saturating_add(limit_ns);
        self.stopping = Some(Stopping { phase: Phase::Requests, limit_ns, deadline_ns });
        self.close_listeners();
        for index in 0..self.connections.len() {
            match self.connections[index].state {
                State::Handshake => self.begin_closing(index as u16, "the server is stopping"),
                State::Transmission => self.make_runnable(index as u16),
                _ => {}
            }
        }
    }

    /// When the phase ends even if nothing happens, or is to be looked at again.
    pub(super) fn stop_deadline_ns(&self) -> Option<u64> {
        let stopping = self.stopping.as_ref()?;
        let looks = matches!(stopping.phase, Phase::Requests)
            && self.connections.iter().any(|connection| connection.may_deliver());
        let look_ns = self.now.monotonic_ns + DELIVERY_LOOK_NS;
        Some(if looks { look_ns.min(stopping.deadline_ns) } else { stopping.deadline_ns })
    }

    pub(super) fn advance_stop(&mut self) {
        let Some(stopping) = self.stopping else { return };
        let late = self.now.monotonic_ns >= stopping.deadline_ns;
        match stopping.phase {
            Phase::Requests => {
                self.close_what_is_delivered();
                let open = |state| !matches!(state, State::Free | State::Closed);
                let any_open = self.connections.iter().any(|connection| open(connection.state));
                if late {
                    for slot in 0..self.connections.len() {
                        self.begin_closing(slot as u16, "the server stopped");
                    }
                }
                if late || !any_open {
                    let deadline_ns = self.now.monotonic_ns.saturating_add(stopping.limit_ns);
                    let phase = Phase::Engine;
                    self.stopping = Some(Stopping { phase, deadline_ns, ..stopping });
                    self.feed(Event::Control { token: STOP_TOKEN, action: Control::Stop });
                    self.feed(Event::EndOfTurn);
                }
            }
            Phase::Engine if late => self.stop_ended(Err("the last flush did not end in time")),
            Phase::Engine | Phase::Ended(_) => {}
        }
    }

    /// Looks at connections whose last answer may have arrived by now: nobody tells.
    fn close_what_is_delivered(&mut self) {
        for slot in 0..self.connections.len() {
            if self.connections[slot].may_deliver() {
                self.touch(slot as u16);
            }
        }
        self.serve_touched();
    }

    pub(super) fn engine_stopped(&mut self, result: Result<(), RequestError>) {
        let flushed = result.map_err(|_| "the last flush failed: see the log for what failed");
        self.stop_ended(flushed);
    }

    fn stop_ended(&mut self, result: Result<(), &'static str>) {
        if let Some(stopping) = &mut self.stopping {
            stopping.phase = Phase::Ended(result);
        }
    }

    /// How it ended, if it has: the engine has stopped, and the kernel has nothing of ours any
    /// more, or does not give it back.
    pub(super) fn ended(&mut self) -> Option<Ending> {
        let stopping = self.stopping?;
        let Phase::Ended(flushed) = stopping.phase else { return None };
        let late = self.now.monotonic_ns >= stopping.deadline_ns;
        let busy = self.ios.in_flight() > 0
            || self.listeners.any_armed()
            || self.connections.iter().any(crate::connection::Connection::is_busy);
        if busy && !late {
            return None;
        }
        if busy {
            // The kernel may still write into the reserve: it stays mapped until the process ends.
            std::mem::forget(self.shared.mapping.clone());
            self.ios.leave_zeroes_mapped();
        }
        Some(Ending { flushed, stuck: busy })
    }
}
