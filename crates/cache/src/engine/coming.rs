//! What is soon to come: index and checksums are too large for the processor's caches, and looking
//! them up is what the engine waits for (decision 0028). The caller knows the next request and the
//! next completion while it deals with the one before.

use super::Engine;
use super::api::Coming;
use super::tables::IoOwner;
use crate::geometry::LogAddress;
use crate::units::BLOCK_BYTES_U64;

impl Engine {
    /// Has fetched from memory what an event will look up that is soon to come.
    pub fn prefetch(&self, coming: Coming) {
        match coming {
            Coming::Submit { export, offset } => {
                self.index.prefetch(export, offset / BLOCK_BYTES_U64);
            }
            Coming::IoDone { io } => {
                if let Some(&IoOwner::ReadRun { address, .. }) = self.ios.find(io) {
                    self.log.prefetch_checksum(LogAddress(address));
                }
            }
        }
    }
}
