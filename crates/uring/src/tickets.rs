//! Steps in flight in the engine: a fixed table, one slot per ticket.

use crate::counters::Op;
use crate::window::Run;
use ringfence_cache::Ticket;
use ringfence_cache::quota::Quota;
use ringfence_cache::units::ExportSlot;
use ringfence_wire::Cookie;

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

/// The table.
pub struct Tickets {
    steps: Box<[Option<Step>]>,
    free: Vec<u32>,
    quota: Quota,
}

/// Tickets that an export can have whatever others do: their clients may all wait for an origin.
const PER_EXPORT: usize = 8;

impl Tickets {
    /// `count` free tickets for so many exports.
    #[must_use]
    pub fn new(count: u32, exports: usize) -> Self {
        let shared = (count as usize).saturating_sub(PER_EXPORT * exports);
        Self {
            steps: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            quota: Quota::new(PER_EXPORT, shared, exports),
        }
    }

    /// Whether one is free for an export.
    #[must_use]
    pub fn any_free(&self, export: ExportSlot) -> bool {
        !self.free.is_empty() && self.quota.room(export) > 0
    }

    /// Tickets that are not free.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.steps.len() - self.free.len()
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
        let ticket = self.free.pop().expect("a free ticket");
        self.quota.take(step.export);
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
        self.free.push(ticket.0);
        self.quota.give_back(step.export);
        step
    }
}
