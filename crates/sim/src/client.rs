//! What simulated clients ask for.

use crate::random::Random;
use crate::scenario::{ExportScenario, Mix, Scenario};
use ringfence_cache::Mode;
use ringfence_cache::units::BLOCK_BYTES_U64;

/// A request, before it has a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The export, as its index in the scenario.
    pub export: u8,
    /// What to do.
    pub kind: WishKind,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WishKind {
    /// Read and compare.
    Read,
    /// Write data that names itself.
    Write {
        /// Answer only when durable.
        fua: bool,
    },
    /// Write zeroes, edges included.
    Zeroes {
        /// Answer only when durable.
        fua: bool,
    },
    /// Trim; whole blocks become zeroes.
    Trim {
        /// Answer only when durable.
        fua: bool,
    },
    /// Flush.
    Flush,
}

impl Wish {
    /// The bytes that become zeroes or data: whole blocks only, for a trim.
    #[must_use]
    pub fn changed_bytes(&self, export_bytes: u64) -> std::ops::Range<u64> {
        let end = self.offset + self.length;
        match self.kind {
            WishKind::Read | WishKind::Flush => 0..0,
            WishKind::Write { .. } | WishKind::Zeroes { .. } => self.offset..end,
            WishKind::Trim { .. } => {
                let first = self.offset.next_multiple_of(BLOCK_BYTES_U64);
                // The last block is whole when the trim reaches the export's end.
                let last = if end == export_bytes { end } else { end - end % BLOCK_BYTES_U64 };
                first..last.max(first)
            }
        }
    }
}

/// Draws the next request of some client.
pub fn draw(scenario: &Scenario, random: &mut Random) -> Wish {
    let mix = &scenario.mix;
    let mut served = scenario.served();
    let at = random.index(served.clone().count());
    let (export, ExportScenario { options, .. }) = served.nth(at).expect("one of them");
    let size_bytes = options.origin.size_bytes;
    let fua = random.percent(mix.fua_percent);
    let kind = match draw_kind(mix, fua, random) {
        WishKind::Flush => WishKind::Flush,
        // The server answers everything else itself, with an error.
        _ if options.mode == Mode::ReadOnly => WishKind::Read,
        kind => kind,
    };
    if kind == WishKind::Flush {
        return Wish { export, kind, offset: 0, length: 0 };
    }
    let bytes_max = match kind {
        WishKind::Trim { .. } | WishKind::Zeroes { .. } => size_bytes,
        _ => mix.bytes_max.min(size_bytes),
    };
    let (offset, length) = draw_range(scenario, size_bytes, bytes_max, random);
    let mut wish = Wish { export, kind, offset, length };
    if matches!(kind, WishKind::Trim { .. }) && !size_bytes.is_multiple_of(BLOCK_BYTES_U64) {
        // Whether a trim that ends in a partial last block clears it is nobody's promise.
        let whole_bytes = size_bytes - size_bytes % BLOCK_BYTES_U64;
        let end = (wish.offset + wish.length).min(whole_bytes);
        wish.offset = wish.offset.min(end);
        wish.length = end - wish.offset;
    }
    wish
}

fn draw_kind(mix: &Mix, fua: bool, random: &mut Random) -> WishKind {
    let total = mix.read + mix.write + mix.flush + mix.trim + mix.zeroes;
    let mut point = u32::try_from(random.below(u64::from(total))).expect("a weight");
    for (weight, kind) in [
        (mix.read, WishKind::Read),
        (mix.write, WishKind::Write { fua }),
        (mix.flush, WishKind::Flush),
        (mix.trim, WishKind::Trim { fua }),
    ] {
        if point < weight {
            return kind;
        }
        point -= weight;
    }
    WishKind::Zeroes { fua }
}

/// A range of at least one unit inside an export.
fn draw_range(
    scenario: &Scenario,
    size_bytes: u64,
    bytes_max: u64,
    random: &mut Random,
) -> (u64, u64) {
    let mix = &scenario.mix;
    let unit_bytes = scenario.unit_bytes;
    let shortest = unit_bytes.min(bytes_max);
    let length = if scenario.churns {
        random.between(shortest, bytes_max)
    } else {
        random.magnitude(shortest, bytes_max)
    };
    let (grain, length) = if random.percent(mix.aligned_percent) {
        (BLOCK_BYTES_U64, length.next_multiple_of(BLOCK_BYTES_U64).min(bytes_max))
    } else {
        (unit_bytes, length)
    };
    let length = (length - length % unit_bytes).max(unit_bytes);
    let reach = size_bytes - length;
    let reach =
        if random.percent(mix.hot_percent) { reach.min(8 * BLOCK_BYTES_U64) } else { reach };
    let offset = random.below(reach + 1);
    (offset - offset % grain, length)
}
