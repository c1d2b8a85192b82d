//! The client's end: `ringfence attach` and `detach`, over [`crate::attach`].
//!
//! Everything that waits for a server or for the driver is a promise.

use super::error::sentence;
use super::options::{whole, whole_bigint};
use super::results::Guard;
use crate::attach::{self, AttachEvent, AttachSpec, Attachment, DeviceSpec, Link};
use napi::bindgen_prelude::{AsyncTask, BigInt, Env, Result, Task, Uint8Array, Uint8ArraySlice};
use napi_derive::napi;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A connection whose handshake goes on; empty once it was given away.
type SharedLink = Arc<Mutex<Option<Link>>>;

fn locked(link: &SharedLink) -> MutexGuard<'_, Option<Link>> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

fn given_away() -> napi::Error {
    sentence("this connection was given away")
}

/// A connection to a server, up to the end of its handshake.
#[napi]
pub struct NativeLink {
    link: SharedLink,
}

#[napi]
impl NativeLink {
    /// Sends `bytes`, then receives exactly `length` bytes.
    ///
    /// # Errors
    /// When the length is out of range.
    #[napi(ts_return_type = "Promise<Uint8Array>")]
    pub fn exchange(
        &self,
        bytes: Uint8ArraySlice<'_>,
        length: f64,
    ) -> Result<AsyncTask<ExchangeTask>> {
        let length = whole("length", length)?;
        let link = Arc::clone(&self.link);
        Ok(AsyncTask::new(ExchangeTask { link, bytes: bytes.to_vec(), length }))
    }

    /// Closes the connection, unless it was given away.
    #[napi]
    pub fn close(&self) {
        drop(locked(&self.link).take());
    }
}

/// `exchange`.
pub struct ExchangeTask {
    link: SharedLink,
    bytes: Vec<u8>,
    length: usize,
}

#[napi]
impl Task for ExchangeTask {
    type Output = Vec<u8>;
    type JsValue = Uint8Array;

    fn compute(&mut self) -> Result<Self::Output> {
        let mut link = locked(&self.link);
        let link = link.as_mut().ok_or_else(given_away)?;
        link.exchange(&self.bytes, self.length).map_err(sentence)
    }

    fn resolve(&mut self, _env: Env, output: Self::Output) -> Result<Self::JsValue> {
        Ok(output.into())
    }
}

/// Connects to `unix:PATH` or `HOST:PORT`.
#[napi(ts_return_type = "Promise<NativeLink>")]
#[must_use]
pub fn connect_nbd(address: String) -> AsyncTask<ConnectTask> {
    AsyncTask::new(ConnectTask { address })
}

/// `connectNbd`.
pub struct ConnectTask {
    address: String,
}

#[napi]
impl Task for ConnectTask {
    type Output = Link;
    type JsValue = NativeLink;

    fn compute(&mut self) -> Result<Self::Output> {
        Link::open(&self.address).map_err(sentence)
    }

    fn resolve(&mut self, _env: Env, output: Self::Output) -> Result<Self::JsValue> {
        Ok(NativeLink { link: Arc::new(Mutex::new(Some(output))) })
    }
}

/// What is to be attached, and how.
#[napi(object, object_to_js = false, use_nullable = true)]
pub struct NativeAttachOptions {
    /// The N of /dev/nbdN; null lets the kernel choose.
    pub index: Option<f64>,
    /// The device is attached to this export already, and nobody looks after it.
    pub take_over: bool,
    /// What the device is attached to, in words; the kernel keeps and compares it.
    pub backend: String,
    /// Size of the export.
    pub size_bytes: BigInt,
    /// Logical block size.
    pub block_bytes: f64,
    /// The server's transmission flags.
    pub transmission_flags: f64,
    /// Connections to the server, 1 to 16.
    pub connections: f64,
    /// How long what was on its way over a broken connection waits before it is sent again.
    pub resend_seconds: f64,
    /// How long requests wait for a connection before they fail.
    pub dead_timeout_seconds: f64,
}

fn attach_spec(options: NativeAttachOptions) -> Result<AttachSpec> {
    Ok(AttachSpec {
        device: DeviceSpec {
            index: options.index.map(|index| whole("index", index)).transpose()?,
            backend: options.backend,
            size_bytes: whole_bigint("sizeBytes", &options.size_bytes)?,
            block_bytes: whole("blockBytes", options.block_bytes)?,
            server_flags: whole("transmissionFlags", options.transmission_flags)?,
            resend_seconds: whole("resendSeconds", options.resend_seconds)?,
            dead_timeout_seconds: whole("deadTimeoutSeconds", options.dead_timeout_seconds)?,
        },
        connections: whole("connections", options.connections)?,
        take_over: options.take_over,
    })
}

/// Attaches a device over a connection whose handshake is done, and keeps it attached.
///
/// # Errors
/// When an option is out of range.
#[napi(ts_return_type = "Promise<NativeAttachment>")]
pub fn attach_nbd(
    link: &NativeLink,
    options: NativeAttachOptions,
) -> Result<AsyncTask<AttachTask>> {
    let task = AttachTask { link: Arc::clone(&link.link), spec: Some(attach_spec(options)?) };
    Ok(AsyncTask::new(task))
}

/// `attachNbd`.
pub struct AttachTask {
    link: SharedLink,
    spec: Option<AttachSpec>,
}

#[napi]
impl Task for AttachTask {
    type Output = Attachment;
    type JsValue = NativeAttachment;

    fn compute(&mut self) -> Result<Self::Output> {
        let link = locked(&self.link).take().ok_or_else(given_away)?;
        let spec = self.spec.take().expect("a task is computed once");
        attach::attach(link, spec).map_err(sentence)
    }

    fn resolve(&mut self, _env: Env, output: Self::Output) -> Result<Self::JsValue> {
        Ok(NativeAttachment { attachment: Arc::new(output) })
    }
}

/// What happened to an attached device.
#[napi(string_enum = "lowercase")]
pub enum NativeAttachEventKind {
    /// A connection broke; requests wait.
    Dead,
    /// The server cannot be reached; attempts go on.
    Away,
    /// The server answers something else than before.
    Unlike,
    /// A connection was replaced.
    Restored,
    /// Requests have waited as long as they may, and fail from now on; attempts go on.
    Failing,
    /// Somebody else detached the device: this attachment is over.
    Gone,
}

/// One of them.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct NativeAttachEvent {
    /// What happened.
    pub kind: NativeAttachEventKind,
    /// Why, in the system's words, or null.
    pub detail: Option<String>,
}

impl From<AttachEvent> for NativeAttachEvent {
    fn from(event: AttachEvent) -> Self {
        let (kind, detail) = match event {
            AttachEvent::Dead => (NativeAttachEventKind::Dead, None),
            AttachEvent::Away(errno) => {
                let reason = std::io::Error::from_raw_os_error(errno).to_string();
                (NativeAttachEventKind::Away, Some(reason))
            }
            AttachEvent::Unlike => (NativeAttachEventKind::Unlike, None),
            AttachEvent::Restored => (NativeAttachEventKind::Restored, None),
            AttachEvent::Failing => (NativeAttachEventKind::Failing, None),
            AttachEvent::Gone => (NativeAttachEventKind::Gone, None),
        };
        Self { kind, detail }
    }
}

/// A device that is attached and looked after.
#[napi]
pub struct NativeAttachment {
    attachment: Arc<Attachment>,
}

#[napi]
impl NativeAttachment {
    /// The N of /dev/nbdN.
    #[napi(getter)]
    #[must_use]
    pub fn index(&self) -> u32 {
        self.attachment.index()
    }

    /// What protects the thread that mends connections.
    #[napi(getter)]
    #[must_use]
    pub fn guards(&self) -> Vec<Guard> {
        self.attachment.guards().iter().cloned().map(Guard::from).collect()
    }

    /// What happened since the last call.
    #[napi]
    #[must_use]
    pub fn drain_events(&self) -> Vec<NativeAttachEvent> {
        self.attachment.drain_events().into_iter().map(NativeAttachEvent::from).collect()
    }

    /// Replaces a dead connection by one that was negotiated anew, and repeats that handshake from
    /// now on.
    ///
    /// # Errors
    /// When the connection was given away already.
    #[napi]
    pub fn renew(&self, link: &NativeLink) -> Result<()> {
        self.attachment.renew(locked(&link.link).take().ok_or_else(given_away)?);
        Ok(())
    }

    /// Ends: detaches the device, or leaves it as it is for the next who takes it over.
    #[napi(ts_return_type = "Promise<void>")]
    #[must_use]
    pub fn end(&self, detach: bool) -> AsyncTask<EndTask> {
        AsyncTask::new(EndTask { attachment: Arc::clone(&self.attachment), detach })
    }
}

/// `end`.
pub struct EndTask {
    attachment: Arc<Attachment>,
    detach: bool,
}

#[napi]
impl Task for EndTask {
    type Output = ();
    type JsValue = ();

    fn compute(&mut self) -> Result<Self::Output> {
        let ended = if self.detach { self.attachment.detach() } else { self.attachment.leave() };
        ended.map_err(sentence)
    }

    fn resolve(&mut self, _env: Env, output: Self::Output) -> Result<Self::JsValue> {
        Ok(output)
    }
}

/// Detaches a device, whoever looks after it.
///
/// # Errors
/// When the number is out of range.
#[napi(ts_return_type = "Promise<void>")]
pub fn detach_nbd(index: f64) -> Result<AsyncTask<DetachTask>> {
    Ok(AsyncTask::new(DetachTask { index: whole("index", index)? }))
}

/// `detachNbd`.
pub struct DetachTask {
    index: u32,
}

#[napi]
impl Task for DetachTask {
    type Output = ();
    type JsValue = ();

    fn compute(&mut self) -> Result<Self::Output> {
        attach::detach(self.index).map_err(sentence)
    }

    fn resolve(&mut self, _env: Env, output: Self::Output) -> Result<Self::JsValue> {
        Ok(output)
    }
}
