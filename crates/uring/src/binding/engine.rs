//! An open engine as a JavaScript object.

use super::error::sentence;
use super::options::{NativeAction, whole};
use super::results::{Listening, NativeEvent, NativeOpened};
use super::tasks::ShutdownTask;
use crate::{Runtime, counter_layout};
use napi::bindgen_prelude::{
    AsyncTask, BigUint64ArraySlice, Either, Env, Null, Result, Uint8ArraySlice,
};
use napi_derive::napi;
use std::sync::{Arc, Mutex, PoisonError};

/// How long the requests in flight have when the environment ends under an open engine.
const CLEANUP_LIMIT_MS: u64 = 1_000;

/// Engines that are open. They belong to the process: an engine that JavaScript has lost sight
/// of still has clients, so the garbage collector must not end it.
static OPEN: Mutex<Vec<Arc<Shared>>> = Mutex::new(Vec::new());

/// What the JavaScript object, its tasks and the environment's end have in common.
pub struct Shared {
    /// The engine with its threads.
    pub runtime: Runtime,
    /// Values that `counters` copies.
    counter_values: usize,
}

/// An open engine with its ring thread.
#[napi]
pub struct NativeEngine {
    shared: Arc<Shared>,
}

impl NativeEngine {
    /// Wraps a runtime that has just been opened, and sees to it that it ends with `env`.
    ///
    /// # Errors
    /// When the environment is ending already.
    pub fn new(env: Env, runtime: Runtime) -> Result<Self> {
        let counter_values = counter_layout().values;
        let shared = Arc::new(Shared { runtime, counter_values });
        open_engines().push(Arc::clone(&shared));
        env.add_env_cleanup_hook(Arc::clone(&shared), |shared| {
            if forget(&shared)
                && let Err(error) = shared.runtime.shutdown_within(CLEANUP_LIMIT_MS)
            {
                eprintln!("ringfence: the engine did not stop cleanly: {error}");
            }
        })?;
        Ok(Self { shared })
    }
}

fn open_engines() -> std::sync::MutexGuard<'static, Vec<Arc<Shared>>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the engine out of those that are open; false when it was not there any more.
pub fn forget(shared: &Arc<Shared>) -> bool {
    let mut open = open_engines();
    let before = open.len();
    open.retain(|other| !Arc::ptr_eq(other, shared));
    open.len() < before
}

#[napi]
impl NativeEngine {
    /// What `open` found out.
    #[napi(getter)]
    #[must_use]
    pub fn opened(&self) -> NativeOpened {
        self.shared.runtime.opened().into()
    }

    /// Binds and listens on `unix:PATH` or `HOST:PORT` (numeric host or name; port 0: any).
    ///
    /// # Errors
    /// One clear sentence when the address is busy or makes no sense.
    #[napi]
    pub fn listen(&self, address: String) -> Result<Listening> {
        self.shared.runtime.listen(&address).map(Listening::from).map_err(sentence)
    }

    /// Asks for exactly `length` bytes of a handshake, within `deadlineMs`.
    ///
    /// # Errors
    /// When the length is out of range or the ring has stopped.
    #[napi]
    pub fn receive(&self, connection: f64, length: f64, deadline_ms: f64) -> Result<()> {
        self.shared
            .runtime
            .receive(
                whole("connection", connection)?,
                whole("length", length)?,
                whole("deadlineMs", deadline_ms)?,
            )
            .map_err(sentence)
    }

    /// Sends handshake bytes; they are copied.
    ///
    /// # Errors
    /// When more would wait than the ring keeps, or it has stopped.
    #[napi]
    pub fn send(&self, connection: f64, bytes: Uint8ArraySlice<'_>) -> Result<()> {
        self.shared.runtime.send(whole("connection", connection)?, &bytes).map_err(sentence)
    }

    /// The last call of a handshake: bytes sent so far go out, then the transmission phase begins.
    ///
    /// # Errors
    /// When there is no such export, or the ring has stopped.
    #[napi]
    pub fn begin_transmission(
        &self,
        connection: f64,
        slot: f64,
        structured_replies: bool,
        read_only: bool,
    ) -> Result<()> {
        self.shared
            .runtime
            .begin_transmission(
                whole("connection", connection)?,
                whole("slot", slot)?,
                structured_replies,
                read_only,
            )
            .map_err(sentence)
    }

    /// Sends what is waiting, then closes.
    ///
    /// # Errors
    /// When the ring has stopped.
    #[napi]
    pub fn close(&self, connection: f64) -> Result<()> {
        self.shared.runtime.close(whole("connection", connection)?).map_err(sentence)
    }

    /// Starts an operator's action; `controlDone` with the token tells its end.
    ///
    /// # Errors
    /// When there is no such export, or the ring has stopped.
    #[napi]
    pub fn control(&self, token: f64, action: NativeAction, slot: Either<f64, Null>) -> Result<()> {
        let slot = match slot {
            Either::A(slot) => Some(whole("slot", slot)?),
            Either::B(Null) => None,
        };
        self.shared.runtime.control(whole("token", token)?, action.into(), slot).map_err(sentence)
    }

    /// All events since the last call.
    #[napi]
    #[must_use]
    pub fn drain_events(&self) -> Vec<NativeEvent> {
        let mut events = Vec::new();
        self.shared.runtime.drain_events(&mut events);
        events.into_iter().map(NativeEvent::from).collect()
    }

    /// Copies all counters into `into`, as `counterLayout()` describes.
    ///
    /// # Errors
    /// When `into` has another length.
    #[napi]
    pub fn counters(&self, mut into: BigUint64ArraySlice<'_>) -> Result<()> {
        let expected = self.shared.counter_values;
        // SAFETY: JavaScript is inside this call and shares its arrays with no other thread, so
        // nobody else reads or writes these elements until it returns.
        let into = unsafe { into.as_mut() };
        if into.len() != expected {
            let found = into.len();
            return Err(sentence(format_args!(
                "counters need an array of {expected} elements, not {found}"
            )));
        }
        self.shared.runtime.counters(into);
        Ok(())
    }

    /// Stops accepting, lets requests finish (10 s at most), flushes the log, joins the threads.
    #[napi(ts_return_type = "Promise<void>")]
    #[must_use]
    pub fn shutdown(&self) -> AsyncTask<ShutdownTask> {
        AsyncTask::new(ShutdownTask { shared: Arc::clone(&self.shared) })
    }
}
