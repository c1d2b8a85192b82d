//! Exhaustive small worlds: every short sequence of operations over four blocks, and after each of
//! them a power cut with every subset of the unflushed device writes surviving.

use crate::client::{Wish, WishKind};
use crate::core::Core;
use crate::life::Life;
use crate::random::Random;
use crate::scenario::{Faults, Scenario};
use crate::trace::Sink;
use crate::violation::{Kind, Violation};
use crate::world::World;
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{Control, Mode, Order};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Device writes of which every subset is tried; with more, only prefixes are.
const SUBSETS_MAX: usize = 6;
/// The export: four blocks.
const EXPORT_BLOCKS: u64 = 4;
/// Longer than a record waits for company.
const SETTLE_NS: u64 = 3_000_000;

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
    /// Lets time pass, so that what is open is written.
    Wait,
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
    Operation::Wait,
    Operation::Restart,
];

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
            Self::Destage | Self::Wait | Self::Restart => return None,
        };
        Some(Wish { export: 0, kind, offset, length })
    }
}

/// What came of all sequences of a length.
#[derive(Clone, Debug, Default)]
pub struct Exhausted {
    /// Sequences.
    pub sequences: u64,
    /// Crashes, each with a restart and everything read.
    pub crash_points: u64,
    /// Sequences that broke a promise.
    pub broken: Vec<(Vec<Operation>, Violation)>,
}

/// Runs every sequence of so many operations.
#[must_use]
pub fn exhaust<C: Core>(length: u32) -> Exhausted {
    let mut exhausted = Exhausted::default();
    let base = OPERATIONS.len();
    for number in 0..base.pow(length) {
        let digits = (0..length).map(|digit| number / base.pow(digit) % base);
        let sequence: Vec<_> = digits.map(|digit| OPERATIONS[digit]).collect();
        let mut world = World::new(scenario(), Sink::Digest);
        let result = catch_unwind(AssertUnwindSafe(|| run::<C>(&mut world, &sequence)));
        let result = result
            .unwrap_or_else(|_| Err(Violation::new(Kind::Panic, "see standard error".into())));
        exhausted.sequences += 1;
        exhausted.crash_points += world.tally.crash_points;
        if let Err(violation) = result {
            exhausted.broken.push((sequence, violation));
        }
    }
    exhausted
}

/// One export of four blocks, one client, a device that does nothing of its own.
fn scenario() -> Scenario {
    let mut scenario = Scenario::draw(0);
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
    scenario.faults = Faults::default();
    scenario
}

fn run<C: Core>(world: &mut World, sequence: &[Operation]) -> Result<(), Violation> {
    world.format::<C>()?;
    let mut life = world.open::<C>(false)?;
    for operation in sequence {
        life = perform(world, life, *operation)?;
    }
    let pending = world.device.pending_writes();
    let subsets = if pending <= SUBSETS_MAX {
        (0..1 << pending).collect::<Vec<u64>>()
    } else {
        (0..=pending.min(63)).map(|length| (1 << length) - 1).collect()
    };
    for survivors in subsets {
        let mut clone = world.clone();
        clone.random = Random::new(survivors);
        clone.lose_power(survivors)?;
        let mut life = clone.open::<C>(false)?;
        clone.verify(&mut life)?;
        world.tally = clone.tally;
    }
    Ok(())
}

fn perform<C: Core>(
    world: &mut World,
    mut life: Life<C>,
    operation: Operation,
) -> Result<Life<C>, Violation> {
    if let Some(wish) = operation.wish() {
        let ticket = life.tickets.pop().expect("one request at a time");
        life.submit(world, ticket, None, wish)?;
        life.wait_until(world, Life::is_quiet, "a request does not end")?;
        return Ok(life);
    }
    match operation {
        Operation::Destage => {
            let token = life.control(world, Control::Drain(None))?;
            let done = |life: &Life<C>| !life.controls.contains_key(&token);
            life.wait_until(world, done, "a drain does not end")?;
        }
        Operation::Restart => {
            drop(life);
            world.kill()?;
            return world.open::<C>(false);
        }
        _ => life.pass(world, SETTLE_NS)?,
    }
    Ok(life)
}
