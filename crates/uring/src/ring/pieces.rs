//! Reads that are answered piece by piece: chunks that go out before the rest is there.

use super::Ring;
use super::finish::error_code;
use crate::connection::State;
use crate::core::Core;
use crate::tickets::Step;
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use ringfence_cache::{Piece, PieceContent, Ticket};
use ringfence_wire::{data_chunk, error_offset_chunk, hole_chunk};

impl<C: Core> Ring<C> {
    /// The engine has parts of a read: each becomes a chunk. Whoever waits for one sees all that
    /// came in the same turn in one message.
    pub(super) fn pieces_ready(&mut self, ticket: Ticket) {
        self.tickets.step_mut(ticket).in_pieces = true;
        let mut step = *self.tickets.step_mut(ticket);
        let slot = step.connection;
        while let Some(piece) = self.core.next_piece(ticket) {
            step.has_content |= !matches!(piece.content, PieceContent::Failed(_));
            if self.connections[usize::from(slot)].state == State::Transmission {
                self.push_piece(slot, &step, piece);
            }
        }
        *self.tickets.step_mut(ticket) = step;
        self.touch(slot);
    }

    fn push_piece(&mut self, slot: u16, step: &Step, piece: Piece) {
        let (offset, start, length) = bytes_of(step, piece);
        let done = piece.last && self.ends_reply(slot, step);
        let connection = &mut self.connections[usize::from(slot)];
        // The frames stay the read's until its last chunk is out.
        let run = piece.last.then_some(step.run);
        let cookie = step.cookie;
        match piece.content {
            PieceContent::Data => {
                let buffer = connection.frames.run_buffer(step.run).part(start, length);
                let header = data_chunk(cookie, offset, length, done);
                let data = (self.kernel.address(buffer), length);
                connection.replies.push_chunk(&header, Some(data), run);
            }
            PieceContent::Zeroes => {
                let header = hole_chunk(cookie, offset, length, done);
                connection.replies.push_chunk(&header, None, run);
            }
            PieceContent::Failed(error) => {
                let header = error_offset_chunk(cookie, error_code(error), offset, done);
                connection.replies.push_chunk(&header, None, run);
            }
        }
    }

    /// Whether nothing of a reply comes after this step.
    fn ends_reply(&mut self, slot: u16, step: &Step) -> bool {
        if !step.of_long {
            return true;
        }
        let connection = &mut self.connections[usize::from(slot)];
        let long = connection.long.as_mut().expect("the long request of its step");
        // What was cut short is told at its end.
        long.ended = long.is_last_step() && !long.cut;
        long.ended
    }
}

/// Where a piece is: its first byte in the export, the same in the read's buffer, its length. The
/// blocks at the edges may lie in the request only in part.
fn bytes_of(step: &Step, piece: Piece) -> (u64, u32, u32) {
    let skip = (step.offset % BLOCK_BYTES_U64) as u32;
    let block = BLOCK_BYTES as u32;
    let start = (piece.first * block).max(skip);
    let end = ((piece.first + piece.blocks) * block).min(skip + step.length as u32);
    (step.offset + u64::from(start - skip), start, end - start)
}

#[cfg(test)]
mod tests {
    use super::bytes_of;
    use crate::counters::Op;
    use crate::tickets::Step;
    use crate::window::Run;
    use ringfence_cache::{Piece, PieceContent};
    use ringfence_wire::Cookie;

    #[test]
    fn a_piece_is_cut_to_the_request() {
        let step = |offset, length| Step {
            connection: 0,
            export: ringfence_cache::ExportSlot(0),
            op: Op::Read,
            of_long: false,
            cookie: Cookie(1),
            offset,
            length,
            held: 0,
            run: Run::default(),
            in_pieces: true,
            has_content: true,
            started_ns: 0,
        };
        let piece =
            |first, blocks| Piece { first, blocks, content: PieceContent::Data, last: false };
        assert_eq!(bytes_of(&step(8192, 8192), piece(1, 1)), (12_288, 4096, 4096));
        assert_eq!(bytes_of(&step(5000, 5000), piece(0, 1)), (5000, 904, 3192));
        assert_eq!(bytes_of(&step(5000, 5000), piece(1, 2)), (8192, 4096, 1808));
        assert_eq!(bytes_of(&step(5000, 10), piece(0, 1)), (5000, 904, 10));
    }
}
