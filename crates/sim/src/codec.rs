//! The protocol between clients and the engine: each request and each reply is encoded by one side
//! and taken apart by the other, as the ring does it. Payload passes by: the codec never sees it,
//! and the engine has it in the same place either way.

use crate::client::{Wish, WishKind};
use crate::violation::{Kind, Violation};
use crate::world::World;
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use ringfence_cache::{Buffer, Command, Mode, Piece, PieceContent, RequestError};
use ringfence_wire::client::{
    Content, REST_BYTES, ReplyProgress, ReplyStart, START_BYTES, decode_start, encode_request,
};
use ringfence_wire::{
    Cookie, ErrorCode, ExportLimits, Operation, Reply, ReplyStyle, Request, RequestHeader,
    data_chunk, error_offset_chunk, hole_chunk, simple_reply,
};

/// A request and its reply on a connection.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// As the server has understood it.
    request: Request,
    style: ReplyStyle,
    /// Whether a part of a read was sent before the rest.
    has_pieces: bool,
    /// What the client has received.
    progress: ReplyProgress,
    /// Whether that came in more separate pieces than its decoder keeps account of
    /// (`REPLY_PIECES_MAX`): it has no word on the whole of it then.
    is_beyond_account: bool,
}

impl Exchange {
    /// A client sends a request; the server takes it apart and judges it. A `whole` read is not to
    /// be answered in pieces.
    pub(crate) fn begin(
        world: &World,
        ticket: u32,
        wish: &Wish,
        style: ReplyStyle,
        whole: bool,
    ) -> Result<Self, Violation> {
        let options = &world.scenario.exports[usize::from(wish.export)].options;
        let read_only = options.mode == Mode::ReadOnly;
        let limits = ExportLimits { size_bytes: options.origin.size_bytes, read_only };
        // Never the same one twice, so that no reply is taken for another one's.
        let cookie = Cookie(world.checker.history.now() << 8 | u64::from(ticket));
        let sent = Request { cookie, operation: operation(wish, ticket, whole) };
        let header = RequestHeader::decode(&encode_request(cookie, sent.operation));
        let header = header.map_err(|error| broken(&error))?;
        match header.validate(limits, style) {
            Ok(request) if request == sent => {
                let progress = ReplyProgress::new(sent.operation, style);
                let (has_pieces, is_beyond_account) = (false, false);
                Ok(Self { request, style, has_pieces, progress, is_beyond_account })
            }
            understood => Err(broken(&format!("{sent:?} is understood as {understood:?}"))),
        }
    }

    /// Whether what is answered must outlive the process: as in the ring, for clients that know
    /// simple replies only (decision 0017).
    pub(crate) fn is_kept(&self) -> bool {
        self.style == ReplyStyle::Simple
    }

    /// Whether the reply may be sent in pieces.
    pub(crate) fn may_be_split(&self) -> bool {
        let whole = !matches!(self.request.operation, Operation::Read { dont_fragment: false, .. });
        self.style == ReplyStyle::Structured && !whole
    }

    /// What the engine is asked for, with the payload in a buffer, and for which bytes.
    pub(crate) fn command(&self, buffer: Buffer) -> (Command, u64, u64) {
        match self.request.operation {
            Operation::Read { offset, length, .. } => {
                let in_pieces = self.may_be_split();
                (Command::Read { buffer, in_pieces }, offset, length.into())
            }
            Operation::Write { offset, length, fua } => {
                (Command::Write { buffer, fua }, offset, length.into())
            }
            Operation::Trim { offset, length, fua } => (Command::Trim { fua }, offset, length),
            Operation::WriteZeroes { offset, length, fua, no_hole } => {
                (Command::WriteZeroes { fua, no_hole }, offset, length)
            }
            Operation::Flush => (Command::Flush, 0, 0),
            Operation::Disconnect => unreachable!("no client asks for it"),
        }
    }

    /// The server sends a part of a read; the client receives it. Returns which bytes of the
    /// read's buffer read as zeroes by that.
    pub(crate) fn send_piece(&mut self, piece: Piece) -> Result<Option<(u32, u32)>, Violation> {
        let Operation::Read { offset: first, length, .. } = self.request.operation else {
            return Err(broken(&"a piece of something that is no read"));
        };
        // The blocks at the edges may lie in the request only in part.
        let skip = (first % BLOCK_BYTES_U64) as u32;
        let start = (piece.first * BLOCK_BYTES as u32).max(skip);
        let end = ((piece.first + piece.blocks) * BLOCK_BYTES as u32).min(skip + length);
        let (offset, bytes) = (first + u64::from(start - skip), end - start);
        self.has_pieces = true;
        let (cookie, done) = (self.request.cookie, piece.last);
        let (received, sent) = match piece.content {
            PieceContent::Data => {
                let header = data_chunk(cookie, offset, bytes, done);
                (self.receive(&header)?, Content::Data { offset, bytes })
            }
            PieceContent::Zeroes => {
                let header = hole_chunk(cookie, offset, bytes, done);
                (self.receive(&header)?, Content::Hole { offset, bytes })
            }
            PieceContent::Failed(error) => {
                let error = error_code(error);
                let header = error_offset_chunk(cookie, error, offset, done);
                // Where it is, the client's decoder leaves to the one who wants to know.
                let (skip_bytes, message_bytes) = (8, 0);
                (self.receive(&header)?, Content::Error { error, skip_bytes, message_bytes })
            }
        };
        let received = received.unwrap_or(sent);
        if received != sent {
            return Err(broken(&format!("{sent:?} is received as {received:?}")));
        }
        Ok(match received {
            Content::Hole { offset, bytes } => Some(((offset - first) as u32 + skip, bytes)),
            _ => None,
        })
    }

    /// The server sends what is left of the reply. Returns what the client makes of all of it.
    pub(crate) fn end(
        &mut self,
        result: Result<(), RequestError>,
    ) -> Result<Result<(), RequestError>, Violation> {
        let Request { cookie, operation } = self.request;
        let style = self.style;
        match (operation, result) {
            // Its chunks have said it all.
            _ if self.has_pieces => {}
            (Operation::Read { offset, length, .. }, Ok(())) => {
                let received = match style {
                    ReplyStyle::Simple => self.receive(&simple_reply(cookie, Ok(())))?,
                    ReplyStyle::Structured => {
                        self.receive(&data_chunk(cookie, offset, length, true))?
                    }
                };
                if received != Some(Content::Data { offset, bytes: length }) {
                    return Err(broken(&format!("a whole read is received as {received:?}")));
                }
            }
            _ => {
                let result = result.map_err(error_code);
                self.receive(&Reply::new(style, operation.command(), cookie, result))?;
            }
        }
        if self.is_beyond_account {
            return Ok(result);
        }
        match self.progress.finish().map_err(|error| broken(&error))? {
            None => Err(broken(&"a reply does not end")),
            Some(Ok(())) => Ok(Ok(())),
            Some(Err(code)) => match error_of(code) {
                Some(error) => Ok(Err(error)),
                None => Err(broken(&format!("{result:?} is received as {code:?}"))),
            },
        }
    }

    /// The client receives the header of a reply or of a chunk, and what belongs to it but for
    /// data. Returns what it makes of that, if it has kept account of what came before.
    fn receive(&mut self, bytes: &[u8]) -> Result<Option<Content>, Violation> {
        let short = || broken(&format!("a reply of {} bytes", bytes.len()));
        let (start, rest) = bytes.split_first_chunk::<START_BYTES>().ok_or_else(short)?;
        let start = decode_start(start, self.style).map_err(|error| broken(&error))?;
        let progress = &mut self.progress;
        let (cookie, content, announced, there) = match start {
            ReplyStart::Simple { cookie, result } => {
                (cookie, progress.simple(result).map_err(|error| broken(&error))?, 0, rest.len())
            }
            ReplyStart::Chunk(chunk) => {
                let (length, payload) = rest.split_first_chunk::<REST_BYTES>().ok_or_else(short)?;
                let header = chunk.finish(*length).map_err(|error| broken(&error))?;
                let head = payload.get(..header.head_bytes()).ok_or_else(short)?;
                let content = match progress.chunk(&header, head) {
                    Err(ringfence_wire::Violation::TooManyPieces) => {
                        self.is_beyond_account = true;
                        return Ok(None);
                    }
                    content => content.map_err(|error| broken(&error))?,
                };
                let data_bytes = if let Content::Data { bytes, .. } = content { bytes } else { 0 };
                (header.cookie, content, header.payload_bytes - data_bytes, payload.len())
            }
        };
        if cookie != self.request.cookie {
            return Err(broken(&format!("a reply to {cookie:?}, not {:?}", self.request)));
        }
        if announced as usize != there {
            return Err(broken(&format!("{there} bytes where {announced} were announced")));
        }
        Ok(Some(content))
    }
}

/// What a client asks for, on the wire.
fn operation(wish: &Wish, ticket: u32, dont_fragment: bool) -> Operation {
    let Wish { offset, length, .. } = *wish;
    let step = || u32::try_from(length).expect("a step");
    match wish.kind {
        WishKind::Read => Operation::Read { offset, length: step(), dont_fragment },
        WishKind::Write { fua } => Operation::Write { offset, length: step(), fua },
        WishKind::Zeroes { fua } => {
            Operation::WriteZeroes { offset, length, fua, no_hole: ticket.is_multiple_of(2) }
        }
        WishKind::Trim { fua } => Operation::Trim { offset, length, fua },
        WishKind::Flush => Operation::Flush,
    }
}

/// What a client is told of an engine's error, as by the ring.
fn error_code(error: RequestError) -> ErrorCode {
    match error {
        RequestError::Io => ErrorCode::Io,
        RequestError::NoSpace => ErrorCode::NoSpace,
        RequestError::ReadOnly => ErrorCode::NotPermitted,
        RequestError::ShuttingDown => ErrorCode::Shutdown,
    }
}

/// What it concludes.
fn error_of(code: ErrorCode) -> Option<RequestError> {
    match code {
        ErrorCode::Io => Some(RequestError::Io),
        ErrorCode::NoSpace => Some(RequestError::NoSpace),
        ErrorCode::NotPermitted => Some(RequestError::ReadOnly),
        ErrorCode::Shutdown => Some(RequestError::ShuttingDown),
        _ => None,
    }
}

fn broken(how: &impl std::fmt::Display) -> Violation {
    Violation::new(Kind::Protocol, how.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;
    use crate::trace::Sink;

    const DATA: PieceContent = PieceContent::Data;

    /// A read of two blocks and a half, from the middle of one on.
    fn read(style: ReplyStyle) -> Exchange {
        let mut scenario = Scenario::draw(0);
        scenario.exports[0].options.origin.size_bytes = 8 * BLOCK_BYTES_U64;
        let world = World::new(scenario, Sink::Digest);
        let wish = Wish { export: 0, kind: WishKind::Read, offset: 2048, length: 10_240 };
        Exchange::begin(&world, 5, &wish, style, false).expect("it is understood")
    }

    fn piece(first: u32, blocks: u32, content: PieceContent, last: bool) -> Piece {
        Piece { first, blocks, content, last }
    }

    fn is_broken<T>(result: Result<T, Violation>) -> bool {
        matches!(result, Err(Violation { kind: Kind::Protocol, .. }))
    }

    #[test]
    fn replies_of_both_styles_come_through() {
        for style in [ReplyStyle::Simple, ReplyStyle::Structured] {
            assert_eq!(read(style).end(Ok(())), Ok(Ok(())));
            for error in [RequestError::Io, RequestError::NoSpace, RequestError::ShuttingDown] {
                assert_eq!(read(style).end(Err(error)), Ok(Err(error)));
            }
        }
    }

    #[test]
    fn pieces_are_received_where_they_were_sent() {
        let mut exchange = read(ReplyStyle::Structured);
        assert!(exchange.may_be_split());
        assert_eq!(exchange.send_piece(piece(1, 1, DATA, false)), Ok(None));
        let hole = piece(0, 1, PieceContent::Zeroes, false);
        assert_eq!(exchange.send_piece(hole), Ok(Some((2048, 2048))), "the edge is no one's");
        assert_eq!(exchange.send_piece(piece(2, 1, DATA, true)), Ok(None));
        assert_eq!(exchange.end(Ok(())), Ok(Ok(())));
        let mut exchange = read(ReplyStyle::Structured);
        exchange.send_piece(piece(0, 2, DATA, false)).expect("a piece");
        let failed = PieceContent::Failed(RequestError::Io);
        exchange.send_piece(piece(2, 1, failed, true)).expect("a piece");
        assert_eq!(exchange.end(Err(RequestError::Io)), Ok(Err(RequestError::Io)));
    }

    #[test]
    fn a_reply_that_lacks_something_or_has_too_much_is_found() {
        let mut exchange = read(ReplyStyle::Structured);
        exchange.send_piece(piece(0, 2, DATA, false)).expect("a piece");
        assert!(is_broken(exchange.clone().end(Ok(()))), "it never ends");
        assert!(is_broken(exchange.send_piece(piece(1, 1, DATA, true))), "it came twice");
        let mut exchange = read(ReplyStyle::Structured);
        exchange.send_piece(piece(0, 2, DATA, true)).expect("a piece");
        assert!(is_broken(exchange.end(Ok(()))), "the last block is missing");
        let reply = data_chunk(Cookie(1), 2048, 4096, true);
        assert!(is_broken(read(ReplyStyle::Structured).receive(&reply[..27])), "it is cut short");
        let mut exchange = read(ReplyStyle::Simple);
        assert!(!exchange.may_be_split());
        assert!(is_broken(exchange.send_piece(piece(0, 3, DATA, true))), "no chunks are known");
        exchange.request.cookie.0 += 1;
        let reply = simple_reply(Cookie(exchange.request.cookie.0 - 1), Ok(()));
        assert!(is_broken(exchange.receive(&reply)), "a reply to something else");
    }
}
