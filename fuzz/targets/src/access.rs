//! What a guest tells of what it touches, as the host keeps and shows it; and files of the agent's history.
//!
//! A history takes any looks at any memory in any order, and stays as small as it is allowed to be; what
//! it writes it reads back as it was; and every view is drawn, within its width.

use arbitrary::{Arbitrary, Unstructured};
use memtide_access::render::{self, Paint};
use memtide_access::{Amounts, Cell, Digest, Heat, History, Layout, Limits, WorkingSet};
use memtide_units::{ByteSize, Gpa, GpaRange};

use crate::meter;

/// What one input may take: a history, its text, its views.
const MEMORY_MAX: usize = 4 << 20;
/// What the history of these limits may take: columns of 512 cells, and one more while it is joined.
const LIMITS: Limits = Limits { cells: 512, columns: 6 };
const FOOTPRINT_MAX: usize = 7 * (1024 + 256);
const LOOKS_MAX: usize = 12;

/// One look of a guest's, as its host hears it.
#[derive(Debug, Arbitrary)]
struct Look {
    at_ms: u64,
    watched_ms: u64,
    sizes: [u64; 4],
    maybe: [Option<u64>; 2],
    untouched: [u64; 3],
    idle_ms: [u64; 5],
    cell_shift: u8,
    /// What lies between the pieces of memory, and how long each is.
    memory: Vec<(u64, u64)>,
    cells: Vec<[u8; 2]>,
}

impl Look {
    fn digest(&self, at_ms: u64) -> Option<Digest> {
        let mut end = 0_u64;
        let mut spans = Vec::new();
        for (gap, len) in &self.memory {
            let range =
                GpaRange::new(Gpa(end.checked_add(*gap)?), ByteSize::from_bytes(*len)).ok()?;
            end = range.end().0;
            spans.push(range);
        }
        let cell = ByteSize::from_bytes(1_u64.checked_shl(self.cell_shift.into())?);
        let layout = Layout::checked(spans, cell).ok()?;
        let told = self.cells.iter().cycle().map(|bytes| Cell::from_bytes(*bytes));
        let cells = told.chain(std::iter::repeat(Cell::UNWATCHED)).take(layout.cells()).collect();
        let bytes = ByteSize::from_bytes;
        let amounts = Amounts {
            present: bytes(self.sizes[0]),
            stolen: bytes(self.sizes[1]),
            free: bytes(self.sizes[2]),
            used: bytes(self.sizes[3]),
            kernel: self.maybe[0].map(bytes),
            touched: self.maybe[1].map(bytes),
            untouched: self.untouched.map(bytes),
            idle_ms: self.idle_ms,
        };
        let watched_ms = self.watched_ms;
        Digest { at_ms, watched_ms, amounts, layout, cells }.checked().ok()
    }
}

/// Reads `data` as a file, and as looks of a guest.
pub fn run(data: &[u8]) {
    meter::within(MEMORY_MAX, || {
        if let Ok(text) = std::str::from_utf8(data)
            && let Ok(mut history) = History::from_json(text, LIMITS)
        {
            written_is_read(&history);
            if let Some(last) = history.last().cloned() {
                history.observe(last);
            }
            views(&history);
        }
        looks(&mut Unstructured::new(data));
    });
}

fn looks(input: &mut Unstructured<'_>) {
    let mut history = History::new(LIMITS);
    for _ in 0..LOOKS_MAX {
        if input.is_empty() {
            break;
        }
        let Ok(look) = Look::arbitrary(input) else { break };
        if let Some(digest) = look.digest(look.at_ms) {
            history.observe(digest);
            assert!(history.footprint() <= FOOTPRINT_MAX, "{} bytes", history.footprint());
        }
    }
    written_is_read(&history);
    views(&history);
}

fn written_is_read(history: &History) {
    let text = history.to_json().expect("it is JSON");
    let read = History::from_json(&text, LIMITS).expect("what is written is read");
    assert_eq!(&read, history);
}

fn views(history: &History) {
    let is_empty = history.last().is_none();
    for width in [0, 80] {
        let map = render::heat_map(history, (width, Paint::Plain), None);
        assert_eq!(map.is_none(), is_empty);
        let columns = map.iter().flat_map(|map| map.lines()).map(|line| line.chars().count()).max();
        assert!(columns.is_none_or(|columns| columns <= 80), "{columns:?} columns");
    }
    assert_eq!(render::svg(history, "a VM", Some(60_000)).is_none(), is_empty);
    assert_eq!(Heat::of(history).is_none(), is_empty);
    if let Some(set) = WorkingSet::of(history, None) {
        assert!(render::working_set(&set, Paint::Plain).ends_with('\n'));
    }
}
