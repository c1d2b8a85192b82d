//! What an origin is known by over restarts and reboots: never its content, nor a time that a
//! write changes.
//!
//! A block device is known by what its disk says of itself, and by where on that disk it begins; a
//! file by its filesystem, its inode, and when that inode was made. What of this there is depends
//! on hardware, filesystem and kernel, so there are several names. The strongest is recorded; a
//! later start may find another one the strongest, and recognises the origin by any. Numbers of
//! devices come last, since many of them are given out anew at each boot.

use crate::device::{Device, Key, Kind};
use ringfence_cache::format::ORIGIN_NAME_BYTES_MAX;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, fstat, fstatvfs, open, statx};
use std::fmt::Write;
use std::fs::read_to_string;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const SECTOR_BYTES: u64 = 512;

/// All names of a device or file, the strongest first; at least one.
#[must_use]
pub fn names(device: &Device) -> Vec<String> {
    let fd = device.fd.as_fd();
    let names = match (device.kind, device.keys) {
        (Kind::Block, [Some(Key::Device { number }), backing]) => {
            let over = backing.map_or_else(Vec::new, |key| loop_names(number, key));
            over.into_iter().chain(block_names(number)).collect()
        }
        (_, [Some(Key::Inode { device, inode }), _]) => file_names(fd, device, inode),
        _ => unreachable!("a device has a key of its kind"),
    };
    names.into_iter().map(fitting).collect()
}

fn number_text(number: u64) -> String {
    format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number))
}

/// A file of a block device in sysfs, trimmed; `None` where there is nothing in it.
fn sysfs(number: u64, name: &str) -> Option<String> {
    let text = read_to_string(format!("/sys/dev/block/{}/{name}", number_text(number))).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// What udev knows of a block device, where there is udev.
fn udev(number: u64, property: &str) -> Option<String> {
    let text = read_to_string(format!("/run/udev/data/b{}", number_text(number))).ok()?;
    let value = |line: &str| Some(line.strip_prefix("E:")?.strip_prefix(property)?.to_owned());
    text.lines().find_map(|line| value(line)?.strip_prefix('=').map(str::to_owned))
}

/// Where a block device begins on its disk, if not at its start, as the end of a name.
fn place(start_bytes: u64) -> String {
    if start_bytes == 0 { String::new() } else { format!(" from byte {start_bytes}") }
}

fn partition_start_bytes(number: u64) -> u64 {
    let sectors = sysfs(number, "partition").and_then(|_| sysfs(number, "start")?.parse().ok());
    sectors.unwrap_or(0) * SECTOR_BYTES
}

fn block_names(number: u64) -> Vec<String> {
    let is_partition = sysfs(number, "partition").is_some();
    let of_disk =
        |name: &str| sysfs(number, &format!("{}{name}", if is_partition { "../" } else { "" }));
    let hex = |text: String| text.chars().filter(char::is_ascii_hexdigit).collect::<String>();
    // The names that a disk has for each of its units come first: a serial may be a controller's.
    let facts = [
        ("disk with wwid", of_disk("wwid")),
        ("disk with wwid", of_disk("device/wwid")),
        ("disk with serial", of_disk("serial")),
        ("disk with serial", of_disk("device/serial")),
        ("mapped device", of_disk("dm/uuid")),
        ("mapped device", of_disk("dm/name")),
        ("array", of_disk("md/uuid").map(hex)),
        ("array", udev(number, "MD_UUID").map(hex)),
    ];
    let place = place(partition_start_bytes(number));
    let known =
        facts.into_iter().filter_map(|(what, text)| Some(format!("{what} {}{place}", text?)));
    let partition = is_partition.then(|| {
        let uevent = sysfs(number, "uevent").unwrap_or_default();
        let told = uevent.lines().find_map(|line| line.strip_prefix("PARTUUID="));
        told.map(str::to_owned).or_else(|| udev(number, "ID_PART_ENTRY_UUID"))
    });
    let partition = partition.flatten().map(|uuid| format!("partition {uuid}"));
    known.chain(partition).chain([format!("device {}", number_text(number))]).collect()
}

/// A loop device is where it begins in what is behind it.
fn loop_names(number: u64, key: Key) -> Vec<String> {
    let Key::Inode { device, inode } = key else { return Vec::new() };
    let of_loop = |name| {
        sysfs(number, &format!("loop/{name}")).or_else(|| sysfs(number, &format!("../loop/{name}")))
    };
    let offset = of_loop("offset").and_then(|text| text.parse().ok()).unwrap_or(0);
    let place = place(offset + partition_start_bytes(number));
    let behind = of_loop("backing_file").and_then(|path| {
        let file = open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        let file = file.ok()?;
        let meta = fstat(&file).ok()?;
        // The path is another's, or leads elsewhere by now: only the inode is sure.
        let same = meta.st_dev == device && meta.st_ino == inode;
        same.then(|| match FileType::from_raw_mode(meta.st_mode) {
            FileType::BlockDevice => block_names(meta.st_rdev),
            _ => file_names(file.as_fd(), device, inode),
        })
    });
    let behind = behind.unwrap_or_else(|| vec![format!("file {inode} on {}", number_text(device))]);
    behind.into_iter().map(|name| format!("loop over {name}{place}")).collect()
}

fn file_names(fd: BorrowedFd<'_>, device: u64, inode: u64) -> Vec<String> {
    let birth = birth(fd).map(|(s, ns)| format!(" born {s}.{ns:09}"));
    let generation = generation(fd).map(|number| format!(" generation {number}"));
    let makings = [birth, generation, Some(String::new())];
    let homes = filesystem_names(fd, device);
    let of_making = |making: &String| -> Vec<String> {
        homes.iter().map(|home| format!("file {inode}{making} on {home}")).collect()
    };
    // What is known of a file that cannot be opened behind a loop device.
    let least = format!("file {inode} on {}", number_text(device));
    makings.iter().flatten().flat_map(of_making).chain([least]).collect()
}

/// When an inode was made: an inode's number is used again as soon as its file is removed.
fn birth(fd: BorrowedFd<'_>) -> Option<(i64, u32)> {
    let known = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME).ok()?;
    let has_birth = known.stx_mask & StatxFlags::BTIME.bits() != 0;
    has_birth.then_some((known.stx_btime.tv_sec, known.stx_btime.tv_nsec))
}

/// Which use of its number an inode is: for filesystems without a time of birth.
fn generation(fd: BorrowedFd<'_>) -> Option<u32> {
    // The kernel stores an `int`, though the number of the call speaks of a `long`.
    let mut number = 0_u64;
    // SAFETY: an `int` or a `long` is stored, and there is room for either.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_GETVERSION, &raw mut number) };
    (result == 0).then_some(number as u32)
}

fn filesystem_names(fd: BorrowedFd<'_>, device: u64) -> Vec<String> {
    let mut names = Vec::new();
    // Made of the filesystem's UUID and, in btrfs, its subvolume; or of nothing but the device's
    // number, which has 32 bits.
    if let Ok(about) = fstatvfs(fd)
        && about.f_fsid >> 32 != 0
    {
        names.push(format!("filesystem {:016x}", about.f_fsid));
    }
    names.extend(filesystem_uuid(fd).map(|uuid| format!("filesystem {uuid}")));
    if rustix::fs::major(device) == 0 {
        names.extend(mount_name(device));
        names.push(number_text(device));
    } else {
        names.extend(block_names(device));
    }
    names
}

/// `FS_IOC_GETFSUUID`, since Linux 6.9; not every filesystem has it.
fn filesystem_uuid(fd: BorrowedFd<'_>) -> Option<String> {
    /// `struct fsuuid2` of `linux/fs.h`.
    #[repr(C)]
    struct FsUuid {
        length: u8,
        uuid: [u8; 16],
    }
    const { assert!(size_of::<FsUuid>() == 17) };
    /// `_IOR(0x15, 0, struct fsuuid2)`, which libc does not have.
    const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500;
    let mut found = FsUuid { length: 0, uuid: [0; 16] };
    // SAFETY: the call stores 17 bytes, and there is room for them; who does not know it refuses.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut found) };
    let uuid = found.uuid.get(..usize::from(found.length)).filter(|uuid| !uuid.is_empty())?;
    (result == 0).then(|| {
        uuid.iter().fold(String::new(), |mut text, byte| {
            let _never_fails = write!(text, "{byte:02x}");
            text
        })
    })
}

/// What an operator mounted where, for filesystems that have nothing else: those of a network, and
/// of programs.
fn mount_name(device: u64) -> Option<String> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    mount_in(&String::from_utf8_lossy(&table), &number_text(device))
}

fn mount_in(table: &str, number: &str) -> Option<String> {
    table.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let found = fields.nth(2)? == number;
        let point = fields.nth(1)?;
        let mut kind_and_source = source.split(' ');
        let (kind, source) = (kind_and_source.next()?, kind_and_source.next()?);
        found.then(|| format!("{kind} {source} at {point}"))
    })
}

/// Shortens a name that the export table has no room for; what is cut off still counts.
fn fitting(mut name: String) -> String {
    if name.len() > ORIGIN_NAME_BYTES_MAX {
        // FNV-1a: it has to tell names apart, not to withstand anybody.
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
        let kept = (0..=ORIGIN_NAME_BYTES_MAX - 17).rev().find(|at| name.is_char_boundary(*at));
        name.truncate(kept.unwrap_or(0));
        let _never_fails = write!(name, " {hash:016x}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::{fitting, mount_in, names};
    use crate::device::{Access, Device, Role};
    use std::path::{Path, PathBuf};

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ringfence-{name}-{}", std::process::id()))
    }

    fn names_of(path: &Path) -> Vec<String> {
        names(&Device::open(path, Role::Origin, Access::Look).expect("a file"))
    }

    #[test]
    fn a_file_keeps_its_names_while_its_content_and_its_path_change() {
        let (first, second) = (path("kept"), path("moved"));
        std::fs::write(&first, [0; 8192]).expect("a file");
        let before = names_of(&first);
        std::fs::write(&first, [1; 4096]).expect("other content");
        std::fs::rename(&first, &second).expect("ours");
        assert_eq!(names_of(&second), before);
        std::fs::remove_file(&second).expect("ours");
    }

    #[test]
    fn a_file_that_was_made_anew_is_another_origin() {
        let path = path("anew");
        std::fs::write(&path, [0; 4096]).expect("a file");
        let before = names_of(&path);
        std::fs::remove_file(&path).expect("ours");
        std::fs::write(&path, [0; 4096]).expect("a file, of the same inode in many filesystems");
        let after = names_of(&path);
        assert!(!after.contains(&before[0]), "{before:?} {after:?}");
        std::fs::remove_file(&path).expect("ours");
    }

    #[test]
    fn a_filesystem_without_anything_of_its_own_is_known_by_its_mount() {
        let table = "36 28 0:32 / /srv/with\\040space rw shared:15 - nfs4 host:/a rw,vers=4\n\
                     37 28 0:32 /below /mnt rw - nfs4 host:/a rw\n\
                     38 28 0:33 / /shown rw - fuse.nbdfuse nbdfuse rw\n";
        let name = |number| mount_in(table, number);
        assert_eq!(name("0:32").as_deref(), Some("nfs4 host:/a at /srv/with\\040space"));
        assert_eq!(name("0:33").as_deref(), Some("fuse.nbdfuse nbdfuse at /shown"));
        assert_eq!(name("0:3"), None);
    }

    #[test]
    fn a_name_that_is_too_long_is_told_apart_by_what_was_cut_off() {
        let long = |last: &str| fitting(format!("{}{last}", "ä".repeat(70)));
        assert!(long("a").len() <= 128 && long("a").len() > 120, "{}", long("a"));
        assert_ne!(long("a"), long("b"));
        assert_eq!(fitting("a".repeat(128)), "a".repeat(128));
    }
}
