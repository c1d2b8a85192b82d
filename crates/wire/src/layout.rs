//! Every structure of the transmission phase as it lies on the wire, declared once: big-endian,
//! without padding, its size asserted beside it.

use core::mem::size_of;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Opens a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Opens a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a compact request header.
pub const REQUEST_BYTES: usize = size_of::<CompactRequest>();
/// Bytes of a simple reply header.
pub const SIMPLE_REPLY_BYTES: usize = size_of::<SimpleReply>();
/// Bytes of a chunk's header.
pub const CHUNK_BYTES: usize = size_of::<Chunk>();
/// Bytes that precede the data of an `NBD_REPLY_TYPE_OFFSET_DATA` chunk.
pub const DATA_CHUNK_BYTES: usize = size_of::<DataChunk>();
/// Bytes of an `NBD_REPLY_TYPE_OFFSET_HOLE` chunk.
pub const HOLE_CHUNK_BYTES: usize = size_of::<HoleChunk>();
/// Bytes of an `NBD_REPLY_TYPE_ERROR` chunk without a message.
pub const ERROR_CHUNK_BYTES: usize = size_of::<ErrorChunk>();
/// Bytes of an `NBD_REPLY_TYPE_ERROR_OFFSET` chunk without a message.
pub const ERROR_OFFSET_CHUNK_BYTES: usize = size_of::<ErrorOffsetChunk>();

/// `NBD_REPLY_FLAG_DONE`: the last chunk of a reply.
pub const CHUNK_DONE: u16 = 1 << 0;

/// `NBD_REPLY_TYPE_NONE`.
pub const CHUNK_NONE: u16 = 0;
/// `NBD_REPLY_TYPE_OFFSET_DATA`.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// `NBD_REPLY_TYPE_OFFSET_HOLE`.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// Set in the type of every chunk that reports an error, known or not.
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;
/// `NBD_REPLY_TYPE_ERROR`.
pub const CHUNK_ERROR: u16 = CHUNK_ERROR_BIT + 1;
/// `NBD_REPLY_TYPE_ERROR_OFFSET`.
pub const CHUNK_ERROR_OFFSET: u16 = CHUNK_ERROR_BIT + 2;

/// A request header of 28 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CompactRequest {
    /// [`REQUEST_MAGIC`].
    pub magic: U32,
    /// `NBD_CMD_FLAG_*`.
    pub flags: U16,
    /// `NBD_CMD_*`.
    pub command: U16,
    /// The client's name for the request.
    pub cookie: U64,
    /// First byte in the export.
    pub offset: U64,
    /// Length in bytes.
    pub length: U32,
}
const _: () = assert!(size_of::<CompactRequest>() == 28);

/// A simple reply header; the data of a successful READ follows it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SimpleReply {
    /// [`SIMPLE_REPLY_MAGIC`].
    pub magic: U32,
    /// Zero or an error value.
    pub error: U32,
    /// As in the request.
    pub cookie: U64,
}
const _: () = assert!(size_of::<SimpleReply>() == 16);

/// The header of every chunk of a structured reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Chunk {
    /// [`STRUCTURED_REPLY_MAGIC`].
    pub magic: U32,
    /// [`CHUNK_DONE`] or nothing.
    pub flags: U16,
    /// `NBD_REPLY_TYPE_*`.
    pub kind: U16,
    /// As in the request.
    pub cookie: U64,
    /// Bytes that follow this header.
    pub length: U32,
}
const _: () = assert!(size_of::<Chunk>() == 20);

/// What precedes the data of an `NBD_REPLY_TYPE_OFFSET_DATA` chunk.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DataChunk {
    /// The header; its length counts the offset and the data.
    pub chunk: Chunk,
    /// First byte in the export.
    pub offset: U64,
}
const _: () = assert!(size_of::<DataChunk>() == 28);

/// A whole `NBD_REPLY_TYPE_OFFSET_HOLE` chunk.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HoleChunk {
    /// The header.
    pub chunk: Chunk,
    /// First byte in the export.
    pub offset: U64,
    /// Length of the hole in bytes.
    pub hole_bytes: U32,
}
const _: () = assert!(size_of::<HoleChunk>() == 32);

/// An `NBD_REPLY_TYPE_ERROR` chunk up to its message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ErrorChunk {
    /// The header.
    pub chunk: Chunk,
    /// An error value, never zero.
    pub error: U32,
    /// Length of the message that follows.
    pub message_bytes: U16,
}
const _: () = assert!(size_of::<ErrorChunk>() == 26);

/// An `NBD_REPLY_TYPE_ERROR_OFFSET` chunk with an empty message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ErrorOffsetChunk {
    /// The header.
    pub chunk: Chunk,
    /// An error value, never zero.
    pub error: U32,
    /// Zero: the offset follows the message, and there is none.
    pub message_bytes: U16,
    /// Where in the export it went wrong.
    pub offset: U64,
}
const _: () = assert!(size_of::<ErrorOffsetChunk>() == 34);
