//! Where this program's pages lie in the guest's memory blocks, and how many of each block's were touched
//! lately: what a thief of blocks must be measured by.
//!
//! A thread counts, so that nobody touches less meanwhile: under emulation a count takes half a second
//! per 2 GiB.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use memtide_sysfs::Root;
use memtide_sysfs::memory::{self, Block, State, Zone};

use crate::event::{self, BlockContents, BlockState, Event};
use crate::pagemap::Frames;
use crate::pattern::PAGE_BYTES;
use crate::touches::Touches;

/// For how long a page is hot after a touch.
const HOT_FOR: Duration = Duration::from_secs(60);

/// The least time between two counts: whoever writes 0 shall not get a busy processor.
const LEAST_APART: Duration = Duration::from_millis(100);

/// The mappings whose pages are counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Register(Arc<Mutex<Books>>);

#[derive(Debug, Default)]
struct Books {
    mappings: Vec<Weak<Touches>>,
    is_closed: bool,
}

impl Register {
    /// One more is counted, until it is dropped.
    pub(crate) fn add(&self, mapping: &Arc<Touches>) {
        let mut books = self.books();
        books.mappings.retain(|known| known.strong_count() > 0);
        books.mappings.push(Arc::downgrade(mapping));
    }

    /// Nothing more is said.
    pub(crate) fn close(&self) {
        self.books().is_closed = true;
    }

    fn mappings(&self) -> Vec<Arc<Touches>> {
        self.books().mappings.iter().filter_map(Weak::upgrade).collect()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts from now on, with so much time between two counts, and prints each to `out`, until the register
/// is closed or nobody reads the output.
///
/// # Errors
/// Where the kernel refuses a thread.
pub(crate) fn start<W: Write + Send + 'static>(
    register: Register,
    every: Duration,
    (mut out, started): (W, Instant),
) -> io::Result<()> {
    let count = move || {
        loop {
            thread::sleep(every.max(LEAST_APART));
            let blocks = look(&Root::default(), &register.mappings(), Instant::now());
            // Not before it is printed can the summary be, which is the last line.
            let books = register.books();
            if books.is_closed {
                return;
            }
            let event = match &blocks {
                Ok(blocks) => Event::Census { blocks },
                Err(message) => Event::Error { message },
            };
            if event::print(&mut out, event, started).is_err() || blocks.is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("census".into()).spawn(count)?;
    Ok(())
}

/// Counts. The states are read after the pages: what is said of a block that is online is what lay in it
/// before anybody took it offline.
fn look(
    root: &Root,
    mappings: &[Arc<Touches>],
    now: Instant,
) -> Result<Vec<BlockContents>, String> {
    let size = memory::block_size(root).map_err(|error| cannot(&error))?;
    let frames = Frames::open(root).map_err(|error| cannot(&error))?;
    let pages_of_block = size.size().bytes() / PAGE_BYTES as u64;
    let mut counts: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for mapping in mappings {
        let count = |index: usize, frame: u64| {
            let (pages, hot) = counts.entry(frame / pages_of_block).or_default();
            *pages += 1;
            *hot += u64::from(mapping.is_hot(index, now, HOT_FOR));
        };
        let walked = frames.each(mapping.address(), mapping.mapped(), count);
        walked.map_err(|error| cannot(&error))?;
    }
    let blocks = memory::list(root).map_err(|error| cannot(&error))?;
    let contents = |block: Block| {
        let (pages, hot) = counts.get(&block.id.0).copied().unwrap_or_default();
        let movable = block.current_zone() == Some(Zone::Movable);
        BlockContents { block: block.id.0, state: state_of(block.state), movable, pages, hot }
    };
    Ok(blocks.into_iter().map(contents).collect())
}

fn cannot(error: &dyn Display) -> String {
    format!(
        "cannot count pages by memory block: {error}; run as root, on a kernel with memory hotplug"
    )
}

fn state_of(state: State) -> BlockState {
    match state {
        State::Online => BlockState::Online,
        State::GoingOffline => BlockState::GoingOffline,
        State::Offline => BlockState::Offline,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_units::BlockSize;

    /// Pages at these frames, present; 0 where there is none.
    fn guest(frames: &[u64]) -> FakeRoot {
        let fake = FakeRoot::new();
        let kinds = [(0, FakeBlock::KERNEL), (1, FakeBlock::MOVABLE), (2, FakeBlock::MOVABLE)];
        fake.add_blocks(BlockSize::X86_SMALL, kinds);
        let entry = |&frame: &u64| if frame == 0 { 0 } else { 1 << 63 | frame };
        let entries: Vec<u8> = frames.iter().map(entry).flat_map(u64::to_ne_bytes).collect();
        fake.put_bytes("proc/self/pagemap", &entries);
        fake
    }

    #[test]
    fn pages_are_told_by_block_and_hot_ones_among_them() {
        let fake = guest(&[0, 5, 0x8000, 0x8001, 0, 0xffff, 0x8002]);
        let one = Arc::new(Touches::new(4096, 4));
        let other = Arc::new(Touches::new(5 * 4096, 2));
        let now = Instant::now();
        one.note(1..4, now);
        other.truncate(1);
        let register = Register::default();
        register.add(&one);
        register.add(&other);
        let blocks = look(&fake.root(), &register.mappings(), now).unwrap();
        let found: Vec<_> = blocks.iter().map(|at| (at.block, at.pages, at.hot)).collect();
        assert_eq!(found, [(0, 1, 0), (1, 3, 2), (2, 0, 0)]);
        assert_eq!(blocks.iter().map(|at| at.movable).collect::<Vec<_>>(), [false, true, true]);

        drop(one);
        let blocks = look(&fake.root(), &register.mappings(), now).unwrap();
        assert_eq!(blocks[1].pages, 1);
    }

    #[test]
    fn a_guest_that_does_not_tell_is_an_error_with_a_remedy() {
        let error = look(&FakeRoot::new().root(), &[], Instant::now()).unwrap_err();
        assert!(error.contains("block_size_bytes") && error.contains("as root"), "{error}");
    }
}
