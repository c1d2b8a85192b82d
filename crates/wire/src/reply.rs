//! Replies as a server sends them. Everything comes as an array of its exact size; data follows
//! from wherever it lies.

use crate::command::Command;
use crate::errors::ErrorCode;
use crate::layout::{
    CHUNK_BYTES, CHUNK_DONE, CHUNK_ERROR, CHUNK_ERROR_OFFSET, CHUNK_NONE, CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE, Chunk, DATA_CHUNK_BYTES, DataChunk, ERROR_CHUNK_BYTES,
    ERROR_OFFSET_CHUNK_BYTES, ErrorChunk, ErrorOffsetChunk, HOLE_CHUNK_BYTES, HoleChunk,
    SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
};
use crate::request::Cookie;
use core::ops::Deref;

/// What the client negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyStyle {
    /// One header per reply.
    Simple,
    /// A READ is answered in chunks, its errors included; other commands still get simple
    /// replies, which the specification allows and which are smaller.
    Structured,
}

/// A whole reply without data: at most [`ERROR_CHUNK_BYTES`] bytes, which it dereferences to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    bytes: [u8; ERROR_CHUNK_BYTES],
    length: u8,
}

impl Reply {
    /// The reply to a request that carries no data: its success, or its error.
    #[must_use]
    pub fn new(
        style: ReplyStyle,
        command: Command,
        cookie: Cookie,
        result: Result<(), ErrorCode>,
    ) -> Self {
        match (style, command, result) {
            (ReplyStyle::Structured, Command::Read, Ok(())) => Self::of(&none_chunk(cookie)),
            (ReplyStyle::Structured, Command::Read, Err(error)) => {
                Self::of(&error_chunk(cookie, error, true))
            }
            _ => Self::of(&simple_reply(cookie, result)),
        }
    }

    fn of(part: &[u8]) -> Self {
        let mut bytes = [0; ERROR_CHUNK_BYTES];
        bytes[..part.len()].copy_from_slice(part);
        let length = u8::try_from(part.len()).expect("a short reply");
        Self { bytes, length }
    }
}

impl Deref for Reply {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// A simple reply header. After the success of a READ its data must follow, all of it.
#[must_use]
pub fn simple_reply(cookie: Cookie, result: Result<(), ErrorCode>) -> [u8; SIMPLE_REPLY_BYTES] {
    zerocopy::transmute!(SimpleReply {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: result.map_or_else(ErrorCode::code, |()| 0).into(),
        cookie: cookie.0.into(),
    })
}

/// The chunk that ends a reply and says nothing else.
#[must_use]
pub fn none_chunk(cookie: Cookie) -> [u8; CHUNK_BYTES] {
    zerocopy::transmute!(chunk(cookie, CHUNK_NONE, 0, true))
}

/// What precedes `data_bytes` of content from `offset` on; `done` for the last chunk of a reply.
///
/// # Panics
/// Without data: the specification has no empty data chunk, [`none_chunk`] says it.
#[must_use]
pub fn data_chunk(
    cookie: Cookie,
    offset: u64,
    data_bytes: u32,
    done: bool,
) -> [u8; DATA_CHUNK_BYTES] {
    assert!(data_bytes > 0, "a data chunk without data");
    let length = payload_bytes::<DataChunk>() + data_bytes;
    zerocopy::transmute!(DataChunk {
        chunk: chunk(cookie, CHUNK_OFFSET_DATA, length, done),
        offset: offset.into(),
    })
}

/// `hole_bytes` of zeroes from `offset` on; `done` for the last chunk of a reply.
///
/// # Panics
/// For an empty hole, which the specification does not have.
#[must_use]
pub fn hole_chunk(
    cookie: Cookie,
    offset: u64,
    hole_bytes: u32,
    done: bool,
) -> [u8; HOLE_CHUNK_BYTES] {
    assert!(hole_bytes > 0, "an empty hole");
    zerocopy::transmute!(HoleChunk {
        chunk: chunk(cookie, CHUNK_OFFSET_HOLE, payload_bytes::<HoleChunk>(), done),
        offset: offset.into(),
        hole_bytes: hole_bytes.into(),
    })
}

/// The request failed as a whole, or at a place that nobody knows.
#[must_use]
pub fn error_chunk(cookie: Cookie, error: ErrorCode, done: bool) -> [u8; ERROR_CHUNK_BYTES] {
    zerocopy::transmute!(ErrorChunk {
        chunk: chunk(cookie, CHUNK_ERROR, payload_bytes::<ErrorChunk>(), done),
        error: error.code().into(),
        message_bytes: 0.into(),
    })
}

/// The request failed at `offset`, a byte of the export that lies inside the request. What other
/// chunks of the reply carry is good.
#[must_use]
pub fn error_offset_chunk(
    cookie: Cookie,
    error: ErrorCode,
    offset: u64,
    done: bool,
) -> [u8; ERROR_OFFSET_CHUNK_BYTES] {
    zerocopy::transmute!(ErrorOffsetChunk {
        chunk: chunk(cookie, CHUNK_ERROR_OFFSET, payload_bytes::<ErrorOffsetChunk>(), done),
        error: error.code().into(),
        message_bytes: 0.into(),
        offset: offset.into(),
    })
}

/// What a chunk structure adds to the header's length.
#[expect(clippy::cast_possible_truncation, reason = "the structures are a few bytes long")]
const fn payload_bytes<T>() -> u32 {
    (size_of::<T>() - CHUNK_BYTES) as u32
}

fn chunk(cookie: Cookie, kind: u16, length: u32, done: bool) -> Chunk {
    Chunk {
        magic: STRUCTURED_REPLY_MAGIC.into(),
        flags: if done { CHUNK_DONE } else { 0 }.into(),
        kind: kind.into(),
        cookie: cookie.0.into(),
        length: length.into(),
    }
}
