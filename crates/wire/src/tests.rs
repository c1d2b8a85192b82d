//! The server's role: bytes written out by hand from the specification, the table of answers,
//! round trips, and arbitrary bytes.

use crate::client::encode_request;
use crate::limits::{PAYLOAD_BYTES_MAX, UNFRAGMENTED_BYTES_MAX};
use crate::*;
use proptest::prelude::*;
use std::vec::Vec;

const SIZE_BYTES: u64 = 1 << 30;
const WRITABLE: ExportLimits = ExportLimits { size_bytes: SIZE_BYTES, read_only: false };
const READ_ONLY: ExportLimits = ExportLimits { size_bytes: SIZE_BYTES, read_only: true };
const STYLES: [ReplyStyle; 2] = [ReplyStyle::Simple, ReplyStyle::Structured];
const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);

fn header(command: Command, flag_bits: u16, offset: u64, length: u64) -> RequestHeader {
    RequestHeader { flag_bits, command, cookie: COOKIE, offset, length }
}

/// The error that is answered, with the payload to consume.
fn refused(request: RequestHeader, limits: ExportLimits) -> Option<(ErrorCode, u32)> {
    let verdicts = STYLES.map(|style| request.validate(limits, style));
    assert_eq!(verdicts[0], verdicts[1], "the style of replies changes no verdict but DF's");
    match verdicts[0] {
        Ok(_) => None,
        Err(Rejection::Answer(refusal)) => {
            assert_eq!((refusal.cookie, refusal.command), (COOKIE, request.command));
            Some((refusal.error, refusal.payload_bytes))
        }
        Err(Rejection::Disconnect(violation)) => panic!("disconnects: {violation}"),
    }
}

#[test]
fn a_request_lies_on_the_wire_as_the_specification_says() {
    let bytes = [
        0x25, 0x60, 0x95, 0x13, // magic
        0x00, 0x01, // FUA
        0x00, 0x01, // WRITE
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // cookie
        0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x00, // offset
        0x00, 0x00, 0x10, 0x00, // length
    ];
    let decoded = RequestHeader::decode(&bytes);
    assert_eq!(decoded, Ok(header(Command::Write, CommandFlags::FUA, 0x10200, 4096)));
    let operation = Operation::Write { offset: 0x10200, length: 4096, fua: true };
    assert_eq!(encode_request(COOKIE, operation), bytes);
}

#[test]
fn a_wrong_magic_number_is_a_violation() {
    let mut bytes = encode_request(COOKIE, Operation::Flush);
    bytes[3] ^= 1;
    assert_eq!(RequestHeader::decode(&bytes), Err(Violation::BadMagic { found: 0x2560_9512 }));
}

#[test]
fn replies_lie_on_the_wire_as_the_specification_says() {
    let cookie = [1, 2, 3, 4, 5, 6, 7, 8];
    let with = |parts: &[&[u8]]| parts.concat();
    let simple = [0x67, 0x44, 0x66, 0x98];
    assert_eq!(simple_reply(COOKIE, Ok(()))[..], with(&[&simple, &[0; 4], &cookie]));
    assert_eq!(
        simple_reply(COOKIE, Err(ErrorCode::NoSpace))[..],
        with(&[&simple, &[0, 0, 0, 28], &cookie])
    );
    let magic = [0x66, 0x8e, 0x33, 0xef];
    let chunk = |flags: u8, kind: [u8; 2], length: [u8; 4]| {
        with(&[&magic, &[0, flags], &kind, &cookie, &length])
    };
    assert_eq!(none_chunk(COOKIE)[..], chunk(1, [0, 0], [0; 4]));
    let offset = [0, 0, 0, 0, 0, 1, 2, 0];
    assert_eq!(
        data_chunk(COOKIE, 0x10200, 4096, true)[..],
        with(&[&chunk(1, [0, 1], [0, 0, 0x10, 8]), &offset])
    );
    assert_eq!(
        hole_chunk(COOKIE, 0x10200, 4096, false)[..],
        with(&[&chunk(0, [0, 2], [0, 0, 0, 12]), &offset, &[0, 0, 0x10, 0]])
    );
    assert_eq!(
        error_chunk(COOKIE, ErrorCode::Io, true)[..],
        with(&[&chunk(1, [0x80, 1], [0, 0, 0, 6]), &[0, 0, 0, 5, 0, 0]])
    );
    assert_eq!(
        error_offset_chunk(COOKIE, ErrorCode::Io, 0x10200, false)[..],
        with(&[&chunk(0, [0x80, 2], [0, 0, 0, 14]), &[0, 0, 0, 5, 0, 0], &offset])
    );
}

#[test]
fn a_write_past_the_end_has_no_space_and_other_commands_are_invalid() {
    for (command, error, payload_bytes) in [
        (Command::Read, ErrorCode::Invalid, 0),
        (Command::Write, ErrorCode::NoSpace, 4096),
        (Command::Trim, ErrorCode::Invalid, 0),
        (Command::WriteZeroes, ErrorCode::NoSpace, 0),
    ] {
        for offset in [SIZE_BYTES - 4095, SIZE_BYTES, u64::MAX - 4095, u64::MAX] {
            let request = header(command, 0, offset, 4096);
            assert_eq!(refused(request, WRITABLE), Some((error, payload_bytes)), "{request:?}");
        }
        assert_eq!(refused(header(command, 0, SIZE_BYTES - 4096, 4096), WRITABLE), None);
    }
}

#[test]
fn a_read_only_export_refuses_changes_and_consumes_the_payload() {
    for (command, payload_bytes) in
        [(Command::Write, 512), (Command::Trim, 0), (Command::WriteZeroes, 0)]
    {
        for offset in [0, SIZE_BYTES] {
            let answer = refused(header(command, 0, offset, 512), READ_ONLY);
            assert_eq!(answer, Some((ErrorCode::NotPermitted, payload_bytes)));
        }
    }
    assert_eq!(refused(header(Command::Read, 0, 0, 512), READ_ONLY), None);
    assert_eq!(refused(header(Command::Flush, 0, 0, 0), READ_ONLY), None);
}

#[test]
fn flags_are_taken_where_they_belong_and_nowhere_else() {
    let commands = [
        (Command::Read, 0),
        (Command::Write, 0),
        (Command::Flush, 0),
        (Command::Trim, 0),
        (Command::WriteZeroes, CommandFlags::NO_HOLE),
    ];
    for (command, own_flags) in commands {
        for bit in 0..16 {
            let flag = 1 << bit;
            if command == Command::Read && flag == CommandFlags::DF {
                continue;
            }
            let allowed = flag & (own_flags | CommandFlags::FUA) != 0;
            let length = if command == Command::Flush { 0 } else { 512 };
            let payload_bytes = if command == Command::Write { 512 } else { 0 };
            let expected = (!allowed).then_some((ErrorCode::Invalid, payload_bytes));
            let answer = refused(header(command, flag, 0, length), WRITABLE);
            assert_eq!(answer, expected, "{command:?} with flag {flag:#x}");
        }
    }
}

#[test]
fn reads_without_fragments_need_structured_replies_and_a_limit() {
    let read = |length| header(Command::Read, CommandFlags::DF, 0, length);
    let error = |request: RequestHeader, style| match request.validate(WRITABLE, style) {
        Err(Rejection::Answer(refusal)) => Some(refusal.error),
        verdict => {
            assert!(verdict.is_ok());
            None
        }
    };
    let most = u64::from(UNFRAGMENTED_BYTES_MAX);
    assert_eq!(error(read(512), ReplyStyle::Simple), Some(ErrorCode::Invalid));
    assert_eq!(error(read(64 << 10), ReplyStyle::Structured), None);
    assert_eq!(error(read(most), ReplyStyle::Structured), None);
    assert_eq!(error(read(most + 1), ReplyStyle::Structured), Some(ErrorCode::Overflow));
}

#[test]
fn durability_and_allocation_flags_reach_the_operation() {
    let operation = |command, flags| {
        let request = header(command, flags, 0, 512).validate(WRITABLE, ReplyStyle::Simple);
        request.expect("a good request").operation
    };
    for (flags, expected) in [(0, false), (CommandFlags::FUA, true)] {
        let (offset, length) = (0, 512);
        let fua = expected;
        assert_eq!(operation(Command::Write, flags), Operation::Write { offset, length, fua });
        let length = 512;
        assert_eq!(operation(Command::Trim, flags), Operation::Trim { offset, length, fua });
        for (no_hole_flag, no_hole) in [(0, false), (CommandFlags::NO_HOLE, true)] {
            let zeroes = Operation::WriteZeroes { offset, length, fua, no_hole };
            assert_eq!(operation(Command::WriteZeroes, flags | no_hole_flag), zeroes);
        }
    }
}

#[test]
fn unknown_commands_are_invalid_and_have_no_payload() {
    for code in [5, 7, 8, 9, 0x1234, u16::MAX] {
        let request = header(Command::from_code(code), 0, 0, 4096);
        assert_eq!(refused(request, WRITABLE), Some((ErrorCode::Invalid, 0)), "{code}");
    }
}

#[test]
fn a_flush_has_no_range() {
    assert_eq!(refused(header(Command::Flush, 0, 0, 0), WRITABLE), None);
    for (offset, length) in [(1, 0), (0, 1), (512, 512)] {
        let answer = refused(header(Command::Flush, 0, offset, length), WRITABLE);
        assert_eq!(answer, Some((ErrorCode::Invalid, 0)));
    }
}

#[test]
fn a_disconnection_is_taken_whatever_else_it_says() {
    let request = header(Command::Disconnect, u16::MAX, u64::MAX, u64::MAX);
    for style in STYLES {
        let taken = request.validate(READ_ONLY, style).expect("always taken");
        assert_eq!(taken.operation, Operation::Disconnect);
    }
}

#[test]
fn a_length_of_zero_is_taken_up_to_the_end() {
    for command in [Command::Read, Command::Write, Command::Trim, Command::WriteZeroes] {
        for offset in [0, 1, SIZE_BYTES] {
            assert_eq!(refused(header(command, 0, offset, 0), WRITABLE), None);
        }
        assert!(refused(header(command, 0, SIZE_BYTES + 1, 0), WRITABLE).is_some());
    }
}

#[test]
fn oversize_reads_overflow_and_oversize_writes_disconnect() {
    let most = u64::from(PAYLOAD_BYTES_MAX);
    assert_eq!(refused(header(Command::Read, 0, 0, most), WRITABLE), None);
    assert_eq!(refused(header(Command::Write, 0, 0, most), WRITABLE), None);
    let read = refused(header(Command::Read, 0, 0, most + 1), WRITABLE);
    assert_eq!(read, Some((ErrorCode::Overflow, 0)));
    for limits in [WRITABLE, READ_ONLY] {
        for flags in [0, 0x8000] {
            for offset in [0, SIZE_BYTES, u64::MAX] {
                for length in [most + 1, u64::from(u32::MAX)] {
                    let request = header(Command::Write, flags, offset, length);
                    let verdict = request.validate(limits, ReplyStyle::Simple);
                    let violation = Violation::OversizeWrite { length };
                    assert_eq!(verdict, Err(Rejection::Disconnect(violation)));
                }
            }
        }
    }
    for command in [Command::Trim, Command::WriteZeroes] {
        assert_eq!(refused(header(command, 0, 0, SIZE_BYTES), WRITABLE), None);
    }
}

#[test]
fn early_errors_of_reads_come_in_chunks_once_negotiated() {
    let bad = header(Command::Read, 0x8000, 0, 512);
    let Err(Rejection::Answer(refusal)) = bad.validate(WRITABLE, ReplyStyle::Structured) else {
        panic!("answers")
    };
    let chunk = error_chunk(COOKIE, ErrorCode::Invalid, true);
    let simple = simple_reply(COOKIE, Err(ErrorCode::Invalid));
    assert_eq!(refusal.reply(ReplyStyle::Structured)[..], chunk);
    assert_eq!(refusal.reply(ReplyStyle::Simple)[..], simple);
    for style in STYLES {
        let other = Refusal { command: Command::Trim, ..refusal };
        assert_eq!(other.reply(style)[..], simple);
    }
}

#[test]
fn an_empty_read_succeeds_without_a_data_chunk() {
    let request = header(Command::Read, 0, 0, 0).validate(WRITABLE, ReplyStyle::Structured);
    let request = request.expect("taken");
    assert_eq!(request.reply(ReplyStyle::Structured, Ok(()))[..], none_chunk(COOKIE));
    assert_eq!(request.reply(ReplyStyle::Simple, Ok(()))[..], simple_reply(COOKIE, Ok(())));
}

#[test]
#[should_panic(expected = "a read is answered with its data")]
fn a_read_cannot_succeed_without_its_data() {
    let request = header(Command::Read, 0, 0, 1).validate(WRITABLE, ReplyStyle::Simple);
    let _ = request.expect("taken").reply(ReplyStyle::Simple, Ok(()));
}

#[test]
fn error_values_are_the_specification_s() {
    let codes = ErrorCode::ALL.map(ErrorCode::code);
    assert_eq!(codes, [1, 5, 12, 22, 28, 75, 95, 108]);
    for error in ErrorCode::ALL {
        assert_eq!(ErrorCode::from_code(error.code()), Some(error));
    }
    assert_eq!(ErrorCode::from_code(0), None);
    assert_eq!(ErrorCode::from_code(4), Some(ErrorCode::Invalid));
}

#[test]
fn errnos_become_the_values_that_may_be_sent() {
    for (errno, error) in [
        (1, ErrorCode::NotPermitted),
        (30, ErrorCode::NotPermitted),
        (12, ErrorCode::NoMemory),
        (22, ErrorCode::Invalid),
        (27, ErrorCode::NoSpace),
        (28, ErrorCode::NoSpace),
        (122, ErrorCode::NoSpace),
        (108, ErrorCode::Shutdown),
        (5, ErrorCode::Io),
        (75, ErrorCode::Io),
        (95, ErrorCode::Io),
        (0, ErrorCode::Io),
        (-5, ErrorCode::Io),
    ] {
        assert_eq!(ErrorCode::from_errno(errno), error, "errno {errno}");
    }
}

pub(crate) fn operations() -> impl Strategy<Value = Operation> {
    let small = 0..=1_u64 << 29;
    let payload = 0..=PAYLOAD_BYTES_MAX;
    prop_oneof![
        (small.clone(), payload.clone(), any::<bool>()).prop_map(|(offset, length, df)| {
            let length = if df { length.min(UNFRAGMENTED_BYTES_MAX) } else { length };
            Operation::Read { offset, length, dont_fragment: df }
        }),
        (small.clone(), payload, any::<bool>())
            .prop_map(|(offset, length, fua)| Operation::Write { offset, length, fua }),
        Just(Operation::Flush),
        Just(Operation::Disconnect),
        (small.clone(), small.clone(), any::<bool>())
            .prop_map(|(offset, length, fua)| Operation::Trim { offset, length, fua }),
        (small.clone(), small, any::<bool>(), any::<bool>()).prop_map(
            |(offset, length, fua, no_hole)| Operation::WriteZeroes {
                offset,
                length,
                fua,
                no_hole
            }
        ),
    ]
}

fn bytes_with_magic() -> impl Strategy<Value = [u8; 28]> {
    (any::<[u8; 28]>(), any::<bool>(), 0_u16..10).prop_map(|(mut bytes, shaped, command)| {
        if shaped {
            bytes[..4].copy_from_slice(&layout::REQUEST_MAGIC.to_be_bytes());
            bytes[6..8].copy_from_slice(&command.to_be_bytes());
            bytes[4] = 0;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn what_a_client_encodes_a_server_accepts(operation in operations(), cookie: u64) {
        let cookie = Cookie(cookie);
        let decoded = RequestHeader::decode(&encode_request(cookie, operation));
        let verdict = decoded.expect("a request").validate(WRITABLE, ReplyStyle::Structured);
        prop_assert_eq!(verdict, Ok(Request { cookie, operation }));
    }

    #[test]
    fn every_command_number_survives(code: u16) {
        prop_assert_eq!(Command::from_code(code).code(), code);
    }

    #[test]
    fn arbitrary_bytes_are_judged_and_never_panic(
        bytes in bytes_with_magic(),
        size_bytes: u64,
        read_only: bool,
        structured: bool,
    ) {
        let style = STYLES[usize::from(structured)];
        let limits = ExportLimits { size_bytes, read_only };
        let Ok(header) = RequestHeader::decode(&bytes) else {
            prop_assert_ne!(&bytes[..4], &layout::REQUEST_MAGIC.to_be_bytes()[..]);
            return Ok(());
        };
        let mut ranges = Vec::new();
        match header.validate(limits, style) {
            Ok(Request { operation, cookie }) => {
                prop_assert_eq!(operation.command(), header.command);
                prop_assert_eq!(cookie, header.cookie);
                match operation {
                    Operation::Read { offset, length, .. } => ranges.push((offset, length.into())),
                    Operation::Write { offset, length, .. } => {
                        prop_assert!(!read_only);
                        ranges.push((offset, u64::from(length)));
                    }
                    Operation::Trim { offset, length, .. }
                    | Operation::WriteZeroes { offset, length, .. } => {
                        prop_assert!(!read_only);
                        ranges.push((offset, length));
                    }
                    Operation::Flush | Operation::Disconnect => (),
                }
            }
            Err(Rejection::Answer(refusal)) => {
                let payload = if header.command == Command::Write { header.length } else { 0 };
                prop_assert_eq!(u64::from(refusal.payload_bytes), payload);
                let read = header.command == Command::Read;
                let length = if read && structured { 26 } else { 16 };
                prop_assert_eq!(refusal.reply(style).len(), length);
            }
            Err(Rejection::Disconnect(_)) => prop_assert_eq!(header.command, Command::Write),
        }
        for (offset, length) in ranges {
            prop_assert_eq!((offset, length), (header.offset, header.length));
            prop_assert!(offset.checked_add(length).is_some_and(|end| end <= size_bytes));
        }
    }
}
