//! Every bit: a small cache with every kind of structure in it is damaged in one place at a time,
//! checked, recovered and read.
//!
//! *Undetected* means: `check` does not name the place, or recovery goes on as if it were right and
//! some block reads as neither what it should nor as the documented error. Reserved and padding
//! bytes count like all others; blocks that were never written are no metadata. The last record is
//! known to have been flushed to none after it, so damage to it looks like the end of the log, and
//! is to be cut there; what a power cut left behind that end must change nothing.

mod image;
mod trial;

pub use image::{Cut, Image, Kind, Page, Structure};
pub use trial::{Outcome, Overlay, Seen, Trials};

use crate::threads::on_threads;
use image::{BAD_BLOCK, DURABLE, Data, EXPORT_BLOCKS, EXPORTS, LAST};
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use ringfence_cache::{OpenError, Report};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bits of a block.
pub const BLOCK_BITS: usize = BLOCK_BYTES * 8;

/// What happened to a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// One bit of one of its blocks is wrong.
    Bit {
        /// Which of its blocks.
        page: usize,
        /// Which bit of it.
        bit: usize,
    },
    /// It reads as zeroes.
    Zeroed,
    /// It and the next one of its kind are in each other's place.
    Swapped,
    /// It is as it was in an earlier life.
    Aged,
}

/// What came of many trials.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Trials.
    pub trials: u64,
    /// Those in which nothing was lost: a copy was used.
    pub healed: u64,
    /// Those in which the log was cut where its end can be.
    pub cut: u64,
    /// Those in which a start was refused.
    pub refused: u64,
    /// Those in which clean blocks were fetched again.
    pub fetched: u64,
    /// Those in which dirty blocks, and no others, gave EIO.
    pub failed_blocks: u64,
    /// Damage to what counts for nothing, which changed nothing.
    pub harmless: u64,
    /// Those that ended in any other way.
    pub undetected: u64,
}

/// A trial that ended as it must not.
#[derive(Clone, Debug)]
pub struct Undetected {
    /// What was damaged.
    pub kind: Kind,
    /// The record's sequence; zero for what belongs to none.
    pub sequence: u64,
    /// Its first block on the device.
    pub page: usize,
    /// How.
    pub damage: Damage,
    /// What is wrong with what came of it.
    pub wrong: String,
}

impl std::fmt::Display for Undetected {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, sequence, page, damage, wrong } = self;
        write!(formatter, "{kind:?} of record {sequence} in block {page}, {damage:?}: {wrong}")
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.trials += other.trials;
        self.healed += other.healed;
        self.cut += other.cut;
        self.refused += other.refused;
        self.fetched += other.fetched;
        self.failed_blocks += other.failed_blocks;
        self.harmless += other.harmless;
        self.undetected += other.undetected;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} trials: {} healed by a second copy, {} cut at the end of the log, {} starts \
             refused, {} fetched again or unused, {} EIO for exactly the damaged block, {} in \
             remains without effect, {} undetected",
            self.trials,
            self.healed,
            self.cut,
            self.refused,
            self.fetched,
            self.failed_blocks,
            self.harmless,
            self.undetected,
        )
    }
}

/// The blocks of a structure after some damage; none where there is nothing to tell it by.
fn damaged(image: &Image, at: usize, damage: Damage) -> Option<Vec<(usize, Page)>> {
    let structure = &image.structures[at];
    let original = |page: usize| image.pages[page].as_deref().copied().unwrap_or([0; BLOCK_BYTES]);
    let pages = structure.page..structure.page + structure.pages;
    let changed: Vec<_> = match damage {
        Damage::Bit { page, bit } => {
            let mut bytes = original(structure.page + page);
            bytes[bit / 8] ^= 1 << (bit % 8);
            vec![(structure.page + page, bytes)]
        }
        Damage::Zeroed => pages.map(|page| (page, [0; BLOCK_BYTES])).collect(),
        Damage::Aged => pages.zip(structure.earlier.iter().copied()).collect(),
        Damage::Swapped => {
            let of_kind = |kind| std::mem::discriminant(&kind);
            let next = image.structures[at + 1..]
                .iter()
                .find(|next| of_kind(next.kind) == of_kind(structure.kind))?;
            let next = next.page..next.page + structure.pages.min(next.pages);
            pages
                .zip(next)
                .flat_map(|(one, other)| [(one, original(other)), (other, original(one))])
                .collect()
        }
    };
    changed.iter().any(|(page, bytes)| *bytes != original(*page)).then_some(changed)
}

/// Runs one trial and judges it. Returns what is wrong.
fn judge(
    trials: &Trials,
    image: &Image,
    at: usize,
    damage: Damage,
    tally: &mut Tally,
) -> Result<(), String> {
    let Some(changed) = damaged(image, at, damage) else { return Ok(()) };
    let structure = &image.structures[at];
    let places: Vec<_> = changed.iter().map(|(page, _)| *page).collect();
    // That a copy is written anew does not depend on which of its bits was wrong: one of many does.
    let is_rechecked = !matches!(damage, Damage::Bit { bit, .. } if bit % 61 != 0);
    let has_copy = matches!(structure.kind, Kind::Superblock | Kind::ExportTable | Kind::Footer);
    let heals = is_rechecked && has_copy;
    let outcome = trials.run(Overlay::new(image, changed), heals);
    tally.trials += 1;
    verdict(structure, damage, &places, &outcome, tally)
}

fn verdict(
    structure: &Structure,
    damage: Damage,
    places: &[usize],
    outcome: &Outcome,
    tally: &mut Tally,
) -> Result<(), String> {
    let checked = outcome.checked.as_ref().map_err(|error| format!("check refuses: {error}"))?;
    let is_named = names(checked, places);
    // Damage to the last record, or to its payload, is the end of the log; so is damage to two
    // neighbours one of which is the last.
    let is_last = structure.sequence == LAST && structure.kind != Kind::Remains;
    if structure.kind == Kind::Remains {
        tally.harmless += 1;
        return reads_as(outcome, Cut::AtEnd, None);
    }
    if is_last {
        tally.cut += 1;
        if checked.log.next_sequence != LAST {
            return Err(format!("the log is not cut before record {LAST}"));
        }
        if !is_named && matches!(damage, Damage::Bit { .. }) {
            return Err("check does not name it".into());
        }
        return reads_as(outcome, Cut::BeforeLast, None);
    }
    if !is_named {
        return Err("check does not name it".into());
    }
    if checked.is_clean() {
        let may_be_an_interruption = damage == Damage::Aged
            && matches!(structure.kind, Kind::Superblock | Kind::ExportTable);
        if !may_be_an_interruption {
            return Err("check calls it clean".into());
        }
    }
    match structure.kind {
        Kind::OnlyHeader => {
            tally.refused += 1;
            match &outcome.read {
                Err(OpenError::DurableDamaged { last, .. }) if *last == DURABLE => Ok(()),
                Err(error) => Err(format!("the start is refused, but: {error}")),
                Ok(_) => Err("recovery believes it, or cuts where durable data is".into()),
            }
        }
        Kind::Payload(data) => payload_verdict(outcome, data, damage, tally),
        kind => {
            tally.healed += 1;
            reads_as(outcome, Cut::AtEnd, None)?;
            is_healed(kind, outcome)
        }
    }
}

fn payload_verdict(
    outcome: &Outcome,
    data: Data,
    damage: Damage,
    tally: &mut Tally,
) -> Result<(), String> {
    if damage == Damage::Swapped {
        // Two blocks are damaged: either may be what a client is told.
        return reads_right_or_fails(outcome);
    }
    let reads = outcome.read.as_ref().map_err(|error| format!("the start is refused: {error}"))?;
    let block = usize::try_from(data.block).expect("small");
    let is_only_copy = data.dirty && reads[data.export][block].is_err();
    if is_only_copy {
        tally.failed_blocks += 1;
    } else {
        tally.fetched += 1;
    }
    reads_as(outcome, Cut::AtEnd, is_only_copy.then_some(data))
}

/// Whether some finding lies in one of the blocks.
fn names(report: &Report, places: &[usize]) -> bool {
    let first_blocks = report.findings.iter().filter_map(|finding| {
        let blocks = finding.blocks.map_or(1, |(_, count)| count);
        Some((finding.offset_bytes? / BLOCK_BYTES_U64, blocks))
    });
    let slots = |page: u64| {
        // A slot of the export table is named by its start.
        report.export_tables.iter().find_map(|slot| {
            let first = slot.offset_bytes / BLOCK_BYTES_U64;
            (first..first + 16).contains(&page).then_some(first)
        })
    };
    let mut found = first_blocks.flat_map(|(first, count)| first..first + count);
    found.any(|found| {
        places.iter().any(|&page| {
            let page = page as u64;
            page == found || slots(page) == Some(found) || is_footer_of(found, page)
        })
    })
}

/// Footers are named by their first block.
fn is_footer_of(found: u64, page: u64) -> bool {
    found < page && page < found + 16 && found % 1024 == (256 + 1008) % 1024
}

/// Whether all blocks read as they should, with one block failing.
fn reads_as(outcome: &Outcome, cut: Cut, fails: Option<Data>) -> Result<(), String> {
    let reads = outcome.read.as_ref().map_err(|error| format!("the start is refused: {error}"))?;
    for (export, blocks) in reads.iter().enumerate() {
        for (read, block) in blocks.iter().zip(0..EXPORT_BLOCKS) {
            let name = EXPORTS[export].0;
            let may_fail = fails.is_some_and(|f| (f.export, f.block) == (export, block));
            let is_bad = (export, block) == BAD_BLOCK;
            match read {
                Ok(_) if is_bad => return Err(format!("{name} block {block} can be read")),
                Err(_) if is_bad => {}
                Ok(seen) if seen.is_right(cut) => {}
                Ok(_) => return Err(format!("{name} block {block} reads as something else")),
                Err(_) if may_fail => {}
                Err(error) => return Err(format!("{name} block {block}: {error}")),
            }
        }
    }
    Ok(())
}

fn reads_right_or_fails(outcome: &Outcome) -> Result<(), String> {
    let Ok(reads) = &outcome.read else { return Ok(()) };
    for (export, blocks) in reads.iter().enumerate() {
        for (read, block) in blocks.iter().zip(0..EXPORT_BLOCKS) {
            let is_right = |seen: Seen| seen.is_right(Cut::BeforeLast) || seen.is_right(Cut::AtEnd);
            if read.is_ok_and(|seen| !is_right(seen)) {
                return Err(format!("{} block {block} reads as something else", EXPORTS[export].0));
            }
        }
    }
    Ok(())
}

/// Whether both copies are good after the start.
fn is_healed(kind: Kind, outcome: &Outcome) -> Result<(), String> {
    let name = match kind {
        Kind::Superblock => "superblock",
        Kind::ExportTable => "export table",
        Kind::Footer => "footer",
        _ => return Ok(()),
    };
    let Some(rechecked) = &outcome.rechecked else { return Ok(()) };
    let report = rechecked.as_ref().map_err(|error| format!("check refuses: {error}"))?;
    // Of a footer only its padding is not read by recovery, and so not written anew.
    let left = report
        .findings
        .iter()
        .find(|finding| finding.structure == name && !finding.problem.contains("padding"));
    left.map_or(Ok(()), |finding| Err(format!("not healed: {finding:?}")))
}

/// Which structures, and which bits of their blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// 64 KiB of metadata, all bits: both superblocks, the first block of both slots of the export
    /// table, all footers and nine record headers.
    Metadata64KiB,
    /// All bits of all metadata.
    Metadata,
    /// Bits of each block of payload, a prime number apart.
    Payload,
    /// All structures zeroed, swapped and aged.
    Whole,
}

/// The trials of a scope: structure and damage.
fn trials_of(image: &Image, scope: Scope) -> Vec<(usize, Damage)> {
    let mut chosen = Vec::new();
    let mut pages_left = 16;
    for (at, structure) in image.structures.iter().enumerate() {
        let is_payload = matches!(structure.kind, Kind::Payload(_));
        let every_bit = |pages: usize| {
            (0..pages).flat_map(move |page| {
                (0..BLOCK_BITS).map(move |bit| (at, Damage::Bit { page, bit }))
            })
        };
        match scope {
            Scope::Metadata if !is_payload => chosen.extend(every_bit(structure.pages)),
            Scope::Metadata64KiB if !is_payload && pages_left > 0 && is_sampled(structure) => {
                pages_left -= 1;
                chosen.extend(every_bit(1));
            }
            Scope::Payload if is_payload => {
                let bits = (0..BLOCK_BITS).step_by(251);
                chosen.extend(bits.map(|bit| (at, Damage::Bit { page: 0, bit })));
            }
            Scope::Whole => {
                let damages = [Damage::Zeroed, Damage::Swapped, Damage::Aged];
                chosen.extend(damages.map(|damage| (at, damage)));
            }
            _ => {}
        }
    }
    chosen
}

/// Headers with and without a second copy, without payload, and the last are among those sampled.
fn is_sampled(structure: &Structure) -> bool {
    structure.kind != Kind::Remains && ![101, 102, 104, 109].contains(&structure.sequence)
        || structure.kind == Kind::Footer
}

/// Runs all trials of a scope on so many threads; says at once what is undetected.
#[must_use]
pub fn run(scope: Scope, threads: usize, found: impl Fn(&Undetected) + Sync) -> Tally {
    let image = Image::new();
    let chosen = trials_of(&image, scope);
    let next = AtomicUsize::new(0);
    let work = || {
        let trials = Trials::default();
        let mut tally = Tally::default();
        while let Some(&(at, damage)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(wrong) = judge(&trials, &image, at, damage, &mut tally) {
                tally.undetected += 1;
                let Structure { kind, sequence, page, .. } = image.structures[at];
                found(&Undetected { kind, sequence, page, damage, wrong });
            }
        }
        tally
    };
    let mut all = Tally::default();
    for tally in on_threads(threads, work) {
        all.add(tally);
    }
    all
}

/// The image as it is: everything is as it should be.
///
/// # Errors
/// What is not.
pub fn run_undamaged() -> Result<Report, String> {
    let image = Image::new();
    let outcome = Trials::default().run(Overlay::new(&image, []), true);
    reads_as(&outcome, Cut::AtEnd, None)?;
    outcome.checked.map_err(|error| error.to_string())
}
