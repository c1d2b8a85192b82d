//! Every bit: a small cache with every kind of structure in it is damaged in one place at a time,
//! checked, recovered and read.
//!
//! *Undetected* means: `check` does not name the place, or recovery goes on as if it were right and
//! some block reads as neither what it should nor as the documented error. Reserved and padding
//! bytes count like all others; blocks that were never written are no metadata. The last record is
//! known to have been flushed to none after it, so damage to it looks like the end of the log, and
//! is to be cut there; what a power cut, an earlier life or another cache left behind that end must
//! change nothing.

mod image;
mod trial;

pub use image::{Cut, Image, Kind, Page, Structure};
pub use trial::{Outcome, Overlay, Seen, Trials};

use crate::threads::on_threads;
use image::{BAD_BLOCK, DURABLE, Data, EXPORT_BLOCKS, EXPORTS, LAST};
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use ringfence_cache::{OpenError, Report, RequestError};
use std::mem::discriminant;
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
    /// It and another one, mostly the next of its kind, are in each other's place.
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
    /// Those in which the dirty blocks that were damaged, and no others, gave EIO.
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

/// What came of a trial that ended as it must.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Healed,
    Cut,
    Refused,
    Fetched,
    FailedBlocks,
    Harmless,
}

impl Tally {
    fn count(&mut self, ending: Ending) {
        *match ending {
            Ending::Healed => &mut self.healed,
            Ending::Cut => &mut self.cut,
            Ending::Refused => &mut self.refused,
            Ending::Fetched => &mut self.fetched,
            Ending::FailedBlocks => &mut self.failed_blocks,
            Ending::Harmless => &mut self.harmless,
        } += 1;
    }

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

/// A structure that was hit, and the blocks of its place that were changed.
struct Hit<'a> {
    structure: &'a Structure,
    places: Vec<usize>,
}

impl Hit<'_> {
    fn is_header(&self) -> bool {
        matches!(self.structure.kind, Kind::CopiedHeader | Kind::OnlyHeader)
    }

    fn is_last(&self) -> bool {
        self.structure.sequence == LAST
    }

    /// Whether what is left is what lies behind the end of any log: where the last header was,
    /// zeroes or one of an earlier use. Nothing tells the end of a log from that.
    fn is_unseen(&self, damage: Damage) -> bool {
        let is_left_by_others = matches!(damage, Damage::Zeroed | Damage::Aged);
        self.is_last() && self.is_header() && is_left_by_others
    }

    /// Whether what is left is what an interrupted start leaves.
    fn may_be_an_interruption(&self, damage: Damage) -> bool {
        damage == Damage::Aged && self.structure.kind == Kind::ExportTable
    }
}

/// What a structure is swapped with: the next of its kind, behind the last the first. Both copies
/// of a superblock or of the export table are the same, so they change places with others that have
/// a second copy: a footer has as much room as a slot. So does the last header: of another one
/// without a copy the start would be refused.
fn partner(image: &Image, at: usize) -> &Structure {
    let structure = &image.structures[at];
    let kind = match structure.kind {
        Kind::Superblock => Kind::CopiedHeader,
        Kind::ExportTable => Kind::Footer,
        Kind::OnlyHeader if structure.sequence == LAST => Kind::CopiedHeader,
        kind => kind,
    };
    let mut around = image.structures[at + 1..].iter().chain(&image.structures[..at]);
    let found = around.find(|other| discriminant(&other.kind) == discriminant(&kind));
    found.expect("several of each kind")
}

/// What some damage hits, and the blocks of the device after it.
fn damaged(image: &Image, at: usize, damage: Damage) -> (Vec<Hit<'_>>, Vec<(usize, Page)>) {
    let structure = &image.structures[at];
    let original = |page: usize| image.pages[page].as_deref().copied().unwrap_or([0; BLOCK_BYTES]);
    let pages = structure.page..structure.page + structure.pages;
    let hit = |structure, pages| Hit { structure, places: Vec::from_iter(pages) };
    match damage {
        Damage::Bit { page, bit } => {
            let page = structure.page + page;
            let mut bytes = original(page);
            bytes[bit / 8] ^= 1 << (bit % 8);
            (vec![hit(structure, page..page + 1)], vec![(page, bytes)])
        }
        Damage::Zeroed => {
            let zeroes = pages.clone().map(|page| (page, [0; BLOCK_BYTES])).collect();
            (vec![hit(structure, pages)], zeroes)
        }
        Damage::Aged => {
            let earlier = pages.clone().zip(structure.earlier.iter().copied()).collect();
            (vec![hit(structure, pages)], earlier)
        }
        Damage::Swapped => {
            let partner = partner(image, at);
            let length = structure.pages.max(partner.pages);
            let [own, others] =
                [structure, partner].map(|one| hit(one, one.page..one.page + length));
            let pairs = own.places.iter().zip(&others.places);
            let changed = pairs
                .flat_map(|(&one, &other)| [(one, original(other)), (other, original(one))])
                .collect();
            (vec![own, others], changed)
        }
    }
}

/// Runs one trial and judges it. Returns what is wrong.
fn judge(
    trials: &Trials,
    image: &Image,
    at: usize,
    damage: Damage,
    tally: &mut Tally,
) -> Result<(), String> {
    tally.trials += 1;
    let (hits, changed) = damaged(image, at, damage);
    let is_original = |(page, bytes): &(usize, Page)| {
        image.pages[*page].as_deref().unwrap_or(&[0; BLOCK_BYTES]) == bytes
    };
    if changed.iter().all(is_original) {
        return Err("nothing is damaged".into());
    }
    // That a copy is written anew does not depend on which of its bits was wrong: one of many does.
    let is_rechecked = !matches!(damage, Damage::Bit { bit, .. } if bit % 61 != 0);
    let has_copy = hits.iter().any(|hit| name_of_copied(hit.structure.kind).is_some());
    let outcome = trials.run(Overlay::new(image, changed), is_rechecked && has_copy);
    tally.count(verdict(image, &hits, damage, &outcome)?);
    Ok(())
}

/// What came of a trial, if it is what must.
fn verdict(
    image: &Image,
    hits: &[Hit<'_>],
    damage: Damage,
    outcome: &Outcome,
) -> Result<Ending, String> {
    let checked = outcome.checked.as_ref().map_err(|error| format!("check refuses: {error}"))?;
    let counting = || hits.iter().filter(|hit| hit.structure.kind != Kind::Remains);
    if counting().next().is_none() {
        reads_as(outcome, Cut::AtEnd, &[])?;
        return if checked.is_clean() {
            Ok(Ending::Harmless)
        } else {
            Err("check calls damage what counts for nothing".into())
        };
    }
    let is_only = |hit: &&Hit<'_>| hit.structure.kind == Kind::OnlyHeader && !hit.is_last();
    let lost = counting().filter(is_only).min_by_key(|hit| hit.structure.sequence);
    let is_named = |hit: &&Hit<'_>| names(checked, &hit.places) || hit.is_unseen(damage);
    // What follows in its segment is gone with it, and not named by itself.
    let mut to_be_named = counting().filter(|hit| lost.is_none_or(|lost| std::ptr::eq(lost, *hit)));
    if let Some(hit) = to_be_named.find(|hit| !is_named(hit)) {
        return Err(format!("check does not name the {:?}", hit.structure.kind));
    }
    let is_damage = |hit: &Hit<'_>| !hit.is_last() && !hit.may_be_an_interruption(damage);
    if checked.is_clean() && counting().any(is_damage) {
        return Err("check calls it clean".into());
    }
    if let Some(lost) = lost {
        let first_lost = lost.structure.sequence;
        return match &outcome.read {
            Err(OpenError::DurableDamaged { first, last, .. })
                if (*first, *last) == (first_lost, DURABLE) =>
            {
                Ok(Ending::Refused)
            }
            Err(error) => Err(format!("the start is refused, but: {error}")),
            Ok(_) => Err("recovery believes it, or cuts where durable data is".into()),
        };
    }
    // Damage to the last record, or to its payload, is the end of the log.
    let is_cut = counting().any(Hit::is_last);
    if is_cut && checked.log.next_sequence != LAST {
        return Err(format!("the log is not cut before record {LAST}"));
    }
    let cut = if is_cut { Cut::BeforeLast } else { Cut::AtEnd };
    let fails: Vec<_> = counting().filter_map(|hit| image.only_copy(hit.structure, cut)).collect();
    reads_as(outcome, cut, &fails)?;
    counting().try_for_each(|hit| is_healed(hit.structure.kind, outcome))?;
    let is_payload = |hit: &Hit<'_>| matches!(hit.structure.kind, Kind::Payload(_));
    Ok(match (is_cut, fails.is_empty()) {
        (true, _) => Ending::Cut,
        (false, false) => Ending::FailedBlocks,
        (false, true) if counting().any(is_payload) => Ending::Fetched,
        (false, true) => Ending::Healed,
    })
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

/// Whether all blocks read as they should, and some, and no others, fail.
fn reads_as(outcome: &Outcome, cut: Cut, fails: &[Data]) -> Result<(), String> {
    let reads = outcome.read.as_ref().map_err(|error| format!("the start is refused: {error}"))?;
    for (export, blocks) in reads.iter().enumerate() {
        for (read, block) in blocks.iter().zip(0..EXPORT_BLOCKS) {
            let name = EXPORTS[export].0;
            let must_fail = (export, block) == BAD_BLOCK
                || fails.iter().any(|data| (data.export, data.block) == (export, block));
            match read {
                Ok(_) if must_fail => return Err(format!("{name} block {block} can be read")),
                Err(RequestError::Io) if must_fail => {}
                Ok(seen) if seen.is_right(cut) => {}
                Ok(_) => return Err(format!("{name} block {block} reads as something else")),
                Err(error) => return Err(format!("{name} block {block}: {error}")),
            }
        }
    }
    Ok(())
}

/// What `check` calls a structure that a start writes anew where it is damaged.
const fn name_of_copied(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Superblock => Some("superblock"),
        Kind::ExportTable => Some("export table"),
        Kind::Footer => Some("footer"),
        _ => None,
    }
}

/// Whether both copies are good after the start.
fn is_healed(kind: Kind, outcome: &Outcome) -> Result<(), String> {
    let Some(name) = name_of_copied(kind) else { return Ok(()) };
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
    reads_as(&outcome, Cut::AtEnd, &[])?;
    outcome.checked.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The swapped structures, what becomes of them if it shows in so many blocks only, and whether
    /// that passes for the whole.
    fn judge_part(at: usize, shown: usize) -> Result<Ending, String> {
        let image = Image::new();
        let (hits, mut changed) = damaged(&image, at, Damage::Swapped);
        changed.truncate(shown);
        let outcome = Trials::default().run(Overlay::new(&image, changed), false);
        verdict(&image, &hits, Damage::Swapped, &outcome)
    }

    fn find(image: &Image, is_it: impl Fn(&Structure) -> bool) -> usize {
        image.structures.iter().position(is_it).expect("one of this kind")
    }

    #[test]
    fn both_of_two_that_were_swapped_must_be_found() {
        let image = Image::new();
        let is_dirty = |one: &Structure| matches!(one.kind, Kind::Payload(data) if data.dirty);
        for at in [find(&image, is_dirty), find(&image, |one| one.kind == Kind::Footer)] {
            assert!(judge_part(at, 2).is_ok());
            assert!(judge_part(at, 1).is_err(), "the other one is as it was");
            assert!(judge_part(at, 0).is_err(), "both are");
        }
    }

    #[test]
    fn damage_that_changes_nothing_is_no_trial() {
        let mut image = Image::new();
        let at = find(&image, |one| one.kind == Kind::Superblock);
        image.structures[at].earlier = vec![**image.pages[at].as_ref().expect("it was written")];
        let mut tally = Tally::default();
        assert!(judge(&Trials::default(), &image, at, Damage::Aged, &mut tally).is_err());
        assert_eq!(tally.trials, 1);
    }
}
