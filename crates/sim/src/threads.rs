//! The same work on several threads, which share what is to be done.

use std::num::NonZero;
use std::thread::{available_parallelism, scope};

/// Threads that this machine runs at the same time.
#[must_use]
pub fn processors() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}

/// Runs the work on so many threads; returns what came of it on each. A panic in one goes on here.
pub fn on_threads<T: Send>(threads: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        let results = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        results.collect()
    })
}
