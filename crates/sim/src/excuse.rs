//! Which errors something that has failed explains: no more than the documentation says
//! (`docs/operations.md`, README 'When something fails'), and only until the next restart. What
//! shows later is damage, or a block that nobody can read any more.

use crate::client::{Wish, WishKind};
use crate::faults::FaultKind;
use crate::world::World;
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{Mode, RequestError};

/// What has failed since the last restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Excuses {
    /// A write or a flush of the cache device: from then on nothing is stored any more.
    device_change: bool,
    /// A read of the cache device.
    device_read: bool,
    /// Something of these exports' origins, as bits.
    origins: u8,
}

impl Excuses {
    /// Notes that an I/O of the cache device has failed.
    pub(crate) fn device_failed(&mut self, kind: FaultKind) {
        match kind {
            FaultKind::DeviceWriteError | FaultKind::DeviceFlushError => self.device_change = true,
            _ => self.device_read = true,
        }
    }

    /// Notes that an origin has failed, or is too late.
    pub(crate) fn origin_failed(&mut self, export: u8) {
        self.origins |= 1 << export;
    }

    /// Whether they explain an error of a request to an export of a size.
    fn explain(&self, wish: &Wish, mode: Mode, size_bytes: u64, error: RequestError) -> bool {
        let is_io = error == RequestError::Io;
        if !is_io && error != RequestError::NoSpace {
            return false;
        }
        let origin = self.origins >> wish.export & 1 == 1;
        let writethrough = mode == Mode::Writethrough;
        let end = wish.offset + wish.length;
        let is_partial = !wish.offset.is_multiple_of(BLOCK_BYTES_U64)
            || !end.is_multiple_of(BLOCK_BYTES_U64) && end != size_bytes;
        match wish.kind {
            // The device gives what it has, whatever it does not take any more.
            WishKind::Read => is_io && (origin || self.device_read),
            // In writeback mode no origin is asked, nor is anything read.
            WishKind::Flush => {
                is_io && (self.device_change || writethrough && (origin || self.device_read))
            }
            // Destage stands still before what cannot be read, and the log fills.
            _ if self.device_read => true,
            _ if is_io && self.device_change => true,
            // A part of a block needs the rest of it.
            WishKind::Write { .. } | WishKind::Zeroes { .. } if is_partial => origin,
            _ => origin && (!is_io || writethrough),
        }
    }

    /// Whether they explain that a flush, a drain or a stop failed: no origin does, they wait.
    fn explain_control(&self) -> bool {
        self.device_change || self.device_read
    }
}

impl World {
    /// Whether the one I/O that fails by choice does so once only.
    pub(crate) fn fails_once(&self) -> bool {
        self.scenario.chosen_failure.is_some_and(|chosen| !chosen.for_ever)
    }

    /// Whether something that went wrong explains a client's error.
    pub(crate) fn explains_error(&self, wish: &Wish, error: RequestError) -> bool {
        let Wish { export, kind, offset, length } = *wish;
        let options = &self.scenario.exports[usize::from(export)].options;
        let damaged = self.damage.touches(export, offset, length)
            // Strict destage stands still before damage, and the log fills.
            || kind != WishKind::Read && self.damage.any();
        let excuses = Excuses {
            // What was read wrong twice is given up for good.
            device_read: self.excuses.device_read || self.rotten || damaged,
            ..self.excuses
        };
        excuses.explain(wish, options.mode, options.origin.size_bytes, error)
            || damaged && kind == WishKind::Flush && error == RequestError::Io
            // So it stands still with what an export that is not served has left in the log.
            || error == RequestError::NoSpace
                && !matches!(kind, WishKind::Read | WishKind::Flush)
                && self.scenario.serves_a_part()
    }

    /// Whether something that went wrong explains that an operator's request failed.
    pub(crate) fn explains_control_error(&self, error: RequestError) -> bool {
        let damaged = self.rotten || self.damage.any();
        error == RequestError::Io && (damaged || self.excuses.explain_control())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE_BYTES: u64 = 64 * BLOCK_BYTES_U64;
    const WRITE: WishKind = WishKind::Write { fua: false };

    fn wish(kind: WishKind, length: u64) -> Wish {
        Wish { export: 1, kind, offset: 0, length }
    }

    /// Which of EIO and ENOSPC are explained.
    fn explained(excuses: Excuses, mode: Mode, kind: WishKind, length: u64) -> [bool; 2] {
        let wish = wish(kind, length);
        [RequestError::Io, RequestError::NoSpace]
            .map(|error| excuses.explain(&wish, mode, SIZE_BYTES, error))
    }

    #[test]
    fn an_origin_explains_errors_of_its_own_export() {
        let mut excuses = Excuses::default();
        excuses.origin_failed(1);
        let (back, through, block) = (Mode::Writeback, Mode::Writethrough, BLOCK_BYTES_U64);
        assert_eq!(explained(excuses, back, WishKind::Read, block), [true, false]);
        assert_eq!(explained(excuses, back, WishKind::Flush, 0), [false, false]);
        assert_eq!(explained(excuses, back, WRITE, block), [false, true]);
        assert_eq!(explained(excuses, back, WRITE, block / 2), [true, true], "the rest of it");
        assert_eq!(explained(excuses, through, WRITE, block), [true, true]);
        assert_eq!(explained(excuses, through, WishKind::Flush, 0), [true, false]);
        let mut other = Excuses::default();
        other.origin_failed(0);
        for mode in [back, through] {
            for kind in [WishKind::Read, WRITE, WishKind::Flush] {
                assert_eq!(explained(other, mode, kind, block / 2), [false, false], "{kind:?}");
            }
        }
        assert!(!excuses.explain_control(), "operators wait for origins");
    }

    #[test]
    fn a_device_that_takes_nothing_any_more_explains_no_failing_read() {
        for kind in [FaultKind::DeviceWriteError, FaultKind::DeviceFlushError] {
            let mut excuses = Excuses::default();
            excuses.device_failed(kind);
            let of = |kind| explained(excuses, Mode::Writeback, kind, BLOCK_BYTES_U64);
            assert_eq!(of(WishKind::Read), [false, false]);
            assert_eq!(of(WishKind::Flush), [true, false]);
            assert_eq!(of(WRITE), [true, false]);
            assert!(excuses.explain_control());
        }
    }

    #[test]
    fn nothing_explains_another_error() {
        let excuses = Excuses { device_change: true, device_read: true, origins: !0 };
        for error in [RequestError::ReadOnly, RequestError::ShuttingDown] {
            assert!(!excuses.explain(&wish(WRITE, 512), Mode::Writeback, SIZE_BYTES, error));
        }
        let of = |kind| explained(Excuses::default(), Mode::Writethrough, kind, 512);
        assert_eq!(of(WRITE), [false, false], "nothing has failed");
    }
}
