//! Requests of clients and operators: submitted to the engine, judged when they are answered.

use crate::checker::ReadToken;
use crate::client::{Wish, WishKind};
use crate::codec::Exchange;
use crate::content;
use crate::core::Core;
use crate::faults::FaultKind;
use crate::life::Life;
use crate::violation::{Kind, Violation};
use crate::world::World;
use ringfence_cache::limits::STEP_BYTES_MAX;
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use ringfence_cache::{
    Buffer, Control, Event, Mode, Piece, PieceContent, Request, RequestError, Ticket,
};
use ringfence_wire::ReplyStyle;

/// Room for the largest step at any alignment.
pub(crate) const RECEIVE_BYTES: u32 = STEP_BYTES_MAX + 2 * BLOCK_BYTES as u32;
/// What read buffers hold before the engine fills them.
const POISON_READ: u8 = 0xa5;
/// What write buffers hold after the engine has consumed them.
const POISON_WRITE: u8 = 0x5a;
/// Operators' requests that the engine lets wait.
const CONTROLS_MAX: usize = 64;

/// A request in flight.
#[derive(Clone, Debug)]
pub(crate) struct PendingRequest {
    wish: Wish,
    purpose: Purpose,
    buffer: Buffer,
    /// How it is asked and answered.
    exchange: Exchange,
    consumed: bool,
    /// Who waits for the answer, if it is one of the world's clients.
    client: Option<u32>,
    /// Whether its client went away and left a change behind.
    abandoned: bool,
    /// The parts told of so far, and what the buffer held then.
    told: Vec<(Piece, Vec<u8>)>,
    submitted_ns: u64,
}

impl PendingRequest {
    fn new(wish: Wish, purpose: Purpose, buffer: Buffer, exchange: Exchange) -> Self {
        let (consumed, client, abandoned) = (false, None, false);
        let (told, submitted_ns) = (Vec::new(), 0);
        Self { wish, purpose, buffer, exchange, consumed, client, abandoned, told, submitted_ns }
    }

    /// Whether a block of a read was told to be unreadable.
    fn has_failed(&self, block: u32) -> bool {
        self.told.iter().any(|(piece, _)| {
            let is_failed = matches!(piece.content, PieceContent::Failed(_));
            is_failed && (piece.first..piece.first + piece.blocks).contains(&block)
        })
    }
}

#[derive(Clone, Copy, Debug)]
enum Purpose {
    /// A client's read.
    Read(ReadToken),
    /// A read of everything after a restart.
    Verify,
    /// A client's write, trim or zeroes, with its number.
    Change(u32),
    /// A client's flush, with its moment.
    Flush(u64),
    /// Nothing that anybody could see, or whose client is gone.
    Nothing,
}

/// An operator's request in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingControl {
    action: Control,
    submitted: u64,
}

impl<C: Core> Life<C> {
    /// Requests of an export that have not been answered.
    pub(crate) fn requests_of(&self, export: u8) -> usize {
        self.requests.iter().flatten().filter(|request| request.wish.export == export).count()
    }

    /// Submits a client's request under a free ticket.
    pub(crate) fn submit(
        &mut self,
        world: &mut World,
        ticket: u32,
        client: Option<u32>,
        wish: Wish,
    ) -> Result<(), Violation> {
        world.tally.operations += 1;
        let style = world.scenario.reply_style(client);
        // Those of one style can ask that their replies are not split.
        let whole = style == ReplyStyle::Structured && ticket.is_multiple_of(3);
        let exchange = Exchange::begin(world, ticket, &wish, style, whole)?;
        let buffer = self.request_buffer(world, ticket, &wish);
        let export = &world.scenario.exports[usize::from(wish.export)];
        let changed = wish.changed_bytes(export.size_bytes());
        let first_unit = usize::try_from(changed.start / world.scenario.unit_bytes).expect("small");
        let end_unit = usize::try_from(changed.end / world.scenario.unit_bytes).expect("small");
        let (zeroes, fua) = match wish.kind {
            WishKind::Write { fua } => (false, fua),
            WishKind::Zeroes { fua } | WishKind::Trim { fua } => (true, fua),
            WishKind::Read | WishKind::Flush => (false, false),
        };
        let purpose = match wish.kind {
            WishKind::Read => Purpose::Read(world.checker.submit_read()),
            WishKind::Flush => Purpose::Flush(world.checker.submit_flush()),
            _ if first_unit >= end_unit => Purpose::Nothing,
            _ => Purpose::Change(world.checker.submit_write(
                wish.export,
                first_unit,
                end_unit - first_unit,
                zeroes,
                fua,
            )),
        };
        if let (WishKind::Write { .. }, Purpose::Change(id)) = (wish.kind, purpose) {
            let bytes = self.core.reserve().bytes_mut(buffer);
            content::fill(bytes, wish.export, wish.offset, id);
        }
        let request = PendingRequest::new(wish, purpose, buffer, exchange);
        self.send(world, ticket, PendingRequest { client, submitted_ns: world.now_ns, ..request })
    }

    /// Submits a read whose values go into `world.contents`.
    pub(crate) fn submit_verification(
        &mut self,
        world: &mut World,
        ticket: u32,
        wish: Wish,
    ) -> Result<(), Violation> {
        let exchange = Exchange::begin(world, ticket, &wish, ReplyStyle::Structured, false)?;
        let buffer = self.request_buffer(world, ticket, &wish);
        self.send(world, ticket, PendingRequest::new(wish, Purpose::Verify, buffer, exchange))
    }

    /// A client goes away: nobody hears the answers to what it has in flight, nobody sees what it
    /// read, and whether its changes have taken effect is for others to find out. What has not by
    /// then never does.
    pub(crate) fn disconnect_client(
        &mut self,
        world: &mut World,
        client: u32,
    ) -> Result<(), Violation> {
        let mut unheard = Vec::new();
        for (request, ticket) in self.requests.iter_mut().zip(0..) {
            let Some(request) = request.as_mut().filter(|request| request.client == Some(client))
            else {
                continue;
            };
            match request.purpose {
                Purpose::Read(token) => world.checker.fail_read(token),
                Purpose::Change(id) => world.checker.history.abandon(id),
                Purpose::Verify | Purpose::Flush(_) | Purpose::Nothing => {}
            }
            request.abandoned = !matches!(request.wish.kind, WishKind::Read | WishKind::Flush);
            (request.purpose, request.client) = (Purpose::Nothing, None);
            unheard.push(Ticket(ticket));
        }
        if !unheard.is_empty() {
            world.tally.faults.count(FaultKind::Disconnect);
            world
                .trace
                .line(world.now_ns, || format!("client {client} goes away, {unheard:?} in flight"));
        }
        for ticket in unheard {
            self.step(world, Event::Abandon { ticket })?;
        }
        Ok(())
    }

    fn request_buffer(&mut self, world: &mut World, ticket: u32, wish: &Wish) -> Buffer {
        let piece = self.plan.receive.piece(ticket as usize, RECEIVE_BYTES);
        let buffer = match wish.kind {
            WishKind::Read => {
                let first = wish.offset - wish.offset % BLOCK_BYTES_U64;
                let end = (wish.offset + wish.length).next_multiple_of(BLOCK_BYTES_U64);
                piece.part(0, u32::try_from(end - first).expect("a step"))
            }
            WishKind::Write { .. } => {
                // Payloads arrive at any address.
                let skip = u32::try_from(world.random.below(BLOCK_BYTES_U64)).expect("small");
                piece.part(skip, u32::try_from(wish.length).expect("a step"))
            }
            _ => piece.part(0, 0),
        };
        if wish.kind == WishKind::Read {
            self.core.reserve().bytes_mut(buffer).fill(POISON_READ);
        }
        buffer
    }

    fn send(
        &mut self,
        world: &mut World,
        ticket: u32,
        request: PendingRequest,
    ) -> Result<(), Violation> {
        let Wish { export, kind, .. } = request.wish;
        let (command, offset, length) = request.exchange.command(request.buffer);
        let kept = request.exchange.is_kept();
        world.trace.mix(offset ^ length << 32 ^ u64::from(ticket) << 56);
        let moment = world.checker.history.now();
        world.trace.line(world.now_ns, || {
            format!(
                "@{moment} ticket {ticket}: export {export} {kind:?} {offset}+{length} {:?}",
                request.purpose
            )
        });
        self.requests[ticket as usize] = Some(request);
        let export = self.slots[usize::from(export)].expect("an export that is served");
        let request = Request { ticket: Ticket(ticket), export, command, offset, length, kept };
        self.step(world, Event::Submit(request))
    }

    /// The engine has copied a write's payload.
    pub(crate) fn consumed(&mut self, world: &mut World, ticket: Ticket) -> Result<(), Violation> {
        let request = self.requests.get_mut(ticket.0 as usize).and_then(Option::as_mut);
        let Some(request) = request.filter(|request| {
            matches!(request.wish.kind, WishKind::Write { .. }) && !request.consumed
        }) else {
            let detail = format!("{ticket:?} consumed twice, or not a write");
            return Err(Violation::new(Kind::Contract, detail));
        };
        request.consumed = true;
        let buffer = request.buffer;
        self.core.reserve().bytes_mut(buffer).fill(POISON_WRITE);
        world.trace.mix(u64::from(ticket.0) << 8 | 2);
        Ok(())
    }

    /// Parts of a read are ready.
    pub(crate) fn pieces_ready(
        &mut self,
        world: &mut World,
        ticket: Ticket,
    ) -> Result<(), Violation> {
        let contract = |detail: String| Err(Violation::new(Kind::Contract, detail));
        while let Some(piece) = self.core.next_piece(ticket) {
            let pending = self.requests.get_mut(ticket.0 as usize).and_then(Option::as_mut);
            let Some(request) = pending.filter(|request| request.exchange.may_be_split()) else {
                return contract(format!("{ticket:?} is no read in pieces"));
            };
            let end = piece.first + piece.blocks;
            let overlaps = |(told, _): &(Piece, Vec<u8>)| {
                told.first < end && piece.first < told.first + told.blocks
            };
            let block = BLOCK_BYTES as u32;
            if piece.blocks == 0
                || end * block > request.buffer.length
                || request.told.iter().any(overlaps)
            {
                return contract(format!("{ticket:?}: {piece:?} beside {:?}", request.told));
            }
            if let Some((start, bytes)) = request.exchange.send_piece(piece)? {
                // As a client fills in a hole.
                self.core.reserve().bytes_mut(request.buffer.part(start, bytes)).fill(0);
            }
            let part = request.buffer.part(piece.first * block, piece.blocks * block);
            request.told.push((piece, self.core.reserve().bytes(part).to_vec()));
            let key = u64::from(piece.first) << 20 | u64::from(piece.blocks) << 40;
            world.trace.mix(u64::from(ticket.0) << 8 | 5 | key);
            world.trace.line(world.now_ns, || format!("ticket {}: {piece:?}", ticket.0));
        }
        Ok(())
    }

    /// What was told of a read is all of it and stays as it was, and an error says which blocks.
    fn check_pieces(
        &mut self,
        request: &PendingRequest,
        result: Result<(), RequestError>,
    ) -> Result<(), Violation> {
        if request.told.is_empty() {
            return Ok(());
        }
        let mut blocks = 0;
        for (at, (piece, then)) in request.told.iter().enumerate() {
            let block = BLOCK_BYTES as u32;
            blocks += piece.blocks;
            let part = request.buffer.part(piece.first * block, piece.blocks * block);
            let changed = self.core.reserve().bytes(part) != then;
            if changed || piece.last != (at + 1 == request.told.len()) {
                let detail = format!("{piece:?} changed: {changed}, or is not the last");
                return Err(Violation::new(Kind::Contract, detail));
            }
        }
        let failed = (0..blocks).any(|block| request.has_failed(block));
        if u64::from(blocks) * BLOCK_BYTES_U64 != u64::from(request.buffer.length)
            || failed != result.is_err()
        {
            let detail = format!("{result:?} after {blocks} blocks of {:?}", request.wish);
            return Err(Violation::new(Kind::Contract, detail));
        }
        Ok(())
    }

    /// A request has ended.
    pub(crate) fn complete(
        &mut self,
        world: &mut World,
        ticket: Ticket,
        result: Result<(), RequestError>,
    ) -> Result<(), Violation> {
        let pending = self.requests.get_mut(ticket.0 as usize).and_then(Option::take);
        let Some(mut request) = pending else {
            return Err(Violation::new(Kind::Contract, format!("{ticket:?} completed twice")));
        };
        if matches!(request.wish.kind, WishKind::Write { .. }) && !request.consumed {
            return Err(Violation::new(Kind::Contract, format!("{ticket:?} was not consumed")));
        }
        self.check_pieces(&request, result)?;
        let result = request.exchange.end(result)?;
        self.tickets.push(ticket.0);
        world.trace.mix(u64::from(ticket.0) << 8 | 3 | u64::from(result.is_err()) << 40);
        if world.hung.is_some_and(|hung| hung != request.wish.export) {
            let took_ns = world.now_ns - request.submitted_ns;
            world.longest_beside_ns = world.longest_beside_ns.max(took_ns);
            world.answered_beside += 1;
        }
        let judged = match result {
            Ok(()) => self.judge(world, &request),
            Err(error) => self.judge_error(world, &request, error),
        };
        let moment = world.checker.history.now();
        world.trace.line(world.now_ns, || format!("@{moment} ticket {}: {result:?}", ticket.0));
        judged
    }

    fn judge(&mut self, world: &mut World, request: &PendingRequest) -> Result<(), Violation> {
        let wish = &request.wish;
        let mode = world.scenario.exports[usize::from(wish.export)].options.mode;
        let origin = &world.origins[usize::from(wish.export)];
        match request.purpose {
            Purpose::Nothing => Ok(()),
            Purpose::Read(token) => {
                let values = self.read_values(world, request)?;
                let first_unit = first_unit(world, wish);
                world.checker.answer_read(token, wish.export, first_unit, &values)
            }
            Purpose::Verify => {
                let values = self.read_values(world, request)?;
                let first_unit = first_unit(world, wish);
                let contents = &mut world.contents[usize::from(wish.export)];
                contents[first_unit..][..values.len()].copy_from_slice(&values);
                Ok(())
            }
            Purpose::Change(id) => {
                if request.exchange.is_kept() {
                    world.checker.history.keep(id);
                }
                world.checker.answer_write(id);
                if mode != Mode::Writethrough {
                    return Ok(());
                }
                let write = world.checker.history.get(id);
                let fua = write.fua;
                // What the origin took, and lost with its power before it was flushed, it took.
                let undisturbed = origin.disturbed < write.invoked;
                for unit in write.first_unit..write.first_unit + write.units {
                    let live = origin.live()[unit];
                    let is_older = |value: content::Value| {
                        world.checker.origin_value_is_before(wish.export, unit, value, id)
                    };
                    if undisturbed && is_older(live) || fua && origin.possible(unit).any(is_older) {
                        let write = world.checker.history.describe(id);
                        let detail =
                            format!("writethrough: unit {unit} of the origin lacks {write}");
                        return Err(Violation::new(Kind::OriginBehind, detail));
                    }
                }
                Ok(())
            }
            Purpose::Flush(submitted) => {
                world.checker.answer_flush(Some(wish.export), submitted);
                if mode != Mode::Writethrough {
                    return Ok(());
                }
                // What the log has lost, the origin may still have, not flushed: nobody knows.
                let since = world.losses.last().map_or(0, |loss| loss.found);
                let possible = |unit| origin.possible(unit);
                world.checker.check_origin_caught_up(wish.export, since..submitted, possible)
            }
        }
    }

    /// Identifies what a read has returned.
    fn read_values(
        &mut self,
        world: &World,
        request: &PendingRequest,
    ) -> Result<Vec<content::Value>, Violation> {
        let Wish { export, offset, length, .. } = request.wish;
        let skip = u32::try_from(offset % BLOCK_BYTES_U64).expect("small");
        let data = request.buffer.part(skip, u32::try_from(length).expect("a step"));
        let unit_bytes = world.scenario.unit_bytes;
        let bytes = self.core.reserve().bytes(data);
        let mut values: Vec<_> =
            content::identify_units(bytes, export, offset, unit_bytes).collect();
        for (value, at) in values.iter_mut().zip(0..) {
            let block = (offset % BLOCK_BYTES_U64 + at * unit_bytes) / BLOCK_BYTES_U64;
            if request.has_failed(u32::try_from(block).expect("a step")) {
                *value = content::UNREADABLE;
            }
        }
        if let Some(at) = values.iter().position(|value| *value == content::GARBAGE) {
            let unit_bytes = usize::try_from(unit_bytes).expect("a small unit");
            let (exports, cells) = world.content_limits();
            let found = content::explain(&bytes[at * unit_bytes..][..unit_bytes], exports, cells);
            let place = offset + (at * unit_bytes) as u64;
            return Err(Violation::new(
                Kind::Garbage,
                format!("a read of export {export} shows garbage at byte {place}: {found}"),
            ));
        }
        Ok(values)
    }

    /// What could be read of a read that failed in part is judged like any other read.
    fn judge_parts(
        &mut self,
        world: &mut World,
        request: &PendingRequest,
    ) -> Result<(), Violation> {
        let wish = &request.wish;
        let values = self.read_values(world, request)?;
        let mut unit = first_unit(world, wish);
        for part in values
            .chunk_by(|one, other| (*one == content::UNREADABLE) == (*other == content::UNREADABLE))
        {
            match request.purpose {
                _ if part[0] == content::UNREADABLE => {}
                Purpose::Read(token) => {
                    world.checker.answer_part(token, wish.export, unit, part)?;
                }
                Purpose::Verify => {
                    let contents = &mut world.contents[usize::from(wish.export)];
                    contents[unit..][..part.len()].copy_from_slice(part);
                }
                // Its client has gone.
                _ => {}
            }
            unit += part.len();
        }
        Ok(())
    }

    fn judge_error(
        &mut self,
        world: &mut World,
        request: &PendingRequest,
        error: RequestError,
    ) -> Result<(), Violation> {
        if let Purpose::Read(token) = request.purpose {
            world.checker.fail_read(token);
        }
        if !request.told.is_empty() {
            self.judge_parts(world, request)?;
        }
        if request.abandoned && error == RequestError::Io {
            return Ok(());
        }
        world.tally.errors += 1;
        let changes = !matches!(request.wish.kind, WishKind::Read | WishKind::Flush);
        let refused = error == RequestError::ShuttingDown && self.stopping && changes;
        if refused || world.explains_error(&request.wish, error) {
            // Whether a change took effect is unknown; the checker takes it as one that may.
            return Ok(());
        }
        let detail = format!("{error} for {:?}", request.wish);
        Err(Violation::new(Kind::UnexpectedError, detail))
    }

    /// Submits an operator's request.
    pub(crate) fn control(&mut self, world: &mut World, action: Control) -> Result<u32, Violation> {
        let token = self.tokens;
        self.tokens += 1;
        self.stopping |= action == Control::Stop;
        let submitted = world.checker.submit_flush();
        world.trace.line(world.now_ns, || format!("@{submitted} control {token}: {action:?}"));
        self.controls.insert(token, PendingControl { action, submitted });
        self.step(world, Event::Control { token, action })?;
        Ok(token)
    }

    /// An operator's request has ended.
    pub(crate) fn control_done(
        &mut self,
        world: &mut World,
        token: u32,
        result: Result<(), RequestError>,
    ) -> Result<(), Violation> {
        let Some(PendingControl { action, submitted }) = self.controls.remove(&token) else {
            return Err(Violation::new(Kind::Contract, format!("control {token} done twice")));
        };
        world.trace.mix(u64::from(token) << 8 | 4);
        world.trace.line(world.now_ns, || format!("control {token} done: {result:?}"));
        if let Err(error) = result {
            if action == Control::Stop {
                world.tally.faults.count(FaultKind::StopFailed);
            }
            let detail = format!("{error} for {action:?}");
            let violation = Violation::new(Kind::UnexpectedError, detail);
            // As many as there is room for wait already.
            let full = error == RequestError::NoSpace
                && action != Control::Stop
                && self.controls.len() >= CONTROLS_MAX;
            let explained = full || world.explains_control_error(error);
            return if explained { Ok(()) } else { Err(violation) };
        }
        match action {
            Control::Flush | Control::Stop => world.checker.answer_flush(None, submitted),
            // A block that was lost for good is not owed; which, the engine alone knows.
            Control::Drain(_) if world.damage.any() => {}
            Control::Drain(slot) => {
                for (of, export) in self.slots.iter().zip(0..) {
                    if of.is_some_and(|of| slot.is_none_or(|slot| slot == of)) {
                        let origin = &mut world.origins[usize::from(export)];
                        origin.drained(&world.checker, export, submitted)?;
                    }
                }
            }
            Control::AcceptLoss(_) => {}
        }
        Ok(())
    }
}

/// The first unit of a range.
fn first_unit(world: &World, wish: &Wish) -> usize {
    usize::try_from(wish.offset / world.scenario.unit_bytes).expect("a small export")
}
