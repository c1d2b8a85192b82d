//! What can go wrong in a world, by name, and how often each of it did: a fault that never
//! happens tests nothing.

use std::fmt;

macro_rules! fault_kinds {
    ($($(#[doc = $what:literal])+ $kind:ident,)+) => {
        /// Something that went wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum FaultKind {
            $($(#[doc = $what])+ $kind,)+
        }

        impl FaultKind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)+];
        }
    };
}

fault_kinds! {
    /// The power failed while clients were served.
    PowerCut,
    /// The power failed in the midst of a restart.
    CutInRecovery,
    /// The power failed again in the restart after a cut in a restart.
    RepeatedCut,
    /// The process was killed.
    Kill,
    /// A power cut left some sectors of a device write and not others.
    TornWrite,
    /// A device I/O took twenty times as long as others.
    DeviceSlow,
    /// A device I/O ended before one that was submitted before it.
    OutOfOrder,
    /// A read of the cache device failed.
    DeviceReadError,
    /// A write of the cache device failed.
    DeviceWriteError,
    /// A flush of the cache device failed.
    DeviceFlushError,
    /// A read of the cache device returned a wrong bit, once.
    ReadRot,
    /// A write of the cache device was reported as done and never happened.
    LostWrite,
    /// A write of the cache device landed elsewhere.
    MisdirectedWrite,
    /// A bit of the cache device changed by itself.
    RotAtRest,
    /// A sector of the cache device shows what was written there before.
    StaleSector,
    /// Damage took flushed data, and the start that was refused named it.
    LossNamed,
    /// Damage took the last flushed data, which nothing on the device knew to be durable, or an
    /// origin that had hidden a loss lost its power.
    LossUnknowable,
    /// A world went on behind a loss: what was left could be the work of a mere crash.
    LossOutlived,
    /// A read, write or flush of an origin failed.
    OriginError,
    /// A write of an origin failed after others of the same epoch had ended well.
    OriginErrorMidEpoch,
    /// A flush of an origin failed.
    OriginFlushError,
    /// A request to an origin took seconds to minutes.
    OriginStall,
    /// An origin neither answered nor failed, for seconds to hours.
    OriginHang,
    /// An origin went away.
    OriginOutage,
    /// An origin went away for an hour or longer.
    OriginOutageHours,
    /// An origin lost its power.
    OriginPowerCut,
    /// A client went away with requests in flight.
    Disconnect,
    /// A client asked for as much at once as there is room for, again and again.
    Flood,
    /// A stop was asked for with requests in flight.
    StopInMidst,
    /// The power failed, or the process was killed, in the midst of a stop.
    StopCutShort,
    /// A stop ended with an error.
    StopFailed,
    /// A life began with other settings than the one before.
    OtherSettings,
    /// A life did not serve an export.
    ExportLeftOut,
    /// The start refused settings that what the log holds does not allow.
    SettingsRefused,
    /// A bit of one of two copies, of a superblock or of the export table, changed by itself.
    CopyRot,
    /// A write of one of two copies was reported as done and never happened.
    CopyLost,
    /// The device was formatted with another cache's log on it.
    FormattedAgain,
}

/// How often each kind of fault happened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FaultCounts([u64; FaultKind::ALL.len()]);

impl Default for FaultCounts {
    fn default() -> Self {
        Self([0; FaultKind::ALL.len()])
    }
}

impl FaultCounts {
    /// One more.
    pub fn count(&mut self, kind: FaultKind) {
        self.0[kind as usize] += 1;
    }

    /// How often it happened.
    #[must_use]
    pub fn of(&self, kind: FaultKind) -> u64 {
        self.0[kind as usize]
    }

    /// Adds other counts to these.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count += more;
        }
    }

    /// The kinds that never happened.
    pub fn missing(&self) -> impl Iterator<Item = FaultKind> {
        FaultKind::ALL.iter().copied().filter(|kind| self.of(*kind) == 0)
    }
}

impl fmt::Display for FaultCounts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = FaultKind::ALL.iter().map(|kind| format!("{kind:?} {}", self.of(*kind)));
        formatter.write_str(&counts.collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Debug for FaultCounts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{{{self}}}")
    }
}
