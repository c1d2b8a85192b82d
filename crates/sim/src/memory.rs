//! Memory for reserves, used again and again: a world restarts its engine so often that mapping
//! and touching fresh memory each time would take longer than everything else.
//!
//! A reserve therefore starts with what earlier lives left in it, which is stricter than zeroes.

use ringfence_cache::Reserve;
use ringfence_cache::units::BLOCK_BYTES;
use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

/// Memory that no life uses at the moment.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    free: Rc<RefCell<Vec<Vec<u8>>>>,
}

/// Memory of one life. It must be dropped after the reserve that was made from it.
#[derive(Debug)]
pub struct Lease {
    memory: Memory,
    owner: Vec<u8>,
    length: u64,
}

impl Memory {
    /// Takes memory of this length, which is mostly the same for all lives of a world.
    #[must_use]
    pub fn lease(&self, length: u64) -> Lease {
        // Zeroes without an alignment of their own come from the system untouched, so that only
        // what a world uses costs anything; the room beyond is for aligning by hand.
        let bytes =
            usize::try_from(length).expect("a reserve fits the address space") + BLOCK_BYTES;
        let mut free = self.free.borrow_mut();
        let fitting = free.iter().rposition(|owner| owner.len() == bytes);
        let owner = fitting.map_or_else(|| vec![0; bytes], |at| free.swap_remove(at));
        drop(free);
        Lease { memory: self.clone(), owner, length }
    }
}

impl Lease {
    /// A reserve in this memory.
    ///
    /// # Safety
    /// It is dropped before the lease, and there is no other from the same lease.
    #[must_use]
    pub unsafe fn reserve(&mut self) -> Reserve {
        let start = self.owner.as_mut_ptr();
        let skip = start.align_offset(BLOCK_BYTES);
        assert!(skip < BLOCK_BYTES, "an address that can be aligned");
        // SAFETY: less than a block is skipped, and the memory is a block longer than the reserve.
        let base = NonNull::new(unsafe { start.add(skip) }).expect("memory");
        // SAFETY: so many bytes lie behind the base, which was just aligned; the memory is kept
        // until the lease is dropped and nobody else uses it, as our caller promises.
        unsafe { Reserve::from_mapping(base, self.length) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.memory.free.borrow_mut().push(std::mem::take(&mut self.owner));
    }
}
