//! The client's role, towards an NBD origin: requests to bytes.

use crate::command::CommandFlags;
use crate::layout::{CompactRequest, REQUEST_BYTES, REQUEST_MAGIC};
use crate::request::{Cookie, Operation};

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
