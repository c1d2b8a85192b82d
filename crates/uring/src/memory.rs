//! The reserve's memory: one mapping, touched and locked before the first request.

use crate::error::RuntimeError;
use crate::options::Guard;
use ringfence_cache::Reserve;
use std::io;
use std::ptr::NonNull;

/// Larger pieces cannot be registered with a ring (`EFAULT`).
const REGISTERED_BYTES_MAX: u64 = 1 << 30;
/// A huge page. The mapping starts on one, so that the kernel can use them.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Memory that lives as long as the process: a kernel that is slow to finish an I/O must never
/// find another owner's data here, so it is not unmapped before the ring has ended well.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
    /// What was mapped, including what aligned the start.
    mapped: (*mut libc::c_void, usize),
    explicit_huge_pages: bool,
}

// SAFETY: plain memory without thread affinity; who touches what is decided by the reserve.
unsafe impl Send for Mapping {}
// SAFETY: as above; the mapping itself offers no access.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `bytes` of zeroes, on huge pages where there are any, and touches all of it.
    ///
    /// # Errors
    /// [`RuntimeError::Memory`] when there is not so much.
    pub fn new(bytes: u64) -> Result<Self, RuntimeError> {
        let fail = |source| RuntimeError::Memory { bytes, source };
        let wanted = usize::try_from(bytes)
            .ok()
            .and_then(|bytes| bytes.checked_next_multiple_of(HUGE_PAGE_BYTES))
            .ok_or_else(|| fail(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        let populate = libc::MAP_POPULATE;
        if let Ok(base) = map(wanted, libc::MAP_HUGETLB | populate) {
            let base = NonNull::new(base.cast::<u8>()).expect("a mapping is not at address zero");
            let mapped = (base.as_ptr().cast(), wanted);
            let mapping = Self { base, length: wanted, mapped, explicit_huge_pages: true };
            mapping.keep_from_children();
            return Ok(mapping);
        }
        let length = wanted + HUGE_PAGE_BYTES;
        let start = map(length, 0).map_err(fail)?;
        let skip = (start as usize).next_multiple_of(HUGE_PAGE_BYTES) - start as usize;
        // SAFETY: `skip` is below the two MiB that were mapped on top.
        let base = unsafe { start.byte_add(skip) };
        // SAFETY: the range was just mapped. Advice that is not taken changes nothing.
        unsafe { libc::madvise(base, wanted, libc::MADV_HUGEPAGE) };
        let base = NonNull::new(base.cast::<u8>()).expect("a mapping is not at address zero");
        let mapping =
            Self { base, length: wanted, mapped: (start, length), explicit_huge_pages: false };
        mapping.keep_from_children();
        mapping.touch();
        Ok(mapping)
    }

    /// Node starts children; a copy of the reserve on each fork would double its cost.
    fn keep_from_children(&self) {
        // SAFETY: the range is ours.
        unsafe { libc::madvise(self.mapped.0, self.mapped.1, libc::MADV_DONTFORK) };
    }

    fn touch(&self) {
        for offset in (0..self.length).step_by(ringfence_cache::units::BLOCK_BYTES) {
            // SAFETY: inside the mapping, which nobody else knows yet. Volatile, or the compiler
            // would leave out writes that change nothing.
            unsafe { self.base.add(offset).write_volatile(0) };
        }
    }

    /// Locks it.
    ///
    /// # Errors
    /// When the limit on locked memory does not allow it.
    pub fn lock(&self) -> Result<(), io::Error> {
        // SAFETY: the range is ours; locking changes no content.
        let result = unsafe { libc::mlock(self.base.as_ptr().cast(), self.length) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The memory as the engine's reserve of `length` bytes.
    #[must_use]
    pub fn reserve(&self, length: u64) -> Reserve {
        assert!(length as usize <= self.length, "a reserve that was mapped");
        // SAFETY: mapped, readable, writable, page-aligned, and never unmapped while a reserve
        // exists: the runtime keeps the mapping until its ring has ended. The receive pool is the
        // ring's, everything else is touched through the reserve only.
        unsafe { Reserve::from_mapping(self.base, length) }
    }

    /// First byte.
    #[must_use]
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The pieces to register with a ring.
    #[must_use]
    pub fn pieces(&self) -> Vec<libc::iovec> {
        let mut pieces = Vec::new();
        let mut offset = 0;
        while offset < self.length {
            let length = (self.length - offset).min(REGISTERED_BYTES_MAX as usize);
            // SAFETY: the offset lies inside the mapping.
            let base = unsafe { self.base.add(offset) };
            pieces.push(libc::iovec { iov_base: base.as_ptr().cast(), iov_len: length });
            offset += length;
        }
        pieces
    }

    /// The registered piece that holds a whole buffer; `None` across the border of two.
    #[must_use]
    pub const fn piece_of(offset: u64, length: u32) -> Option<u16> {
        let first = offset / REGISTERED_BYTES_MAX;
        if (offset + length as u64 - 1) / REGISTERED_BYTES_MAX == first {
            Some(first as u16)
        } else {
            None
        }
    }

    /// Whether the mapping lies on huge pages, as the kernel tells.
    #[must_use]
    pub fn huge_pages_guard(&self) -> Guard {
        let up = self.explicit_huge_pages || self.transparent_bytes() >= self.length / 10 * 9;
        let advice = (!up).then(|| {
            "the reserve lies on small pages: set vm.nr_hugepages, or write `madvise` into \
             /sys/kernel/mm/transparent_hugepage/enabled, and start again"
                .to_owned()
        });
        Guard { measure: "huge_pages", up, advice }
    }

    fn transparent_bytes(&self) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let (start, end) = (self.base.as_ptr() as usize, self.base.as_ptr() as usize + self.length);
        let mut inside = false;
        let mut bytes = 0;
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((from, to)) = first.split_once('-')
                && let (Ok(from), Ok(to)) =
                    (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = from < end && to > start;
            } else if inside && first == "AnonHugePages:" {
                let kilobytes: usize =
                    words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
                bytes += kilobytes * 1024;
            }
        }
        bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours and, by the runtime's order of ending, nobody uses it now.
        unsafe { libc::munmap(self.mapped.0, self.mapped.1) };
    }
}

/// Whether `bytes` more could be locked: the kernel judges that before it looks at a page, so that
/// none is touched.
///
/// # Errors
/// When the limit on locked memory does not allow it.
pub fn try_lock(bytes: u64) -> io::Result<()> {
    let too_much = |_| io::Error::from_raw_os_error(libc::ENOMEM);
    let length = usize::try_from(bytes).map_err(too_much)?.max(1);
    let start = map(length, libc::MAP_NORESERVE)?;
    // SAFETY: the range was just mapped; locking changes no content.
    let result = unsafe { libc::mlock2(start, length, libc::MLOCK_ONFAULT) };
    let locked = if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: the range is ours, and nobody knows it.
    unsafe { libc::munmap(start, length) };
    locked
}

fn map(length: usize, flags: libc::c_int) -> io::Result<*mut libc::c_void> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing.
    let pointer = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if pointer == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(pointer) }
}

#[cfg(test)]
mod tests {
    use super::Mapping;

    #[test]
    fn a_buffer_across_two_registered_pieces_belongs_to_neither() {
        let border = 1_u64 << 30;
        assert_eq!(Mapping::piece_of(0, 4096), Some(0));
        assert_eq!(Mapping::piece_of(border - 4096, 4096), Some(0));
        assert_eq!(Mapping::piece_of(border - 4096, 8192), None);
        assert_eq!(Mapping::piece_of(border, 4096), Some(1));
    }

    #[test]
    fn a_mapping_is_aligned_zeroed_and_registered_whole() {
        let mapping = Mapping::new(3 << 20).expect("a few MiB");
        assert!((mapping.base().as_ptr() as usize).is_multiple_of(2 << 20));
        let bytes: usize = mapping.pieces().iter().map(|piece| piece.iov_len).sum();
        assert_eq!(bytes, 4 << 20);
    }
}
