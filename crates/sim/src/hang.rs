//! One origin hangs for hours: the exports beside it go on as if nothing had happened.

use crate::life::Life;
use crate::scenario::{Faults, Scenario};
use crate::stop::Stops;
use crate::trace::Sink;
use crate::violation::{Kind, Violation};
use crate::world::{Tally, World};
use ringfence_cache::Engine;

/// The export whose origin hangs.
const HUNG: u8 = 0;
/// How long a client of an export may wait for an origin that is away.
const WAIT_NS: u64 = 2_000_000_000;

/// What came of one hang.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// Requests of other exports that were answered during the hang.
    pub answered: u64,
    /// The longest that one of them took.
    pub longest_ns: u64,
    /// What happened, in numbers.
    pub tally: Tally,
}

/// The scenario of a seed, if it has several exports: no failure but the one hang.
#[must_use]
pub fn scenario(seed: u64) -> Option<Scenario> {
    let mut scenario = Scenario::draw(seed);
    if scenario.exports.len() < 2 {
        return None;
    }
    scenario.faults = Faults::default();
    scenario.lives_differ = false;
    scenario.moods_change = false;
    scenario.stops = Stops::Orderly;
    scenario.simple_clients = 0;
    // Where there are only a few leaves of the index for all, no export can keep some for itself.
    scenario.config.index_bytes = None;
    scenario.steps_max = scenario.steps_max.clamp(4_000, 12_000);
    if seed.is_multiple_of(2) {
        // The log wraps while the origin hangs.
        scenario.steps_max = 10_000;
        scenario.mix.write = 100;
        scenario.mix.bytes_max = 512 << 10;
        scenario.mix.pause_ns_max = scenario.mix.pause_ns_max.min(1_000_000);
        scenario.churns = true;
    }
    scenario.device_ns = scenario.device_ns.min(200_000);
    scenario.origin_ns = scenario.origin_ns.min(1_000_000);
    for export in &mut scenario.exports {
        export.options.wait_ns_max = WAIT_NS;
        export.options.origin_timeout_ns = WAIT_NS / 4;
    }
    Some(scenario)
}

/// Lets clients work while one origin hangs, sometimes over a crash, then ends the world as usual:
/// everything reaches its origin.
///
/// # Errors
/// The first thing that must hold and does not; any error of another export is one.
pub fn run(scenario: Scenario, sink: Sink) -> Result<Beside, Violation> {
    let steps = scenario.steps_max;
    let crashes = scenario.seed.is_multiple_of(3);
    let mut world = World::new(scenario, sink);
    world.format::<Engine>()?;
    let mut life = world.open::<Engine>(false)?;
    life.serve(&mut world, steps / 4)?;
    world.hung = Some(HUNG);
    life.hang(&mut world, HUNG);
    life.serve(&mut world, steps)?;
    if crashes {
        drop(life);
        world.kill()?;
        life = world.open::<Engine>(false)?;
        world.verify(&mut life)?;
    }
    let beside = Beside {
        answered: world.answered_beside,
        longest_ns: world.longest_beside_ns,
        tally: world.tally,
    };
    if beside.longest_ns > WAIT_NS {
        let detail = format!("a request beside the hang took {} ms", beside.longest_ns / 1_000_000);
        return Err(Violation::new(Kind::Stuck, detail));
    }
    life.wait_until(&mut world, Life::is_quiet, "requests do not end")?;
    world.finish(life)?;
    Ok(beside)
}
