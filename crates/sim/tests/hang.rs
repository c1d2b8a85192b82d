//! The production engine with one origin that neither answers nor fails for hours.

use ringfence_sim::hang::{run, scenario};
use ringfence_sim::trace::Sink;

/// Seeds to look for worlds with several exports in.
const SEEDS: std::ops::Range<u64> = 0..64;

#[test]
fn exports_beside_a_hung_origin_go_on() {
    let (mut worlds, mut answered, mut laps, mut longest_ns) = (0, 0, 0, 0);
    for scenario in SEEDS.filter_map(scenario) {
        let seed = scenario.seed;
        let device_bytes = scenario.device_bytes;
        let chosen = std::env::var("RINGFENCE_HANG_SEED").ok().map(|text| text == seed.to_string());
        if chosen == Some(false) {
            continue;
        }
        let sink = if chosen == Some(true) { Sink::Print } else { Sink::Digest };
        let beside = run(scenario, sink);
        let beside = beside.unwrap_or_else(|violation| {
            panic!("RINGFENCE_HANG_SEED={seed} replays: {violation:?}")
        });
        worlds += 1;
        answered += beside.answered;
        laps += beside.tally.device_bytes / device_bytes;
        longest_ns = longest_ns.max(beside.longest_ns);
    }
    println!("{worlds} worlds, {laps} laps, {answered} answers beside, longest {longest_ns} ns");
    assert!(worlds > 10 && answered > 200 * worlds, "{answered} answers in {worlds} worlds");
    assert!(laps > worlds / 4, "logs wrap while an origin hangs: {laps} laps in {worlds} worlds");
}
