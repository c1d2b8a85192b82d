//! One life of the engine, from a restart to the next crash: the loop that takes its place
//! between the ring's event loop and a world in which time is a number.

use crate::client;
use crate::core::Core;
use crate::faults::FaultKind;
use crate::io::Io;
use crate::memory::Lease;
use crate::request::{PendingControl, PendingRequest};
use crate::scenario::REQUESTS_MAX;
use crate::violation::{Kind, Violation};
use crate::world::World;
use ringfence_cache::{Control, Effect, Event, ExportSlot, Notice, Now, ReservePlan};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Something that happens at a moment of simulated time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Happening {
    /// An I/O ends.
    IoEnds(u32),
    /// A client wants something.
    ClientWakes(u32),
    /// The operator wants something.
    OperatorWakes,
    /// An origin is reachable again.
    OriginReturns(u8),
}

/// Turns without any event before the engine is said to spin.
const EMPTY_TURNS_MAX: u32 = 100_000;
/// Batches in a row of a client that floods.
const FLOOD_BATCHES: u32 = 4;
/// Steps that a life still has once its engine has latched.
const STEPS_WHEN_LATCHED: u64 = 200;
/// Requests in flight of an export whose origin hangs by choice, so that others have tickets too.
const HUNG_MAX: usize = 8;
/// How long the world waits for requests to end once nothing new is asked, in simulated time.
const PATIENCE_NS: u64 = 20 * 3_600_000_000_000;

/// The engine between two crashes, and everything that a crash forgets.
pub struct Life<C> {
    pub(crate) core: C,
    /// The engine's slot of each export of the scenario that this life serves.
    pub(crate) slots: Vec<Option<ExportSlot>>,
    pub(crate) plan: ReservePlan,
    queue: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    /// Keeps things of the same time in the order in which they were planned.
    planned: u64,
    pub(crate) ios: BTreeMap<u32, Io>,
    pub(crate) io_serials: u64,
    pub(crate) requests: Vec<Option<PendingRequest>>,
    pub(crate) tickets: Vec<u32>,
    pub(crate) controls: BTreeMap<u32, PendingControl>,
    pub(crate) tokens: u32,
    pub(crate) origin_away: Vec<bool>,
    /// By export: until when its origin neither answers nor fails.
    pub(crate) origin_hangs_until_ns: Vec<u64>,
    /// The I/O that begins now does not end before.
    pub(crate) hold_until_ns: u64,
    /// Whether faults may happen now.
    pub(crate) faults: bool,
    clients: bool,
    /// Whether it was told to stop.
    pub(crate) stopping: bool,
    steps: u64,
    steps_max: u64,
    empty_turns: u32,
    /// Whether something was handed to the engine since the last end of a turn.
    turn_open: bool,
    /// Where the engine's reserve is; after `core`, so that it is dropped later.
    _memory: Lease,
}

impl<C: Core> Life<C> {
    /// A life that begins with a freshly opened engine.
    pub(crate) fn new(
        core: C,
        slots: Vec<Option<ExportSlot>>,
        plan: ReservePlan,
        memory: Lease,
    ) -> Self {
        let origin_away = vec![false; slots.len()];
        let origin_hangs_until_ns = vec![0; slots.len()];
        Self {
            core,
            slots,
            plan,
            queue: BinaryHeap::new(),
            planned: 0,
            ios: BTreeMap::new(),
            io_serials: 0,
            requests: (0..REQUESTS_MAX).map(|_| None).collect(),
            tickets: (0..REQUESTS_MAX).rev().collect(),
            controls: BTreeMap::new(),
            tokens: 0,
            origin_away,
            origin_hangs_until_ns,
            hold_until_ns: 0,
            faults: false,
            clients: false,
            stopping: false,
            steps: 0,
            steps_max: u64::MAX,
            empty_turns: 0,
            turn_open: false,
            _memory: memory,
        }
    }

    /// Lets clients ask and things fail for so many steps of the engine.
    pub(crate) fn serve(&mut self, world: &mut World, steps: u64) -> Result<(), Violation> {
        self.faults = true;
        self.clients = true;
        self.steps_max = self.steps + steps;
        for client in 0..world.scenario.clients {
            let at = world.now_ns + world.random.below(world.scenario.mix.pause_ns_max);
            self.plan_at(at, Happening::ClientWakes(client));
        }
        let operator = world.now_ns + world.random.magnitude(1_000_000, 20_000_000_000);
        self.plan_at(operator, Happening::OperatorWakes);
        while self.steps < self.steps_max {
            if !self.turn(world)? {
                return Err(Violation::new(Kind::Stuck, "nothing will ever happen".into()));
            }
            world.probe_if_due::<C>()?;
        }
        self.steps_max = u64::MAX;
        self.clients = false;
        Ok(())
    }

    /// Lets time pass until `done`, with nothing new being asked by clients.
    pub(crate) fn wait_until(
        &mut self,
        world: &mut World,
        done: impl Fn(&Self) -> bool,
        what: &str,
    ) -> Result<(), Violation> {
        self.clients = false;
        let limit = world.now_ns + PATIENCE_NS;
        while !done(self) {
            if !self.turn(world)? || world.now_ns > limit {
                return Err(Violation::new(Kind::Stuck, format!("{what}; {}", self.waiting())));
            }
        }
        Ok(())
    }

    /// Ends [`Self::probe_until`] after so many events of the engine.
    pub(crate) fn end_after(&mut self, steps: u64) {
        self.steps_max = self.steps + steps;
    }

    /// The same, but crashes are tried meanwhile. False where the life is over before.
    pub(crate) fn probe_until(
        &mut self,
        world: &mut World,
        done: impl Fn(&Self) -> bool,
        what: &str,
    ) -> Result<bool, Violation> {
        let limit = world.now_ns + PATIENCE_NS;
        while !done(self) {
            if self.steps >= self.steps_max {
                return Ok(false);
            }
            if !self.turn(world)? || world.now_ns > limit {
                return Err(Violation::new(Kind::Stuck, format!("{what}; {}", self.waiting())));
            }
            world.probe_if_due::<C>()?;
        }
        Ok(true)
    }

    /// Lets so much time pass.
    pub(crate) fn pass(&mut self, world: &mut World, ns: u64) -> Result<(), Violation> {
        let until_ns = world.now_ns + ns;
        // A wake-up of nobody keeps the clock from jumping further.
        self.plan_at(until_ns, Happening::OperatorWakes);
        while world.now_ns < until_ns && self.turn(world)? {}
        Ok(())
    }

    /// Whether every request has been answered.
    pub(crate) fn is_quiet(&self) -> bool {
        self.tickets.len() == self.requests.len()
    }

    fn waiting(&self) -> String {
        let requests: Vec<_> = self.requests.iter().flatten().collect();
        let ios: Vec<_> = self.ios.values().collect();
        format!("requests that wait: {requests:?}; I/Os in flight: {ios:?}; {:?}", self.controls)
    }

    /// Plans something.
    pub(crate) fn plan_at(&mut self, at_ns: u64, happening: Happening) {
        self.planned += 1;
        self.queue.push(Reverse((at_ns, self.planned, happening)));
    }

    /// Lets time pass to the next thing that happens; where every crash is tried, here.
    fn turn(&mut self, world: &mut World) -> Result<bool, Violation> {
        let goes_on = self.advance(world)?;
        world.exhaust_if_due::<C>()?;
        Ok(goes_on)
    }

    /// Lets time pass to the next thing that happens, and a little further. False when nothing
    /// ever will.
    fn advance(&mut self, world: &mut World) -> Result<bool, Violation> {
        if self.turn_open {
            self.step(world, Event::EndOfTurn)?;
            return Ok(true);
        }
        let planned_ns = self.queue.peek().map(|Reverse((at_ns, ..))| *at_ns);
        let deadline_ns = self.core.deadline_ns();
        let Some(next_ns) = planned_ns.into_iter().chain(deadline_ns).min() else {
            return Ok(false);
        };
        world.now_ns = world.now_ns.max(next_ns);
        let limit_ns = world.now_ns + world.random.below(world.scenario.turn_ns + 1);
        self.empty_turns += 1;
        while let Some(&Reverse((at_ns, _, happening))) = self.queue.peek() {
            if at_ns > limit_ns {
                break;
            }
            self.queue.pop();
            self.empty_turns = 0;
            world.now_ns = world.now_ns.max(at_ns);
            self.happen(world, happening)?;
            if self.steps >= self.steps_max {
                return Ok(true);
            }
        }
        if self.empty_turns > EMPTY_TURNS_MAX {
            return Err(Violation::new(Kind::Stuck, format!("it spins; {}", self.waiting())));
        }
        self.step(world, Event::EndOfTurn)?;
        Ok(true)
    }

    fn happen(&mut self, world: &mut World, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::IoEnds(io) => self.end_io(world, io),
            Happening::ClientWakes(client) => self.wake_client(world, client),
            Happening::OperatorWakes => self.wake_operator(world),
            Happening::OriginReturns(export) => {
                world.trace.line(world.now_ns, || format!("origin {export} is back"));
                self.origin_away[usize::from(export)] = false;
                Ok(())
            }
        }
    }

    fn wake_client(&mut self, world: &mut World, client: u32) -> Result<(), Violation> {
        if !self.clients {
            return Ok(());
        }
        let faults = world.scenario.faults;
        let floods = world.random.chance(faults.flood);
        let batches = if floods { FLOOD_BATCHES } else { 1 };
        for _ in 0..batches {
            let most = if floods { u64::from(REQUESTS_MAX) } else { world.scenario.batch_max };
            let least = if floods { most } else { 1 };
            for _ in 0..world.random.between(least, most) {
                let Some(ticket) = self.tickets.pop() else { break };
                let wish = client::draw(&world.scenario, &mut world.random);
                if world.hung == Some(wish.export) && self.requests_of(wish.export) >= HUNG_MAX {
                    self.tickets.push(ticket);
                    continue;
                }
                self.submit(world, ticket, Some(client), wish)?;
                if self.steps >= self.steps_max {
                    return Ok(());
                }
            }
        }
        if floods {
            world.tally.faults.count(FaultKind::Flood);
        }
        if world.random.chance(faults.disconnect) {
            self.disconnect_client(world, client)?;
        }
        let pause_ns = world.random.magnitude(100, world.scenario.mix.pause_ns_max);
        self.plan_at(world.now_ns + pause_ns, Happening::ClientWakes(client));
        Ok(())
    }

    fn wake_operator(&mut self, world: &mut World) -> Result<(), Violation> {
        if !self.clients {
            return Ok(());
        }
        let mut served = self.slots.iter().flatten();
        let slot = *served.nth(world.random.index(served.clone().count())).expect("one of them");
        let action = match world.random.below(3) {
            0 => Control::Flush,
            1 => Control::Drain(None),
            _ => Control::Drain(Some(slot)),
        };
        self.control(world, action)?;
        let pause_ns = world.random.magnitude(1_000_000, 20_000_000_000);
        self.plan_at(world.now_ns + pause_ns, Happening::OperatorWakes);
        Ok(())
    }

    /// Hands one event to the engine and does what it asks for.
    pub(crate) fn step(&mut self, world: &mut World, event: Event) -> Result<(), Violation> {
        self.steps += 1;
        world.tally.steps += 1;
        world.trace.mix(world.now_ns);
        self.turn_open = event != Event::EndOfTurn;
        let tier_hits = self.core.tier_hits();
        self.core.step(event, now(world));
        world.tally.tier_hits += self.core.tier_hits() - tier_hits;
        while let Some(effect) = self.core.next_effect() {
            self.execute(world, effect)?;
        }
        self.core.check_invariants();
        Ok(())
    }

    fn execute(&mut self, world: &mut World, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::DeviceRead { io, offset, buffer } => {
                self.device_read(world, io, offset, buffer)
            }
            Effect::DeviceWrite { io, offset, buffer } => {
                self.device_write(world, io, offset, buffer)
            }
            Effect::DeviceFlush { io } => self.device_flush(world, io),
            Effect::OriginRead { io, export, offset, buffer } => {
                self.origin_read(world, io, export, offset, buffer)
            }
            Effect::OriginWrite { io, export, offset, buffer } => {
                self.origin_write(world, io, export, offset, buffer)
            }
            Effect::OriginZero { io, export, offset, length, .. } => {
                self.origin_zero(world, io, export, offset, length)
            }
            Effect::OriginFlush { io, export } => self.origin_flush(world, io, export),
            Effect::Consumed { ticket } => self.consumed(world, ticket),
            Effect::Pieces { ticket } => self.pieces_ready(world, ticket),
            Effect::Complete { ticket, result } => self.complete(world, ticket, result),
            Effect::ControlDone { token, result } => self.control_done(world, token, result),
            Effect::Notice(notice) => {
                world.trace.line(world.now_ns, || format!("notice: {notice:?}"));
                if matches!(notice, Notice::Latched { .. }) && self.clients {
                    // From here on every write fails: a little of that is enough.
                    self.steps_max = self.steps_max.min(self.steps + STEPS_WHEN_LATCHED);
                }
                Ok(())
            }
        }
    }
}

/// The time as the engine is told it.
pub(crate) fn now(world: &World) -> Now {
    // Any date will do: wall-clock time is shown, never relied on.
    Now { monotonic_ns: world.now_ns, wall_ns: 1_700_000_000_000_000_000 + world.now_ns }
}
