//! How far the reply to one request has come, judged against what was asked for.

use super::{ChunkHeader, ChunkKind};
use crate::errors::{ErrorCode, Violation};
use crate::limits::{REPLY_PIECES_MAX, STRING_BYTES_MAX};
use crate::reply::ReplyStyle;
use crate::request::Operation;

/// What follows the head of a chunk, or a simple reply header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    None,
    /// This many bytes of the export's content, from `offset` on.
    Data {
        /// First byte in the export; the range lies inside the request.
        offset: u64,
        /// Bytes to receive.
        bytes: u32,
    },
    /// Nothing: the range reads as zeroes.
    Hole {
        /// First byte in the export; the range lies inside the request.
        offset: u64,
        /// Length in bytes.
        bytes: u32,
    },
    /// The request has failed; this many bytes, a message for people and what else the chunk
    /// has, are to be received and may be thrown away.
    Error {
        /// What the peer says.
        error: ErrorCode,
        /// Bytes to receive.
        skip_bytes: u32,
        /// How many of them, from the first, are the message.
        message_bytes: u16,
    },
}

/// A piece of the content that came, `start` to `end` in bytes of the export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
}

/// The progress of one reply. Its size is fixed, and so is the work per chunk.
///
/// Any error chunk fails the request as a whole, wherever it says the error lies: what came
/// besides is not used, so an error can never turn into content.
#[derive(Clone, Debug)]
pub struct ReplyProgress {
    style: ReplyStyle,
    is_read: bool,
    dont_fragment: bool,
    offset: u64,
    length: u32,
    received_bytes: u32,
    pieces: [Piece; REPLY_PIECES_MAX],
    pieces_used: usize,
    error: Option<ErrorCode>,
    done: bool,
}

impl ReplyProgress {
    /// What is expected after `operation` was sent.
    #[must_use]
    pub fn new(operation: Operation, style: ReplyStyle) -> Self {
        let (is_read, offset, length, dont_fragment) = match operation {
            Operation::Read { offset, length, dont_fragment } => {
                (true, offset, length, dont_fragment)
            }
            _ => (false, 0, 0, false),
        };
        Self {
            style,
            is_read,
            dont_fragment,
            offset,
            length,
            received_bytes: 0,
            pieces: [Piece::default(); REPLY_PIECES_MAX],
            pieces_used: 0,
            error: None,
            done: false,
        }
    }

    /// A simple reply came: what follows it.
    ///
    /// # Errors
    /// When such a reply may not answer the request, or the reply had already ended.
    pub fn simple(&mut self, result: Result<(), ErrorCode>) -> Result<Content, Violation> {
        if self.is_read && self.style == ReplyStyle::Structured {
            return Err(Violation::SimpleReplyToRead);
        }
        if self.done || self.error.is_some() || self.received_bytes > 0 {
            return Err(Violation::AfterDone);
        }
        self.done = true;
        self.error = result.err();
        Ok(match result {
            Ok(()) if self.length > 0 => {
                self.received_bytes = self.length;
                Content::Data { offset: self.offset, bytes: self.length }
            }
            _ => Content::None,
        })
    }

    /// A chunk came, and the first [`ChunkHeader::head_bytes`] of its payload: what follows them.
    ///
    /// # Errors
    /// When the chunk does not suit the request or what came before it.
    ///
    /// # Panics
    /// When `head` is not as long as the header says.
    pub fn chunk(&mut self, header: &ChunkHeader, head: &[u8]) -> Result<Content, Violation> {
        assert_eq!(head.len(), header.head_bytes(), "the head of a chunk");
        if self.done {
            return Err(Violation::AfterDone);
        }
        let content = match header.kind {
            ChunkKind::None => Content::None,
            ChunkKind::OffsetData => {
                let (offset, bytes) = (be_u64(head), header.payload_bytes - 8);
                self.take(offset, bytes)?;
                Content::Data { offset, bytes }
            }
            ChunkKind::OffsetHole => {
                let (offset, bytes) = (be_u64(&head[..8]), be_u32(&head[8..]));
                self.take(offset, bytes)?;
                Content::Hole { offset, bytes }
            }
            ChunkKind::Error | ChunkKind::ErrorOffset | ChunkKind::UnknownError(_) => {
                self.fail(header, head)?
            }
        };
        self.done = header.done;
        Ok(content)
    }

    /// The result, once the reply has ended; `None` before.
    ///
    /// # Errors
    /// When the peer claims success without having sent everything.
    pub fn finish(&self) -> Result<Option<Result<(), ErrorCode>>, Violation> {
        if !self.done {
            return Ok(None);
        }
        match self.error {
            Some(error) => Ok(Some(Err(error))),
            // Pieces never overlap, so as many bytes as were asked for are all of them.
            None if self.received_bytes == self.length => Ok(Some(Ok(()))),
            None => {
                Err(Violation::MissingContent { expected: self.length, found: self.received_bytes })
            }
        }
    }

    fn fail(&mut self, header: &ChunkHeader, head: &[u8]) -> Result<Content, Violation> {
        let error = ErrorCode::from_code(be_u32(&head[..4])).ok_or(Violation::ErrorWithoutCode)?;
        let message_bytes = u16::from_be_bytes([head[4], head[5]]);
        let skip_bytes = header.payload_bytes - 6;
        let fields = if header.kind == ChunkKind::ErrorOffset { 8 } else { 0 };
        if u32::from(message_bytes) > (skip_bytes - fields).min(STRING_BYTES_MAX) {
            return Err(Violation::MessageLength { length: message_bytes });
        }
        // The first error is the one that is reported.
        self.error = self.error.or(Some(error));
        Ok(Content::Error { error, skip_bytes, message_bytes })
    }

    /// Notes that `length` bytes at `offset` came.
    fn take(&mut self, offset: u64, length: u32) -> Result<(), Violation> {
        let request_end = self.offset + u64::from(self.length);
        let end = offset.checked_add(u64::from(length)).filter(|&end| {
            self.is_read && length > 0 && offset >= self.offset && end <= request_end
        });
        let Some(end) = end else {
            return Err(Violation::OutsideRequest { offset, length });
        };
        if self.dont_fragment && self.pieces_used > 0 {
            return Err(Violation::Fragmented);
        }
        if self.pieces().iter().any(|piece| piece.start < end && offset < piece.end) {
            return Err(Violation::Overlap { offset, length });
        }
        let mut piece = Piece { start: offset, end };
        let mut index = 0;
        while index < self.pieces_used {
            let other = self.pieces[index];
            if other.end == piece.start || other.start == piece.end {
                piece.start = piece.start.min(other.start);
                piece.end = piece.end.max(other.end);
                self.pieces_used -= 1;
                self.pieces[index] = self.pieces[self.pieces_used];
            } else {
                index += 1;
            }
        }
        let free = self.pieces.get_mut(self.pieces_used).ok_or(Violation::TooManyPieces)?;
        *free = piece;
        self.pieces_used += 1;
        self.received_bytes += length;
        Ok(())
    }

    fn pieces(&self) -> &[Piece] {
        &self.pieces[..self.pieces_used]
    }
}

fn be_u64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

fn be_u32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}
