//! Tables and queues of fixed capacity: nothing here allocates after it was made.

use crate::units::{IoId, Ticket};
use std::collections::VecDeque;

/// A queue that never grows beyond the capacity it was made with.
#[derive(Debug)]
pub struct FixedQueue<T> {
    items: VecDeque<T>,
    capacity: usize,
}

impl<T> FixedQueue<T> {
    /// An empty queue.
    pub fn new(capacity: usize) -> Self {
        Self { items: VecDeque::with_capacity(capacity), capacity }
    }

    /// Whether nothing more fits.
    pub fn is_full(&self) -> bool {
        self.items.len() == self.capacity
    }

    /// Adds at the end; the caller has made sure that there is room.
    pub fn push(&mut self, item: T) {
        assert!(!self.is_full(), "a queue of {} is full", self.capacity);
        self.items.push_back(item);
    }

    /// Takes from the front.
    pub fn pop(&mut self) -> Option<T> {
        self.items.pop_front()
    }

    /// The front.
    pub fn front(&self) -> Option<&T> {
        self.items.front()
    }

    /// How many are in it.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Takes out what is asked for, wherever it is.
    pub fn remove(&mut self, is_it: impl Fn(&T) -> bool) {
        self.items.retain(|item| !is_it(item));
    }

    /// From front to end.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter()
    }

    /// From front to end, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut()
    }
}

/// Slots of fixed number, taken and given back.
#[derive(Debug)]
pub struct Slots<T> {
    items: Box<[Option<T>]>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    /// All free.
    pub fn new(capacity: usize) -> Self {
        let free = (0..u32::try_from(capacity).expect("a small table")).rev().collect();
        Self { items: (0..capacity).map(|_| None).collect(), free }
    }

    /// Slots that are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Slots in all.
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.items.len()).expect("a small table")
    }

    /// Slots in use.
    pub fn used(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// Takes a slot; the caller has made sure that there is one.
    pub fn take(&mut self, item: T) -> u32 {
        let slot = self.free.pop().expect("a free slot");
        self.items[slot as usize] = Some(item);
        slot
    }

    /// Gives a slot back.
    pub fn give_back(&mut self, slot: u32) -> T {
        let item = self.items[slot as usize].take().expect("a slot in use");
        self.free.push(slot);
        item
    }

    /// What is in a slot.
    pub fn get(&self, slot: u32) -> &T {
        self.items[slot as usize].as_ref().expect("a slot in use")
    }

    /// What is in a slot, if it is in use.
    pub fn find(&self, slot: u32) -> Option<&T> {
        self.items[slot as usize].as_ref()
    }

    /// What is in a slot, to change it.
    pub fn get_mut(&mut self, slot: u32) -> &mut T {
        self.items[slot as usize].as_mut().expect("a slot in use")
    }

    /// The slots in use.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.items
            .iter()
            .enumerate()
            .filter_map(|(slot, item)| Some((u32::try_from(slot).ok()?, item.as_ref()?)))
    }

    /// All that are in use, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut().flatten()
    }
}

/// Who hears of the end of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOwner {
    /// A run of blocks for a read.
    ReadRun {
        /// The read.
        ticket: Ticket,
        /// Which of its blocks the run starts at.
        first: u32,
        /// Blocks of the run.
        blocks: u32,
        /// Where they are in the log.
        address: u64,
        /// Whether it is a block that was damaged the first time.
        again: bool,
    },
    /// A block for a partial write.
    MergeRead {
        /// The merge slot.
        merge: u32,
        /// Which of its two blocks.
        which: u8,
    },
    /// Closed records, one after the other.
    Records {
        /// How many.
        count: u32,
        /// The first one's sequence.
        first: u64,
    },
    /// A flush of the cache device.
    DeviceFlush,
    /// A footer.
    FooterWrite {
        /// Of which use of a segment.
        segment_use: u64,
    },
    /// A superblock, and then the flush behind it.
    SuperblockWrite,
    /// The flush that makes a superblock durable.
    SuperblockFlush,
    /// A range from an origin.
    Fetch {
        /// The fetch slot.
        fetch: u32,
    },
    /// A segment's footer for a destager.
    DestageSummary {
        /// The destager.
        destager: u8,
    },
    /// Payload for a destager.
    DestageRead {
        /// The destager.
        destager: u8,
        /// First block in its sorted batch.
        first: u32,
        /// Number of blocks.
        blocks: u32,
        /// Whether it is a block that was damaged the first time.
        again: bool,
    },
    /// A write, or zeroes, to an origin.
    DestageWrite {
        /// The destager.
        destager: u8,
        /// Bytes that it carries.
        bytes: u64,
    },
    /// A flush of an origin.
    DestageFlush {
        /// The destager.
        destager: u8,
    },
    /// A segment's footer for reclaim.
    ReclaimSummary,
    /// Payload for reclaim.
    ReclaimRead {
        /// First block in its batch.
        first: u32,
        /// Number of blocks.
        blocks: u32,
        /// Whether it is a block that was damaged the first time.
        again: bool,
    },
}

/// I/Os in flight.
#[derive(Debug)]
pub struct IoTable(Slots<IoOwner>);

impl IoTable {
    /// None in flight.
    pub fn new(capacity: usize) -> Self {
        Self(Slots::new(capacity))
    }

    /// How many more may start.
    pub fn free(&self) -> usize {
        self.0.free()
    }

    /// Starts one.
    pub fn start(&mut self, owner: IoOwner) -> IoId {
        IoId(self.0.take(owner))
    }

    /// Whose one is, if it is in flight.
    pub fn find(&self, io: IoId) -> Option<&IoOwner> {
        self.0.find(io.0)
    }

    /// Ends one.
    pub fn end(&mut self, io: IoId) -> IoOwner {
        self.0.give_back(io.0)
    }
}

const NONE: u32 = u32::MAX;

/// A first-in-first-out queue of tickets, linked through [`TicketLinks`]: a ticket is in at most
/// one queue at a time.
#[derive(Clone, Copy, Debug)]
pub struct TicketQueue {
    head: u32,
    tail: u32,
}

impl Default for TicketQueue {
    fn default() -> Self {
        Self { head: NONE, tail: NONE }
    }
}

/// The links of all ticket queues.
#[derive(Debug)]
pub struct TicketLinks(Box<[u32]>);

impl TicketLinks {
    /// For tickets below `capacity`.
    pub fn new(capacity: u32) -> Self {
        Self(vec![NONE; capacity as usize].into())
    }

    /// Adds at the end.
    pub fn push(&mut self, queue: &mut TicketQueue, ticket: Ticket) {
        self.0[ticket.0 as usize] = NONE;
        if queue.tail == NONE {
            queue.head = ticket.0;
        } else {
            self.0[queue.tail as usize] = ticket.0;
        }
        queue.tail = ticket.0;
    }

    /// Puts back at the front what was just taken from there.
    pub fn push_front(&mut self, queue: &mut TicketQueue, ticket: Ticket) {
        self.0[ticket.0 as usize] = queue.head;
        if queue.tail == NONE {
            queue.tail = ticket.0;
        }
        queue.head = ticket.0;
    }

    /// Takes from anywhere. Whether it was there; a walk along the whole queue if not.
    pub fn remove(&mut self, queue: &mut TicketQueue, ticket: Ticket) -> bool {
        let (mut before, mut at) = (NONE, queue.head);
        while at != ticket.0 {
            if at == NONE {
                return false;
            }
            (before, at) = (at, self.0[at as usize]);
        }
        let behind = self.0[at as usize];
        if before == NONE {
            queue.head = behind;
        } else {
            self.0[before as usize] = behind;
        }
        if queue.tail == at {
            queue.tail = before;
        }
        true
    }

    /// Takes from the front.
    pub fn pop(&mut self, queue: &mut TicketQueue) -> Option<Ticket> {
        let ticket = queue.front()?;
        queue.head = self.0[ticket.0 as usize];
        if queue.head == NONE {
            queue.tail = NONE;
        }
        Some(ticket)
    }
}

impl TicketQueue {
    /// The front.
    pub const fn front(&self) -> Option<Ticket> {
        if self.head == NONE { None } else { Some(Ticket(self.head)) }
    }

    /// Whether none is in it.
    pub const fn is_empty(&self) -> bool {
        self.head == NONE
    }
}
