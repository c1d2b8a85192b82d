//! Replies on their way out: one batch is sent while the next one gathers.

use crate::window::{FRAMES, Run};
use ringfence_wire::layout::ERROR_OFFSET_CHUNK_BYTES;

/// Replies of a batch, and so the most requests of a connection in flight: the deepest queue
/// that clients use.
pub const REPLIES_MAX: usize = 128;
/// Chunks of a batch, beside replies that are no chunks: each stands for a frame at least, and the
/// frames come back when the batch is out.
const CHUNKS_MAX: usize = REPLIES_MAX + FRAMES;
/// Each is a header and perhaps data.
const PIECES_MAX: usize = CHUNKS_MAX * 2;
/// The longest header of all.
const HEADER_BYTES: usize = CHUNKS_MAX * ERROR_OFFSET_CHUNK_BYTES;
/// Pieces that the kernel takes at a time (`UIO_MAXIOV`).
const MESSAGE_PIECES_MAX: usize = 1024;

/// One `sendmsg`'s worth of replies. Boxed at start and never moved: the kernel reads from it.
struct Batch {
    headers: Box<[u8; HEADER_BYTES]>,
    header_bytes: usize,
    pieces: Box<[libc::iovec; PIECES_MAX]>,
    piece_count: usize,
    /// Whether the last piece ends with the newest header, so that the next one joins it.
    ends_with_header: bool,
    runs: Box<[Run; REPLIES_MAX]>,
    run_count: usize,
    replies: usize,
    /// Pieces before this one have been sent.
    first_unsent: usize,
    message: Box<libc::msghdr>,
}

impl Batch {
    fn new() -> Self {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            headers: Box::new([0; HEADER_BYTES]),
            header_bytes: 0,
            pieces: Box::new([nothing; PIECES_MAX]),
            piece_count: 0,
            ends_with_header: false,
            runs: Box::new([Run::default(); REPLIES_MAX]),
            run_count: 0,
            replies: 0,
            first_unsent: 0,
            // SAFETY: all zeroes is a message without address, pieces or control data.
            message: Box::new(unsafe { std::mem::zeroed() }),
        }
    }

    fn clear(&mut self) {
        self.header_bytes = 0;
        self.piece_count = 0;
        self.ends_with_header = false;
        self.run_count = 0;
        self.replies = 0;
        self.first_unsent = 0;
    }

    fn push_piece(&mut self, base: *mut u8, length: usize) {
        self.pieces[self.piece_count] = libc::iovec { iov_base: base.cast(), iov_len: length };
        self.piece_count += 1;
    }

    fn push(&mut self, header: &[u8], data: Option<(*mut u8, u32)>, run: Option<Run>) {
        self.replies += 1;
        let at = self.header_bytes;
        self.headers[at..at + header.len()].copy_from_slice(header);
        self.header_bytes += header.len();
        if !header.is_empty() {
            if self.ends_with_header {
                self.pieces[self.piece_count - 1].iov_len += header.len();
            } else {
                let base = self.headers[at..].as_mut_ptr();
                self.push_piece(base, header.len());
            }
            self.ends_with_header = true;
        }
        if let Some((base, length)) = data {
            self.push_piece(base, length as usize);
            self.ends_with_header = false;
        }
        if let Some(run) = run {
            self.runs[self.run_count] = run;
            self.run_count += 1;
        }
    }

    fn prepare(&mut self) -> *const libc::msghdr {
        self.message.msg_iov = self.pieces[self.first_unsent..].as_mut_ptr();
        self.message.msg_iovlen = (self.piece_count - self.first_unsent).min(MESSAGE_PIECES_MAX);
        &raw const *self.message
    }

    /// Whether everything is out.
    fn sent(&mut self, mut bytes: usize) -> bool {
        while self.first_unsent < self.piece_count {
            let piece = &mut self.pieces[self.first_unsent];
            if bytes < piece.iov_len {
                // SAFETY: still inside the piece.
                piece.iov_base = unsafe { piece.iov_base.byte_add(bytes) };
                piece.iov_len -= bytes;
                return false;
            }
            bytes -= piece.iov_len;
            self.first_unsent += 1;
        }
        assert_eq!(bytes, 0, "no more was sent than there was");
        true
    }
}

/// The replies of a connection.
pub struct Replies {
    gathering: Batch,
    sending: Batch,
    in_flight: bool,
}

impl Replies {
    /// None yet. Allocates: at start only.
    #[must_use]
    pub fn new() -> Self {
        Self { gathering: Batch::new(), sending: Batch::new(), in_flight: false }
    }

    /// Forgets everything; nothing is in flight.
    pub fn clear(&mut self) {
        assert!(!self.in_flight, "the kernel reads from the batch");
        self.gathering.clear();
        self.sending.clear();
    }

    /// Replies that wait for the batch in flight.
    #[must_use]
    pub const fn gathered(&self) -> usize {
        self.gathering.replies
    }

    /// Whether a batch is with the kernel.
    #[must_use]
    pub const fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// Whether nothing is left to send.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.gathering.replies == 0 && !self.in_flight
    }

    /// Adds a reply: a header, and data that lies in a run of the reply window.
    ///
    /// # Panics
    /// When there are [`REPLIES_MAX`] already: requests in flight and replies together never
    /// exceed that.
    pub fn push(&mut self, header: &[u8], data: Option<(*mut u8, u32, Run)>) {
        let run = data.map(|(_, _, run)| run);
        self.gathering.push(header, data.map(|(base, length, _)| (base, length)), run);
    }

    /// Adds a chunk of a reply that goes out in pieces: a header, data that lies in the read's run,
    /// and with the last chunk the run itself, which comes back when that is out.
    ///
    /// # Panics
    /// When there are more chunks than frames: each stands for one at least.
    pub fn push_chunk(&mut self, header: &[u8], data: Option<(*mut u8, u32)>, run: Option<Run>) {
        self.gathering.push(header, data, run);
    }

    /// The message to send, if there is one and none is in flight.
    pub fn start(&mut self) -> Option<*const libc::msghdr> {
        if self.in_flight || self.gathering.replies == 0 {
            return None;
        }
        std::mem::swap(&mut self.gathering, &mut self.sending);
        self.gathering.clear();
        self.in_flight = true;
        Some(self.sending.prepare())
    }

    /// `bytes` of the message were sent: what is left of it, if anything.
    pub fn sent(&mut self, bytes: usize) -> Option<*const libc::msghdr> {
        assert!(self.in_flight, "only what is in flight is sent");
        if self.sending.sent(bytes) {
            self.in_flight = false;
            None
        } else {
            Some(self.sending.prepare())
        }
    }

    /// The message failed.
    pub fn failed(&mut self) {
        self.in_flight = false;
    }

    /// The runs of the batch that was sent.
    #[must_use]
    pub fn sent_runs(&self) -> &[Run] {
        &self.sending.runs[..self.sending.run_count]
    }
}

#[cfg(test)]
mod tests {
    use super::Replies;
    use crate::window::Run;

    fn read_out(message: *const libc::msghdr) -> Vec<Vec<u8>> {
        // SAFETY: the message and its pieces belong to the batch under test, which outlives this.
        unsafe {
            let message = &*message;
            let pieces = std::slice::from_raw_parts(message.msg_iov, message.msg_iovlen);
            let bytes = |piece: &libc::iovec| {
                std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len).to_vec()
            };
            pieces.iter().map(bytes).collect()
        }
    }

    #[test]
    fn headers_without_data_share_a_piece_and_partial_sends_go_on() {
        let mut replies = Replies::new();
        let mut data = *b"data";
        replies.push(b"one", None);
        replies.push(b"two", None);
        replies.push(b"three", Some((data.as_mut_ptr(), 4, Run::default())));
        replies.push(b"four", None);
        let message = replies.start().expect("something to send");
        assert_eq!(
            read_out(message),
            [b"onetwothree".to_vec(), b"data".to_vec(), b"four".to_vec()]
        );
        replies.push(b"next", None);
        assert!(replies.start().is_none(), "one batch at a time");
        let rest = replies.sent(13).expect("the rest");
        assert_eq!(read_out(rest), [b"ta".to_vec(), b"four".to_vec()]);
        assert!(replies.sent(6).is_none());
        assert_eq!(replies.sent_runs().len(), 1);
        let message = replies.start().expect("the next batch");
        assert_eq!(read_out(message), [b"next".to_vec()]);
    }

    #[test]
    fn a_batch_holds_a_chunk_per_frame_beside_other_replies() {
        let mut replies = Replies::new();
        let mut data = *b"d";
        for _ in 0..super::FRAMES {
            let header = [7; super::ERROR_OFFSET_CHUNK_BYTES];
            replies.push_chunk(&header, Some((data.as_mut_ptr(), 1)), None);
        }
        for _ in 0..super::REPLIES_MAX {
            replies.push(b"a simple reply..", None);
        }
        let mut message = replies.start();
        let (mut bytes, mut messages) = (0, 0);
        while let Some(part) = message {
            let length: usize = read_out(part).iter().map(Vec::len).sum();
            bytes += length;
            messages += 1;
            message = replies.sent(length);
        }
        let chunk_bytes = super::ERROR_OFFSET_CHUNK_BYTES + 1;
        assert_eq!(bytes, super::FRAMES * chunk_bytes + super::REPLIES_MAX * 16);
        assert_eq!(messages, 2, "the kernel takes 1024 pieces at a time");
    }
}
