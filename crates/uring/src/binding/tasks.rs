//! Calls that block, as promises: `compute` runs on a thread of libuv's pool, `resolve` on
//! JavaScript's.

use super::check::CheckReport;
use super::engine::{NativeEngine, Shared, forget};
use super::error::{not_opened, sentence};
use super::results::CacheDescription;
use crate::{OpenSpec, Runtime};
use napi::Status;
use napi::bindgen_prelude::{Either, Env, Function, Null, Result, Task};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Without data, without an error argument, and keeping the process alive while an engine is
/// open; only the bell thread calls it.
type Bell = ThreadsafeFunction<(), (), (), Status, false>;

/// `format`.
pub struct FormatTask {
    /// What to format.
    pub path: PathBuf,
    /// Size of a segment.
    pub segment_bytes: u64,
}

#[napi]
impl Task for FormatTask {
    type Output = ringfence_cache::Description;
    type JsValue = CacheDescription;

    fn compute(&mut self) -> Result<Self::Output> {
        crate::format(&self.path, self.segment_bytes).map_err(sentence)
    }

    fn resolve(&mut self, _env: Env, output: Self::Output) -> Result<Self::JsValue> {
        Ok(output.into())
    }
}

/// `describe`.
pub struct DescribeTask {
    /// What to look at.
    pub path: PathBuf,
}

#[napi]
impl Task for DescribeTask {
    type Output = Option<ringfence_cache::Description>;
    type JsValue = Either<CacheDescription, Null>;

    fn compute(&mut self) -> Result<Self::Output> {
        crate::describe(&self.path).map_err(sentence)
    }

    fn resolve(&mut self, _env: Env, output: Self::Output) -> Result<Self::JsValue> {
        Ok(output.map_or(Either::B(Null), |cache| Either::A(cache.into())))
    }
}

/// `check`.
pub struct CheckTask {
    /// What to look at.
    pub path: PathBuf,
}

#[napi]
impl Task for CheckTask {
    type Output = ringfence_cache::Report;
    type JsValue = CheckReport;

    fn compute(&mut self) -> Result<Self::Output> {
        crate::check(&self.path).map_err(sentence)
    }

    fn resolve(&mut self, _env: Env, output: Self::Output) -> Result<Self::JsValue> {
        Ok(output.into())
    }
}

/// `open`.
pub struct OpenTask {
    spec: OpenSpec,
    bell: Option<Box<dyn Fn() + Send>>,
}

impl OpenTask {
    /// Prepares the bell, which must happen on JavaScript's thread.
    ///
    /// # Errors
    /// When Node refuses the threadsafe function.
    pub fn new(spec: OpenSpec, bell: &Function<'_, (), ()>) -> Result<Self> {
        Ok(Self { spec, bell: Some(coalesced(bell)?) })
    }
}

/// A bell that rings in Node at most once at a time, however long JavaScript stands still: Node's
/// queue would grow with every ring.
///
/// # Errors
/// When Node refuses the threadsafe function.
fn coalesced(bell: &Function<'_, (), ()>) -> Result<Box<dyn Fn() + Send>> {
    let waiting = Arc::new(AtomicBool::new(false));
    let answered = Arc::clone(&waiting);
    let bell: Bell = bell.build_threadsafe_function::<()>().build_callback(move |_| {
        // Before JavaScript drains: what arrives from here on rings again.
        answered.store(false, Ordering::SeqCst);
        Ok(())
    })?;
    Ok(Box::new(move || {
        if !waiting.swap(true, Ordering::SeqCst) {
            bell.call((), ThreadsafeFunctionCallMode::NonBlocking);
        }
    }))
}

#[napi]
impl Task for OpenTask {
    type Output = Runtime;
    type JsValue = NativeEngine;

    fn compute(&mut self) -> Result<Self::Output> {
        let bell = self.bell.take().expect("a task is computed once");
        crate::open(&self.spec, bell).map_err(not_opened)
    }

    fn resolve(&mut self, env: Env, output: Self::Output) -> Result<Self::JsValue> {
        NativeEngine::new(env, output)
    }
}

/// `shutdown`.
pub struct ShutdownTask {
    /// What to stop.
    pub shared: Arc<Shared>,
}

#[napi]
impl Task for ShutdownTask {
    type Output = ();
    type JsValue = ();

    fn compute(&mut self) -> Result<Self::Output> {
        let stopped = self.shared.runtime.shutdown().map_err(sentence);
        forget(&self.shared);
        stopped
    }

    fn resolve(&mut self, _env: Env, output: Self::Output) -> Result<Self::JsValue> {
        Ok(output)
    }
}
