//! What was touched where, as the agent's last look at it was boiled down (`crates/access`): for people,
//! like the rest of the telemetry. Whoever shows it checks it first.

use alloc::vec::Vec;

use memtide_units::{ByteSize, Gpa, GpaRange};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::request::DecodeError;

/// Pieces of memory at most.
pub const HEAT_SPANS_MAX: usize = 64;
/// Cells at most.
pub const HEAT_CELLS_MAX: usize = 512;

/// What was touched where. Nothing in it is checked but its lengths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heat {
    /// When the agent looked, in milliseconds of a clock of its own: the same look has the same number.
    pub at_ms: u64,
    /// For how long somebody has been watching, in milliseconds.
    pub watched_ms: u64,
    /// Offline.
    pub stolen: ByteSize,
    /// `MemFree`.
    pub free: ByteSize,
    /// The kernel's own, where somebody has looked.
    pub kernel: Option<ByteSize>,
    /// All else.
    pub used: ByteSize,
    /// What of it was touched in the last 30 s, once somebody has watched for so long.
    pub touched: Option<ByteSize>,
    /// What of it was not touched for 30 s, 2 min and 10 min, or longer.
    pub untouched: [ByteSize; 3],
    /// For how long 1, 25, 50, 75 and 99 % of it were not touched, at most, in milliseconds.
    pub idle_ms: [u64; 5],
    /// Bytes of a cell.
    pub cell: ByteSize,
    /// The memory that there is, ascending; at most [`HEAT_SPANS_MAX`].
    pub spans: Vec<GpaRange>,
    /// Two bytes for each cell, as `memtide_access::Cell` has them; at most [`HEAT_CELLS_MAX`].
    pub cells: Vec<[u8; 2]>,
}

/// A size that nobody knows.
const UNKNOWN: u64 = u64::MAX;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    at_ms: U64,
    watched_ms: U64,
    stolen: U64,
    free: U64,
    kernel: U64,
    used: U64,
    touched: U64,
    untouched: [U64; 3],
    idle_ms: [U64; 5],
    cell: U64,
    spans: U16,
    cells: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Span {
    start: U64,
    len: U64,
}

pub(super) fn encode(heat: &Heat, bytes: &mut Vec<u8>) {
    let size = |size: ByteSize| U64::new(size.bytes());
    // A size that is all ones means nothing else than that it is not known.
    let maybe = |size: Option<ByteSize>| U64::new(size.map_or(UNKNOWN, ByteSize::bytes));
    let spans = &heat.spans[..heat.spans.len().min(HEAT_SPANS_MAX)];
    let cells = &heat.cells[..heat.cells.len().min(HEAT_CELLS_MAX)];
    let wire = Wire {
        at_ms: U64::new(heat.at_ms),
        watched_ms: U64::new(heat.watched_ms),
        stolen: size(heat.stolen),
        free: size(heat.free),
        kernel: maybe(heat.kernel),
        used: size(heat.used),
        touched: maybe(heat.touched),
        untouched: heat.untouched.map(size),
        idle_ms: heat.idle_ms.map(U64::new),
        cell: size(heat.cell),
        spans: U16::new(spans.len() as u16),
        cells: U16::new(cells.len() as u16),
    };
    bytes.extend_from_slice(wire.as_bytes());
    for span in spans {
        let span = Span { start: U64::new(span.start().0), len: size(span.len()) };
        bytes.extend_from_slice(span.as_bytes());
    }
    bytes.extend_from_slice(cells.as_flattened());
}

/// Bytes behind the last cell are of a later version, and not looked at.
pub(super) fn decode(body: &[u8]) -> Result<Heat, DecodeError> {
    let short = || DecodeError::Short(body.len());
    let (wire, rest) = Wire::read_from_prefix(body).map_err(|_| short())?;
    let (spans, cells) = (usize::from(wire.spans.get()), usize::from(wire.cells.get()));
    if spans > HEAT_SPANS_MAX || cells > HEAT_CELLS_MAX {
        return Err(DecodeError::Field("heat"));
    }
    let (spans, rest) = <[Span]>::ref_from_prefix_with_elems(rest, spans).map_err(|_| short())?;
    let (cells, _) = <[[u8; 2]]>::ref_from_prefix_with_elems(rest, cells).map_err(|_| short())?;
    let span = |span: &Span| {
        GpaRange::new(Gpa(span.start.get()), ByteSize::from_bytes(span.len.get()))
            .map_err(|_| DecodeError::Field("heat"))
    };
    let size = |field: U64| ByteSize::from_bytes(field.get());
    let maybe = |field: U64| (field.get() != UNKNOWN).then(|| size(field));
    Ok(Heat {
        at_ms: wire.at_ms.get(),
        watched_ms: wire.watched_ms.get(),
        stolen: size(wire.stolen),
        free: size(wire.free),
        kernel: maybe(wire.kernel),
        used: size(wire.used),
        touched: maybe(wire.touched),
        untouched: wire.untouched.map(size),
        idle_ms: wire.idle_ms.map(U64::get),
        cell: size(wire.cell),
        spans: spans.iter().map(span).collect::<Result<_, _>>()?,
        cells: cells.to_vec(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::block) fn heat() -> Heat {
        let span = GpaRange::new(Gpa(1 << 32), ByteSize::from_gib(1)).unwrap();
        Heat {
            at_ms: 5,
            kernel: Some(ByteSize::from_mib(90)),
            idle_ms: [1, 2, 3, 4, 5],
            cell: ByteSize::from_mib(2),
            spans: alloc::vec![span; HEAT_SPANS_MAX],
            cells: alloc::vec![[7, 249]; HEAT_CELLS_MAX],
            ..Heat::default()
        }
    }

    fn bytes(heat: &Heat) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(heat, &mut bytes);
        bytes
    }

    #[test]
    fn the_largest_is_read_back_and_is_small() {
        let bytes = bytes(&heat());
        assert_eq!(bytes.len(), 16 * 8 + 4 + 64 * 16 + 512 * 2);
        assert_eq!(decode(&bytes), Ok(heat()));
        let later = [&bytes[..], b"more"].concat();
        assert_eq!(decode(&later), Ok(heat()));
    }

    #[test]
    fn lengths_are_limited_and_ranges_are_ranges() {
        let good = bytes(&heat());
        assert_eq!(decode(&good[..good.len() - 1]), Err(DecodeError::Short(good.len() - 1)));
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            decode(&bad)
        };
        assert_eq!(with(128, 65), Err(DecodeError::Field("heat")), "spans");
        assert_eq!(with(131, 3), Err(DecodeError::Field("heat")), "cells");
        let mut empty = good.clone();
        empty[140..148].fill(0);
        assert_eq!(decode(&empty), Err(DecodeError::Field("heat")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..3_000)) {
            if let Ok(heat) = decode(&bytes) {
                prop_assert!(heat.spans.len() <= HEAT_SPANS_MAX && heat.cells.len() <= HEAT_CELLS_MAX);
                prop_assert_eq!(decode(&self::bytes(&heat)), Ok(heat));
            }
        }
    }
}
