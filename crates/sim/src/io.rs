//! The I/Os that the engine asks for: how long they take, whether they fail, what they do.

use crate::content;
use crate::core::Core;
use crate::device::{FlushCover, WriteSerial};
use crate::faults::FaultKind;
use crate::life::{Happening, Life};
use crate::violation::{Kind, Violation};
use crate::world::World;
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{Buffer, Event, ExportSlot, IoError, IoId, Mode};

const EIO: i32 = 5;
const HOUR_NS: u64 = 3_600_000_000_000;
/// The longest time that an origin neither answers nor fails.
const HANG_NS_MAX: u64 = 4 * HOUR_NS;

/// An I/O in flight.
#[derive(Clone, Debug)]
pub(crate) struct Io {
    /// Its place in the order of submission.
    serial: u64,
    action: Action,
    /// How it will end, drawn when it is submitted.
    result: Result<(), IoError>,
}

#[derive(Clone, Debug)]
#[expect(dead_code, reason = "offsets of writes are for the reader of a trace")]
enum Action {
    DeviceRead { offset: u64, buffer: Buffer },
    DeviceWrite { serial: WriteSerial, offset: u64, buffer: Buffer },
    DeviceFlush { cover: FlushCover },
    OriginRead { export: u8, offset: u64, buffer: Buffer },
    OriginWrite { export: u8, serial: u64, offset: u64, buffer: Option<Buffer>, digest: u64 },
    OriginFlush { export: u8, cover: u64 },
}

impl Action {
    fn is_device(&self) -> bool {
        matches!(
            self,
            Self::DeviceRead { .. } | Self::DeviceWrite { .. } | Self::DeviceFlush { .. }
        )
    }
}

fn contract(detail: String) -> Violation {
    Violation::new(Kind::Contract, detail)
}

/// Enough of a digest to see whether a buffer has changed.
fn digest(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |sum: u64, word| {
        (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29)
    })
}

impl<C: Core> Life<C> {
    fn begin(
        &mut self,
        world: &mut World,
        io: IoId,
        typical_ns: u64,
        action: Action,
        result: Result<(), IoError>,
    ) -> Result<(), Violation> {
        world.trace.mix(u64::from(io.0) << 8 | 1);
        world.trace.line(world.now_ns, || {
            let failure = result.err().map_or(String::new(), |error| format!(" -> {error}"));
            format!("io {} begins: {action:?}{failure}", io.0)
        });
        let is_slow = world.random.percent(2);
        let slow = if is_slow { 20 } else { 1 };
        let took_ns = world.random.between(typical_ns / 4, typical_ns * 2) * slow;
        if is_slow && action.is_device() {
            world.tally.faults.count(FaultKind::DeviceSlow);
        }
        self.io_serials += 1;
        let serial = self.io_serials;
        if self.ios.insert(io.0, Io { serial, action, result }).is_some() {
            return Err(contract(format!("I/O {} is in flight already", io.0)));
        }
        let held_until_ns = std::mem::take(&mut self.hold_until_ns);
        self.plan_at((world.now_ns + took_ns).max(held_until_ns), Happening::IoEnds(io.0));
        Ok(())
    }

    fn device_fails(
        &self,
        world: &mut World,
        per_million: u32,
        kind: FaultKind,
    ) -> Result<(), IoError> {
        world.tally.stop_ios += u64::from(self.faults && self.stopping);
        if !self.faults || !(world.is_chosen_to_fail() || world.random.chance(per_million)) {
            return Ok(());
        }
        // What cannot be read is read once more before anybody hears of it.
        if kind != FaultKind::DeviceReadError || !world.fails_once() {
            world.excuses.device_failed(kind);
        }
        world.tally.faults.count(kind);
        Err(IoError::Failed { errno: EIO })
    }

    /// Checks the place of a device I/O.
    fn check_device(world: &World, offset: u64, buffer: Buffer) -> Result<(), Violation> {
        let length = u64::from(buffer.length);
        let aligned = [offset, length, buffer.offset].iter().all(|at| at % BLOCK_BYTES_U64 == 0);
        if aligned && length > 0 && offset + length <= world.device.size_bytes() {
            return Ok(());
        }
        Err(contract(format!("device I/O at {offset} with {buffer:?}")))
    }

    pub(crate) fn device_read(
        &mut self,
        world: &mut World,
        io: IoId,
        offset: u64,
        buffer: Buffer,
    ) -> Result<(), Violation> {
        Self::check_device(world, offset, buffer)?;
        world.trace.mix(offset ^ u64::from(buffer.length) << 40);
        let rate = world.scenario.faults.device_read_error;
        let result = self.device_fails(world, rate, FaultKind::DeviceReadError);
        let typical_ns = world.scenario.device_ns;
        self.begin(world, io, typical_ns, Action::DeviceRead { offset, buffer }, result)
    }

    pub(crate) fn device_write(
        &mut self,
        world: &mut World,
        io: IoId,
        offset: u64,
        buffer: Buffer,
    ) -> Result<(), Violation> {
        Self::check_device(world, offset, buffer)?;
        world.trace.mix(offset ^ u64::from(buffer.length) << 40);
        let serial = world.device_takes(offset, self.core.reserve().bytes(buffer), self.faults);
        world.note_structure(offset);
        world.tally.device_bytes += u64::from(buffer.length);
        let rate = world.scenario.faults.device_write_error;
        let result = self.device_fails(world, rate, FaultKind::DeviceWriteError);
        let typical_ns = world.scenario.device_ns;
        self.begin(world, io, typical_ns, Action::DeviceWrite { serial, offset, buffer }, result)
    }

    pub(crate) fn device_flush(&mut self, world: &mut World, io: IoId) -> Result<(), Violation> {
        let cover = world.device.cover();
        let rate = world.scenario.faults.device_flush_error;
        let result = self.device_fails(world, rate, FaultKind::DeviceFlushError);
        let typical_ns = world.scenario.device_ns * 2;
        self.begin(world, io, typical_ns, Action::DeviceFlush { cover }, result)
    }

    /// The scenario's export of a slot.
    fn export_of(&self, slot: ExportSlot) -> Result<u8, Violation> {
        let at = self.slots.iter().position(|known| *known == Some(slot));
        let at = at.ok_or_else(|| contract(format!("I/O for unknown {slot:?}")))?;
        Ok(u8::try_from(at).expect("a few exports"))
    }

    /// Checks the place of an origin I/O. Returns the export and the length, cut at its end.
    fn check_origin(
        &self,
        world: &World,
        slot: ExportSlot,
        offset: u64,
        length: u64,
    ) -> Result<(u8, u64), Violation> {
        let export = self.export_of(slot)?;
        let size_bytes = world.scenario.exports[usize::from(export)].size_bytes();
        if !offset.is_multiple_of(BLOCK_BYTES_U64) || offset >= size_bytes || length == 0 {
            return Err(contract(format!("origin I/O of {length} bytes at {offset}")));
        }
        let end = (offset + length).min(size_bytes);
        if offset + length > size_bytes.next_multiple_of(BLOCK_BYTES_U64) {
            return Err(contract(format!(
                "origin I/O of {length} bytes at {offset}: past the end"
            )));
        }
        Ok((export, end - offset))
    }

    /// Draws how an origin request ends, and how long such a request takes; whether it is one that
    /// changes the origin, or what is durable there.
    fn origin_fate(
        &mut self,
        world: &mut World,
        export: u8,
        changes: bool,
        extra: u32,
    ) -> (u64, Result<(), IoError>) {
        let faults = world.scenario.faults;
        let typical_ns = world.scenario.origin_ns;
        let away = usize::from(export);
        if self.origin_away[away] {
            return (typical_ns / 4, Err(IoError::Disconnected));
        }
        if self.origin_hangs_until_ns[away] > world.now_ns {
            self.hold_until_ns = self.origin_hangs_until_ns[away];
            return (typical_ns, Ok(()));
        }
        if !self.faults {
            return (typical_ns, Ok(()));
        }
        if world.random.chance(faults.origin_outage) {
            world.excuses.origin_failed(export);
            self.origin_away[away] = true;
            let away_ns = world.random.magnitude(1_000_000, 8 * HOUR_NS);
            self.plan_at(world.now_ns + away_ns, Happening::OriginReturns(export));
            world.tally.faults.count(FaultKind::OriginOutage);
            if away_ns >= HOUR_NS {
                world.tally.faults.count(FaultKind::OriginOutageHours);
            }
            world.trace.line(world.now_ns, || {
                format!("origin {export} goes away for {} ms", away_ns / 1_000_000)
            });
            self.disconnect(world, export);
            return (typical_ns / 4, Err(IoError::Disconnected));
        }
        if world.random.chance(faults.origin_stall) {
            world.excuses.origin_failed(export);
            world.tally.faults.count(FaultKind::OriginStall);
            return (world.random.magnitude(1_000_000_000, 600_000_000_000), Ok(()));
        }
        if world.random.chance(faults.origin_hang) {
            world.tally.faults.count(FaultKind::OriginHang);
            self.hang(world, export);
            return self.origin_fate(world, export, changes, extra);
        }
        let chosen = world.is_chosen_to_fail();
        if chosen || world.random.chance(faults.origin_error) || world.random.chance(extra) {
            // It is asked again, for as long as clients wait; in writethrough mode nobody waits.
            let mode = world.scenario.exports[away].options.mode;
            if !world.fails_once() || changes && mode == Mode::Writethrough {
                world.excuses.origin_failed(export);
            }
            world.tally.faults.count(FaultKind::OriginError);
            return (typical_ns, Err(IoError::Failed { errno: EIO }));
        }
        (typical_ns, Ok(()))
    }

    /// From now on an origin neither answers nor fails, until everything ends at once.
    pub(crate) fn hang(&mut self, world: &mut World, export: u8) {
        let hangs_ns = world.random.magnitude(10_000_000_000, HANG_NS_MAX);
        world.excuses.origin_failed(export);
        self.origin_hangs_until_ns[usize::from(export)] = world.now_ns + hangs_ns;
        world.trace.line(world.now_ns, || {
            format!("origin {export} hangs for {} ms", hangs_ns / 1_000_000)
        });
    }

    /// The connection to an origin is gone: every request in flight ends without an answer, and
    /// the origin itself may have lost its power.
    fn disconnect(&mut self, world: &mut World, export: u8) {
        world.origins[usize::from(export)].disturbed = world.checker.history.now();
        for io in self.ios.values_mut() {
            let of = match io.action {
                Action::OriginRead { export, .. }
                | Action::OriginWrite { export, .. }
                | Action::OriginFlush { export, .. } => Some(export),
                _ => None,
            };
            if of == Some(export) {
                io.result = Err(IoError::Disconnected);
                if let Action::OriginWrite { serial, .. } = &mut io.action {
                    // Whatever of it takes effect does so now; the engine learns later.
                    world.origins[usize::from(export)].fail(*serial, &mut world.random);
                    *serial = 0;
                }
            }
        }
        let loses_power = world.random.percent(world.scenario.faults.origin_power_percent);
        // What hides a loss stays, as long as clients are served.
        if loses_power && world.losses.is_empty() {
            world.tally.faults.count(FaultKind::OriginPowerCut);
            world.trace.line(world.now_ns, || format!("origin {export} loses its power"));
            world.origins[usize::from(export)].power_cut(&mut world.random);
        }
    }

    pub(crate) fn origin_read(
        &mut self,
        world: &mut World,
        io: IoId,
        slot: ExportSlot,
        offset: u64,
        buffer: Buffer,
    ) -> Result<(), Violation> {
        let (export, length) = self.check_origin(world, slot, offset, u64::from(buffer.length))?;
        world.trace.mix(offset ^ length << 40);
        let buffer = Buffer { length: u32::try_from(length).expect("a buffer"), ..buffer };
        let (typical_ns, result) = self.origin_fate(world, export, false, 0);
        self.begin(world, io, typical_ns, Action::OriginRead { export, offset, buffer }, result)
    }

    pub(crate) fn origin_write(
        &mut self,
        world: &mut World,
        io: IoId,
        slot: ExportSlot,
        offset: u64,
        buffer: Buffer,
    ) -> Result<(), Violation> {
        let (export, length) = self.check_origin(world, slot, offset, u64::from(buffer.length))?;
        let buffer = Buffer { length: u32::try_from(length).expect("a buffer"), ..buffer };
        let unit_bytes = world.scenario.unit_bytes;
        let bytes = self.core.reserve().bytes(buffer);
        let values: Vec<_> = content::identify_units(bytes, export, offset, unit_bytes).collect();
        let digest = digest(bytes);
        if let Some(at) = values.iter().position(|value| *value == content::GARBAGE) {
            let unit_bytes = usize::try_from(unit_bytes).expect("a small unit");
            let unit = &bytes[at * unit_bytes..][..unit_bytes];
            let (exports, cells) = world.content_limits();
            let found = content::explain(unit, exports, cells);
            let place = offset + (at * unit_bytes) as u64;
            return Err(Violation::new(
                Kind::Garbage,
                format!("the origin of export {export} is given garbage at byte {place}: {found}"),
            ));
        }
        self.origin_change(world, io, export, offset, values, Some(buffer), digest)
    }

    pub(crate) fn origin_zero(
        &mut self,
        world: &mut World,
        io: IoId,
        slot: ExportSlot,
        offset: u64,
        length: u64,
    ) -> Result<(), Violation> {
        let (export, length) = self.check_origin(world, slot, offset, length)?;
        let units = usize::try_from(length / world.scenario.unit_bytes).expect("a small export");
        self.origin_change(world, io, export, offset, vec![content::ZEROES; units], None, 0)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one effect")]
    fn origin_change(
        &mut self,
        world: &mut World,
        io: IoId,
        export: u8,
        offset: u64,
        values: Vec<content::Value>,
        buffer: Option<Buffer>,
        digest: u64,
    ) -> Result<(), Violation> {
        world.trace.mix(offset ^ (values.len() as u64) << 40);
        let index = usize::from(export);
        let first_unit = usize::try_from(offset / world.scenario.unit_bytes).expect("a unit");
        // The fate comes first: if the connection breaks now, this write never left.
        let (typical_ns, result) = self.origin_fate(world, export, true, 0);
        let serial = if result == Err(IoError::Disconnected) {
            0
        } else {
            world.origins[index].check(&world.checker, first_unit, &values)?;
            world.origins[index].submit(first_unit, values)
        };
        let action = Action::OriginWrite { export, serial, offset, buffer, digest };
        self.begin(world, io, typical_ns, action, result)
    }

    pub(crate) fn origin_flush(
        &mut self,
        world: &mut World,
        io: IoId,
        slot: ExportSlot,
    ) -> Result<(), Violation> {
        let export = self.export_of(slot)?;
        let cover = world.origins[usize::from(export)].cover();
        let extra = world.scenario.faults.origin_flush_error;
        let (typical_ns, result) = self.origin_fate(world, export, true, extra);
        self.begin(world, io, typical_ns, Action::OriginFlush { export, cover }, result)
    }

    /// An I/O has ended: it takes effect and the engine is told.
    pub(crate) fn end_io(&mut self, world: &mut World, io: u32) -> Result<(), Violation> {
        let Io { serial, action, result } = self.ios.remove(&io).expect("an I/O in flight");
        let mut others = self.ios.values().filter(|other| other.action.is_device());
        if action.is_device() && others.any(|other| other.serial < serial) {
            world.tally.faults.count(FaultKind::OutOfOrder);
        }
        match action {
            Action::DeviceRead { offset, buffer } if result.is_ok() => {
                self.end_device_read(world, offset, buffer);
            }
            Action::DeviceWrite { serial, buffer, .. } => {
                if !world.device.in_flight_equals(serial, self.core.reserve().bytes(buffer)) {
                    return Err(contract(format!("{buffer:?} changed while it was written")));
                }
                match result {
                    Ok(()) => {
                        world.device.complete_write(serial);
                        if self.faults {
                            world.age_medium();
                        }
                    }
                    Err(_) => world.device.fail_write(serial, &mut world.random),
                }
            }
            Action::DeviceFlush { cover } if result.is_ok() => world.device.complete_flush(cover),
            Action::OriginRead { export, offset, buffer } if result.is_ok() => {
                let unit_bytes = world.scenario.unit_bytes;
                let bytes = self.core.reserve().bytes_mut(buffer);
                world.fill_from_origin(export, offset, bytes, unit_bytes);
            }
            Action::OriginWrite { export, serial, offset, buffer, digest: then } => {
                if buffer.is_some_and(|buffer| digest(self.core.reserve().bytes(buffer)) != then) {
                    let detail = format!("origin write at {offset}: changed while in flight");
                    return Err(contract(detail));
                }
                match result {
                    Ok(()) => world.origins[usize::from(export)].complete(serial),
                    // Serial zero: the write never reached the origin, or has failed before.
                    Err(_) if serial == 0 => {}
                    Err(_) => {
                        let origin = &mut world.origins[usize::from(export)];
                        if origin.has_unflushed() {
                            world.tally.faults.count(FaultKind::OriginErrorMidEpoch);
                        }
                        origin.fail(serial, &mut world.random);
                    }
                }
            }
            Action::OriginFlush { export, cover } => match result {
                Ok(()) => world.origins[usize::from(export)].complete_flush(cover),
                Err(IoError::Disconnected) => {}
                Err(_) => {
                    let origin = &mut world.origins[usize::from(export)];
                    origin.disturbed = world.checker.history.now();
                    world.tally.faults.count(FaultKind::OriginFlushError);
                    // What hides a loss stays, as long as clients are served.
                    origin.fail_flush(&mut world.random, world.losses.is_empty());
                }
            },
            Action::DeviceRead { .. } | Action::DeviceFlush { .. } | Action::OriginRead { .. } => {}
        }
        world.trace.line(world.now_ns, || format!("io {io} ends: {result:?}"));
        self.step(world, Event::IoDone { io: IoId(io), result })
    }

    fn end_device_read(&mut self, world: &mut World, offset: u64, buffer: Buffer) {
        let bytes = self.core.reserve().bytes_mut(buffer);
        world.device.read(offset, bytes);
        if self.faults && world.random.chance(world.scenario.faults.device_read_rot) {
            world.rotten = true;
            world.tally.faults.count(FaultKind::ReadRot);
            let bit = world.random.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            world
                .trace
                .line(world.now_ns, || format!("a read at {offset} returns bit {bit} flipped"));
        }
    }
}
