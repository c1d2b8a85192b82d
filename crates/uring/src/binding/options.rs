//! What JavaScript asks for, checked on its way in: numbers are whole and fit, or the call throws
//! a sentence that names the argument.

use super::error::refusal;
use crate::{ControlAction, ExportSpec, OpenSpec};
use napi::bindgen_prelude::BigInt;
use napi_derive::napi;
use ringfence_cache::{Mode, Order};

/// When writes are answered.
#[napi(string_enum = "lowercase")]
pub enum NativeMode {
    /// As soon as they are in the reserve.
    Writeback,
    /// When the origin has them.
    Writethrough,
    /// Never: there are none.
    Readonly,
}

/// In which order writes reach the origin.
#[napi(string_enum = "lowercase")]
pub enum NativeOrder {
    /// At every instant one that a disk could show.
    Strict,
    /// Coalesced across epochs.
    Relaxed,
}

/// An operator's action.
#[napi(string_enum = "lowercase")]
pub enum NativeAction {
    /// Everything answered is durable on the cache device.
    Flush,
    /// Everything dirty is on the origin.
    Drain,
    /// What keeps an export's destage standing still is given up.
    Resolve,
    /// A last flush; nothing is appended afterwards.
    Stop,
}

/// How an export is to be served.
#[napi(object, object_to_js = false, use_nullable = true)]
pub struct NativeExport {
    /// What clients ask for.
    pub name: String,
    /// Path of a block device or a file.
    pub origin_path: String,
    /// When writes are answered.
    pub mode: NativeMode,
    /// In which order they reach the origin.
    pub order: NativeOrder,
    /// Most dirty data in bytes; null: three quarters of the log.
    pub dirty_bytes_max: Option<BigInt>,
    /// How long a write waits for room, and a miss for an origin that is away.
    pub wait_ms: f64,
    /// How long a request to the origin may take until the origin counts as down.
    pub origin_timeout_ms: f64,
}

/// How the engine is to run.
#[napi(object, object_to_js = false, use_nullable = true)]
pub struct NativeOpenOptions {
    /// Path of the cache device, or of a file that stands for one.
    pub cache_path: String,
    /// All memory of the I/O path.
    pub reserve_bytes: BigInt,
    /// Connections at a time.
    pub connections_max: f64,
    /// How long the ring spins before it sleeps; 0 turns it off.
    pub spin_us: f64,
    /// CPU to pin the ring thread to, or null.
    pub cpu: Option<f64>,
    /// Destage from this share of the dirty limit on, in percent.
    pub destage_high_percent: f64,
    /// Destage what has been dirty for so long.
    pub destage_age_ms: f64,
    /// Destage when no client has asked for anything for so long.
    pub destage_idle_ms: f64,
    /// Go on where durable data is damaged, losing what is named.
    pub accept_loss: bool,
    /// Memory of the index; null: as much as the cache device's size asks for.
    pub index_bytes: Option<BigInt>,
    /// Share of the reserve that keeps missed blocks for a second reader, 0 to 50.
    pub memory_tier_percent: f64,
    /// What is served.
    pub exports: Vec<NativeExport>,
}

/// What a number of JavaScript may be at most and still be exact.
const SAFE_INTEGER_MAX: f64 = 9_007_199_254_740_991.0;

/// `value` as a whole number of type `T`.
///
/// # Errors
/// A refusal with `name` when it is negative, has a fraction or does not fit.
pub fn whole<T: TryFrom<u64>>(name: &str, value: f64) -> napi::Result<T> {
    let exact = (0.0..=SAFE_INTEGER_MAX).contains(&value) && value.fract() == 0.0;
    // In range and without a fraction: the conversion loses nothing.
    let whole = exact.then_some(value as u64);
    whole
        .and_then(|whole| T::try_from(whole).ok())
        .ok_or_else(|| refusal(format_args!("{name} must be a whole number in range, not {value}")))
}

/// `value` as an unsigned number of 64 bits.
///
/// # Errors
/// A refusal with `name` when it is negative or does not fit.
pub fn whole_bigint(name: &str, value: &BigInt) -> napi::Result<u64> {
    match (value.sign_bit, value.words.as_slice()) {
        // Zero has no words, and no sign that would matter.
        (_, [] | [0]) => Ok(0),
        (false, &[whole]) => Ok(whole),
        _ => Err(refusal(format_args!("{name} must be between 0 and 2^64 - 1"))),
    }
}

/// The options of `open` in the runtime's words.
///
/// # Errors
/// A refusal that names the first option that is out of range.
pub fn open_spec(options: NativeOpenOptions) -> napi::Result<OpenSpec> {
    Ok(OpenSpec {
        cache_path: options.cache_path.into(),
        reserve_bytes: whole_bigint("reserveBytes", &options.reserve_bytes)?,
        connections_max: whole("connectionsMax", options.connections_max)?,
        spin_us: whole("spinUs", options.spin_us)?,
        cpu: options.cpu.map(|cpu| whole("cpu", cpu)).transpose()?,
        destage_high_percent: whole("destageHighPercent", options.destage_high_percent)?,
        destage_age_ms: whole("destageAgeMs", options.destage_age_ms)?,
        destage_idle_ms: whole("destageIdleMs", options.destage_idle_ms)?,
        accept_loss: options.accept_loss,
        index_bytes: options
            .index_bytes
            .as_ref()
            .map(|bytes| whole_bigint("indexBytes", bytes))
            .transpose()?,
        memory_tier_percent: whole("memoryTierPercent", options.memory_tier_percent)?,
        exports: options.exports.into_iter().map(export_spec).collect::<napi::Result<_>>()?,
    })
}

fn export_spec(export: NativeExport) -> napi::Result<ExportSpec> {
    let dirty_bytes_max = export.dirty_bytes_max.as_ref();
    Ok(ExportSpec {
        name: export.name,
        origin_path: export.origin_path.into(),
        mode: export.mode.into(),
        order: export.order.into(),
        dirty_bytes_max: dirty_bytes_max
            .map(|bytes| whole_bigint("dirtyBytesMax", bytes))
            .transpose()?,
        wait_ms: whole("waitMs", export.wait_ms)?,
        origin_timeout_ms: whole("originTimeoutMs", export.origin_timeout_ms)?,
    })
}

impl From<NativeMode> for Mode {
    fn from(mode: NativeMode) -> Self {
        match mode {
            NativeMode::Writeback => Self::Writeback,
            NativeMode::Writethrough => Self::Writethrough,
            NativeMode::Readonly => Self::ReadOnly,
        }
    }
}

impl From<NativeOrder> for Order {
    fn from(order: NativeOrder) -> Self {
        match order {
            NativeOrder::Strict => Self::Strict,
            NativeOrder::Relaxed => Self::Relaxed,
        }
    }
}

impl From<NativeAction> for ControlAction {
    fn from(action: NativeAction) -> Self {
        match action {
            NativeAction::Flush => Self::Flush,
            NativeAction::Drain => Self::Drain,
            NativeAction::Resolve => Self::Resolve,
            NativeAction::Stop => Self::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{whole, whole_bigint};
    use napi::bindgen_prelude::BigInt;

    #[test]
    fn numbers_that_are_not_whole_or_do_not_fit_are_refused() {
        assert_eq!(whole::<u32>("n", 0.0).unwrap(), 0);
        assert_eq!(whole::<u32>("n", 4_294_967_295.0).unwrap(), u32::MAX);
        assert_eq!(whole::<u64>("n", 9_007_199_254_740_991.0).unwrap(), (1 << 53) - 1);
        for refused in [-1.0, 0.5, 4_294_967_296.0, f64::NAN, f64::INFINITY] {
            let error = whole::<u32>("spinUs", refused).unwrap_err();
            assert!(error.reason.contains("spinUs"), "{error}");
        }
        assert!(whole::<u64>("n", 9_007_199_254_740_992.0).is_err());
    }

    #[test]
    fn big_integers_that_are_negative_or_too_long_are_refused() {
        let of = |sign_bit, words| BigInt { sign_bit, words };
        assert_eq!(whole_bigint("n", &of(false, vec![u64::MAX])).unwrap(), u64::MAX);
        assert_eq!(whole_bigint("n", &of(false, vec![])).unwrap(), 0);
        for refused in [of(true, vec![1]), of(false, vec![0, 1])] {
            let error = whole_bigint("reserveBytes", &refused).unwrap_err();
            assert!(error.reason.contains("reserveBytes"), "{error}");
        }
    }
}
