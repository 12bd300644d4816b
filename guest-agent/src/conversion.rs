//! Makes boot memory movable at start, so that it can be stolen later.
//!
//! A boot block that goes offline and comes back with `online_movable` is in `ZONE_MOVABLE` from
//! then on; the whole pass over a fresh 2 GiB guest was measured at 0.2 to 0.8 s. It is worth most
//! right after boot, before kernel pages are everywhere.

use std::time::{Duration, Instant};

use memtide_policy::guest::{Headroom, HeatMap, conversions};
use memtide_sysfs::Root;
use memtide_sysfs::kpageflags::PageFlags;
use memtide_units::{BlockId, ByteSize};

use crate::blocks::{Blocks, Hold};
use crate::worker::{Job, Task, Worker, census};

/// The whole pass ends after this long, wherever it is.
const PASS_DEADLINE: Duration = Duration::from_secs(20);

/// What a pass has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Blocks that are movable now.
    pub done: usize,
    /// Blocks that were tried and could not be.
    pub failed: usize,
}

/// Converts what the policy chooses. Must not run while the device works on anything.
pub fn convert(root: &Root, blocks: &mut Blocks, worker: &mut Worker) -> Converted {
    let started = Instant::now();
    let chosen = choose(root, blocks);
    let block_size = blocks.size();
    let keep = Headroom::of(blocks.online(), block_size, None, ByteSize::ZERO).low;
    let mut pass = Converted::default();
    for (n, block) in chosen.iter().enumerate() {
        if started.elapsed() > PASS_DEADLINE {
            tracing::info!("{} blocks are left as they are: time is up", chosen.len() - n);
            break;
        }
        convert_one(
            root,
            blocks,
            worker,
            Job { block: *block, task: Task::Convert { keep } },
            &mut pass,
        );
    }
    tracing::info!(
        "{} of {} chosen blocks were made movable in {} ms; {} of {} are movable now",
        pass.done,
        chosen.len(),
        started.elapsed().as_millis(),
        blocks.movable_count(),
        blocks.count()
    );
    pass
}

fn convert_one(
    root: &Root,
    blocks: &mut Blocks,
    worker: &mut Worker,
    job: Job,
    pass: &mut Converted,
) {
    if !worker.give(job) {
        return;
    }
    let result = worker.wait().map(|done| done.result);
    let is_offline = match &result {
        Some(Ok(())) => {
            pass.done += 1;
            false
        }
        Some(Err(failure)) => {
            tracing::debug!("{} stays as it is: {}", job.block, failure.text);
            pass.failed += 1;
            failure.is_offline
        }
        None => false,
    };
    // One that got stuck half-way counts as stolen, and comes back when it is needed.
    let hold = if is_offline { Hold::Leaving } else { Hold::Online };
    blocks.set(root, job.block, hold);
}

/// The policy's choice among the blocks of kernel zones, by what is in them now.
fn choose(root: &Root, blocks: &Blocks) -> Vec<BlockId> {
    let flags = match PageFlags::open(root) {
        Ok(flags) => flags,
        Err(error) => {
            tracing::info!("no boot memory is made movable: {error}");
            return Vec::new();
        }
    };
    let mut views = blocks.views(&HeatMap::new(blocks.size()));
    for view in &mut views {
        let counted = blocks.size().range(view.id).and_then(|range| flags.census(range).ok());
        view.census = counted.map(|counts| census(&counts));
    }
    conversions(&views)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_sysfs::meminfo::Meminfo;
    use memtide_units::BlockSize;
    use rustix::io::Errno;
    use std::collections::BTreeSet;

    const PAGES: usize = 32768;

    fn guest() -> FakeRoot {
        crate::alarm::install_handler().unwrap();
        let fake = FakeRoot::new();
        let kind = |n| if n == 0 || n == 7 { FakeBlock::HOLE } else { FakeBlock::KERNEL };
        fake.add_blocks(BlockSize::X86_SMALL, (0..8).map(|n| (n, kind(n))));
        let available = ByteSize::from_mib(800);
        fake.set_meminfo(Meminfo { total: ByteSize::from_gib(1), available, ..Meminfo::default() });
        let (buddy, slab) = (1 << 10, 1 << 7);
        let mut flags = vec![buddy; 8 * PAGES];
        flags[PAGES] = slab;
        fake.put_page_flags(0, &flags);
        fake
    }

    fn converted(fake: &FakeRoot) -> (Converted, Blocks) {
        let root = fake.root();
        let mut blocks = Blocks::read(&root, &BTreeSet::new()).unwrap();
        let mut worker = Worker::start(&root, blocks.size()).unwrap();
        (convert(&root, &mut blocks, &mut worker), blocks)
    }

    #[test]
    fn free_boot_memory_becomes_movable_up_to_three_to_one() {
        let fake = guest();
        let (pass, blocks) = converted(&fake);
        assert_eq!(pass, Converted { done: 5, failed: 0 });
        assert_eq!((blocks.movable_count(), blocks.with(Hold::Online).len()), (5, 8));
    }

    #[test]
    fn a_second_start_has_nothing_left_to_do() {
        let fake = guest();
        converted(&fake);
        assert_eq!(converted(&fake).0, Converted { done: 0, failed: 0 });
    }

    #[test]
    fn a_block_that_refuses_is_passed_by() {
        let fake = guest();
        fake.refuse_block(BlockId(5), Errno::BUSY);
        let (pass, blocks) = converted(&fake);
        assert_eq!(pass, Converted { done: 4, failed: 1 });
        assert_eq!(blocks.with(Hold::Online).len(), 8);
    }
}
