//! The codec of NBD's transmission phase, for both roles: bytes to requests, replies to bytes.
//!
//! No I/O, no clock, no allocation: whoever owns the sockets gives arrays in and gets arrays out.
//! The words are those of the specification (`doc/proto.md` of the NBD project), and
//! `docs/protocol.md` has one row for each of its rules.
//!
//! A request is decoded ([`RequestHeader::decode`]), judged once ([`RequestHeader::validate`]),
//! and nobody has to check it again:
//!
//! ```
//! use ringfence_wire::{Cookie, ExportLimits, Operation, ReplyStyle, RequestHeader, client};
//!
//! let flush = client::encode_request(Cookie(7), Operation::Flush);
//! let header = RequestHeader::decode(&flush)?;
//! let limits = ExportLimits { size_bytes: 1 << 30, read_only: false };
//! let request = header.validate(limits, ReplyStyle::Structured).expect("a good request");
//! assert_eq!(request.operation, Operation::Flush);
//! assert_eq!(request.reply(ReplyStyle::Structured, Ok(())).len(), 16);
//! # Ok::<(), ringfence_wire::Violation>(())
//! ```

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod client;
mod command;
mod errors;
pub mod layout;
pub mod limits;
mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use command::{Command, CommandFlags};
pub use errors::{ErrorCode, Violation};
pub use reply::{
    Reply, ReplyStyle, data_chunk, error_chunk, error_offset_chunk, hole_chunk, none_chunk,
    simple_reply,
};
pub use request::{Cookie, ExportLimits, Operation, Refusal, Rejection, Request, RequestHeader};
