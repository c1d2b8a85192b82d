//! Writers and readers of overlapping ranges over a running server: no read may ever show the
//! middle of a write.
//!
//! All writes to a place cover its middle and reach left and right of it by random numbers of
//! sectors. Each is one number throughout, in which its reach is encoded. Whoever won, the
//! picture that a reader sees is determined by the order of the writes, whatever that is: from
//! the middle outward to either side, each write that shows fills all of its reach that newer
//! ones left, and those behind it are older on both sides. A write that is there in part breaks
//! that.
//!
//! Usage: `overlaps SOCKET EXPORT READS`; prints one line, exits with 1 at the first torn read.

use ringfence_wire::client::{ReplyStart, START_BYTES, decode_start, encode_request};
use ringfence_wire::{Cookie, Operation, ReplyStyle};
use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

const SECTOR_BYTES: usize = 512;
/// Sectors that a write reaches to either side of the middle, at most.
const REACH_MAX: usize = 15;
/// Sectors that every write covers.
const MIDDLE: usize = 4;
const PLACE_SECTORS: usize = REACH_MAX + MIDDLE + REACH_MAX;
const PLACE_BYTES: usize = PLACE_SECTORS * SECTOR_BYTES;
/// Where the places begin: within blocks, across blocks, far apart and side by side.
const PLACES: [u64; 4] = [1536, 64 << 10, (1 << 20) - 8192 + 512, (8 << 20) - 512];
/// Requests that a connection has in flight.
const DEPTH: usize = 16;
const REACH_BITS: u32 = 4;
const WRITERS: u64 = 2;
const READERS: u64 = 2;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What a write fills its range with: its number, and how far it reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u32);

impl Stamp {
    fn new(number: u32, left: usize, right: usize) -> Self {
        let reach = u32::try_from(left << REACH_BITS | right).expect("two reaches");
        // A stamp of 0 would look like a place that nobody wrote.
        Self((number | 1 << 23) << (2 * REACH_BITS) | reach)
    }

    fn left(self) -> usize {
        if self.0 == 0 { REACH_MAX } else { (self.0 >> REACH_BITS & 15) as usize }
    }

    fn right(self) -> usize {
        if self.0 == 0 { REACH_MAX } else { (self.0 & 15) as usize }
    }
}

/// xorshift64*: the load only has to be varied, not reproducible.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

/// Attaches with `NBD_OPT_EXPORT_NAME`; replies are simple ones.
fn attach(path: &str, export: &str) -> Outcome<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
        return Err("this is no NBD server".into());
    }
    let fixed_newstyle_no_zeroes = 3_u32.to_be_bytes();
    let mut hello = fixed_newstyle_no_zeroes.to_vec();
    hello.extend(b"IHAVEOPT");
    hello.extend(1_u32.to_be_bytes());
    hello.extend(u32::try_from(export.len())?.to_be_bytes());
    hello.extend(export.as_bytes());
    stream.write_all(&hello)?;
    let mut size_and_flags = [0; 10];
    stream.read_exact(&mut size_and_flags)?;
    Ok(stream)
}

/// Receives a reply's header; the data of a READ is left in the stream.
fn receive_reply(stream: &mut UnixStream) -> Outcome<usize> {
    let mut start = [0; START_BYTES];
    stream.read_exact(&mut start)?;
    match decode_start(&start, ReplyStyle::Simple).map_err(|e| format!("{e:?}"))? {
        ReplyStart::Simple { cookie, result: Ok(()) } => Ok(usize::try_from(cookie.0)?),
        other => Err(format!("unexpected reply: {other:?}").into()),
    }
}

fn write_until(
    stream: &mut UnixStream,
    numbers: &AtomicU64,
    stop: &AtomicBool,
    random: &mut Random,
) -> Outcome<()> {
    let mut batch = Vec::with_capacity(DEPTH * (PLACE_BYTES + 28));
    while !stop.load(Ordering::Relaxed) {
        batch.clear();
        for cookie in 0..DEPTH {
            let (left, right) = (random.below(REACH_MAX + 1), random.below(REACH_MAX + 1));
            let number = numbers.fetch_add(1, Ordering::Relaxed) as u32 & 0x7f_ffff;
            let stamp = Stamp::new(number, left, right);
            let sectors = left + MIDDLE + right;
            let place = PLACES[random.below(PLACES.len())];
            let operation = Operation::Write {
                offset: place + ((REACH_MAX - left) * SECTOR_BYTES) as u64,
                length: u32::try_from(sectors * SECTOR_BYTES)?,
                fua: random.below(2048) == 0,
            };
            batch.extend(encode_request(Cookie(cookie as u64), operation));
            for _ in 0..sectors * SECTOR_BYTES / 4 {
                batch.extend(stamp.0.to_le_bytes());
            }
        }
        stream.write_all(&batch)?;
        for _ in 0..DEPTH {
            receive_reply(stream)?;
        }
    }
    Ok(())
}

/// What is wrong with the picture that a read of a place shows, if anything is.
fn torn(picture: &[u8]) -> Option<String> {
    let mut sectors = [Stamp(0); PLACE_SECTORS];
    for (index, sector) in picture.chunks_exact(SECTOR_BYTES).enumerate() {
        if sector[..SECTOR_BYTES - 4] != sector[4..] {
            return Some(format!("sector {index} shows two writes"));
        }
        sectors[index] = Stamp(u32::from_le_bytes(sector[..4].try_into().expect("four bytes")));
    }
    let newest = sectors[REACH_MAX];
    if sectors[REACH_MAX..REACH_MAX + MIDDLE].iter().any(|stamp| *stamp != newest) {
        return Some("the middle shows two writes".into());
    }
    // Outward from the middle, sector by sector: `reach` is how far the write that shows reaches.
    let side = |stamp_at: &dyn Fn(usize) -> Stamp, reach_of: &dyn Fn(Stamp) -> usize| {
        let mut shown = vec![newest];
        for distance in 1..=REACH_MAX {
            let stamp = stamp_at(distance);
            let last = *shown.last().expect("the newest");
            if stamp != last {
                if distance <= reach_of(last) || distance > reach_of(stamp) {
                    return Err(format!("at {distance} from the middle a write is cut short"));
                }
                if shown.contains(&stamp) {
                    return Err(format!("at {distance} from the middle a write is back"));
                }
                shown.push(stamp);
            } else if distance > reach_of(stamp) {
                return Err(format!("at {distance} from the middle a write is too long"));
            }
        }
        Ok(shown)
    };
    let left = side(&|distance| sectors[REACH_MAX - distance], &Stamp::left);
    let right = side(&|distance| sectors[REACH_MAX + MIDDLE - 1 + distance], &Stamp::right);
    let (left, right) = match (left, right) {
        (Ok(left), Ok(right)) => (left, right),
        (Err(what), _) | (_, Err(what)) => return Some(what),
    };
    one_order(&left, &right)
}

/// Whether both sides, newest first, tell of one order of writes; what is wrong if not. Each write
/// must be hidden on a side where it does not show.
fn one_order(left: &[Stamp], right: &[Stamp]) -> Option<String> {
    let (mut left, mut right) = (left, right);
    let (mut covered_left, mut covered_right) = (0, 0);
    while !left.is_empty() || !right.is_empty() {
        let (a, b) = (left.first(), right.first());
        let takes_left = a.is_some_and(|a| Some(a) == b || a.right() <= covered_right);
        let takes_right = b.is_some_and(|b| Some(b) == a || b.left() <= covered_left);
        if !takes_left && !takes_right {
            return Some("left and right tell of different orders".into());
        }
        if takes_left {
            covered_left = left[0].left();
            left = &left[1..];
        }
        if takes_right {
            covered_right = right[0].right();
            right = &right[1..];
        }
    }
    None
}

fn read_until(
    stream: &mut UnixStream,
    reads: &AtomicU64,
    reads_max: u64,
    stop: &AtomicBool,
    random: &mut Random,
) -> Outcome<()> {
    let mut picture = [0; PLACE_BYTES];
    while !stop.load(Ordering::Relaxed) && reads.load(Ordering::Relaxed) < reads_max {
        let mut batch = Vec::with_capacity(DEPTH * 28);
        for cookie in 0..DEPTH {
            let offset = PLACES[random.below(PLACES.len())];
            let length = u32::try_from(PLACE_BYTES)?;
            let operation = Operation::Read { offset, length, dont_fragment: false };
            batch.extend(encode_request(Cookie(cookie as u64), operation));
        }
        stream.write_all(&batch)?;
        for _ in 0..DEPTH {
            receive_reply(stream)?;
            stream.read_exact(&mut picture)?;
            reads.fetch_add(1, Ordering::Relaxed);
            if let Some(what) = torn(&picture) {
                return Err(format!("torn read: {what}").into());
            }
        }
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, export, reads_max] = arguments.as_slice() else {
        return Err("usage: overlaps SOCKET EXPORT READS".into());
    };
    let reads_max: u64 = reads_max.parse()?;
    let (reads, numbers) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        // The first who ends, for whatever reason, ends them all.
        let work = |seed: u64| {
            let mut random = Random(seed);
            let result = attach(path, export).and_then(|mut stream| match seed {
                ..=WRITERS => write_until(&mut stream, &numbers, &stop, &mut random),
                _ => read_until(&mut stream, &reads, reads_max, &stop, &mut random),
            });
            stop.store(true, Ordering::Relaxed);
            result
        };
        let workers = (1..=WRITERS + READERS).map(|seed| scope.spawn(move || work(seed)));
        let workers: Vec<_> = workers.collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
    })?;
    println!(
        "{} reads beside {} writes of overlapping ranges, none torn, in {:.1} s",
        reads.load(Ordering::Relaxed),
        numbers.load(Ordering::Relaxed),
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MIDDLE, PLACE_BYTES, REACH_MAX, SECTOR_BYTES, Stamp, torn};

    fn write(picture: &mut [u8], stamp: Stamp, from: usize, to: usize) {
        for word in picture[from * SECTOR_BYTES..to * SECTOR_BYTES].chunks_exact_mut(4) {
            word.copy_from_slice(&stamp.0.to_le_bytes());
        }
    }

    fn write_whole(picture: &mut [u8], stamp: Stamp) {
        write(picture, stamp, REACH_MAX - stamp.left(), REACH_MAX + MIDDLE + stamp.right());
    }

    #[test]
    fn whole_writes_in_any_order_pass() {
        let mut picture = vec![0; PLACE_BYTES];
        assert_eq!(torn(&picture), None);
        for (number, left, right) in [(1, 9, 3), (2, 4, 12), (3, 15, 0), (4, 0, 0), (5, 2, 7)] {
            write_whole(&mut picture, Stamp::new(number, left, right));
            assert_eq!(torn(&picture), None, "after write {number}");
        }
    }

    #[test]
    fn each_part_of_a_write_that_is_missing_is_seen() {
        let (old, new) = (Stamp::new(1, 12, 12), Stamp::new(2, 6, 5));
        let first = REACH_MAX - new.left();
        let end = REACH_MAX + MIDDLE + new.right();
        for (from, to) in (first..end).flat_map(|from| [(first, from), (from + 1, end)]) {
            let mut picture = vec![0; PLACE_BYTES];
            write_whole(&mut picture, old);
            write(&mut picture, new, from, to);
            assert_eq!(torn(&picture).is_none(), from == to, "sectors {from}..{to}");
        }
    }

    #[test]
    fn a_write_that_stops_within_a_sector_is_seen() {
        let mut picture = vec![0; PLACE_BYTES];
        write_whole(&mut picture, Stamp::new(1, 12, 12));
        picture[REACH_MAX * SECTOR_BYTES + 100..][..4].copy_from_slice(&[7; 4]);
        assert!(torn(&picture).is_some());
    }

    #[test]
    fn sides_that_tell_of_different_orders_are_seen() {
        let (a, b) = (Stamp::new(1, 8, 8), Stamp::new(2, 8, 8));
        let newest = Stamp::new(3, 2, 2);
        let mut picture = vec![0; PLACE_BYTES];
        write_whole(&mut picture, a);
        write(&mut picture, b, REACH_MAX + MIDDLE, PLACE_BYTES / SECTOR_BYTES - REACH_MAX + 8);
        write_whole(&mut picture, newest);
        assert!(torn(&picture).is_some());
    }
}
