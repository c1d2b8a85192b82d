//! What a read has, what it still waits for, and what its caller was told of.
//!
//! ```text
//!   a block:  waiting ──▶ data | zeroes | failed ──▶ told
//! ```
//!
//! Pieces are told at the end of a turn, so that neighbours that came together go together, and
//! only once nothing that the read needs is on its way from the cache device any more: a block
//! that turns out to be damaged there makes the read start over (rule 31), and what was told can
//! neither be taken back nor be completed from a newer snapshot (promise 3, decision 0008).

use super::Engine;
use super::api::{Effect, Piece, PieceContent, RequestError};
use super::step::OpState;
use crate::limits::STEP_BLOCKS_MAX;
use crate::units::Ticket;

const WORDS: usize = STEP_BLOCKS_MAX.div_ceil(64);

/// Zeroes are worth a chunk of their own, without data, from here on: filling and sending them
/// costs more than the chunk.
pub const HOLE_BLOCKS_MIN: u32 = 16;

/// A set of blocks of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSet([u64; WORDS]);

impl BlockSet {
    /// Whether a block is in it.
    const fn has(&self, block: u32) -> bool {
        self.0[block as usize / 64] >> (block % 64) & 1 == 1
    }

    /// Adds a run of blocks.
    fn add(&mut self, first: u32, blocks: u32) {
        for block in first..first + blocks {
            self.0[block as usize / 64] |= 1 << (block % 64);
        }
    }

    /// Takes a run of blocks away.
    fn remove(&mut self, first: u32, blocks: u32) {
        for block in first..first + blocks {
            self.0[block as usize / 64] &= !(1 << (block % 64));
        }
    }

    /// Whether nothing is in it.
    fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }
}

/// How far a read has come, block by block.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadProgress {
    blocks: u32,
    in_pieces: bool,
    waiting: BlockSet,
    zeroes: BlockSet,
    failed: BlockSet,
    told: BlockSet,
    error: Option<RequestError>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Waiting,
    Told,
    Data,
    Zeroes,
    Failed,
}

impl ReadProgress {
    /// A read of so many blocks, with everything there until something else is said.
    pub fn new(blocks: u32, in_pieces: bool) -> Self {
        Self { blocks, in_pieces, ..Self::default() }
    }

    /// Whether its caller takes pieces.
    pub const fn in_pieces(&self) -> bool {
        self.in_pieces
    }

    /// A run of blocks is on its way.
    pub fn expect(&mut self, first: u32, blocks: u32) {
        self.waiting.add(first, blocks);
    }

    /// A run of blocks is zeroes that nobody has filled in.
    pub fn note_zeroes(&mut self, first: u32, blocks: u32) {
        self.zeroes.add(first, blocks);
    }

    /// A run of blocks has come.
    pub fn arrived(&mut self, first: u32, blocks: u32) {
        self.waiting.remove(first, blocks);
    }

    /// A run of blocks cannot be read.
    pub fn fail(&mut self, first: u32, blocks: u32, error: RequestError) {
        self.waiting.remove(first, blocks);
        self.failed.add(first, blocks);
        self.error.get_or_insert(error);
    }

    /// The first error.
    pub const fn error(&self) -> Option<RequestError> {
        self.error
    }

    /// Whether something is ready that was not told.
    fn has_untold(&self) -> bool {
        (0..self.blocks).any(|block| !matches!(self.class(block), Class::Waiting | Class::Told))
    }

    /// Whether the whole cannot be told by its completion alone.
    fn needs_pieces(&self) -> bool {
        let plain = self.told.is_empty() && self.zeroes.is_empty() && self.failed.is_empty();
        self.in_pieces && !plain
    }

    fn class(&self, block: u32) -> Class {
        if self.told.has(block) {
            Class::Told
        } else if self.waiting.has(block) {
            Class::Waiting
        } else if self.failed.has(block) {
            Class::Failed
        } else if self.zeroes.has(block) {
            Class::Zeroes
        } else {
            Class::Data
        }
    }

    /// The next piece that is ready.
    pub fn next_piece(&mut self) -> Option<Piece> {
        let is_ready = |block: &u32| !matches!(self.class(*block), Class::Waiting | Class::Told);
        let first = (0..self.blocks).find(is_ready)?;
        let class = self.class(first);
        let run = (first..self.blocks).take_while(|block| self.class(*block) == class).count();
        let blocks = u32::try_from(run).expect("a step");
        let content = match class {
            Class::Zeroes => PieceContent::Zeroes,
            Class::Failed => PieceContent::Failed(self.error.expect("what failed has an error")),
            Class::Data | Class::Waiting | Class::Told => PieceContent::Data,
        };
        self.told.add(first, blocks);
        let last = (0..self.blocks).all(|block| self.told.has(block));
        Some(Piece { first, blocks, content, last })
    }
}

impl Engine {
    /// The next part of a read that is ready, in order of blocks; see [`Effect::Pieces`].
    pub fn next_piece(&mut self, ticket: Ticket) -> Option<Piece> {
        self.reads[ticket.0 as usize].next_piece()
    }

    /// A read goes on without some of its blocks: what it has may be told at the end of the turn.
    pub(super) fn note_partial_read(&mut self, ticket: Ticket) {
        let at = ticket.0 as usize;
        let op = &self.ops[at];
        let only_origin = op.device_pending == 0 && !op.restart;
        if only_origin && self.reads[at].in_pieces && !self.is_telling[at] {
            self.is_telling[at] = true;
            self.telling.push(ticket);
        }
    }

    /// Tells of what reads have that wait for the rest.
    pub(super) fn tell_partial_reads(&mut self) {
        while let Some(ticket) = self.telling.pop() {
            let at = ticket.0 as usize;
            self.is_telling[at] = false;
            let op = &self.ops[at];
            let waits = op.state == OpState::Reading && op.device_pending == 0 && !op.restart;
            if waits && self.reads[at].in_pieces && self.reads[at].has_untold() {
                self.emit(Effect::Pieces { ticket });
            }
        }
    }

    /// A read has all that it will have.
    pub(super) fn finish_read(&mut self, ticket: Ticket) {
        let read = &self.reads[ticket.0 as usize];
        let result = read.error().map_or(Ok(()), Err);
        if read.needs_pieces() {
            self.emit(Effect::Pieces { ticket });
        }
        self.complete(ticket, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(read: &mut ReadProgress) -> Vec<Piece> {
        std::iter::from_fn(|| read.next_piece()).collect()
    }

    fn piece(first: u32, blocks: u32, content: PieceContent, last: bool) -> Piece {
        Piece { first, blocks, content, last }
    }

    #[test]
    fn every_block_is_told_once_and_neighbours_together() {
        let mut read = ReadProgress::new(257, true);
        read.expect(64, 64);
        read.note_zeroes(200, 57);
        assert!(read.has_untold());
        let told = all(&mut read);
        let data = PieceContent::Data;
        let expected = [
            piece(0, 64, data, false),
            piece(128, 72, data, false),
            piece(200, 57, PieceContent::Zeroes, false),
        ];
        assert_eq!(told, expected);
        assert!(!read.has_untold() && read.needs_pieces());
        read.arrived(64, 60);
        read.fail(124, 4, RequestError::Io);
        let failed = PieceContent::Failed(RequestError::Io);
        assert_eq!(all(&mut read), [piece(64, 60, data, false), piece(124, 4, failed, true)]);
        assert_eq!(all(&mut read), []);
    }

    #[test]
    fn what_came_at_once_needs_no_pieces() {
        let mut read = ReadProgress::new(3, true);
        read.expect(1, 1);
        read.arrived(1, 1);
        assert!(!read.needs_pieces());
        read.fail(2, 1, RequestError::Io);
        assert!(read.needs_pieces());
        assert!(!ReadProgress { in_pieces: false, ..read }.needs_pieces());
    }
}
