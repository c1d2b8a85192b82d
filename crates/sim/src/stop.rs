//! How an operator stops the engine: mostly with nothing in flight and nothing that fails, in some
//! worlds in the midst of everything, and not always to its end.

use crate::client::{Wish, WishKind};
use crate::core::Core;
use crate::faults::FaultKind;
use crate::life::Life;
use crate::random::Random;
use crate::violation::Violation;
use crate::world::{End, World};
use ringfence_cache::Control;
use ringfence_cache::units::BLOCK_BYTES_U64;

/// What stops are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stops {
    /// Nothing is in flight, nothing fails, and each comes to its end.
    #[default]
    Orderly,
    /// A write is not durable yet, what fails may do so then, too; and one more life ends so.
    Failing,
    /// Requests may be in flight, I/Os may fail, and the power or the process may be gone before
    /// the end.
    Rough,
}

/// Events of the engine after which a stop that comes to no end is cut short, at most.
const EVENTS_MAX: u64 = 64;

impl World {
    /// Stops a life. Returns how it has ended, which need not be as the operator wanted.
    pub(crate) fn end_by_stop<C: Core>(&mut self, life: &mut Life<C>) -> Result<End, Violation> {
        match self.scenario.stops {
            Stops::Orderly => {
                life.faults = false;
                life.origin_away.fill(false);
            }
            Stops::Failing => {
                life.wait_until(self, Life::is_quiet, "requests do not end")?;
                // So that something is left to be done.
                let ticket = life.tickets.pop().expect("a free ticket");
                let kind = WishKind::Write { fua: false };
                let wish = Wish { export: 0, kind, offset: 0, length: BLOCK_BYTES_U64 };
                life.submit(self, ticket, None, wish)?;
                return self.stop_now(life).map(|()| End::Stop);
            }
            Stops::Rough => {
                let mut random = self.stop_random.fork();
                return self.stop_roughly(life, &mut random);
            }
        }
        self.stop(life)?;
        Ok(End::Stop)
    }

    /// Stops the engine in good order.
    pub(crate) fn stop<C: Core>(&mut self, life: &mut Life<C>) -> Result<(), Violation> {
        life.wait_until(self, Life::is_quiet, "requests do not end")?;
        self.stop_now(life)
    }

    fn stop_now<C: Core>(&mut self, life: &mut Life<C>) -> Result<(), Violation> {
        let token = life.control(self, Control::Stop)?;
        let done = |life: &Life<C>| !life.controls.contains_key(&token);
        life.wait_until(self, done, "a stop does not end")
    }

    /// Stops the engine whatever it is doing; crashes are tried meanwhile.
    fn stop_roughly<C: Core>(
        &mut self,
        life: &mut Life<C>,
        random: &mut Random,
    ) -> Result<End, Violation> {
        if random.percent(50) {
            life.faults = false;
            life.origin_away.fill(false);
        }
        if random.percent(30) {
            life.wait_until(self, Life::is_quiet, "requests do not end")?;
        } else if random.percent(50) {
            // What the daemon does once its patience has ended.
            for client in 0..self.scenario.clients {
                life.disconnect_client(self, client)?;
            }
        }
        if !life.is_quiet() {
            self.tally.faults.count(FaultKind::StopInMidst);
        }
        if random.percent(50) {
            life.end_after(random.magnitude(1, EVENTS_MAX));
        }
        self.pay_attention();
        let token = life.control(self, Control::Stop)?;
        let done = |life: &Life<C>| !life.controls.contains_key(&token);
        let has_stopped = life.probe_until(self, done, "a stop does not end")?;
        if !has_stopped {
            self.tally.faults.count(FaultKind::StopCutShort);
        }
        Ok(if has_stopped && random.percent(50) {
            End::Stop
        } else if !has_stopped && random.percent(30) {
            End::Kill
        } else {
            End::PowerCut
        })
    }
}
