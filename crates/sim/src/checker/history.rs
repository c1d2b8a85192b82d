//! Every write of a world, what is known about its place in the one order of all writes, and
//! what clients know of its durability.
//!
//! Time is counted in *moments*: each submission and each answer is one. A write takes effect
//! somewhere between the moment it was submitted and the moment it is *settled*: answered, or
//! first seen by a read that was answered.

use crate::content::Value;

/// The moment of something that has not happened.
pub const NEVER: u64 = u64::MAX;

/// One write, trim or write-zeroes, or the content that an origin started with.
#[derive(Clone, Debug)]
pub struct WriteRecord {
    /// The export it went to.
    pub export: u8,
    /// The first unit it covers.
    pub first_unit: usize,
    /// How many units it covers.
    pub units: usize,
    /// Whether it makes its units read as zeroes.
    pub zeroes: bool,
    /// Whether its answer promises durability.
    pub fua: bool,
    /// Whether its answer outlives the process: its client never sends it again (decision 0017).
    pub kept: bool,
    /// The moment it was submitted.
    pub invoked: u64,
    /// The moment by which it had certainly taken effect.
    pub settled: u64,
    /// The moment after which it does not take effect, if it had not: its client was gone.
    pub abandoned: u64,
    /// The moment it was answered well.
    pub answered: u64,
    /// The moment its own export's client knew it to be durable: the barrier of promise 4.
    pub flushed: u64,
    /// Whether it was seen after a restart: what is served then cannot be taken back (rule 1).
    pub recovered: bool,
    /// The moment it first was.
    pub recovered_at: u64,
    /// Whether a crash took it.
    pub lost: bool,
    /// Writes that reads have shown to come after this one, though they ran concurrently.
    successors: Vec<u32>,
}

impl WriteRecord {
    /// Whether the write covers a unit of its export.
    #[must_use]
    pub fn covers(&self, export: u8, unit: usize) -> bool {
        self.export == export && (self.first_unit..self.first_unit + self.units).contains(&unit)
    }
}

/// A life that has ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    /// The moment.
    at: u64,
    /// What was answered before this moment was durable by then.
    durable_before: u64,
    /// Whether only the process ended, and the power has stayed on until the next start was over:
    /// what was answered to clients that outlive the process is durable then.
    leaves_kept: bool,
}

/// All writes of a world.
#[derive(Clone, Debug)]
pub struct History {
    writes: Vec<WriteRecord>,
    /// Per export, answered writes whose export has not been flushed since, in order of answer.
    unflushed: Vec<Vec<u32>>,
    /// Per export, writes in the order in which their client knew them to be durable.
    flushed: Vec<Vec<u32>>,
    /// Writes of this life answered before this moment are durable on the cache device.
    durable_before: u64,
    /// When that moved, and where to.
    durable_moves: Vec<(u64, u64)>,
    /// Earlier lives.
    ended: Vec<Ended>,
    moments: u64,
}

impl History {
    /// An empty history for a number of exports.
    #[must_use]
    pub fn new(exports: usize) -> Self {
        let nothing = WriteRecord {
            export: u8::MAX,
            first_unit: 0,
            units: 0,
            zeroes: true,
            fua: false,
            kept: false,
            invoked: 0,
            settled: 0,
            abandoned: NEVER,
            answered: 0,
            flushed: 0,
            recovered: true,
            recovered_at: 0,
            lost: false,
            successors: Vec::new(),
        };
        Self {
            // Value zero means zeroes, so no write has that number.
            writes: vec![nothing],
            unflushed: vec![Vec::new(); exports],
            flushed: vec![Vec::new(); exports],
            durable_before: 1,
            durable_moves: Vec::new(),
            ended: Vec::new(),
            moments: 1,
        }
    }

    /// The next moment.
    pub fn tick(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    /// The moment of the last submission or answer.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.moments
    }

    /// What is known of a write.
    #[must_use]
    pub fn get(&self, id: u32) -> &WriteRecord {
        &self.writes[id as usize]
    }

    /// How many numbers of writes have been used, zero included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether there is no write yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.len() == 1
    }

    /// Whether a value is the data of a write, by number alone.
    #[must_use]
    pub fn names(&self, value: Value) -> bool {
        value != 0 && (value as usize) < self.writes.len()
    }

    /// Records the content an export starts with: settled and durable before anything else.
    pub fn initial(&mut self, export: u8, units: usize, zeroes: bool) -> u32 {
        let mut record = self.writes[0].clone();
        (record.export, record.units, record.zeroes) = (export, units, zeroes);
        self.push(record)
    }

    /// Records a submission.
    pub fn submit(
        &mut self,
        export: u8,
        first_unit: usize,
        units: usize,
        zeroes: bool,
        fua: bool,
    ) -> u32 {
        let invoked = self.tick();
        self.push(WriteRecord {
            export,
            first_unit,
            units,
            zeroes,
            fua,
            kept: false,
            invoked,
            settled: NEVER,
            abandoned: NEVER,
            answered: NEVER,
            flushed: NEVER,
            recovered: false,
            recovered_at: NEVER,
            lost: false,
            successors: Vec::new(),
        })
    }

    fn push(&mut self, record: WriteRecord) -> u32 {
        self.writes.push(record);
        u32::try_from(self.writes.len() - 1).expect("fewer than 2^32 writes")
    }

    /// Records that a write was answered well.
    pub fn answer(&mut self, id: u32) {
        let now = self.tick();
        let write = &mut self.writes[id as usize];
        write.answered = now;
        write.settled = write.settled.min(now);
        let export = usize::from(write.export);
        if write.fua {
            write.flushed = now;
            self.flushed[export].push(id);
        } else {
            self.unflushed[export].push(id);
        }
    }

    /// Records that the client of a write counts on its answer whatever becomes of the process.
    pub fn keep(&mut self, id: u32) {
        self.writes[id as usize].kept = true;
    }

    /// Records that nobody waits for a write any more: it has taken effect, or never does.
    pub fn abandon(&mut self, id: u32) {
        self.writes[id as usize].abandoned = self.moments;
    }

    /// Records that a flush, submitted at a moment, was answered well. `export` is the one whose
    /// client asked; `None` for an operator.
    pub fn flushed(&mut self, export: Option<u8>, submitted: u64) {
        let now = self.tick();
        if submitted > self.durable_before {
            self.durable_before = submitted;
            self.durable_moves.push((now, submitted));
        }
        let Some(export) = export.map(usize::from) else { return };
        let waiting = std::mem::take(&mut self.unflushed[export]);
        for id in waiting {
            let write = &mut self.writes[id as usize];
            if write.answered < submitted {
                write.flushed = now;
                self.flushed[export].push(id);
            } else {
                self.unflushed[export].push(id);
            }
        }
    }

    /// Writes of an export in the order in which their client knew them to be durable.
    #[must_use]
    pub fn flushed_order(&self, export: u8) -> &[u32] {
        &self.flushed[usize::from(export)]
    }

    /// Whether no crash may take the write.
    #[must_use]
    pub fn is_durable(&self, id: u32) -> bool {
        let write = self.get(id);
        if write.recovered || write.flushed != NEVER {
            return true;
        }
        match self.ended.get(self.life_of(write.answered)) {
            Some(life) if write.kept && life.leaves_kept => true,
            Some(life) => write.answered < life.durable_before,
            None => write.answered < self.durable_before,
        }
    }

    /// Whether clients knew before a moment that no crash may take the write.
    #[must_use]
    pub fn was_durable(&self, id: u32, moment: u64) -> bool {
        let write = self.get(id);
        if write.recovered_at < moment || write.flushed < moment {
            return true;
        }
        let life = self.ended.get(self.life_of(write.answered));
        if write.kept && life.is_some_and(|life| life.leaves_kept) && write.answered < moment {
            // The device had it when it was answered.
            return true;
        }
        let end = life.map_or(NEVER, |life| life.at).min(moment);
        let moves = self.durable_moves.partition_point(|(at, _)| *at < end);
        moves > 0 && write.answered < self.durable_moves[moves - 1].1
    }

    /// A life ends: what is not durable may be gone. Returns the moment.
    pub fn end_life(&mut self) -> u64 {
        let at = self.tick();
        let durable_before = self.durable_before;
        self.ended.push(Ended { at, durable_before, leaves_kept: false });
        at
    }

    /// It was the process that ended, and nothing else: what was answered to clients that go on is
    /// there at the next start, and their next flush covers it. Returns how much that is.
    pub fn outlive_process(&mut self) -> u64 {
        self.ended.last_mut().expect("a life has ended").leaves_kept = true;
        let mut left = 0;
        for unflushed in &mut self.unflushed {
            unflushed.retain(|id| self.writes[*id as usize].kept);
            left += unflushed.len() as u64;
        }
        left
    }

    /// The power is gone before the next start was over: nobody counts on anything any more that
    /// was not durable, and no later flush covers it unless it is seen again.
    pub fn lose_power(&mut self) {
        self.ended.last_mut().expect("a life has ended").leaves_kept = false;
        self.unflushed.iter_mut().for_each(Vec::clear);
    }

    /// Whether there is something that is there at the next start unless the power fails.
    #[must_use]
    pub fn counts_on_power(&self) -> bool {
        let leaves_kept = self.ended.last().is_some_and(|life| life.leaves_kept);
        leaves_kept && self.unflushed.iter().any(|unflushed| !unflushed.is_empty())
    }

    /// In which life a moment was, counted from zero.
    #[must_use]
    pub fn life_of(&self, moment: u64) -> usize {
        self.ended.partition_point(|life| life.at <= moment)
    }

    /// A read that was answered now has seen the write.
    pub fn seen(&mut self, id: u32, now: u64) {
        let write = &mut self.writes[id as usize];
        write.settled = write.settled.min(now);
    }

    /// The write was seen after a restart.
    pub fn recover(&mut self, id: u32) {
        let now = self.moments;
        let write = &mut self.writes[id as usize];
        // Its client may never have heard; from now on it is like any other.
        write.settled = write.settled.min(now);
        write.answered = write.answered.min(now);
        if !write.recovered && write.flushed == NEVER {
            // One that outlived the process is there already, and twice does no harm.
            let export = usize::from(write.export);
            self.unflushed[export].push(id);
        }
        let write = &mut self.writes[id as usize];
        write.recovered = true;
        write.recovered_at = write.recovered_at.min(now);
    }

    /// A crash took the write.
    pub fn lose(&mut self, id: u32) {
        self.writes[id as usize].lost = true;
    }

    /// Whether `first` certainly took effect before `second`.
    #[must_use]
    pub fn is_before(&self, first: u32, second: u32) -> bool {
        let (one, two) = (self.get(first), self.get(second));
        first != second && (one.settled < two.invoked || one.successors.contains(&second))
    }

    /// The same of a `first` that took effect at some time.
    #[must_use]
    pub fn was_before(&self, first: u32, second: u32) -> bool {
        let abandoned = self.get(first).abandoned;
        self.is_before(first, second) || abandoned < self.get(second).invoked
    }

    /// A read has shown that `first` took effect before `second`. False when the contrary is
    /// already known.
    pub fn order(&mut self, first: u32, second: u32) -> bool {
        if self.is_before(second, first) {
            return false;
        }
        if !self.is_before(first, second) && first != second {
            self.writes[first as usize].successors.push(second);
        }
        true
    }

    /// One line about a write.
    #[must_use]
    pub fn describe(&self, id: u32) -> String {
        let write = self.get(id);
        let moment = |moment| if moment == NEVER { "never".into() } else { format!("{moment}") };
        format!(
            "write {id} (export {}, units {}+{}{}{}{}{}, submitted {}, settled {}, answered {}, \
             flushed {})",
            write.export,
            write.first_unit,
            write.units,
            if write.zeroes { ", zeroes" } else { "" },
            if write.fua { ", FUA" } else { "" },
            if write.kept { ", kept" } else { "" },
            if write.lost { ", lost" } else { "" },
            write.invoked,
            moment(write.settled),
            moment(write.answered),
            moment(write.flushed),
        )
    }
}
