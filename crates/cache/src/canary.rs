//! Canaries: rules of the log that a test build breaks on purpose, one at a time, so that the
//! simulator can be seen to find it. Without the feature `canary`, which nothing that is shipped
//! turns on, [`breaks`] is a constant and every hook compiles to nothing.

/// Whether this build can break rules at all.
pub const IS_BUILT_IN: bool = cfg!(feature = "canary");

/// The rules that can be broken, by their numbers in `docs/format.md`.
pub const RULES: [u8; 12] = [2, 3, 4, 8, 10, 11, 12, 17, 18, 19, 26, 28];

#[cfg(feature = "canary")]
static BROKEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Breaks a rule in all engines of this process; zero breaks none.
#[cfg(feature = "canary")]
pub fn break_rule(rule: u8) {
    assert!(rule == 0 || RULES.contains(&rule), "rule {rule} has no canary");
    BROKEN.store(rule, std::sync::atomic::Ordering::Relaxed);
}

/// Whether a rule is broken now.
#[cfg(feature = "canary")]
pub(crate) fn breaks(rule: u8) -> bool {
    BROKEN.load(std::sync::atomic::Ordering::Relaxed) == rule
}

/// Whether a rule is broken now: never.
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub(crate) const fn breaks(_rule: u8) -> bool {
    false
}
