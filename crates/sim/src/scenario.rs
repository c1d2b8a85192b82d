//! What kind of world a seed stands for: sizes, clients, speeds and faults, all drawn at once.

use crate::random::Random;
use crate::stop::Stops;
use ringfence_cache::limits;
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{Config, ExportOptions, Mode, Order, OriginIdentity};
use ringfence_wire::ReplyStyle;

/// Requests in flight at most; each has its own piece of the receive pool.
pub const REQUESTS_MAX: u32 = 32;
/// Bytes read after crashes that are tried on clones, of a whole world: about half a second.
const PROBED_BYTES_MAX: u64 = 384 << 20;
/// A restart costs about as much as reading so many bytes.
const RESTART_COST_BYTES: u64 = 192 << 10;

/// An export of a world.
#[derive(Clone, Debug)]
pub struct ExportScenario {
    /// What the engine is told.
    pub options: ExportOptions,
    /// Whether the origin starts with zeroes instead of data.
    pub starts_empty: bool,
    /// Whether the origin loses its power together with the cache.
    pub shares_power: bool,
    /// Whether it is only there to take room in the log: restarts do not read it.
    pub is_filler: bool,
    /// Where lives differ: whether its order does, so that its origin is judged as a `relaxed` one.
    pub reorders: bool,
    /// Whether the next life does not serve it.
    pub is_absent: bool,
}

impl ExportScenario {
    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.options.origin.size_bytes
    }

    /// Gives it one of the two names that its origin is served under.
    pub(crate) fn rename(&mut self, second: bool) {
        let [first_name, second_name] = self.names();
        (self.options.name, self.options.uuid[15]) =
            if second { (second_name, 1) } else { (first_name, self.options.uuid[0]) };
    }

    fn names(&self) -> [String; 2] {
        let first = self.options.origin.name.replace("origin", "export");
        let second = format!("{first}-again");
        [first, second]
    }
}

/// What clients ask for, as weights.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Reads.
    pub read: u32,
    /// Writes.
    pub write: u32,
    /// Flushes.
    pub flush: u32,
    /// Trims.
    pub trim: u32,
    /// Writes of zeroes.
    pub zeroes: u32,
    /// Percent of writes, trims and zeroes with FUA.
    pub fua_percent: u32,
    /// Percent of ranges that are whole blocks.
    pub aligned_percent: u32,
    /// Percent of ranges in a small part of the export.
    pub hot_percent: u32,
    /// The longest read or write in bytes.
    pub bytes_max: u64,
    /// The longest pause of a client between two batches, in nanoseconds.
    pub pause_ns_max: u64,
}

/// How often things fail, per million unless said otherwise; zero where a world has no such fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Percent of lives that end in a killed process rather than a power cut.
    pub kill_percent: u32,
    /// Percent of lives that end in a clean stop.
    pub stop_percent: u32,
    /// Percent of restarts in which the power fails again.
    pub cut_in_recovery_percent: u32,
    /// Percent of restarts whose whole content is read before clients come back.
    pub verify_percent: u32,
    /// Reads of the cache device that fail.
    pub device_read_error: u32,
    /// Reads of the cache device that return one wrong bit.
    pub device_read_rot: u32,
    /// Writes of the cache device that fail.
    pub device_write_error: u32,
    /// Flushes of the cache device that fail.
    pub device_flush_error: u32,
    /// Writes of the cache device that are reported as done and never happen.
    pub device_lost_write: u32,
    /// Writes of the cache device that land elsewhere.
    pub device_misdirected_write: u32,
    /// Writes of the cache device after which a bit of it rots.
    pub device_rot: u32,
    /// Writes of the cache device after which a sector shows what was there before.
    pub device_stale: u32,
    /// Percent of starts with one copy rotten or lost, of superblocks or export table; where the
    /// device has other quiet faults.
    pub device_copy_percent: u32,
    /// Reads, writes and flushes of origins that fail.
    pub origin_error: u32,
    /// Flushes of origins that fail.
    pub origin_flush_error: u32,
    /// Requests to origins that take seconds.
    pub origin_stall: u32,
    /// Requests to origins after which the origin is away for a while.
    pub origin_outage: u32,
    /// Requests to origins from which on the origin neither answers nor fails for up to hours.
    pub origin_hang: u32,
    /// Percent of outages in which the origin loses its power, too.
    pub origin_power_percent: u32,
    /// Batches of a client after which it goes away without waiting for answers.
    pub disconnect: u32,
    /// Batches of a client that take all the room there is, a few times in a row.
    pub flood: u32,
}

impl Faults {
    /// The rate of quiet faults of the cache device, of all kinds.
    #[must_use]
    pub fn quiet_device(&self) -> u32 {
        self.device_lost_write + self.device_misdirected_write + self.device_rot + self.device_stale
    }
}

/// How often crashes are tried on clones of the world, without ending it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probing {
    /// Turns after which they are tried, per million.
    pub turns: u32,
    /// The same while a segment, a footer or a superblock is being written.
    pub structure_turns: u32,
    /// Crashes tried at one such moment: each leaves another subset of the unflushed writes.
    pub crashes: u64,
    /// Crash points of a world after which none is tried any more.
    pub points_max: u64,
}

/// Which I/O fails, counted from one over all that a world's lives ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChosenFailure {
    /// The first that fails.
    pub first: u64,
    /// Whether all after it fail, too, until the life ends.
    pub for_ever: bool,
    /// Whether I/Os of a restart are counted instead of those of clients.
    pub in_recovery: bool,
}

/// A world, before anything happens in it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed it was drawn from.
    pub seed: u64,
    /// Size of the cache device.
    pub device_bytes: u64,
    /// Segments whose image fits the reserve, beyond the least possible.
    pub extra_log_segments: u64,
    /// Size of the registers that the checker keeps.
    pub unit_bytes: u64,
    /// The exports.
    pub exports: Vec<ExportScenario>,
    /// Missed blocks that may wait in memory for a second reader.
    pub memory_tier_blocks: u64,
    /// What the engine is told.
    pub config: Config,
    /// Clients, each with connections to all exports.
    pub clients: u32,
    /// By bit, which of them know simple replies only, as the kernel does: what they are answered
    /// outlives the process (decision 0017).
    pub simple_clients: u32,
    /// Requests that a client submits at a time.
    pub batch_max: u64,
    /// What they ask for.
    pub mix: Mix,
    /// Lives before the last one.
    pub lives: u32,
    /// Whether the operator changes the settings between lives, and which exports are served.
    pub lives_differ: bool,
    /// Whether the device held another cache before it was formatted, and still has its log.
    pub formatted_before: bool,
    /// Whether clients ask for other things in each life, and for more or less.
    pub moods_change: bool,
    /// What it is like when an operator stops the engine.
    pub stops: Stops,
    /// Whether lives are long and writes large, so that the log is filled several times.
    pub churns: bool,
    /// The most steps of the engine in one life.
    pub steps_max: u64,
    /// Typical time of a cache device I/O in nanoseconds.
    pub device_ns: u64,
    /// Typical time of an origin I/O in nanoseconds.
    pub origin_ns: u64,
    /// What arrives within this time may belong to one turn of the ring.
    pub turn_ns: u64,
    /// Crashes tried without ending the world.
    pub probing: Probing,
    /// What fails by chance.
    pub faults: Faults,
    /// What fails by choice.
    pub chosen_failure: Option<ChosenFailure>,
}

/// Bytes of an export that a leaf of the index maps.
const LEAF_BYTES: u64 = 512 * BLOCK_BYTES_U64;

impl Scenario {
    /// Draws the world of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        Self::draw_with(seed, false)
    }

    /// Draws the world of a seed as [`Scenario::draw`] does, but with quiet faults of the cache
    /// device wherever it can have them.
    #[must_use]
    pub fn draw_quiet(seed: u64) -> Self {
        Self::draw_with(seed, true)
    }

    fn draw_with(seed: u64, always_quiet: bool) -> Self {
        let mut random = Random::new(seed);
        let random = &mut random;
        // Most worlds are small: what a crash point costs is the data that is read after it.
        let blocks_max = random.pick(&[16, 64, 64, 64, 256, 1024]);
        let unit_bytes = if blocks_max <= 64 && random.percent(20) { 64 } else { 512 };
        let export_count = random.pick(&[1, 1, 1, 2, 3]);
        let faults = draw_faults(random);
        let exports = (0..export_count)
            .map(|index| draw_export(index, blocks_max, &faults, random))
            .collect();
        let segments = u64::from(limits::SEGMENTS_MIN) + random.pick(&[0, 0, 1, 4]);
        // Some worlds write so much that the log is filled and reclaimed several times.
        let churns = random.percent(10);
        let steps_max =
            if churns { random.between(5_000, 15_000) } else { random.magnitude(20, 20_000) };
        let mut mix = draw_mix(random);
        if churns {
            mix.write = 100;
            mix.bytes_max = random.between(128 << 10, u64::from(limits::STEP_BYTES_MAX));
            mix.pause_ns_max = mix.pause_ns_max.min(1_000_000);
        }
        let mut scenario = Self {
            seed,
            device_bytes: limits::SEGMENTS_OFFSET + segments * limits::SEGMENT_BYTES_MIN,
            extra_log_segments: random.pick(&[0, 0, 1, 4]),
            unit_bytes,
            exports,
            memory_tier_blocks: Random::new(seed ^ 0x71e2).pick(&[0, 1, 8, 64]),
            config: Config {
                admits_first_lap: Random::new(seed ^ 0x71e3).percent(50),
                ..draw_config(random)
            },
            clients: u32::try_from(random.between(1, 8)).expect("a few"),
            simple_clients: 0,
            batch_max: random.between(1, 8),
            mix,
            churns,
            lives: u32::try_from(random.between(1, (40_000 / steps_max).clamp(3, 24)))
                .expect("a few"),
            lives_differ: false,
            formatted_before: false,
            moods_change: false,
            stops: Stops::Orderly,
            steps_max,
            device_ns: random.magnitude(5_000, 1_000_000),
            origin_ns: random.magnitude(20_000, 20_000_000),
            turn_ns: random.pick(&[0, 1_000, 50_000]),
            probing: draw_probing(random),
            faults,
            chosen_failure: None,
        };
        scenario.draw_hangs();
        scenario.draw_quiet_faults(always_quiet);
        if random.percent(7) {
            scenario.fill_to_the_brim(random);
        }
        scenario.draw_small_index();
        scenario.draw_differing_lives();
        scenario.draw_changing_moods();
        scenario.draw_former_cache();
        scenario.draw_stops();
        scenario.draw_simple_clients();
        let export_bytes: u64 = scenario.exports.iter().map(ExportScenario::size_bytes).sum();
        scenario.probing.points_max = PROBED_BYTES_MAX / (export_bytes + RESTART_COST_BYTES);
        scenario
    }

    /// Draws whether the index is too small for all blocks, so that clean ones make room: from a
    /// number of its own, too. Of so few leaves no export can keep any for itself, so no origin is
    /// away for long where there are several.
    fn draw_small_index(&mut self) {
        let mut random = Random::new(self.seed ^ 0x1dea);
        let Faults { origin_stall, origin_outage, origin_hang, .. } = self.faults;
        if self.exports.len() == 1 || origin_stall + origin_outage + origin_hang == 0 {
            self.config.index_bytes = self.draw_index_bytes(&mut random);
        }
    }

    /// The size of an index that may be too small. Any step of any export fits.
    fn draw_index_bytes(&self, random: &mut Random) -> Option<u64> {
        let leaves = self.exports.iter().map(|e| e.size_bytes().div_ceil(LEAF_BYTES));
        let (all, step) = (leaves.clone().sum::<u64>(), leaves.max().unwrap_or(0).min(2));
        let is_small = all > step && random.percent(60);
        is_small.then(|| random.between(step, all - 1) * BLOCK_BYTES_U64)
    }

    /// Draws whether the operator changes settings between lives: from a number of its own, too.
    /// What damaged data explains is judged by the next life, which must serve everything.
    fn draw_differing_lives(&mut self) {
        let mut random = Random::new(self.seed ^ 0x5e77);
        if self.faults.quiet_device() > 0 || !random.percent(15) {
            return;
        }
        self.lives_differ = true;
        for export in &mut self.exports {
            export.reorders = random.percent(40);
        }
    }

    /// Draws whether each life has its own clients: from a number of its own, too, by which no seed
    /// that failed before there was such a thing has it. Where the log is to be filled, they go on
    /// as they are.
    fn draw_changing_moods(&mut self) {
        let mut random = Random::new(self.seed ^ 0x41fc);
        self.moods_change = !self.churns && random.percent(25);
    }

    /// Draws whether the device held another cache before: from a number of its own, too, by which
    /// no seed that failed before there was such a thing has it. Quiet faults bring it back.
    fn draw_former_cache(&mut self) {
        let mut random = Random::new(self.seed ^ 0xfcc5);
        let is_quiet = self.faults.quiet_device() > 0;
        self.formatted_before = random.percent(if is_quiet { 20 } else { 3 });
    }

    /// Draws whether stops are rough, and frequent: from a number of its own, too, by which no seed
    /// that failed before there was such a thing has it.
    fn draw_stops(&mut self) {
        let mut random = Random::new(self.seed ^ 0x577a);
        if random.percent(15) {
            self.stops = Stops::Rough;
            self.faults.stop_percent = u32::try_from(random.between(20, 60)).expect("percent");
            if random.percent(40) {
                let rate = random.magnitude(1_000, 50_000);
                self.faults.device_flush_error = u32::try_from(rate).expect("a rate");
            }
        }
    }

    /// Draws which clients know simple replies only: from a number of its own, too, by which no
    /// seed that failed before there was such a thing has any.
    fn draw_simple_clients(&mut self) {
        let mut random = Random::new(self.seed ^ 0xe2_8801);
        if random.percent(40) {
            let any = u32::try_from(random.between(1, 0xff)).expect("a bit per client");
            self.simple_clients = any & ((1 << self.clients) - 1);
        }
    }

    /// The replies that a client knows; those that are none of the world's know all.
    pub(crate) fn reply_style(&self, client: Option<u32>) -> ReplyStyle {
        let is_simple = client.is_some_and(|client| self.simple_clients >> client & 1 == 1);
        if is_simple { ReplyStyle::Simple } else { ReplyStyle::Structured }
    }

    /// Draws what the clients of the next life ask for. What a power cut leaves behind the log's
    /// end, few large records or many small ones, is not what the next life writes there.
    pub(crate) fn draw_mood(&mut self, random: &mut Random) {
        self.mix = draw_mix(random);
        self.batch_max = random.between(1, 8);
        self.steps_max = random.magnitude(20, 20_000);
    }

    /// Draws the settings of the next life. Sizes, names and patience stay what they are.
    pub(crate) fn draw_settings(&mut self, random: &mut Random) {
        let always_served = random.index(self.exports.len());
        for (at, export) in self.exports.iter_mut().enumerate() {
            export.is_absent = at != always_served && random.percent(25);
            export.rename(random.percent(10));
            let options = &mut export.options;
            options.mode = random.pick(&[
                Mode::Writeback,
                Mode::Writeback,
                Mode::Writeback,
                Mode::Writethrough,
                Mode::ReadOnly,
            ]);
            let limit_bytes = random.magnitude(256 << 10, 16 << 20);
            options.dirty_bytes_max = random.percent(60).then_some(limit_bytes);
            if export.reorders {
                options.order = random.pick(&[Order::Strict, Order::Relaxed]);
            }
        }
        self.config = Config { admits_first_lap: random.percent(50), ..draw_config(random) };
        // Dirty data of an export that is not served keeps its leaves.
        if self.exports.len() == 1 {
            self.config.index_bytes = self.draw_index_bytes(random);
        }
        self.memory_tier_blocks = random.pick(&[0, 1, 8, 64]);
        self.extra_log_segments = random.pick(&[0, 0, 1, 4]);
    }

    /// Serves everything, and as nothing in the log can forbid: under the name that an origin is
    /// owed something by, if there is one.
    pub(crate) fn serve_all(&mut self, owed: Option<&str>) {
        for export in &mut self.exports {
            export.is_absent = false;
            export.options.mode = Mode::Writeback;
            if let Some(name) = export.names().iter().position(|name| Some(&name[..]) == owed) {
                export.rename(name == 1);
            }
        }
        self.config.index_bytes = None;
    }

    /// Whether every power cut must leave an export's origin a disk that could have existed.
    pub(crate) fn is_strict(&self, export: &ExportScenario) -> bool {
        export.options.order == Order::Strict && !(self.lives_differ && export.reorders)
    }

    /// Whether the next life leaves out an export.
    pub(crate) fn serves_a_part(&self) -> bool {
        self.exports.iter().any(|export| export.is_absent)
    }

    /// The exports that the next life serves, with their places.
    pub(crate) fn served(&self) -> impl Iterator<Item = (u8, &ExportScenario)> + Clone {
        (0..).zip(&self.exports).filter(|(_, export)| !export.is_absent)
    }

    /// Draws whether the cache device damages data quietly: from a number of its own, too. Worlds
    /// with failing reads, which explain everything, have none.
    fn draw_quiet_faults(&mut self, always: bool) {
        let mut random = Random::new(self.seed ^ 0x0b17);
        let is_clear = self.faults.device_read_rot == 0 && self.faults.device_read_error == 0;
        // Drawn in any case: the numbers that follow are the same.
        let is_drawn = random.percent(13);
        if !is_clear || !(is_drawn || always) {
            return;
        }
        // Lives are short: some of them should see it early.
        let mut rate = || u32::try_from(random.magnitude(4_000, 256_000)).expect("a rate");
        let rates = [rate(), rate(), rate(), rate()];
        let mask = random.between(1, 15);
        let drawn = |at: usize| if mask >> at & 1 == 1 { rates[at] } else { 0 };
        self.faults.device_lost_write = drawn(0);
        self.faults.device_misdirected_write = drawn(1);
        self.faults.device_rot = drawn(2);
        self.faults.device_stale = drawn(3);
        // No seed that failed before there were such faults has them.
        let mut random = Random::new(self.seed ^ 0x1_016e);
        if random.percent(40) {
            let percent = u32::try_from(random.magnitude(10, 80)).expect("a rate");
            self.faults.device_copy_percent = percent;
        }
    }

    /// Draws whether origins hang: from a number of its own, so that the worlds of seeds that once
    /// failed stay what they were.
    fn draw_hangs(&mut self) {
        let mut random = Random::new(self.seed ^ 0x4a6e);
        if !random.percent(15) {
            return;
        }
        self.faults.origin_hang = u32::try_from(random.magnitude(100, 10_000)).expect("a rate");
        for export in &mut self.exports {
            export.options.wait_ns_max = 2_000_000_000;
            export.options.origin_timeout_ns = 1_000_000_000;
        }
    }

    /// Makes it a world whose log is almost always full of dirty data: many large writes wait for
    /// room, the origin is slow, and a segment is taken again as soon as it can be.
    fn fill_to_the_brim(&mut self, random: &mut Random) {
        self.churns = true;
        self.device_bytes =
            limits::SEGMENTS_OFFSET + u64::from(limits::SEGMENTS_MIN) * limits::SEGMENT_BYTES_MIN;
        self.unit_bytes = 512;
        self.exports.truncate(2);
        for export in &mut self.exports {
            export.options.origin.size_bytes = random.between(256, 768) * BLOCK_BYTES_U64;
            export.options.mode = Mode::Writeback;
            export.options.dirty_bytes_max = None;
        }
        self.clients = u32::try_from(random.between(4, 8)).expect("a few");
        self.batch_max = 8;
        self.mix = Mix {
            read: random.pick(&[1, 20]),
            write: 100,
            flush: random.pick(&[0, 1, 4]),
            trim: 0,
            zeroes: random.pick(&[0, 1]),
            fua_percent: random.pick(&[0, 0, 1]),
            aligned_percent: random.pick(&[50, 100]),
            hot_percent: 0,
            bytes_max: u64::from(limits::STEP_BYTES_MAX),
            pause_ns_max: random.magnitude(1_000, 1_000_000),
        };
        self.lives = u32::try_from(random.between(2, 6)).expect("a few");
        self.steps_max = random.between(300, 2_000);
        self.extra_log_segments = random.pick(&[0, 4]);
        self.config.destage_high_percent = 90;
        self.device_ns = random.magnitude(5_000, 200_000);
        self.origin_ns = random.magnitude(1_000_000, 20_000_000);
    }
}

fn draw_export(index: u8, blocks_max: u64, faults: &Faults, random: &mut Random) -> ExportScenario {
    let blocks = random.magnitude(4, blocks_max);
    let odd_bytes = if random.percent(20) { random.between(1, 7) * 512 } else { 0 };
    let size_bytes = blocks * BLOCK_BYTES_U64 - odd_bytes;
    let limit_bytes = random.magnitude(256 << 10, 16 << 20);
    // Without faults of the origin a wait ends well, however long it takes.
    let patient = faults.origin_outage == 0 && faults.origin_stall == 0;
    ExportScenario {
        options: ExportOptions {
            name: format!("export-{index}"),
            uuid: [index + 1; 16],
            origin: OriginIdentity {
                size_bytes,
                name: format!("origin-{index}"),
                also: Vec::new(),
            },
            mode: if random.percent(10) { Mode::Writethrough } else { Mode::Writeback },
            order: if random.percent(75) { Order::Strict } else { Order::Relaxed },
            dirty_bytes_max: random.percent(60).then_some(limit_bytes),
            wait_ns_max: if patient { 3_600_000_000_000 } else { 2_000_000_000 },
            origin_timeout_ns: if patient { 3_600_000_000_000 } else { 1_000_000_000 },
        },
        starts_empty: random.percent(25),
        shares_power: random.percent(60),
        is_filler: false,
        reorders: false,
        is_absent: false,
    }
}

fn draw_config(random: &mut Random) -> Config {
    Config {
        requests_max: REQUESTS_MAX,
        destage_high_percent: random.pick(&[1, 10, 50, 90]),
        destage_age_ns: random.magnitude(1_000_000, 5_000_000_000),
        destage_idle_ns: random.magnitude(100_000, 500_000_000),
        ..Config::default()
    }
}

fn draw_probing(random: &mut Random) -> Probing {
    let mut rate = |first, last| u32::try_from(random.magnitude(first, last)).expect("a rate");
    Probing {
        turns: rate(10_000, 400_000),
        structure_turns: rate(20_000, 400_000),
        crashes: random.pick(&[4, 16, 64]),
        points_max: 0,
    }
}

fn draw_mix(random: &mut Random) -> Mix {
    let mut weight = |least: u64| u32::try_from(random.between(least, 100)).expect("a weight");
    let (read, write, flush, trim, zeroes) =
        (weight(1), weight(20), weight(0), weight(0), weight(0));
    let rare = |weight: u32, random: &mut Random| weight / random.pick(&[2, 10, 100]);
    Mix {
        read,
        write,
        flush: rare(flush, random),
        trim: rare(trim, random),
        zeroes: rare(zeroes, random),
        fua_percent: random.pick(&[0, 1, 10, 50]),
        aligned_percent: random.pick(&[0, 50, 90, 100]),
        hot_percent: random.pick(&[0, 50, 90]),
        bytes_max: random.magnitude(512, u64::from(limits::STEP_BYTES_MAX)),
        pause_ns_max: random.magnitude(1_000, 50_000_000),
    }
}

fn draw_faults(random: &mut Random) -> Faults {
    let mut rate = |worlds_percent: u32, first: u64, last: u64| {
        if random.percent(worlds_percent) {
            u32::try_from(random.magnitude(first, last)).expect("a rate")
        } else {
            0
        }
    };
    Faults {
        kill_percent: rate(50, 10, 50),
        stop_percent: rate(30, 5, 30),
        cut_in_recovery_percent: rate(60, 10, 60),
        verify_percent: 100 - rate(30, 10, 90),
        device_read_error: rate(12, 1_000, 50_000),
        device_read_rot: rate(12, 1_000, 100_000),
        device_write_error: rate(12, 1_000, 20_000),
        device_flush_error: rate(12, 1_000, 50_000),
        device_lost_write: 0,
        device_misdirected_write: 0,
        device_rot: 0,
        device_stale: 0,
        device_copy_percent: 0,
        origin_error: rate(15, 1_000, 50_000),
        origin_flush_error: rate(15, 1_000, 200_000),
        origin_stall: rate(15, 1_000, 20_000),
        origin_outage: rate(15, 1_000, 20_000),
        origin_hang: 0,
        origin_power_percent: rate(70, 10, 90),
        disconnect: rate(30, 1_000, 100_000),
        flood: rate(20, 100, 5_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_with_quiet_faults_are_those_that_chance_would_have_drawn() {
        let (mut drawn, mut added) = (0, 0);
        for seed in 0..200 {
            let (usual, quiet) = (Scenario::draw(seed), Scenario::draw_quiet(seed));
            let Faults { device_read_rot, device_read_error, .. } = usual.faults;
            assert_eq!(quiet.faults.quiet_device() > 0, device_read_rot + device_read_error == 0);
            if usual.faults.quiet_device() > 0 || quiet.faults.quiet_device() == 0 {
                assert_eq!(format!("{usual:?}"), format!("{quiet:?}"));
                drawn += 1;
            } else {
                assert!(!quiet.lives_differ);
                let Faults { device_lost_write, device_misdirected_write, .. } = quiet.faults;
                let Faults { device_rot, device_stale, device_copy_percent, .. } = quiet.faults;
                let faults = Faults {
                    device_lost_write,
                    device_misdirected_write,
                    device_rot,
                    device_stale,
                    device_copy_percent,
                    ..usual.faults
                };
                assert_eq!(format!("{faults:?}"), format!("{:?}", quiet.faults));
                added += 1;
            }
        }
        assert!(drawn > 20 && added > 100, "{drawn} as they were, {added} with quiet faults");
    }
}
