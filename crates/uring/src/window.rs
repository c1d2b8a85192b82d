//! The two windows of a connection in the reserve: what it holds, and all that it holds.

use ringfence_cache::limits::STEP_BYTES_MAX;
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64, Buffer};

/// Small requests gather here while a step of the largest size is being received.
const GATHER_BYTES: u32 = 64 << 10;
/// The largest step with its header, what gathers behind it, and a frame to spare.
pub const RECEIVE_BYTES: u32 = GATHER_BYTES + STEP_BYTES_MAX + BLOCK_BYTES as u32;
/// Replies: two of the largest aligned steps, or one that is not aligned and smaller ones.
pub const REPLY_BYTES: u32 = 2 << 20;
/// All that a connection holds.
pub const CONNECTION_BYTES: u64 = (RECEIVE_BYTES + REPLY_BYTES) as u64;
/// Frames of the reply window.
pub const FRAMES: usize = REPLY_BYTES as usize / BLOCK_BYTES;
const WORDS: usize = FRAMES / 64;

const _: () = assert!(RECEIVE_BYTES.is_multiple_of(BLOCK_BYTES as u32));

/// Where received bytes lie, in one piece: `held | unread | room`.
#[derive(Debug)]
pub struct ReceiveWindow {
    buffer: Buffer,
    /// First byte that has not been parsed.
    start: u32,
    /// First byte that has not been received.
    end: u32,
    /// Bytes before `start` that the engine has not copied yet.
    held: u32,
}

impl ReceiveWindow {
    /// An empty window in `buffer`.
    #[must_use]
    pub const fn new(buffer: Buffer) -> Self {
        Self { buffer, start: 0, end: 0, held: 0 }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        (self.start, self.end, self.held) = (0, 0, 0);
    }

    /// Bytes received and not parsed.
    #[must_use]
    pub const fn unread(&self) -> u32 {
        self.end - self.start
    }

    /// The `length` bytes that come `skip` bytes after the first one not parsed.
    #[must_use]
    pub fn peek(&self, skip: u32, length: u32) -> Buffer {
        assert!(skip + length <= self.unread(), "only what was received");
        self.buffer.part(self.start + skip, length)
    }

    /// The first `length` bytes have been dealt with.
    pub fn consume(&mut self, length: u32) {
        assert!(length <= self.unread(), "only what was received");
        self.start += length;
    }

    /// The first `length` bytes belong to the engine until they are released.
    pub fn hold(&mut self, length: u32) {
        assert!(length <= self.unread(), "only what was received");
        self.held += length;
        self.start += length;
    }

    /// The engine has copied `length` bytes.
    pub fn release(&mut self, length: u32) {
        assert!(length <= self.held, "only what was held");
        self.held -= length;
    }

    /// Where the next bytes go. `wanted` is how long the unread bytes must become for the parser
    /// to go on. `Err(Some(..))`: first move the bytes of the inner buffer to the window's start
    /// and call [`ReceiveWindow::moved`]. `Err(None)`: no room before the engine releases some.
    ///
    /// Only while no receive is in flight: the one place where an empty window starts anew.
    pub fn room(&mut self, wanted: u32) -> Result<Buffer, Option<Buffer>> {
        if self.held == 0 && self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let left = self.buffer.length - self.end;
        let fits = self.buffer.length - self.start >= wanted && left > 0;
        // Moving a little is cheaper than many short receives at the window's end.
        let worth_moving = left < GATHER_BYTES && self.start > 0 && self.held == 0;
        if fits && !(worth_moving && self.unread() <= GATHER_BYTES) {
            return Ok(self.buffer.part(self.end, left));
        }
        if self.held == 0 && self.start > 0 {
            return Err(Some(self.buffer.part(self.start, self.unread())));
        }
        if fits { Ok(self.buffer.part(self.end, left)) } else { Err(None) }
    }

    /// The unread bytes now lie at the window's start.
    pub fn moved(&mut self) {
        assert_eq!(self.held, 0, "held bytes stay where they are");
        (self.start, self.end) = (0, self.unread());
    }

    /// The whole window.
    #[must_use]
    pub const fn buffer(&self) -> Buffer {
        self.buffer
    }

    /// `length` more bytes were received, where [`ReceiveWindow::room`] said.
    pub fn received(&mut self, length: u32) {
        assert!(length <= self.buffer.length - self.end, "only where there was room");
        self.end += length;
    }
}

/// Frames that a read was granted: a contiguous run of the reply window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    first: u16,
    count: u16,
}

/// Where blocks lie between the read of a step and the end of its sending.
#[derive(Debug)]
pub struct ReplyWindow {
    buffer: Buffer,
    /// A set bit is a frame in use.
    used: [u64; WORDS],
}

impl ReplyWindow {
    /// An empty window in `buffer`.
    #[must_use]
    pub const fn new(buffer: Buffer) -> Self {
        Self { buffer, used: [0; WORDS] }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.used = [0; WORDS];
    }

    /// The first contiguous frames for all blocks that a range touches: all or none.
    pub fn grant(&mut self, offset: u64, length: u32) -> Option<Run> {
        let head = (offset % BLOCK_BYTES_U64) as u32;
        let count = (head + length).div_ceil(BLOCK_BYTES as u32) as usize;
        let first = self.find(count)?;
        self.mark(first, count, true);
        Some(Run { first: first as u16, count: count as u16 })
    }

    /// The run as a buffer.
    #[must_use]
    pub fn run_buffer(&self, run: Run) -> Buffer {
        let block = BLOCK_BYTES as u32;
        self.buffer.part(u32::from(run.first) * block, u32::from(run.count) * block)
    }

    /// Takes a run back.
    pub fn give_back(&mut self, run: Run) {
        self.mark(run.first as usize, run.count as usize, false);
    }

    fn find(&self, count: usize) -> Option<usize> {
        let mut at = 0;
        while at + count <= FRAMES {
            let word = self.used[at / 64] >> (at % 64);
            if word & 1 == 1 {
                at += (word.trailing_ones() as usize).min(64 - at % 64);
                continue;
            }
            let mut free = 0;
            while free < count {
                let (word, bit) = ((at + free) / 64, (at + free) % 64);
                let run = ((self.used[word] >> bit).trailing_zeros() as usize).min(64 - bit);
                if run == 0 {
                    break;
                }
                free += run;
            }
            if free >= count {
                return Some(at);
            }
            at += free;
        }
        None
    }

    fn mark(&mut self, first: usize, count: usize, used: bool) {
        let mut at = first;
        while at < first + count {
            let (word, bit) = (at / 64, at % 64);
            let length = (64 - bit).min(first + count - at);
            let mask = (u64::MAX >> (64 - length)) << bit;
            let expected = if used { 0 } else { mask };
            assert_eq!(self.used[word] & mask, expected, "a frame granted or given back twice");
            self.used[word] ^= mask;
            at += length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FRAMES, RECEIVE_BYTES, REPLY_BYTES, ReceiveWindow, ReplyWindow, Run};
    use ringfence_cache::units::Buffer;

    #[test]
    fn runs_are_contiguous_disjoint_and_come_back() {
        let mut window = ReplyWindow::new(Buffer { offset: 0, length: REPLY_BYTES });
        let mut granted: Vec<Run> = Vec::new();
        let mut seed = 1_u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let length = 1 + (seed >> 33) as u32 % (if seed >> 63 == 0 { 20_000 } else { 1 << 20 });
            match window.grant(seed >> 20, length) {
                Some(run) => {
                    let (from, to) = (run.first, run.first + run.count);
                    assert!(to as usize <= FRAMES);
                    assert!(granted.iter().all(|r| r.first >= to || r.first + r.count <= from));
                    granted.push(run);
                }
                None => {
                    assert!(!granted.is_empty(), "an empty window grants any step");
                    window.give_back(granted.swap_remove(seed as usize % granted.len()));
                }
            }
        }
        granted.drain(..).for_each(|run| window.give_back(run));
        assert_eq!(window.used, [0; 8]);
        assert!(window.grant(4095, 1 << 20).is_some(), "257 blocks");
    }

    #[test]
    fn a_full_window_grants_nothing_and_a_gap_is_found_again() {
        let mut window = ReplyWindow::new(Buffer { offset: 0, length: REPLY_BYTES });
        let runs: Vec<_> = (0..FRAMES).map(|_| window.grant(0, 4096).expect("a frame")).collect();
        assert_eq!(window.grant(0, 1), None);
        window.give_back(runs[63]);
        window.give_back(runs[64]);
        assert_eq!(window.grant(4095, 2), Some(Run { first: 63, count: 2 }));
    }

    #[test]
    fn held_bytes_are_never_moved_or_overwritten() {
        let mut window = ReceiveWindow::new(Buffer { offset: 4096, length: RECEIVE_BYTES });
        window.received(RECEIVE_BYTES);
        window.hold(RECEIVE_BYTES - 10);
        assert_eq!(window.room(28), Err(None));
        window.release(RECEIVE_BYTES - 10);
        let unread = Buffer { offset: 4096 + u64::from(RECEIVE_BYTES) - 10, length: 10 };
        assert_eq!(window.room(28), Err(Some(unread)));
        window.moved();
        assert_eq!(window.unread(), 10);
        let room = window.room(28).expect("room");
        assert_eq!(room, Buffer { offset: 4096 + 10, length: RECEIVE_BYTES - 10 });
    }

    #[test]
    fn bytes_in_flight_arrive_where_they_were_expected() {
        let mut window = ReceiveWindow::new(Buffer { offset: 0, length: RECEIVE_BYTES });
        window.received(5000);
        window.hold(5000);
        let room = window.room(28).expect("room behind what is held");
        // The engine copies the payload while the kernel receives.
        window.release(5000);
        window.received(28);
        assert_eq!(window.peek(0, 28), room.part(0, 28));
    }

    #[test]
    fn a_step_of_the_largest_size_always_fits_in_the_end() {
        let mut window = ReceiveWindow::new(Buffer { offset: 0, length: RECEIVE_BYTES });
        window.received(RECEIVE_BYTES - 100);
        window.consume(RECEIVE_BYTES - 130);
        let wanted = 28 + (1 << 20);
        assert!(matches!(window.room(wanted), Err(Some(_))));
        window.moved();
        assert!(window.room(wanted).expect("room").length >= wanted - 30);
    }
}
