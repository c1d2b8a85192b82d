//! Steps in flight in the engine: a fixed table, one slot per ticket.

use crate::counters::Op;
use crate::window::Run;
use ringfence_cache::Ticket;
use ringfence_cache::quota::Quota;
use ringfence_cache::units::ExportSlot;
use ringfence_wire::Cookie;
use std::ops::Range;

/// What has to be remembered of a step until it completes.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Whose.
    pub connection: u16,
    /// Of which export.
    pub export: ExportSlot,
    /// What kind.
    pub op: Op,
    /// Whether it is one of several steps of a long request.
    pub of_long: bool,
    /// The client's name for the request.
    pub cookie: Cookie,
    /// First byte in the export.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Bytes of the receive window that are held for it.
    pub held: u32,
    /// Frames of a read.
    pub run: Run,
    /// Whether the read is answered piece by piece.
    pub in_pieces: bool,
    /// Whether some of these pieces could be read.
    pub has_content: bool,
    /// When it was decoded.
    pub started_ns: u64,
}

/// Tickets of one kind.
struct Pool {
    free: Vec<u32>,
    quota: Quota,
}

/// The table. Half of it is for what changes data and may wait for room, half for reads and
/// flushes: writes without room never keep what is cached from being read.
pub struct Tickets {
    steps: Box<[Option<Step>]>,
    reads: Pool,
    changes: Pool,
}

/// Tickets of each kind that an export can have whatever others do: their clients may all wait for
/// an origin.
const PER_EXPORT: usize = 8;

impl Tickets {
    /// `count` free tickets for so many exports.
    #[must_use]
    pub fn new(count: u32, exports: usize) -> Self {
        let pool = |tickets: Range<u32>| {
            let shared = tickets.len().saturating_sub(PER_EXPORT * exports);
            Pool { free: tickets.rev().collect(), quota: Quota::new(PER_EXPORT, shared, exports) }
        };
        Self {
            steps: (0..count).map(|_| None).collect(),
            reads: pool(0..count / 2),
            changes: pool(count / 2..count),
        }
    }

    fn pool(&mut self, op: Op) -> &mut Pool {
        match op {
            Op::Read | Op::Flush => &mut self.reads,
            Op::Write | Op::Trim | Op::WriteZeroes => &mut self.changes,
        }
    }

    /// Whether one is free for a step of an export.
    #[must_use]
    pub fn any_free(&mut self, export: ExportSlot, op: Op) -> bool {
        let pool = self.pool(op);
        !pool.free.is_empty() && pool.quota.room(export) > 0
    }

    /// Tickets that are not free.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.steps.len() - self.reads.free.len() - self.changes.free.len()
    }

    /// All of them, free or not.
    pub fn all(&self) -> impl Iterator<Item = Ticket> + use<> {
        (0..self.steps.len() as u32).map(Ticket)
    }

    /// Whether a ticket is in flight for a connection.
    #[must_use]
    pub fn is_of(&self, ticket: Ticket, connection: u16) -> bool {
        let step = &self.steps[ticket.0 as usize];
        step.as_ref().is_some_and(|step| step.connection == connection)
    }

    /// Takes a ticket.
    ///
    /// # Panics
    /// When none is free.
    pub fn take(&mut self, step: Step) -> Ticket {
        let pool = self.pool(step.op);
        let ticket = pool.free.pop().expect("a free ticket");
        pool.quota.take(step.export);
        self.steps[ticket as usize] = Some(step);
        Ticket(ticket)
    }

    /// The step of a ticket.
    ///
    /// # Panics
    /// When the ticket is free.
    pub fn step_mut(&mut self, ticket: Ticket) -> &mut Step {
        self.steps[ticket.0 as usize].as_mut().expect("a ticket in flight")
    }

    /// Frees a ticket.
    ///
    /// # Panics
    /// When it is free already.
    pub fn give_back(&mut self, ticket: Ticket) -> Step {
        let step = self.steps[ticket.0 as usize].take().expect("a ticket in flight");
        let pool = self.pool(step.op);
        pool.free.push(ticket.0);
        pool.quota.give_back(step.export);
        step
    }
}
