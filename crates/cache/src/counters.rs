//! The engine's counters: written by one thread, read by any.

use crate::limits::EXPORTS_MAX;
use crate::units::ExportSlot;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $name { $($(#[$item_doc])* $item,)* }

        impl $name {
            /// All of them, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$item,)*];

            /// The name that JavaScript knows it by.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$item => $text,)* }
            }
        }
    };
}

counters! {
    /// Of the whole engine.
    Counter {
        /// Bytes written to the cache device.
        DeviceWrittenBytes = "deviceWrittenBytes",
        /// Bytes read from the cache device.
        DeviceReadBytes = "deviceReadBytes",
        /// Flushes of the cache device.
        DeviceFlushes = "deviceFlushes",
        /// Records closed.
        Records = "records",
        /// Segments that can be opened.
        SegmentsFree = "segmentsFree",
        /// Segments that hold data.
        SegmentsUsed = "segmentsUsed",
        /// Segments being reclaimed.
        SegmentsReclaiming = "segmentsReclaiming",
        /// Segments reclaimed since start.
        SegmentsReclaimed = "segmentsReclaimed",
        /// Blocks copied forward by reclaim.
        BlocksReappended = "blocksReappended",
        /// Merge slots in use.
        MergesUsed = "mergesUsed",
        /// Buffers of fetches in use.
        FetchesUsed = "fetchesUsed",
        /// Frames of the memory tier in use.
        TierFramesUsed = "tierFramesUsed",
        /// Blocks of reads that the memory tier had.
        TierHits = "tierHits",
        /// Destagers in use.
        DestagersUsed = "destagersUsed",
        /// Superblocks on their way to the device, 0 or 1.
        SuperblocksUsed = "superblocksUsed",
        /// Steps that had to wait for a merge slot.
        MergeWaits = "mergeWaits",
        /// Steps that had to wait for a fetch slot.
        FetchWaits = "fetchWaits",
        /// Writes that had to wait for room in the log.
        LogWaits = "logWaits",
        /// Times that neither the footer of a segment nor all of its headers could be had.
        SummaryErrors = "summaryErrors",
        /// 1 after a failed write or flush of the cache device.
        Latched = "latched",
        /// Leaves of the index in use.
        LeavesUsed = "leavesUsed",
        /// Leaves of the index.
        LeavesTotal = "leavesTotal",
        /// Memory of the tables beside the reserve: index, checksums, admission,
        /// the memory tier's.
        TablesBytes = "tablesBytes",
    }
}

counters! {
    /// Of one export.
    ExportCounter {
        /// Bytes of reads that the cache had.
        HitBytes = "hitBytes",
        /// Bytes of reads that came from the origin.
        MissBytes = "missBytes",
        /// Bytes in the cache now.
        CachedBytes = "cachedBytes",
        /// Bytes that the origin lacks now, superseded versions included.
        DirtyBytes = "dirtyBytes",
        /// When the oldest of them was written: nanoseconds since the epoch, 0 for none.
        OldestDirtyNs = "oldestDirtyNs",
        /// Bytes written to the origin.
        DestagedBytes = "destagedBytes",
        /// 1 while the origin answers.
        OriginUp = "originUp",
        /// Requests that the origin is overdue with.
        OriginLate = "originLate",
        /// Reads of the origin.
        OriginReads = "originReads",
        /// Writes of the origin, zeroes included.
        OriginWrites = "originWrites",
        /// Flushes of the origin.
        OriginFlushes = "originFlushes",
        /// Failed requests to the origin.
        OriginErrors = "originErrors",
        /// Clean blocks whose checksum was wrong.
        ChecksumErrorsClean = "checksumErrorsClean",
        /// Dirty blocks whose checksum was wrong.
        ChecksumErrorsDirty = "checksumErrorsDirty",
        /// Whether destaging stopped before damage.
        Damaged = "damaged",
    }
}

/// One value per counter, and per export and counter.
#[derive(Debug)]
pub struct Counters {
    engine: [AtomicU64; Counter::ALL.len()],
    exports: [[AtomicU64; ExportCounter::ALL.len()]; EXPORTS_MAX],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            engine: [const { AtomicU64::new(0) }; _],
            exports: [const { [const { AtomicU64::new(0) }; _] }; EXPORTS_MAX],
        }
    }
}

impl Counters {
    /// The value of an engine counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.engine[counter as usize].load(Ordering::Relaxed)
    }

    /// The value of an export's counter.
    #[must_use]
    pub fn get_export(&self, export: ExportSlot, counter: ExportCounter) -> u64 {
        self.exports[export.index()][counter as usize].load(Ordering::Relaxed)
    }

    /// Sets an engine counter.
    pub fn set(&self, counter: Counter, value: u64) {
        self.engine[counter as usize].store(value, Ordering::Relaxed);
    }

    /// Sets an export's counter.
    pub fn set_export(&self, export: ExportSlot, counter: ExportCounter, value: u64) {
        self.exports[export.index()][counter as usize].store(value, Ordering::Relaxed);
    }

    /// Adds to an engine counter. A plain load and store: there is one writer.
    pub fn add(&self, counter: Counter, more: u64) {
        self.set(counter, self.get(counter).wrapping_add(more));
    }

    /// Adds to an export's counter. A plain load and store: there is one writer.
    pub fn add_export(&self, export: ExportSlot, counter: ExportCounter, more: u64) {
        self.set_export(export, counter, self.get_export(export, counter).wrapping_add(more));
    }

    /// Subtracts from an export's counter.
    pub fn subtract_export(&self, export: ExportSlot, counter: ExportCounter, less: u64) {
        self.set_export(export, counter, self.get_export(export, counter).wrapping_sub(less));
    }
}
