//! A queue of fixed capacity between two threads: no lock, no allocation after its making.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Shared<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// Items ever taken. Written by the consumer alone.
    taken: AtomicUsize,
    /// Items ever put. Written by the producer alone.
    put: AtomicUsize,
}

// SAFETY: a slot is touched by the producer only while it is not yet put, and by the consumer only
// while it is put and not yet taken; the release stores of the counters order the two.
unsafe impl<T: Send> Sync for Shared<T> {}

/// The end that puts.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
}

/// The end that takes.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
}

/// A queue for `capacity` items, which is rounded up to a power of two. Items are `Copy`: nothing
/// has to be dropped with the queue.
#[must_use]
pub fn queue<T: Copy + Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let capacity = capacity.next_power_of_two();
    // Zeroed, and so touched: the first lap must not fault.
    let slots = (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::zeroed())).collect();
    let shared = Arc::new(Shared { slots, taken: AtomicUsize::new(0), put: AtomicUsize::new(0) });
    (Producer { shared: shared.clone() }, Consumer { shared })
}

impl<T: Copy + Send> Producer<T> {
    /// Puts an item, or gives it back when the queue is full.
    pub fn push(&mut self, item: T) -> Result<(), T> {
        let shared = &*self.shared;
        let put = shared.put.load(Ordering::Relaxed);
        if put.wrapping_sub(shared.taken.load(Ordering::Acquire)) == shared.slots.len() {
            return Err(item);
        }
        let slot = &shared.slots[put & (shared.slots.len() - 1)];
        // SAFETY: the slot is not put, as just checked, so the consumer does not touch it; there
        // is one producer, and this is its `&mut`.
        unsafe { (*slot.get()).write(item) };
        shared.put.store(put.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    /// Places that are free, at least.
    #[must_use]
    pub fn free(&self) -> usize {
        let used = self
            .shared
            .put
            .load(Ordering::Relaxed)
            .wrapping_sub(self.shared.taken.load(Ordering::Acquire));
        self.shared.slots.len() - used
    }
}

impl<T: Copy + Send> Consumer<T> {
    /// Takes the oldest item.
    pub fn pop(&mut self) -> Option<T> {
        let shared = &*self.shared;
        let taken = shared.taken.load(Ordering::Relaxed);
        if taken == shared.put.load(Ordering::Acquire) {
            return None;
        }
        let slot = &shared.slots[taken & (shared.slots.len() - 1)];
        // SAFETY: the slot was put, as just seen with acquire ordering, and is not yet taken;
        // there is one consumer, and this is its `&mut`.
        let item = unsafe { (*slot.get()).assume_init_read() };
        shared.taken.store(taken.wrapping_add(1), Ordering::Release);
        Some(item)
    }

    /// Whether something waits.
    #[must_use]
    pub fn has_items(&self) -> bool {
        self.shared.taken.load(Ordering::Relaxed) != self.shared.put.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::queue;

    #[test]
    fn a_full_queue_gives_the_item_back() {
        let (mut producer, mut consumer) = queue(2);
        assert_eq!(producer.push(1), Ok(()));
        assert_eq!(producer.push(2), Ok(()));
        assert_eq!(producer.push(3), Err(3));
        assert_eq!(consumer.pop(), Some(1));
        assert_eq!(producer.push(3), Ok(()));
        assert_eq!((consumer.pop(), consumer.pop(), consumer.pop()), (Some(2), Some(3), None));
    }

    #[test]
    fn two_threads_keep_the_order() {
        let (mut producer, mut consumer) = queue(8);
        let sender = std::thread::spawn(move || {
            for item in 0..100_000_u32 {
                while producer.push(item).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        for expected in 0..100_000_u32 {
            let item = loop {
                match consumer.pop() {
                    Some(item) => break item,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(item, expected);
        }
        sender.join().expect("the sender");
    }
}
