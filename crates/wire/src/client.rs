//! The client's role, towards an NBD origin: requests to bytes, and replies from a peer that may
//! be broken or hostile.
//!
//! How a reply is taken apart:
//!
//! 1. receive [`START_BYTES`] and call [`decode_start`]; the cookie names the request, and with
//!    it the [`ReplyProgress`] that was made when it was sent;
//! 2. a simple reply goes to [`ReplyProgress::simple`]; the data of a READ follows it;
//! 3. for a chunk, receive [`REST_BYTES`] and call [`ChunkStart::finish`], receive
//!    [`ChunkHeader::head_bytes`] and call [`ReplyProgress::chunk`], which says what follows;
//! 4. after the last chunk, [`ReplyProgress::finish`] has the result of the request.

mod progress;
#[cfg(test)]
mod tests;

pub use progress::{Content, ReplyProgress};

use crate::command::CommandFlags;
use crate::errors::{ErrorCode, Violation};
use crate::layout::{
    CHUNK_BYTES, CHUNK_DONE, CHUNK_ERROR, CHUNK_ERROR_BIT, CHUNK_ERROR_OFFSET, CHUNK_NONE,
    CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, Chunk, CompactRequest, REQUEST_BYTES, REQUEST_MAGIC,
    SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
};
use crate::limits::{PAYLOAD_BYTES_MAX, STRING_BYTES_MAX};
use crate::reply::ReplyStyle;
use crate::request::{Cookie, Operation};

/// Bytes to receive before it is known what a reply is.
pub const START_BYTES: usize = SIMPLE_REPLY_BYTES;
/// Bytes of a chunk's header beyond those.
pub const REST_BYTES: usize = CHUNK_BYTES - START_BYTES;
/// The most that [`ChunkHeader::head_bytes`] says.
pub const HEAD_BYTES_MAX: usize = 12;

/// Bytes of a kind of error chunk that is not known: an error, a message, some fields.
const UNKNOWN_ERROR_BYTES_MAX: u32 = 6 + STRING_BYTES_MAX + 64;

/// A request header; the payload of a WRITE follows it.
///
/// # Panics
/// When a length does not fit a compact header.
#[must_use]
pub fn encode_request(cookie: Cookie, operation: Operation) -> [u8; REQUEST_BYTES] {
    let flag = |set: bool, bit: u16| if set { bit } else { 0 };
    let (flags, offset, length) = match operation {
        Operation::Read { offset, length, dont_fragment } => {
            (flag(dont_fragment, CommandFlags::DF), offset, u64::from(length))
        }
        Operation::Write { offset, length, fua } => {
            (flag(fua, CommandFlags::FUA), offset, u64::from(length))
        }
        Operation::Disconnect | Operation::Flush => (0, 0, 0),
        Operation::Trim { offset, length, fua } => (flag(fua, CommandFlags::FUA), offset, length),
        Operation::WriteZeroes { offset, length, fua, no_hole } => {
            let flags = flag(fua, CommandFlags::FUA) | flag(no_hole, CommandFlags::NO_HOLE);
            (flags, offset, length)
        }
    };
    zerocopy::transmute!(CompactRequest {
        magic: REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: operation.command().code().into(),
        cookie: cookie.0.into(),
        offset: offset.into(),
        length: u32::try_from(length).expect("a length of 32 bits").into(),
    })
}

/// The start of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyStart {
    /// A whole simple reply header.
    Simple {
        /// Which request it answers.
        cookie: Cookie,
        /// What became of it.
        result: Result<(), ErrorCode>,
    },
    /// A chunk whose header is not complete yet.
    Chunk(ChunkStart),
}

/// The first [`START_BYTES`] of a chunk's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkStart {
    /// Which request it answers.
    pub cookie: Cookie,
    done: bool,
    kind: u16,
}

/// What a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// `NBD_REPLY_TYPE_NONE`.
    None,
    /// `NBD_REPLY_TYPE_OFFSET_DATA`.
    OffsetData,
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`.
    OffsetHole,
    /// `NBD_REPLY_TYPE_ERROR`.
    Error,
    /// `NBD_REPLY_TYPE_ERROR_OFFSET`.
    ErrorOffset,
    /// A later kind of error chunk; it begins like the others.
    UnknownError(u16),
}

/// The header of a chunk whose length suits its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Which request it answers.
    pub cookie: Cookie,
    /// Whether it ends the reply.
    pub done: bool,
    /// What it is.
    pub kind: ChunkKind,
    /// Bytes that follow the header.
    pub payload_bytes: u32,
}

/// Takes the first bytes of a reply apart.
///
/// # Errors
/// When it is no reply, or a chunk without structured replies negotiated.
pub fn decode_start(bytes: &[u8; START_BYTES], style: ReplyStyle) -> Result<ReplyStart, Violation> {
    let simple: SimpleReply = zerocopy::transmute!(*bytes);
    match simple.magic.get() {
        SIMPLE_REPLY_MAGIC => Ok(ReplyStart::Simple {
            cookie: Cookie(simple.cookie.get()),
            result: ErrorCode::from_code(simple.error.get()).map_or(Ok(()), Err),
        }),
        STRUCTURED_REPLY_MAGIC if style == ReplyStyle::Structured => {
            let mut whole = [0; CHUNK_BYTES];
            whole[..START_BYTES].copy_from_slice(bytes);
            let chunk: Chunk = zerocopy::transmute!(whole);
            Ok(ReplyStart::Chunk(ChunkStart {
                cookie: Cookie(chunk.cookie.get()),
                // Flags that nobody knows are ignored, as the specification asks.
                done: chunk.flags.get() & CHUNK_DONE != 0,
                kind: chunk.kind.get(),
            }))
        }
        found => Err(Violation::BadMagic { found }),
    }
}

impl ChunkStart {
    /// Completes the header.
    ///
    /// # Errors
    /// When the kind is unknown or the length does not suit it: nothing that is announced here
    /// makes anybody wait for more than can be meant.
    pub fn finish(self, rest: [u8; REST_BYTES]) -> Result<ChunkHeader, Violation> {
        let Self { cookie, done, kind: code } = self;
        let payload_bytes = u32::from_be_bytes(rest);
        let (kind, least, most) = match code {
            CHUNK_NONE => (ChunkKind::None, 0, 0),
            CHUNK_OFFSET_DATA => (ChunkKind::OffsetData, 9, 8 + PAYLOAD_BYTES_MAX),
            CHUNK_OFFSET_HOLE => (ChunkKind::OffsetHole, 12, 12),
            CHUNK_ERROR => (ChunkKind::Error, 6, 6 + STRING_BYTES_MAX),
            CHUNK_ERROR_OFFSET => (ChunkKind::ErrorOffset, 14, 14 + STRING_BYTES_MAX),
            _ if code & CHUNK_ERROR_BIT != 0 => {
                (ChunkKind::UnknownError(code), 6, UNKNOWN_ERROR_BYTES_MAX)
            }
            _ => return Err(Violation::UnknownChunk { kind: code }),
        };
        if !(least..=most).contains(&payload_bytes) {
            return Err(Violation::ChunkLength { kind: code, length: payload_bytes });
        }
        if kind == ChunkKind::None && !done {
            return Err(Violation::NoneNotDone);
        }
        Ok(ChunkHeader { cookie, done, kind, payload_bytes })
    }
}

impl ChunkHeader {
    /// Bytes of the payload that [`ReplyProgress::chunk`] needs to see; at most
    /// [`HEAD_BYTES_MAX`].
    #[must_use]
    pub const fn head_bytes(&self) -> usize {
        match self.kind {
            ChunkKind::None => 0,
            ChunkKind::OffsetData => 8,
            ChunkKind::OffsetHole => 12,
            ChunkKind::Error | ChunkKind::ErrorOffset | ChunkKind::UnknownError(_) => 6,
        }
    }
}
