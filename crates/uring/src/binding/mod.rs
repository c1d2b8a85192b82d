//! The Node-API binding: `daemon/native.ts` on the side of Rust, over [`crate::Runtime`].
//!
//! Nothing here is on the path of a byte, and none of it runs on the ring thread. What blocks
//! (opening, formatting, stopping) runs on a thread of libuv's pool and is a promise for
//! JavaScript; everything else is a queue operation.
//!
//! The generated types are in `binding.d.cts`; `test/binding/contract.ts` compares them with the
//! contract, field by field, and does not compile when the two differ.

#![cfg_attr(test, allow(dead_code, reason = "napi's macros register nothing in tests"))]

mod check;
mod client;
mod engine;
mod error;
mod options;
mod results;
mod tasks;

use crate::allocation::CountingAllocator;
use napi::bindgen_prelude::{AsyncTask, BigInt, Function, Object};
use napi_derive::napi;
use options::{NativeOpenOptions, open_spec, whole_bigint};
use results::{CounterLayout, Guard};
use std::path::Path;
use tasks::{CheckTask, DescribeTask, FormatTask, OpenTask};

/// Counts what the ring thread allocates after its start: it must stay 0.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Runs once, when the module is loaded. A Worker may end at any time and take its environment
/// with it, while the ring goes on: only the main thread may own one.
#[napi(module_exports)]
fn load(_exports: Object) -> napi::Result<()> {
    if rustix::thread::gettid() == rustix::process::getpid() {
        return Ok(());
    }
    Err(error::sentence("the native module cannot be used in a Worker: load it in the main thread"))
}

/// Formats a device or file; destroys what is on it. Errors are sentences.
#[napi]
pub fn format(path: String, segment_bytes: BigInt) -> napi::Result<AsyncTask<FormatTask>> {
    let segment_bytes = whole_bigint("segmentBytes", &segment_bytes)?;
    Ok(AsyncTask::new(FormatTask { path: path.into(), segment_bytes }))
}

/// Reads what a cache holds without changing it; null when the device holds no cache.
#[napi]
pub fn describe(path: String) -> AsyncTask<DescribeTask> {
    AsyncTask::new(DescribeTask { path: path.into() })
}

/// Reads everything that a cache holds and says what is not as it was written; writes nothing.
/// Fails where it cannot be read, holds no cache, or somebody serves it.
#[napi]
pub fn check(path: String) -> AsyncTask<CheckTask> {
    AsyncTask::new(CheckTask { path: path.into() })
}

/// Opens a cache and starts its ring. `bell` is called without data when events wait. An error has
/// the code `InvalidArg` where something has to be changed before it can be opened.
#[napi]
pub fn open(
    options: NativeOpenOptions,
    bell: Function<'_, (), ()>,
) -> napi::Result<AsyncTask<OpenTask>> {
    OpenTask::new(open_spec(options)?, &bell).map(AsyncTask::new)
}

/// What would hold here for a daemon with so many bytes of reserve and of index, and this cache
/// device, for `doctor`: the guards, with io_uring itself as `io_uring`.
#[napi]
pub fn probe(
    reserve_bytes: BigInt,
    index_bytes: BigInt,
    cache: Option<String>,
) -> napi::Result<Vec<Guard>> {
    let reserve_bytes = whole_bigint("reserveBytes", &reserve_bytes)?;
    let index_bytes = whole_bigint("indexBytes", &index_bytes)?;
    let guards = crate::probe(reserve_bytes, index_bytes, cache.as_deref().map(Path::new));
    Ok(guards.into_iter().map(Guard::from).collect())
}

/// How to read the counters of an engine.
#[napi]
#[must_use]
pub fn counter_layout() -> CounterLayout {
    crate::counter_layout().into()
}
