//! Tables that are looked up all over lie on huge pages where the kernel has some.

use ringfence_uring::allocation::locking;

// The addon brings its own.
#[cfg(not(feature = "napi"))]
#[global_allocator]
static ALLOCATOR: ringfence_uring::allocation::CountingAllocator =
    ringfence_uring::allocation::CountingAllocator;

/// Whether the kernel was asked to have huge pages there: `hg` among the mapping's flags.
fn is_advised(address: usize) -> bool {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("this process's mappings");
    let mut inside = false;
    for line in smaps.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-')
            && let (Ok(from), Ok(to)) =
                (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            inside = (from..to).contains(&address);
        } else if inside && first == "VmFlags:" {
            return line.split_ascii_whitespace().any(|flag| flag == "hg");
        }
    }
    panic!("no mapping has the address");
}

#[test]
fn a_large_table_is_to_lie_on_huge_pages() {
    const BYTES: usize = 6 << 20;
    let (table, _locked) = locking(|| vec![1_u8; BYTES]);
    let known = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
    let middle = table.as_ptr() as usize + BYTES / 2;
    assert_eq!(is_advised(middle), known, "as far as the kernel has huge pages");
    let elsewhere = vec![1_u8; BYTES];
    assert!(!is_advised(elsewhere.as_ptr() as usize + BYTES / 2), "what is no table");
}
