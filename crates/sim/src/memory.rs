//! Memory for reserves, used again and again: a world restarts its engine so often that mapping
//! and touching fresh memory each time would take longer than everything else.
//!
//! A reserve therefore starts with what earlier lives left in it, which is stricter than zeroes.

use ringfence_cache::{Buffer, Reserve};
use std::cell::RefCell;
use std::rc::Rc;

/// Memory that no life uses at the moment.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    free: Rc<RefCell<Vec<Reserve>>>,
}

/// Memory of one life. It must be dropped after the reserve that was made from it.
#[derive(Debug)]
pub struct Lease {
    memory: Memory,
    owner: Option<Reserve>,
}

impl Memory {
    /// Takes memory of a length that is the same for all lives of a world.
    #[must_use]
    pub fn lease(&self, length: u64) -> Lease {
        let owner = self.free.borrow_mut().pop().unwrap_or_else(|| Reserve::allocate(length));
        assert_eq!(owner.length(), length, "one length for all lives");
        Lease { memory: self.clone(), owner: Some(owner) }
    }
}

impl Lease {
    /// A reserve in this memory.
    ///
    /// # Safety
    /// It is dropped before the lease, and there is no other from the same lease.
    #[must_use]
    pub unsafe fn reserve(&self) -> Reserve {
        let owner = self.owner.as_ref().expect("memory until it is dropped");
        let base = owner.address(Buffer { offset: 0, length: 0 });
        // SAFETY: the owner holds so many bytes, aligned as all reserves are; it is kept until
        // the lease is dropped and nobody else uses it, as our caller promises.
        unsafe { Reserve::from_mapping(base, owner.length()) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.memory.free.borrow_mut().extend(self.owner.take());
    }
}
