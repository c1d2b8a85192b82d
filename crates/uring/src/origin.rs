//! Origins: block devices and files, opened so that nobody writes beside us.

use crate::device::{Access, Device, Role};
use crate::error::RuntimeError;
use crate::identity;
use crate::options::ExportSpec;
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{Mode, OriginIdentity};
use std::os::fd::OwnedFd;

/// An open origin.
#[derive(Debug)]
pub struct Origin {
    /// The device or file.
    pub device: Device,
    /// For the bytes after the last whole block, which `O_DIRECT` cannot write (rule 35).
    pub tail: Option<OwnedFd>,
}

impl Origin {
    /// What it is known by.
    #[must_use]
    pub fn identity(&self) -> OriginIdentity {
        let mut names = identity::names(&self.device).into_iter();
        let name = names.next().expect("a device has at least one name");
        OriginIdentity { size_bytes: self.device.size_bytes, name, also: names.collect() }
    }

    /// Where the last whole block ends, if only whole blocks can be read and written.
    #[must_use]
    pub fn whole_blocks_end(&self) -> u64 {
        if self.device.direct {
            self.device.size_bytes / BLOCK_BYTES_U64 * BLOCK_BYTES_U64
        } else {
            self.device.size_bytes
        }
    }
}

/// Opens the origins of all exports: each one's own, and none of them the cache device (rule 34).
///
/// # Errors
/// See [`RuntimeError`].
pub fn open_all(exports: &[ExportSpec], cache: &Device) -> Result<Vec<Origin>, RuntimeError> {
    let mut origins: Vec<Origin> = Vec::with_capacity(exports.len());
    for export in exports {
        // A look first: two writable exports over one origin are not "in use by another program".
        let look = Device::open(&export.origin_path, Role::Origin, Access::Look)?;
        let taken = |what: String| RuntimeError::OriginTaken {
            export: export.name.clone(),
            path: export.origin_path.clone(),
            what,
        };
        if look.same_as(cache) {
            return Err(taken("the cache device".to_owned()));
        }
        if let Some(index) = origins.iter().position(|other| look.same_as(&other.device)) {
            return Err(taken(format!("the origin of export {}", exports[index].name)));
        }
        drop(look);
        let writable = export.mode != Mode::ReadOnly;
        let access = if writable { Access::Exclusive } else { Access::Shared };
        let device = Device::open(&export.origin_path, Role::Origin, access)?;
        let ragged = device.direct && !device.size_bytes.is_multiple_of(BLOCK_BYTES_U64);
        let tail = if ragged { Some(device.buffered(writable)?) } else { None };
        origins.push(Origin { device, tail });
    }
    Ok(origins)
}

#[cfg(test)]
mod tests {
    use super::open_all;
    use crate::device::{Access, Device, Role};
    use crate::error::RuntimeError;
    use crate::options::ExportSpec;
    use ringfence_cache::{Mode, Order};
    use std::path::{Path, PathBuf};

    fn file(name: &str, bytes: usize) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ringfence-{name}-{}", std::process::id()));
        std::fs::write(&path, vec![0; bytes]).expect("a file");
        path
    }

    fn export(name: &str, path: &Path) -> ExportSpec {
        ExportSpec {
            name: name.to_owned(),
            origin_path: path.to_owned(),
            mode: Mode::Writeback,
            order: Order::Strict,
            dirty_bytes_max: None,
            wait_ms: 0,
            origin_timeout_ms: 10_000,
        }
    }

    /// Rule 34.
    #[test]
    fn an_origin_belongs_to_one_export_and_is_not_the_cache() {
        let (cache, origin) = (file("cache", 8192), file("origin", 5000));
        let device = Device::open(&cache, Role::Cache, Access::Exclusive).expect("a cache");
        let same = open_all(&[export("a", &origin), export("b", &origin)], &device);
        let text = same.expect_err("one origin twice").to_string();
        assert!(text.contains("origin of export a"), "{text}");
        let same = open_all(&[export("a", &cache)], &device);
        assert!(matches!(same, Err(RuntimeError::OriginTaken { .. })), "{same:?}");
        let opened = open_all(&[export("a", &origin)], &device).expect("an origin");
        assert_eq!(opened[0].identity().size_bytes, 5000);
        if opened[0].device.direct {
            assert_eq!(opened[0].whole_blocks_end(), 4096);
            assert!(opened[0].tail.is_some());
        }
        [cache, origin].iter().for_each(|path| std::fs::remove_file(path).expect("ours"));
    }
}
