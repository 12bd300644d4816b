//! Every byte between guest and host: requests, responses, configuration, PFN arrays, statistics.
//!
//! Whatever is decoded is encoded and decoded again, and must come out as it was; no decoder takes
//! more memory than a small multiple of its input; configuration space is answered in full at any
//! offset, and a write moves nothing but the driver's own fields.

use arbitrary::{Arbitrary, Unstructured};
use memtide_units::{ByteSize, GpaRange, Pfn};
use memtide_wire::block::{
    HEADER_LEN, HEAT_CELLS_MAX, HEAT_SPANS_MAX, RANGES_MAX, REQUEST_MAX, Request, Response,
    Telemetry,
};
use memtide_wire::config::{BalloonConfig, CONFIG_LEN, ConfigSpace, Extension};
use memtide_wire::pfn;
use memtide_wire::stats::{self, STAT_LEN, STATS_MAX};

use crate::meter;

/// What one input may take: the request that it is decoded to, its ranges, and their bytes again.
const MEMORY_MAX: usize = 256 << 10;

/// Accesses to configuration space in one input.
const ACCESSES_MAX: usize = 4;

/// Reads `data` as everything that it could be.
pub fn run(data: &[u8]) {
    meter::within(MEMORY_MAX, || {
        request(data);
        response(data);
        page_numbers(data);
        statistics(data);
        let _ = Extension::find(data);
        let mut input = Unstructured::new(data);
        for _ in 0..ACCESSES_MAX {
            if input.is_empty() || config_access(&mut input).is_err() {
                break;
            }
        }
    });
}

/// A request's bytes; also behind a header of a kind that there is, since few inputs begin with one.
fn request(data: &[u8]) {
    decode_request(data);
    let Some((kind, body)) = data.split_first() else { return };
    let mut bytes = vec![kind % 9, 0, 0, 0, 1, 2, 3, 4];
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    decode_request(&bytes);
}

fn decode_request(bytes: &[u8]) {
    let (sequence, request) = match Request::decode(bytes) {
        Ok(decoded) => decoded,
        Err((sequence, error)) => {
            assert!(bytes.len() >= HEADER_LEN || sequence == 0, "a sequence out of nothing");
            let _ = (error.reason(), error.to_string());
            return;
        }
    };
    let again = request.encode(sequence);
    assert!(again.len() <= REQUEST_MAX, "{} bytes are no request", again.len());
    assert_eq!(Request::decode(&again), Ok((sequence, request.clone())), "of {bytes:x?}");
    let ranges = match &request {
        Request::Hello(hello) => &hello.stolen,
        Request::Steal(ranges) | Request::Taken(ranges) => ranges,
        Request::Return(wanted) => &wanted.ranges,
        Request::Telemetry(Telemetry { heat: Some(heat), .. }) => {
            assert!(heat.cells.len() <= HEAT_CELLS_MAX && heat.spans.len() <= HEAT_SPANS_MAX);
            &heat.spans
        }
        _ => return,
    };
    assert!(ranges.len() <= RANGES_MAX && ranges.len() * 16 <= bytes.len());
    assert!(ranges.iter().all(|range| range.start() < range.end()), "{ranges:?}");
}

fn response(data: &[u8]) {
    if let Some(response) = Response::decode(data) {
        assert_eq!(Response::decode(&response.encode()), Some(response));
    }
}

fn page_numbers(data: &[u8]) {
    let named: Vec<Pfn> = pfn::frames(data).collect();
    assert_eq!(named.len(), data.len() / pfn::PFN_LEN);
    let ranges = pfn::coalesce(named.iter().copied());
    assert!(ranges.windows(2).all(|two| two[0].end() < two[1].start()), "{ranges:?}");
    let mut distinct = named.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let covered: ByteSize = ranges.iter().map(|range| range.len()).sum();
    assert_eq!(covered, Pfn::SIZE.times(distinct.len() as u64));
    let is_in = |frame: &Pfn| ranges.iter().any(|range| range.contains(GpaRange::of_pfn(*frame)));
    assert!(named.iter().take(16).all(is_in));
}

fn statistics(data: &[u8]) {
    let read = stats::decode(data);
    assert_eq!(read.len(), (data.len() / STAT_LEN).min(STATS_MAX));
    for stat in read {
        assert!(stat.name().is_none_or(|name| !name.is_empty()));
    }
}

/// One access of a driver to configuration space, at any offset and of any length.
#[derive(Debug, Arbitrary)]
struct ConfigAccess<'a> {
    offset: u16,
    huge: bool,
    read: u8,
    written: &'a [u8],
}

/// Bytes that a driver may write: `actual` and `poison_val`.
const DRIVERS_FIELDS: [std::ops::Range<usize>; 2] = [4..8, 12..16];

fn config_access(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let access = ConfigAccess::arbitrary(input)?;
    let offset = if access.huge {
        usize::MAX - usize::from(access.offset)
    } else {
        usize::from(access.offset)
    };
    let extension = Extension::new(5, ByteSize::from_kib(4));
    let mut space = ConfigSpace { balloon: BalloonConfig::default(), extension };
    let whole = |space: &ConfigSpace| {
        let mut all = [0xaa; CONFIG_LEN];
        space.read(0, &mut all);
        all
    };
    let before = whole(&space);
    space.write(offset, access.written);
    let after = whole(&space);
    for (at, byte) in after.iter().enumerate() {
        let written = at.checked_sub(offset).and_then(|from| access.written.get(from));
        let may_change = DRIVERS_FIELDS.iter().any(|field| field.contains(&at));
        let is_right = *byte == before[at] || may_change && Some(byte) == written;
        assert!(is_right, "byte {at} became {byte:#x} by a write at {offset}");
    }
    let mut out = vec![0xaa; usize::from(access.read)];
    space.read(offset, &mut out);
    for (n, byte) in out.iter().enumerate() {
        let expected = offset.checked_add(n).and_then(|at| after.get(at)).copied().unwrap_or(0);
        assert_eq!(*byte, expected, "byte {n} of a read at {offset}");
    }
    Ok(())
}
