//! One world: lives of the engine and the crashes between them, from one seed.

use crate::checker::{Checker, Contents, Loss, OriginLedger, Resolution};
use crate::client::{Wish, WishKind};
use crate::content::{self, UNREADABLE, Value, ZEROES};
use crate::copies::CopyFault;
use crate::core::Core;
use crate::damage::Damage;
use crate::device::{BlockingDevice, PowerCut, SimDevice, Survival};
use crate::excuse::Excuses;
use crate::faults::{FaultCounts, FaultKind};
use crate::life::{Life, now};
use crate::memory::{Lease, Memory};
use crate::origin::SimOrigin;
use crate::random::Random;
use crate::request::RECEIVE_BYTES;
use crate::scenario::{REQUESTS_MAX, Scenario};
use crate::shared::Shared;
use crate::stop::Stops;
use crate::trace::{Sink, Trace};
use crate::violation::{Kind, Violation};
use ringfence_cache::limits::SEGMENT_BYTES_MIN;
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{
    Config, Control, ExportOptions, FormatOptions, OpenError, OpenedExport, ReservePlan,
    ReserveShape,
};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

/// Power cuts in a row during one restart at most, so that a world ends.
const CUTS_IN_RECOVERY_MAX: u32 = 6;

/// Writes and flushes of a restart, about as many as there ever are.
const CHANGES_IN_RECOVERY_MAX: u64 = 16;

/// What happened, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Crashes after which the cache was opened again and read.
    pub crash_points: u64,
    /// Those of them behind which nothing was gone, explained or not, and everything could be read.
    pub points_without_loss: u64,
    /// Requests of clients.
    pub operations: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Events handed to the engine.
    pub steps: u64,
    /// I/Os of serving lives that could have failed.
    pub ios: u64,
    /// Those of them that the engine asked for once it was to stop.
    pub stop_ios: u64,
    /// Device operations of restarts.
    pub recovery_ios: u64,
    /// Bytes that the engine has written to the cache device while serving.
    pub device_bytes: u64,
    /// The same, in sizes of the device: how often the log was filled.
    pub laps: u64,
    /// Blocks of reads that the engine's memory tier had.
    pub tier_hits: u64,
    /// Answers that a process was killed after, and that had to outlive it.
    pub kept_answers: u64,
    /// What went wrong.
    pub faults: FaultCounts,
}

impl Tally {
    /// Adds another tally to this one.
    pub fn add(&mut self, other: &Self) {
        self.crash_points += other.crash_points;
        self.points_without_loss += other.points_without_loss;
        self.operations += other.operations;
        self.errors += other.errors;
        self.steps += other.steps;
        self.ios += other.ios;
        self.stop_ios += other.stop_ios;
        self.recovery_ios += other.recovery_ios;
        self.device_bytes += other.device_bytes;
        self.laps += other.laps;
        self.tier_hits += other.tier_hits;
        self.kept_answers += other.kept_answers;
        self.faults.add(&other.faults);
    }
}

/// A freshly opened engine and the memory it works in.
pub(crate) struct Opened<C> {
    pub(crate) core: C,
    pub(crate) plan: ReservePlan,
    pub(crate) memory: Lease,
    pub(crate) exports: Vec<OpenedExport>,
}

/// What reading everything after a restart has shown.
pub(crate) enum Restart {
    /// All that was durable.
    Whole(Resolution),
    /// That damage took something, as this says. The contents are kept for [`World::begin`].
    BehindLoss(Violation),
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The power fails.
    PowerCut,
    /// The process is killed; what it had submitted may still happen.
    Kill,
    /// An operator stops it.
    Stop,
}

/// Everything that outlives the engine. A clone is a world of its own with the same past.
#[derive(Clone)]
pub struct World {
    pub(crate) scenario: Rc<Scenario>,
    pub(crate) device: SimDevice,
    pub(crate) origins: Vec<Shared<SimOrigin>>,
    pub(crate) checker: Shared<Checker>,
    pub(crate) random: Random,
    /// Decides about stops, so that the worlds of seeds that once failed stay what they were.
    pub(crate) stop_random: Random,
    pub(crate) now_ns: u64,
    pub(crate) trace: Trace,
    pub(crate) tally: Tally,
    /// What the reads after a restart have returned.
    pub(crate) contents: Contents,
    /// What explains errors until the next restart.
    pub(crate) excuses: Excuses,
    /// Whether wrong bits explain data that is gone from now on.
    pub(crate) rotten: bool,
    /// What the cache device has damaged quietly.
    pub(crate) damage: Shared<Damage>,
    /// The first sequence of a loss that the last start named and the operator accepted.
    pub(crate) accepted_loss: Option<u64>,
    /// What damage took from the log, by the starts that found it.
    pub(crate) losses: Vec<Loss>,
    /// Whether the last start found one.
    pub(crate) is_loss_new: bool,
    /// Which origin hangs by choice; nothing else does.
    pub(crate) hung: Option<u8>,
    /// The longest that a request of another export took while it did.
    pub(crate) longest_beside_ns: u64,
    /// Requests of other exports that were answered while it did.
    pub(crate) answered_beside: u64,
    /// Whether every crash is tried whenever the device's unflushed writes have changed.
    pub(crate) exhausting: bool,
    /// The last moment of the device and of the history for which that has been done.
    pub(crate) exhausted: Option<(usize, u64, u64)>,
    /// Turns for which crashes are tried more often: the log's structure is being written.
    pub(crate) attention: u32,
    memory: Memory,
}

impl World {
    /// The world of a scenario, before the cache device is formatted.
    #[must_use]
    pub fn new(scenario: Scenario, sink: Sink) -> Self {
        let units = |export: &crate::scenario::ExportScenario| {
            usize::try_from(export.size_bytes() / scenario.unit_bytes).expect("a small export")
        };
        let shapes: Vec<_> =
            scenario.exports.iter().map(|export| (units(export), export.starts_empty)).collect();
        let checker = Shared::new(Checker::new(&shapes));
        let origins = scenario
            .exports
            .iter()
            .zip(0u8..)
            .map(|(export, index)| {
                let strict = scenario.is_strict(export);
                let ledger = OriginLedger::new(index, units(export), strict);
                // The checker numbers the initial contents from one, in order.
                let initial = if export.starts_empty { ZEROES } else { u32::from(index) + 1 };
                Shared::new(SimOrigin::new(ledger, units(export), initial))
            })
            .collect();
        Self {
            device: SimDevice::new(scenario.device_bytes),
            origins,
            checker,
            random: Random::new(scenario.seed ^ 0x5eed),
            stop_random: Random::new(scenario.seed ^ 0x5709),
            now_ns: 1_000_000_000,
            trace: Trace::new(sink),
            tally: Tally::default(),
            contents: Vec::new(),
            excuses: Excuses::default(),
            rotten: false,
            damage: Shared::new(Damage::default()),
            accepted_loss: None,
            losses: Vec::new(),
            is_loss_new: false,
            hung: None,
            longest_beside_ns: 0,
            answered_beside: 0,
            exhausting: false,
            exhausted: None,
            attention: 0,
            memory: Memory::default(),
            scenario: Rc::new(scenario),
        }
    }

    /// Lives through the whole scenario.
    ///
    /// # Errors
    /// The first thing that must hold and does not.
    pub fn run<C: Core>(&mut self) -> Result<(), Violation> {
        let result = match self.live::<C>() {
            Err(violation) if violation.kind == Kind::Explained => Ok(()),
            result => result,
        };
        self.tally.laps = self.tally.device_bytes / self.scenario.device_bytes;
        result
    }

    /// Writes an empty cache to the device.
    pub(crate) fn format<C: Core>(&mut self) -> Result<(), Violation> {
        let options = FormatOptions {
            uuid: [7; 16],
            secret: self.random.word().to_le_bytes().repeat(2).try_into().expect("16 bytes"),
            segment_bytes: SEGMENT_BYTES_MIN,
        };
        let mut storage = BlockingDevice::new(&mut self.device, None);
        C::format(&mut storage, &options).map_err(|error| Violation::new(Kind::OpenRefused, error))
    }

    fn live<C: Core>(&mut self) -> Result<(), Violation> {
        if self.scenario.formatted_before {
            self.live_before::<C>()?;
        }
        self.format::<C>()?;
        if self.scenario.faults.device_stale > 0 {
            self.device.keep_earlier();
        }
        let mut life = self.open::<C>(false)?;
        for _ in 0..self.scenario.lives {
            if self.scenario.moods_change {
                Rc::make_mut(&mut self.scenario).draw_mood(&mut self.random);
            }
            let most = self.scenario.steps_max;
            let steps = if self.scenario.churns { most } else { self.random.magnitude(1, most) };
            life.serve(self, steps)?;
            let end = self.draw_end();
            life = self.end_life(life, end)?;
        }
        if self.scenario.stops == Stops::Failing {
            let steps = self.scenario.steps_max / 4;
            life.serve(self, steps)?;
            life = self.end_life(life, End::Stop)?;
        }
        self.finish(life)
    }

    fn draw_end(&mut self) -> End {
        let faults = self.scenario.faults;
        if self.random.percent(faults.stop_percent) {
            End::Stop
        } else if self.random.percent(faults.kill_percent) {
            End::Kill
        } else {
            End::PowerCut
        }
    }

    /// Ends a life, restarts, and checks what is left.
    fn end_life<C: Core>(&mut self, mut life: Life<C>, end: End) -> Result<Life<C>, Violation> {
        self.trace.line(self.now_ns, || format!("---- the life ends: {end:?}"));
        let end = if end == End::Stop { self.end_by_stop(&mut life)? } else { end };
        drop(life);
        self.crash(end)?;
        let cuts = self.random.percent(self.scenario.faults.cut_in_recovery_percent);
        let mut life = self.open::<C>(cuts)?;
        // Damage is judged by what the next restart shows, before anything is built on it.
        let verifies = self.random.percent(self.scenario.faults.verify_percent);
        if verifies || self.damage.any() {
            self.verify(&mut life)?;
        }
        Ok(life)
    }

    /// Everything volatile is gone.
    pub(crate) fn crash(&mut self, end: End) -> Result<(), Violation> {
        self.crash_device(end);
        self.crash_around(end)
    }

    /// What a crash does to the cache device.
    pub(crate) fn crash_device(&mut self, end: End) {
        let mut left = Survival::default();
        match end {
            End::PowerCut => {
                left = self.device.power_cut(&mut self.random);
                self.tally.faults.count(FaultKind::PowerCut);
                if left.torn > 0 {
                    self.tally.faults.count(FaultKind::TornWrite);
                }
            }
            End::Kill | End::Stop => self.device.abandon_in_flight(&mut self.random),
        }
        if end == End::Kill {
            self.tally.faults.count(FaultKind::Kill);
        }
        self.trace.line(self.now_ns, || format!("{end:?}: {left}"));
    }

    /// What a crash does to everything but the cache device.
    pub(crate) fn crash_around(&mut self, end: End) -> Result<(), Violation> {
        self.check_origins()?;
        for (origin, export) in self.origins.iter_mut().zip(&self.scenario.exports) {
            if end == End::PowerCut && export.shares_power {
                origin.power_cut(&mut self.random);
            } else {
                origin.abandon_in_flight(&mut self.random);
            }
        }
        if end == End::PowerCut {
            self.checker.crash();
        } else {
            self.tally.kept_answers += self.checker.kill();
        }
        let moment = self.checker.history.now();
        self.trace.line(self.now_ns, || format!("@{moment} {end:?}"));
        self.check_origins()
    }

    /// Whatever is left of the origins at this moment is a disk that could have existed.
    fn check_origins(&self) -> Result<(), Violation> {
        self.origins.iter().try_for_each(|origin| origin.check_now(&self.checker))
    }

    /// The process is killed.
    pub(crate) fn kill(&mut self) -> Result<(), Violation> {
        self.crash(End::Kill)
    }

    /// Opens the cache; with `cuts`, the power may fail while it is being opened.
    pub(crate) fn open<C: Core>(&mut self, cuts: bool) -> Result<Life<C>, Violation> {
        if self.scenario.lives_differ {
            Rc::make_mut(&mut self.scenario).draw_settings(&mut self.random);
            self.tally.faults.count(FaultKind::OtherSettings);
        }
        let mut cuts_left = if cuts { CUTS_IN_RECOVERY_MAX } else { 0 };
        let mut has_been_cut = false;
        self.accepted_loss = None;
        let copy_fault = self.draw_copy_fault();
        let mut lost_copy = copy_fault;
        loop {
            // Down time: a restart is never at once.
            self.now_ns += 1_000_000;
            let cut_after =
                (cuts_left > 0).then(|| self.random.magnitude(1, CHANGES_IN_RECOVERY_MAX) - 1);
            cuts_left = cuts_left.saturating_sub(1);
            let failing = self.failing_operations();
            let options: Vec<_> =
                self.scenario.served().map(|(_, export)| export.options.clone()).collect();
            let opened = self.try_open::<C>(&options, cut_after, failing.clone(), lost_copy.take());
            let Opened { core, plan, memory, exports } = match opened {
                Err(_) => {
                    let again = std::mem::replace(&mut has_been_cut, true);
                    let kind =
                        if again { FaultKind::RepeatedCut } else { FaultKind::CutInRecovery };
                    self.tally.faults.count(kind);
                    if self.checker.history.counts_on_power() {
                        self.checker.lose_power();
                    }
                    let left = self.device.power_cut(&mut self.random);
                    self.trace.line(self.now_ns, || format!("power cut in recovery: {left}"));
                    continue;
                }
                Ok(Err(error)) if is_explained_by(&failing, &error) => {
                    // The documented error; a device that works again must do.
                    self.trace.line(self.now_ns, || error.to_string());
                    continue;
                }
                Ok(Err(
                    error @ (OpenError::ReadOnlyDirty { .. }
                    | OpenError::OriginOwed { .. }
                    | OpenError::IndexTooSmall { .. }),
                )) if self.scenario.lives_differ => {
                    // The documented errors; the operator takes back what they name.
                    self.trace.line(self.now_ns, || error.to_string());
                    self.tally.faults.count(FaultKind::SettingsRefused);
                    let owed = match &error {
                        OpenError::OriginOwed { owed, .. } => Some(&owed[..]),
                        _ => None,
                    };
                    Rc::make_mut(&mut self.scenario).serve_all(owed);
                    continue;
                }
                Ok(Err(OpenError::DurableDamaged { first, .. }))
                    if self.damage.hit(first) && self.accepted_loss.is_none() =>
                {
                    // The documented error; the operator accepts the loss that it names.
                    self.trace.line(self.now_ns, || format!("refused: {first} on are damaged"));
                    self.accepted_loss = Some(first);
                    continue;
                }
                Ok(Err(error)) => return Err(Violation::new(Kind::OpenRefused, error.to_string())),
                Ok(Ok(parts)) => parts,
            };
            core.check_invariants();
            self.check_copies(copy_fault)?;
            self.excuses = Excuses::default();
            if self.scenario.serves_a_part() {
                self.tally.faults.count(FaultKind::ExportLeftOut);
            }
            // Before the new life writes records of its own with the same numbers.
            self.note_loss();
            let slots = self.scenario.exports.iter().map(|export| {
                let name = &export.options.name;
                let found = exports.iter().find(|opened| opened.name == *name);
                if found.is_none() != export.is_absent {
                    let detail = format!("export {name} was opened: {}", found.is_some());
                    return Err(Violation::new(Kind::Contract, detail));
                }
                Ok(found.map(|opened| opened.slot))
            });
            let slots = slots.collect::<Result<Vec<_>, _>>()?;
            return Ok(Life::new(core, slots, plan, memory));
        }
    }

    /// Opens the cache with the power failing in the write or flush after `cut_after` others.
    /// Whether there were so many.
    pub(crate) fn is_cut_while_opening<C: Core>(
        &mut self,
        cut_after: u64,
    ) -> Result<bool, Violation> {
        let options: Vec<_> =
            self.scenario.served().map(|(_, export)| export.options.clone()).collect();
        match self.try_open::<C>(&options, Some(cut_after), 0..0, None) {
            Err(PowerCut) => {
                self.checker.lose_power();
                self.tally.faults.count(FaultKind::CutInRecovery);
                Ok(true)
            }
            Ok(Ok(_)) => Ok(false),
            Ok(Err(error)) => Err(Violation::new(Kind::OpenRefused, error.to_string())),
        }
    }

    /// Opens the cache once. The outer error is a power cut.
    pub(crate) fn try_open<C: Core>(
        &mut self,
        options: &[ExportOptions],
        cut_after: Option<u64>,
        failing: Range<u64>,
        copy_fault: Option<CopyFault>,
    ) -> Result<Result<Opened<C>, OpenError>, PowerCut> {
        let plan = self.reserve_plan();
        let mut memory = self.memory.lease(plan.total_bytes());
        // SAFETY: the engine that owns the reserve is dropped before the lease: `Life` keeps them
        // in this order, and so does a failed or unwinding `open`.
        let reserve = unsafe { memory.reserve() };
        let accept_loss = self.accepted_loss.is_some();
        let config = Config { accept_loss, ..self.scenario.config.clone() };
        let now = now(self);
        let mut storage = BlockingDevice::new(&mut self.device, cut_after);
        storage.fail(failing);
        if let Some(CopyFault::LostWrite(before)) = copy_fault {
            storage.lose(before);
        }
        let opening =
            AssertUnwindSafe(|| C::open(&mut storage, reserve, plan, options, config, now));
        let opened = match catch_unwind(opening) {
            Ok(Ok((core, exports))) => Ok(Ok(Opened { core, plan, memory, exports })),
            Ok(Err(error)) => Ok(Err(error)),
            Err(payload) => Err(*payload.downcast::<PowerCut>().unwrap_or_else(|other| {
                // A panic of the engine, not a cut.
                resume_unwind(other)
            })),
        };
        let (operations, has_lost) = (storage.operations(), storage.has_lost());
        self.tally.recovery_ios += operations;
        self.trace.line(self.now_ns, || format!("opened with {operations} device operations"));
        if has_lost {
            self.tally.faults.count(FaultKind::CopyLost);
            self.trace.line(self.now_ns, || format!("a copy is lost: {copy_fault:?}"));
        }
        opened
    }

    /// Whether the next I/O is the one that fails by choice.
    pub(crate) fn is_chosen_to_fail(&mut self) -> bool {
        self.tally.ios += 1;
        self.scenario.chosen_failure.is_some_and(|chosen| {
            let due = if chosen.for_ever {
                self.tally.ios >= chosen.first
            } else {
                self.tally.ios == chosen.first
            };
            due && !chosen.in_recovery
        })
    }

    /// The device operations of the restart that begins now that fail by choice.
    fn failing_operations(&self) -> Range<u64> {
        let Some(chosen) = self.scenario.chosen_failure.filter(|chosen| chosen.in_recovery) else {
            return 0..0;
        };
        // Once it has happened, the device works again: the next restart has no such failure.
        let Some(first) = chosen.first.checked_sub(self.tally.recovery_ios + 1) else {
            return 0..0;
        };
        first..if chosen.for_ever { u64::MAX } else { first + 1 }
    }

    fn reserve_plan(&self) -> ReservePlan {
        let receive_bytes = u64::from(REQUESTS_MAX) * u64::from(RECEIVE_BYTES);
        let shape = ReserveShape {
            reserve_bytes: 0,
            receive_bytes,
            segment_bytes: SEGMENT_BYTES_MIN,
            exports: self.scenario.served().count(),
            memory_tier_bytes: self.scenario.memory_tier_blocks * BLOCK_BYTES_U64,
        };
        let least = ReservePlan::new(&shape);
        let least_bytes = least.expect_err("no reserve is too small").needed_bytes;
        let extra_bytes = self.scenario.extra_log_segments * SEGMENT_BYTES_MIN;
        ReservePlan::new(&ReserveShape {
            reserve_bytes: least_bytes + extra_bytes + shape.memory_tier_bytes,
            ..shape
        })
        .expect("enough for the least")
    }

    /// Reads everything and checks it against what clients were told.
    pub(crate) fn verify<C: Core>(&mut self, life: &mut Life<C>) -> Result<(), Violation> {
        let restart = self.check_restart(life)?;
        self.begin(restart)
    }

    /// Makes a checked restart the new beginning.
    ///
    /// # Errors
    /// The world ends behind a loss that no mere crash could have been.
    pub(crate) fn begin(&mut self, restart: Restart) -> Result<(), Violation> {
        let resolution = match restart {
            Restart::Whole(resolution) => resolution,
            Restart::BehindLoss(explained) => self.outlive().ok_or(explained)?,
        };
        self.narrow_losses(&resolution);
        self.checker.resolve(&resolution);
        Ok(())
    }

    /// Reads everything and checks it, without making it the new beginning.
    pub(crate) fn check_restart<C: Core>(
        &mut self,
        life: &mut Life<C>,
    ) -> Result<Restart, Violation> {
        self.tally.crash_points += 1;
        self.read_everything(life).map_err(|violation| self.explain(violation))?;
        self.check_readable()?;
        for value in self.contents.iter().flatten() {
            self.trace.mix(u64::from(*value));
        }
        let is_readable = !self.contents.iter().flatten().any(|value| *value == UNREADABLE);
        // Only where damage may explain something they are needed once more.
        let kept = self.damage.any().then(|| self.contents.clone());
        let contents = std::mem::take(&mut self.contents);
        let checked = match self.accepted_loss {
            None => self.check_contents(contents),
            Some(_) => {
                let detail = "flushed data was damaged, and its loss accepted".into();
                Err(Violation::new(Kind::Lost, detail))
            }
        };
        let unexplained = match checked {
            Ok(resolution) if !self.is_loss_new => {
                self.trace.line(self.now_ns, || "everything read and as it should be".into());
                self.tally.points_without_loss += u64::from(is_readable);
                return Ok(Restart::Whole(resolution));
            }
            // It may show later, or to those who know less.
            Ok(_) => None,
            Err(violation) => Some(violation),
        };
        self.contents = kept.unwrap_or_default();
        let explained = match unexplained {
            Some(violation) => self.explain(violation),
            None => Violation::new(Kind::Explained, "a loss does not show".into()),
        };
        if explained.kind == Kind::Explained {
            Ok(Restart::BehindLoss(explained))
        } else {
            Err(explained)
        }
    }

    fn check_contents(&self, contents: Contents) -> Result<Resolution, Violation> {
        let resolution = self.checker.check_recovered(contents)?;
        self.check_origins_after_restart(&resolution)?;
        Ok(resolution)
    }

    /// No origin shows what the restart has lost.
    pub(crate) fn check_origins_after_restart(
        &self,
        resolution: &Resolution,
    ) -> Result<(), Violation> {
        for (origin, export) in self.origins.iter().zip(0..) {
            for (unit, value) in origin.live().iter().enumerate() {
                self.checker.check_origin_after_restart(resolution, export, unit, *value)?;
            }
        }
        Ok(())
    }

    /// Whether something explains each block that could not be read.
    fn check_readable(&self) -> Result<(), Violation> {
        if self.rotten {
            return Ok(());
        }
        let unit_bytes = self.scenario.unit_bytes;
        for (values, export) in self.contents.iter().zip(0..) {
            let unreadable = values.iter().zip(0u64..).filter(|(value, _)| **value == UNREADABLE);
            for (_, unit) in unreadable {
                if !self.damage.touches(export, unit * unit_bytes, unit_bytes) {
                    let detail =
                        format!("after a restart unit {unit} of export {export} cannot be read");
                    return Err(Violation::new(Kind::UnexpectedError, detail));
                }
            }
        }
        Ok(())
    }

    /// Reads all exports into `contents`, with no faults, in pieces of any size.
    fn read_everything<C: Core>(&mut self, life: &mut Life<C>) -> Result<(), Violation> {
        life.faults = false;
        let units = (0u8..).take(self.origins.len()).map(|export| self.checker.units(export));
        self.contents = units.map(|units| vec![UNREADABLE; units]).collect();
        for export in (0u8..).take(self.origins.len()) {
            let scenario = &self.scenario.exports[usize::from(export)];
            let size_bytes = scenario.size_bytes();
            if scenario.is_filler || scenario.is_absent {
                self.contents[usize::from(export)].clear();
                continue;
            }
            let mut offset = 0;
            while offset < size_bytes {
                let unit_bytes = self.scenario.unit_bytes;
                let longest = size_bytes - offset;
                let length = self.random.magnitude(4096, 1 << 20);
                let length = (length - length % unit_bytes).min(longest);
                while life.tickets.is_empty() {
                    let before = life.tickets.len();
                    let moved = |life: &Life<C>| life.tickets.len() > before;
                    life.wait_until(self, moved, "reads after a restart do not end")?;
                }
                let ticket = life.tickets.pop().expect("a free ticket");
                let wish = Wish { export, kind: WishKind::Read, offset, length };
                life.submit_verification(self, ticket, wish)?;
                offset += length;
            }
        }
        life.wait_until(self, Life::is_quiet, "reads after a restart do not end")
    }

    /// The last life: everything works again, everything reaches the origin, and what clients
    /// read is what the origin has.
    pub(crate) fn finish<C: Core>(&mut self, mut life: Life<C>) -> Result<(), Violation> {
        while self.scenario.serves_a_part() {
            drop(life);
            self.crash(End::PowerCut)?;
            life = self.open(false)?;
        }
        life.faults = false;
        self.trace.line(self.now_ns, || "---- the world comes to its end".into());
        if !self.rotten && !self.damage.any() {
            let token = life.control(self, Control::Drain(None))?;
            let done = |life: &Life<C>| !life.controls.contains_key(&token);
            life.wait_until(self, done, "a drain does not end")?;
            self.read_everything(&mut life)?;
            for (export, origin) in self.origins.iter().enumerate() {
                if origin.live() != self.contents[export] {
                    let unit = origin.live().iter().zip(&self.contents[export]);
                    let unit = unit.clone().position(|(one, other)| one != other);
                    let detail = format!("after a drain export {export} differs at unit {unit:?}");
                    return Err(Violation::new(Kind::OriginBehind, detail));
                }
            }
        }
        self.stop(&mut life)?;
        drop(life);
        self.crash(End::PowerCut)?;
        let mut life = self.open::<C>(false)?;
        self.verify(&mut life)
    }

    /// How many exports and cells there are, to explain garbage with.
    pub(crate) fn content_limits(&self) -> (u8, u32) {
        let largest = self.scenario.exports.iter().map(|export| export.size_bytes()).max();
        let cells = largest.unwrap_or(0) / content::CELL_BYTES as u64;
        (
            u8::try_from(self.origins.len()).expect("a few exports"),
            u32::try_from(cells).expect("small exports"),
        )
    }

    /// What an origin shows, as bytes.
    pub(crate) fn fill_from_origin(
        &self,
        export: u8,
        offset: u64,
        bytes: &mut [u8],
        unit_bytes: u64,
    ) {
        let unit_length = usize::try_from(unit_bytes).expect("a small unit");
        let first_unit = usize::try_from(offset / unit_bytes).expect("a small export");
        let values: &[Value] = &self.origins[usize::from(export)].live()[first_unit..];
        for ((unit, value), at) in bytes.chunks_mut(unit_length).zip(values).zip(0..) {
            content::fill(unit, export, offset + at * unit_bytes, *value);
        }
    }
}

/// Whether operations that failed explain that the cache was not opened. One read alone does not:
/// it is tried again, or there is a second copy.
fn is_explained_by(failing: &Range<u64>, error: &OpenError) -> bool {
    let for_ever = failing.end == u64::MAX;
    match error {
        OpenError::Storage(error) => !failing.is_empty() && (for_ever || error.operation != "read"),
        OpenError::EndUnreadable(_) | OpenError::DurableDamaged { .. } => for_ever,
        _ => false,
    }
}
