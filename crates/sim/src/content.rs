//! What simulated clients write: every 8-byte cell names the write it comes from and the place
//! it belongs to, so that any piece of data says by itself whether it is where it should be.

/// Size of a cell: the smallest piece that names its write.
pub const CELL_BYTES: usize = 8;

/// A value of a unit of an export: which write's data it shows.
pub type Value = u32;

/// The value of a unit that reads as zeroes.
pub const ZEROES: Value = 0;
/// The value of a unit whose bytes are no single write's data for this place.
pub const GARBAGE: Value = u32::MAX;
/// The value of a unit that could not be read.
pub const UNREADABLE: Value = u32::MAX - 1;

const WRITE_FACTOR: u32 = 0x9e37_79b1;
const PLACE_FACTOR: u32 = 0x85eb_ca77;
const EXPORT_FACTOR: u32 = 0xc2b2_ae3d;

/// The bytes of one cell. Its upper half is a function of export, place and write that no two
/// places of one write share (the factors are odd, so multiplication keeps numbers apart).
fn cell_bytes(export: u8, cell: u32, write: u32) -> [u8; CELL_BYTES] {
    cells_bytes(export, cell, write).next().expect("there is no end")
}

/// The bytes of cells from one on, without end.
fn cells_bytes(export: u8, first: u32, write: u32) -> impl Iterator<Item = [u8; CELL_BYTES]> {
    let of_write = write.wrapping_mul(WRITE_FACTOR);
    let of_export = (u32::from(export) + 1).wrapping_mul(EXPORT_FACTOR);
    let mut of_place = first.wrapping_mul(PLACE_FACTOR).wrapping_add(of_export);
    std::iter::repeat_with(move || {
        let tag = of_write ^ of_place;
        of_place = of_place.wrapping_add(PLACE_FACTOR);
        (u64::from(tag) << 32 | u64::from(write)).to_le_bytes()
    })
}

fn first_cell(offset: u64) -> u32 {
    debug_assert!(offset.is_multiple_of(CELL_BYTES as u64));
    u32::try_from(offset / CELL_BYTES as u64).expect("a small export")
}

/// Fills `bytes` with what `value` looks like at byte `offset` of `export`. Offset and length are
/// multiples of [`CELL_BYTES`].
pub fn fill(bytes: &mut [u8], export: u8, offset: u64, value: Value) {
    if value == ZEROES {
        bytes.fill(0);
        return;
    }
    let first = first_cell(offset);
    let (cells, rest) = bytes.as_chunks_mut::<CELL_BYTES>();
    debug_assert!(rest.is_empty());
    for (cell, bytes) in cells.iter_mut().zip(cells_bytes(export, first, value)) {
        *cell = bytes;
    }
}

/// Whose data `bytes` are, as the content of one unit at byte `offset` of `export`.
#[must_use]
pub fn identify(bytes: &[u8], export: u8, offset: u64) -> Value {
    let (cells, rest) = bytes.as_chunks::<CELL_BYTES>();
    debug_assert!(rest.is_empty());
    if u64::from_le_bytes(cells[0]) == 0 {
        return if cells.iter().all(|cell| *cell == [0; CELL_BYTES]) { ZEROES } else { GARBAGE };
    }
    let write = named_write(&cells[0]);
    let first = first_cell(offset);
    let expected = cells_bytes(export, first, write);
    let differs = cells.iter().zip(expected).fold(0, |differs, (cell, expected)| {
        differs | (u64::from_le_bytes(*cell) ^ u64::from_le_bytes(expected))
    }) != 0;
    if differs || write == GARBAGE || write == UNREADABLE { GARBAGE } else { write }
}

/// The values of all units of `bytes`, the content of `export` from byte `offset` on.
pub fn identify_units(
    bytes: &[u8],
    export: u8,
    offset: u64,
    unit_bytes: u64,
) -> impl Iterator<Item = Value> {
    bytes
        .chunks(usize::try_from(unit_bytes).expect("a small unit"))
        .zip(0..)
        .map(move |(unit, index): (&[u8], u64)| identify(unit, export, offset + index * unit_bytes))
}

fn named_write(cell: &[u8; CELL_BYTES]) -> u32 {
    u32::from_le_bytes([cell[0], cell[1], cell[2], cell[3]])
}

/// The inverse of [`PLACE_FACTOR`]: their product is one.
const PLACE_FACTOR_INVERSE: u32 = {
    // Newton's iteration doubles the right bits, of which an odd number has three to begin with.
    let mut inverse = PLACE_FACTOR;
    let mut round = 0;
    while round < 4 {
        inverse = inverse.wrapping_mul(2u32.wrapping_sub(PLACE_FACTOR.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
};

/// Whose data the first cell of a block that is not zero is: export, byte offset and write.
#[must_use]
pub fn owner(block: &[u8], exports: u8, cells_max: u32) -> Option<(u8, u64, Value)> {
    let (cells, _) = block.as_chunks::<CELL_BYTES>();
    let position = cells.iter().position(|cell| *cell != [0; CELL_BYTES])?;
    let cell = u64::from_le_bytes(cells[position]);
    let (write, tag) = (cell as u32, (cell >> 32) as u32);
    let of_place = tag ^ write.wrapping_mul(WRITE_FACTOR);
    (0..exports).find_map(|export| {
        let of_export = (u32::from(export) + 1).wrapping_mul(EXPORT_FACTOR);
        let index = of_place.wrapping_sub(of_export).wrapping_mul(PLACE_FACTOR_INVERSE);
        let offset = u64::from(index) * CELL_BYTES as u64;
        (index < cells_max).then_some((export, offset, write))
    })
}

/// Says in words what the bytes of a garbage unit are, for a report.
#[must_use]
pub fn explain(bytes: &[u8], exports: u8, cells_max: u32) -> String {
    let (cells, _) = bytes.as_chunks::<CELL_BYTES>();
    let mut text = Vec::new();
    let mut last = None;
    for (position, cell) in cells.iter().enumerate() {
        let found = origin_of_cell(cell, exports, cells_max);
        let run = found.map(|(write, export, index)| (write, export, index as usize - position));
        if last != Some(run) && text.len() < 4 {
            text.push(match found {
                _ if *cell == [0; CELL_BYTES] => format!("byte {}: zeroes", position * 8),
                Some((write, export, index)) => format!(
                    "byte {}: write {write}'s data for byte {} of export {export}",
                    position * CELL_BYTES,
                    u64::from(index) * CELL_BYTES as u64,
                ),
                None => format!("byte {}: unknown bytes {cell:02x?}", position * CELL_BYTES),
            });
            last = Some(run);
        }
    }
    text.join("; ")
}

/// Which write's data, for which export and cell, a cell holds.
fn origin_of_cell(cell: &[u8; CELL_BYTES], exports: u8, cells: u32) -> Option<(u32, u8, u32)> {
    let write = named_write(cell);
    (0..exports).find_map(|export| {
        (0..cells)
            .find(|index| *cell == cell_bytes(export, *index, write))
            .map(|index| (write, export, index))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_names_its_write_and_its_place() {
        let mut bytes = [0; 512];
        fill(&mut bytes, 1, 8192, 77);
        assert_eq!(identify(&bytes, 1, 8192), 77);
        assert_eq!(identify(&bytes, 1, 8192 + 512), GARBAGE, "another block's data");
        assert_eq!(identify(&bytes, 0, 8192), GARBAGE, "another export's data");
        assert_eq!(identify(&[0; 512], 1, 8192), ZEROES);
        assert!(explain(&bytes, 2, 4096).contains("write 77's data for byte 8192 of export 1"));
        assert_eq!(owner(&bytes, 2, 4096), Some((1, 8192, 77)));
        bytes[..16].fill(0);
        assert_eq!(owner(&bytes, 2, 4096), Some((1, 8192 + 16, 77)));
    }

    #[test]
    fn a_mixture_is_garbage() {
        let mut bytes = [0; 512];
        fill(&mut bytes, 0, 0, 5);
        fill(&mut bytes[256..], 0, 256, 6);
        assert_eq!(identify(&bytes, 0, 0), GARBAGE);
        let mut bytes = [0; 512];
        fill(&mut bytes[256..], 0, 256, 6);
        assert_eq!(identify(&bytes, 0, 0), GARBAGE);
    }
}
