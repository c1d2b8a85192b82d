//! Exhaustive small worlds: every short sequence of operations over four blocks, and at every
//! moment of its last operation a power cut with every subset of the unflushed device writes
//! surviving; where answers outlive the process, also a kill with all or none of those in flight
//! ending. (The moments of the operations before it belong to the shorter sequences.) A restart
//! that comes last is cut after each of its own device writes, too.

use crate::client::{Wish, WishKind};
use crate::faults::FaultKind;
use crate::life::Life;
use crate::scenario::{Faults, Probing, Scenario};
use crate::stop::Stops;
use crate::threads::on_threads;
use crate::trace::Sink;
use crate::violation::{Kind, Violation};
use crate::world::World;
use ringfence_cache::limits::{SEGMENT_BYTES_MIN, SEGMENTS_MIN, SEGMENTS_OFFSET, STEP_BYTES_MAX};
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{Control, Engine, Mode, Order};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The export: four blocks.
const EXPORT_BLOCKS: u64 = 4;
/// Longer than a record waits for company.
const SETTLE_NS: u64 = 3_000_000;
/// Steps of the largest size that fill any segment.
const FILLING_STEPS: u64 = SEGMENT_BYTES_MIN / STEP_BYTES_MAX as u64;
/// The export that sequences are about, and the one that only takes room in the log.
const EXPORT: u8 = 0;
const FILLER: u8 = 1;
/// The client that asks for it all.
const CLIENT: u32 = 0;

/// One operation of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes the first block.
    Write,
    /// Writes the first two blocks.
    OverlappingWrite,
    /// Writes a part of the first and a part of the second block.
    SubBlockWrite,
    /// Writes the second block with FUA.
    FuaWrite,
    /// Trims the first two blocks.
    Trim,
    /// Writes zeroes from the middle of the first to the middle of the third block.
    WriteZeroes,
    /// Flushes.
    Flush,
    /// Drains: everything dirty goes to the origin.
    Destage,
    /// Reads everything, so that it is worth keeping, and fills a segment: the oldest one is
    /// reclaimed, and what was read is appended again.
    Reclaim,
    /// The process is killed and comes back.
    Restart,
}

/// All operations.
pub const OPERATIONS: [Operation; 10] = [
    Operation::Write,
    Operation::OverlappingWrite,
    Operation::SubBlockWrite,
    Operation::FuaWrite,
    Operation::Trim,
    Operation::WriteZeroes,
    Operation::Flush,
    Operation::Destage,
    Operation::Reclaim,
    Operation::Restart,
];

/// How operations follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As soon as the one before is answered: they share records.
    AtOnce,
    /// After everything that is open has been written: each has a device write of its own.
    Settled,
    /// As soon as the one before is answered, but to a client whose answers outlive the process:
    /// not before the device has it.
    Kept,
}

impl Operation {
    /// What a client asks for, if it is one's.
    fn wish(self) -> Option<Wish> {
        let half = BLOCK_BYTES_U64 / 2;
        let (kind, offset, length) = match self {
            Self::Write => (WishKind::Write { fua: false }, 0, BLOCK_BYTES_U64),
            Self::OverlappingWrite => (WishKind::Write { fua: false }, 0, 2 * BLOCK_BYTES_U64),
            Self::SubBlockWrite => (WishKind::Write { fua: false }, half, BLOCK_BYTES_U64),
            Self::FuaWrite => (WishKind::Write { fua: true }, BLOCK_BYTES_U64, BLOCK_BYTES_U64),
            Self::Trim => (WishKind::Trim { fua: false }, 0, 2 * BLOCK_BYTES_U64),
            Self::WriteZeroes => (WishKind::Zeroes { fua: false }, half, 2 * BLOCK_BYTES_U64),
            Self::Flush => (WishKind::Flush, 0, 0),
            Self::Destage | Self::Reclaim | Self::Restart => return None,
        };
        Some(Wish { export: EXPORT, kind, offset, length })
    }
}

/// What came of all sequences of a length.
#[derive(Clone, Debug, Default)]
pub struct Exhausted {
    /// Sequences, each at all paces.
    pub sequences: u64,
    /// Crashes, each with a restart and everything read.
    pub crash_points: u64,
    /// Those of them behind which nothing was gone: all, but where a promise was broken.
    pub points_without_loss: u64,
    /// Restarts in the midst of which the power was cut.
    pub cuts_in_recovery: u64,
    /// Sequences that broke a promise.
    pub broken: Vec<(Vec<Operation>, Pace, Violation)>,
}

/// Runs every sequence of so many operations, on so many threads.
///
/// # Panics
/// When the world that all sequences start from cannot be made.
#[must_use]
pub fn exhaust(length: u32, threads: usize) -> Exhausted {
    let total = OPERATIONS.len().pow(length);
    let next = AtomicUsize::new(0);
    let work = || {
        let start = prepare().expect("a log with some segments");
        let mut mine = Exhausted::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= total {
                break;
            }
            run_sequence(&start, &sequence(number, length), &mut mine);
        }
        mine
    };
    let mut all = Exhausted::default();
    for some in on_threads(threads, work) {
        all.sequences += some.sequences;
        all.crash_points += some.crash_points;
        all.points_without_loss += some.points_without_loss;
        all.cuts_in_recovery += some.cuts_in_recovery;
        all.broken.extend(some.broken);
    }
    all
}

/// The sequence of a number: its digits are operations.
fn sequence(number: usize, length: u32) -> Vec<Operation> {
    let base = OPERATIONS.len();
    (0..length).map(|digit| OPERATIONS[number / base.pow(digit) % base]).collect()
}

fn run_sequence(start: &World, sequence: &[Operation], exhausted: &mut Exhausted) {
    exhausted.sequences += 1;
    for pace in [Pace::AtOnce, Pace::Settled, Pace::Kept] {
        let mut world = start.clone();
        Rc::make_mut(&mut world.scenario).simple_clients = u32::from(pace == Pace::Kept);
        let result = catch_unwind(AssertUnwindSafe(|| run(&mut world, sequence, pace)));
        let result = result
            .unwrap_or_else(|_| Err(Violation::new(Kind::Panic, "see standard error".into())));
        exhausted.crash_points += world.tally.crash_points;
        exhausted.points_without_loss += world.tally.points_without_loss;
        exhausted.cuts_in_recovery += world.tally.faults.of(FaultKind::CutInRecovery);
        if let Err(violation) = result {
            exhausted.broken.push((sequence.to_vec(), pace, violation));
        }
    }
}

/// An export of four blocks and one that fills segments, a device that does nothing of its own.
fn scenario() -> Scenario {
    let mut scenario = Scenario::draw(0);
    scenario.device_bytes = SEGMENTS_OFFSET + u64::from(SEGMENTS_MIN) * SEGMENT_BYTES_MIN;
    scenario.unit_bytes = 512;
    scenario.exports.truncate(1);
    let export = &mut scenario.exports[0];
    export.starts_empty = false;
    export.shares_power = true;
    export.options.origin.size_bytes = EXPORT_BLOCKS * BLOCK_BYTES_U64;
    export.options.mode = Mode::Writeback;
    export.options.order = Order::Strict;
    export.options.dirty_bytes_max = None;
    export.options.wait_ns_max = 3_600_000_000_000;
    let mut filler = export.clone();
    filler.is_filler = true;
    filler.options.name = "filler".into();
    filler.options.uuid = [99; 16];
    filler.options.origin.name = "filler".into();
    filler.options.origin.size_bytes = u64::from(STEP_BYTES_MAX);
    scenario.exports.push(filler);
    scenario.probing = Probing::default();
    scenario.lives_differ = false;
    scenario.moods_change = false;
    scenario.stops = Stops::Orderly;
    scenario.simple_clients = 0;
    scenario.faults = Faults::default();
    scenario
}

/// A log with five segments in use, so that a sequence's own is the last before reclaim begins:
/// the oldest holds the only copy of a clean block, the newest dirty data.
fn prepare() -> Result<World, Violation> {
    let mut world = World::new(scenario(), Sink::Digest);
    world.format::<Engine>()?;
    let write = |first, blocks| Wish {
        export: EXPORT,
        kind: WishKind::Write { fua: true },
        offset: first * BLOCK_BYTES_U64,
        length: blocks * BLOCK_BYTES_U64,
    };
    let zeroes = Wish { kind: WishKind::Zeroes { fua: true }, ..write(3, 1) };
    for (wish, drains) in [
        (write(0, 4), true),
        (write(1, 1), false),
        (zeroes, false),
        (write(2, 1), true),
        (write(2, 1), false),
    ] {
        let mut life = world.open::<Engine>(false)?;
        ask(&mut world, &mut life, wish)?;
        if drains {
            drain(&mut world, &mut life)?;
        }
        drop(life);
        world.kill()?;
    }
    let mut life = world.open::<Engine>(false)?;
    world.verify(&mut life)?;
    drop(life);
    world.kill()?;
    world.tally = crate::world::Tally::default();
    Ok(world)
}

fn run(world: &mut World, sequence: &[Operation], pace: Pace) -> Result<(), Violation> {
    let mut life = world.open::<Engine>(false)?;
    let (last, before) = sequence.split_last().expect("a sequence is not empty");
    for operation in before {
        life = perform(world, life, *operation)?;
        if pace == Pace::Settled {
            life.pass(world, SETTLE_NS)?;
        }
    }
    world.exhausting = true;
    world.exhaust_if_due::<Engine>()?;
    life = perform(world, life, *last)?;
    life.pass(world, SETTLE_NS)
}

/// Submits a request and waits for its answer.
fn ask(world: &mut World, life: &mut Life<Engine>, wish: Wish) -> Result<(), Violation> {
    let ticket = life.tickets.pop().expect("one request at a time");
    life.submit(world, ticket, Some(CLIENT), wish)?;
    life.wait_until(world, Life::is_quiet, "a request does not end")
}

fn drain(world: &mut World, life: &mut Life<Engine>) -> Result<(), Violation> {
    let token = life.control(world, Control::Drain(None))?;
    let done = |life: &Life<Engine>| !life.controls.contains_key(&token);
    life.wait_until(world, done, "a drain does not end")
}

fn perform(
    world: &mut World,
    mut life: Life<Engine>,
    operation: Operation,
) -> Result<Life<Engine>, Violation> {
    if let Some(wish) = operation.wish() {
        ask(world, &mut life, wish)?;
        return Ok(life);
    }
    match operation {
        Operation::Destage => drain(world, &mut life)?,
        Operation::Reclaim => {
            let length = EXPORT_BLOCKS * BLOCK_BYTES_U64;
            let read = Wish { export: EXPORT, kind: WishKind::Read, offset: 0, length };
            ask(world, &mut life, read)?;
            let length = u64::from(STEP_BYTES_MAX);
            let kind = WishKind::Write { fua: false };
            let fill = Wish { export: FILLER, kind, offset: 0, length };
            for _ in 0..FILLING_STEPS {
                ask(world, &mut life, fill)?;
            }
            life.pass(world, SETTLE_NS)?;
        }
        _ => {
            drop(life);
            world.kill()?;
            world.exhaust_recovery::<Engine>()?;
            life = world.open::<Engine>(false)?;
            world.exhaust_if_due::<Engine>()?;
        }
    }
    Ok(life)
}
