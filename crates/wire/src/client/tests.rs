//! The client's role against a peer that answers well, badly, and at random.

use super::{ChunkHeader, ChunkKind, Content, ReplyProgress, ReplyStart, decode_start};
use crate::limits::REPLY_PIECES_MAX;
use crate::tests::operations;
use crate::*;
use proptest::prelude::*;
use std::vec::Vec;

const COOKIE: Cookie = Cookie(0xfeed);
const READ: Operation = Operation::Read { offset: 4096, length: 8192, dont_fragment: false };

fn progress(operation: Operation) -> ReplyProgress {
    ReplyProgress::new(operation, ReplyStyle::Structured)
}

/// Feeds one whole chunk, as it lies on the wire up to its data.
fn feed(progress: &mut ReplyProgress, chunk: &[u8]) -> Result<Content, Violation> {
    let start = chunk[..16].try_into().expect("16 bytes");
    let ReplyStart::Chunk(start) = decode_start(start, ReplyStyle::Structured)? else {
        panic!("not a chunk")
    };
    assert_eq!(start.cookie, COOKIE);
    let header = start.finish(chunk[16..20].try_into().expect("4 bytes"))?;
    progress.chunk(&header, &chunk[20..20 + header.head_bytes()])
}

fn chunk_bytes(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload");
    [
        &0x668e_33ef_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &COOKIE.0.to_be_bytes(),
        &length.to_be_bytes(),
        payload,
    ]
    .concat()
}

#[test]
fn a_reply_in_one_chunk() {
    let mut reply = progress(READ);
    assert_eq!(reply.finish(), Ok(None));
    let content = feed(&mut reply, &data_chunk(COOKIE, 4096, 8192, true));
    assert_eq!(content, Ok(Content::Data { offset: 4096, bytes: 8192 }));
    assert_eq!(reply.finish(), Ok(Some(Ok(()))));
}

#[test]
fn pieces_in_any_order_with_holes() {
    let mut reply = progress(READ);
    feed(&mut reply, &data_chunk(COOKIE, 8192, 4096, false)).expect("the second half");
    let hole = feed(&mut reply, &hole_chunk(COOKIE, 4096, 1024, false));
    assert_eq!(hole, Ok(Content::Hole { offset: 4096, bytes: 1024 }));
    feed(&mut reply, &data_chunk(COOKIE, 5120, 3072, false)).expect("what lies between");
    assert_eq!(reply.finish(), Ok(None));
    feed(&mut reply, &none_chunk(COOKIE)).expect("the end");
    assert_eq!(reply.finish(), Ok(Some(Ok(()))));
}

#[test]
fn simple_replies_and_their_data() {
    let mut reply = ReplyProgress::new(READ, ReplyStyle::Simple);
    assert_eq!(reply.simple(Ok(())), Ok(Content::Data { offset: 4096, bytes: 8192 }));
    assert_eq!(reply.finish(), Ok(Some(Ok(()))));
    assert_eq!(reply.simple(Ok(())), Err(Violation::AfterDone));
    let mut reply = ReplyProgress::new(READ, ReplyStyle::Simple);
    assert_eq!(reply.simple(Err(ErrorCode::Io)), Ok(Content::None));
    assert_eq!(reply.finish(), Ok(Some(Err(ErrorCode::Io))));
    let mut reply = progress(Operation::Flush);
    assert_eq!(reply.simple(Ok(())), Ok(Content::None));
    assert_eq!(reply.finish(), Ok(Some(Ok(()))));
}

#[test]
fn a_simple_reply_to_a_read_is_refused_once_structured() {
    assert_eq!(progress(READ).simple(Ok(())), Err(Violation::SimpleReplyToRead));
    assert_eq!(progress(READ).simple(Err(ErrorCode::Io)), Err(Violation::SimpleReplyToRead));
}

#[test]
fn a_chunk_is_refused_unless_negotiated() {
    let start = none_chunk(COOKIE)[..16].try_into().expect("16 bytes");
    let verdict = decode_start(&start, ReplyStyle::Simple);
    assert_eq!(verdict, Err(Violation::BadMagic { found: 0x668e_33ef }));
    let verdict = decode_start(&[0; 16], ReplyStyle::Structured);
    assert_eq!(verdict, Err(Violation::BadMagic { found: 0 }));
}

#[test]
fn success_without_all_content_is_a_violation() {
    let mut reply = progress(READ);
    feed(&mut reply, &none_chunk(COOKIE)).expect("taken so far");
    assert_eq!(reply.finish(), Err(Violation::MissingContent { expected: 8192, found: 0 }));
    let mut reply = progress(READ);
    feed(&mut reply, &data_chunk(COOKIE, 4096, 8191, true)).expect("taken so far");
    assert_eq!(reply.finish(), Err(Violation::MissingContent { expected: 8192, found: 8191 }));
}

#[test]
fn an_error_never_becomes_content() {
    let mut reply = progress(READ);
    feed(&mut reply, &data_chunk(COOKIE, 4096, 8192, false)).expect("all of the data");
    let content = feed(&mut reply, &error_offset_chunk(COOKIE, ErrorCode::Io, 5000, true));
    let error = Content::Error { error: ErrorCode::Io, skip_bytes: 8, message_bytes: 0 };
    assert_eq!(content, Ok(error));
    assert_eq!(reply.finish(), Ok(Some(Err(ErrorCode::Io))));

    let mut reply = progress(READ);
    feed(&mut reply, &error_chunk(COOKIE, ErrorCode::NoMemory, false)).expect("an error");
    feed(&mut reply, &error_chunk(COOKIE, ErrorCode::Io, false)).expect("another");
    feed(&mut reply, &none_chunk(COOKIE)).expect("the end");
    assert_eq!(reply.finish(), Ok(Some(Err(ErrorCode::NoMemory))));
}

#[test]
fn content_outside_the_request_is_a_violation() {
    for (offset, length) in
        [(0, 4096), (4095, 2), (4096, 8193), (12287, 2), (12288, 1), (u64::MAX, 1), (1 << 63, 9)]
    {
        let outside = Err(Violation::OutsideRequest { offset, length });
        assert_eq!(feed(&mut progress(READ), &data_chunk(COOKIE, offset, length, true)), outside);
        assert_eq!(feed(&mut progress(READ), &hole_chunk(COOKIE, offset, length, true)), outside);
    }
    let mut empty = hole_chunk(COOKIE, 4096, 1, true);
    empty[31] = 0;
    let verdict = feed(&mut progress(READ), &empty);
    assert_eq!(verdict, Err(Violation::OutsideRequest { offset: 4096, length: 0 }));
    for operation in [Operation::Flush, Operation::Trim { offset: 0, length: 9, fua: false }] {
        let verdict = feed(&mut progress(operation), &data_chunk(COOKIE, 0, 1, true));
        assert_eq!(verdict, Err(Violation::OutsideRequest { offset: 0, length: 1 }));
    }
}

#[test]
fn content_that_comes_twice_is_a_violation() {
    let mut reply = progress(READ);
    feed(&mut reply, &data_chunk(COOKIE, 5000, 100, false)).expect("a piece");
    for (offset, length) in [(5000, 100), (4999, 2), (5099, 1), (4096, 8192), (5010, 5)] {
        let verdict = feed(&mut reply, &hole_chunk(COOKIE, offset, length, false));
        assert_eq!(verdict, Err(Violation::Overlap { offset, length }));
    }
}

#[test]
fn a_piece_is_not_forgotten_when_others_grow_together() {
    for joined in [4097, 4099, 4101] {
        let mut reply = progress(READ);
        for offset in [4096, 4098, 4100, 4102] {
            feed(&mut reply, &data_chunk(COOKIE, offset, 1, false)).expect("a piece");
        }
        feed(&mut reply, &data_chunk(COOKIE, joined, 1, false)).expect("what lies between");
        for offset in [4096, 4098, 4100, 4102, joined] {
            let verdict = feed(&mut reply, &data_chunk(COOKIE, offset, 1, false));
            assert_eq!(verdict, Err(Violation::Overlap { offset, length: 1 }));
        }
    }
}

#[test]
fn fragments_are_a_violation_where_they_were_forbidden() {
    let mut reply = progress(Operation::Read { offset: 4096, length: 8192, dont_fragment: true });
    feed(&mut reply, &data_chunk(COOKIE, 4096, 4096, false)).expect("a piece");
    let verdict = feed(&mut reply, &data_chunk(COOKIE, 8192, 4096, true));
    assert_eq!(verdict, Err(Violation::Fragmented));
}

#[test]
fn separate_pieces_are_bounded_and_touching_ones_are_not() {
    let mut reply = progress(READ);
    for index in 0..REPLY_PIECES_MAX as u64 {
        feed(&mut reply, &data_chunk(COOKIE, 4096 + 2 * index, 1, false)).expect("a piece");
    }
    let one_more = data_chunk(COOKIE, 12287, 1, false);
    assert_eq!(feed(&mut reply, &one_more), Err(Violation::TooManyPieces));
    let offsets = 4096..12288;
    for orderly in [offsets.clone().collect::<Vec<u64>>(), offsets.rev().collect()] {
        let mut reply = progress(READ);
        for offset in orderly {
            feed(&mut reply, &data_chunk(COOKIE, offset, 1, false)).expect("a byte");
        }
        feed(&mut reply, &none_chunk(COOKIE)).expect("the end");
        assert_eq!(reply.finish(), Ok(Some(Ok(()))));
    }
}

#[test]
fn nothing_may_follow_the_end() {
    let mut reply = progress(READ);
    feed(&mut reply, &data_chunk(COOKIE, 4096, 8192, true)).expect("everything");
    assert_eq!(feed(&mut reply, &none_chunk(COOKIE)), Err(Violation::AfterDone));
}

#[test]
fn lengths_that_do_not_suit_the_kind_are_violations() {
    for (kind, payload_bytes) in [
        (0, 1),
        (1, 8),
        (1, 8 + limits::PAYLOAD_BYTES_MAX + 1),
        (2, 11),
        (2, 13),
        (0x8001, 5),
        (0x8001, 4103),
        (0x8002, 13),
        (0x8002, 4111),
        (0x8003, 5),
        (0xffff, u32::MAX),
    ] {
        let mut chunk = chunk_bytes(1, kind, &[]);
        chunk[16..].copy_from_slice(&payload_bytes.to_be_bytes());
        let verdict = feed(&mut progress(READ), &chunk);
        assert_eq!(verdict, Err(Violation::ChunkLength { kind, length: payload_bytes }));
    }
}

#[test]
fn strange_chunks_are_violations_unless_they_say_they_are_errors() {
    let mut reply = progress(READ);
    for kind in [3, 4, 5, 6, 0x7fff] {
        let verdict = feed(&mut reply, &chunk_bytes(1, kind, &[0; 32]));
        assert_eq!(verdict, Err(Violation::UnknownChunk { kind }));
    }
    assert_eq!(feed(&mut reply, &chunk_bytes(0, 0, &[])), Err(Violation::NoneNotDone));
    let no_error = chunk_bytes(1, 0x8001, &[0; 6]);
    assert_eq!(feed(&mut reply, &no_error), Err(Violation::ErrorWithoutCode));
    for (kind, length) in [(0x8001, 7), (0x8002, 15), (0x8077, 7)] {
        let mut payload = std::vec![0; length];
        payload[3] = 5;
        payload[5] = 2;
        let verdict = feed(&mut reply, &chunk_bytes(1, kind, &payload));
        assert_eq!(verdict, Err(Violation::MessageLength { length: 2 }));
    }
    assert_eq!(reply.finish(), Ok(None));
    let known_later = chunk_bytes(0xfffe, 0x8077, &[0, 0, 0, 28, 0, 1, b'x', 9]);
    let error = Content::Error { error: ErrorCode::NoSpace, skip_bytes: 2, message_bytes: 1 };
    assert_eq!(feed(&mut reply, &known_later), Ok(error));
    assert_eq!(reply.finish(), Ok(None), "flags that nobody knows are not DONE");
}

fn chunks() -> impl Strategy<Value = (ChunkKind, bool, u32, [u8; 12])> {
    let kinds = prop_oneof![
        1 => Just(ChunkKind::None),
        4 => Just(ChunkKind::OffsetData),
        2 => Just(ChunkKind::OffsetHole),
        1 => Just(ChunkKind::Error),
        1 => Just(ChunkKind::ErrorOffset),
        1 => Just(ChunkKind::UnknownError(0x8077)),
    ];
    // Ranges of a few bytes inside and around the request, so that many of them are good.
    let range = (4094_u64..4114, 0_u32..6);
    (kinds, prop::bool::weighted(0.03), range, prop::bool::weighted(0.1), any::<[u8; 12]>())
        .prop_map(|(kind, done, (offset, length), wild, mut head)| {
            if !wild {
                head[..8].copy_from_slice(&offset.to_be_bytes());
                head[8..].copy_from_slice(&length.to_be_bytes());
            }
            (kind, done, length, head)
        })
}

proptest! {
    #[test]
    fn arbitrary_starts_never_panic(
        bytes: [u8; 16],
        rest: [u8; 4],
        magic in 0..3_usize,
        operation in operations(),
        head: [u8; 12],
    ) {
        let mut bytes = bytes;
        match magic {
            0 => bytes[..4].copy_from_slice(&layout::SIMPLE_REPLY_MAGIC.to_be_bytes()),
            1 => bytes[..4].copy_from_slice(&layout::STRUCTURED_REPLY_MAGIC.to_be_bytes()),
            _ => (),
        }
        let mut reply = progress(operation);
        match decode_start(&bytes, ReplyStyle::Structured) {
            Ok(ReplyStart::Simple { result, .. }) => {
                let _ = reply.simple(result);
            }
            Ok(ReplyStart::Chunk(start)) => {
                if let Ok(header) = start.finish(rest) {
                    let _ = reply.chunk(&header, &head[..header.head_bytes()]);
                }
            }
            Err(_) => (),
        }
        let _ = reply.finish();
    }

    /// Against a plain model: a byte map of what came.
    #[test]
    fn success_means_that_every_byte_came_once(
        chunks in prop::collection::vec(chunks(), 1..40),
    ) {
        const OFFSET: usize = 4096;
        const LENGTH: usize = 16;
        let operation =
            Operation::Read { offset: OFFSET as u64, length: 16, dont_fragment: false };
        let mut reply = progress(operation);
        let mut came = [0_u32; LENGTH];
        let mut failed = false;
        for (kind, done, length, head) in chunks {
            let payload_bytes = match kind {
                ChunkKind::None => 0,
                ChunkKind::OffsetData => 8 + length,
                ChunkKind::OffsetHole => 12,
                _ => 14 + length,
            };
            let header = ChunkHeader { cookie: COOKIE, done, kind, payload_bytes };
            // A caller would stop at a violation; going on shows that it changed nothing.
            let Ok(content) = reply.chunk(&header, &head[..header.head_bytes()]) else { continue };
            match content {
                Content::Data { offset, bytes } | Content::Hole { offset, bytes } => {
                    let start = usize::try_from(offset).expect("inside") - OFFSET;
                    for byte in &mut came[start..start + bytes as usize] {
                        *byte += 1;
                    }
                }
                Content::Error { skip_bytes, message_bytes, .. } => {
                    prop_assert!(u32::from(message_bytes) <= skip_bytes);
                    failed = true;
                }
                Content::None => (),
            }
        }
        prop_assert!(came.iter().all(|&times| times <= 1));
        if reply.finish() == Ok(Some(Ok(()))) {
            prop_assert!(!failed && came.iter().all(|&times| times == 1));
        }
    }
}
