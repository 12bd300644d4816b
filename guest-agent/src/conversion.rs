//! Makes boot memory movable at start, so that it can be stolen later.
//!
//! A boot block that goes offline and comes back with `online_movable` is in `ZONE_MOVABLE` from
//! then on; the whole pass over a fresh 2 GiB guest was measured at 0.2 to 0.8 s. It is worth most
//! right after boot, before kernel pages are everywhere.

use std::time::{Duration, Instant};

use memtide_policy::guest::{Conversions, Headroom, HeatMap, conversions};
use memtide_sysfs::Root;
use memtide_units::ByteSize;

use crate::blocks::{Blocks, Hold};
use crate::worker::{Job, Task, Worker};

/// The whole pass ends after this long, wherever it is.
const PASS_DEADLINE: Duration = Duration::from_secs(20);

/// What a pass has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Blocks that are movable now and were not before.
    pub done: usize,
    /// Blocks that were tried and could not be.
    pub failed: usize,
}

/// Converts what the policy chooses. Must not run while the device works on anything.
pub fn convert(root: &Root, blocks: &mut Blocks, worker: &mut Worker) -> Converted {
    let started = Instant::now();
    let Conversions { candidates, most } = conversions(&blocks.views(&HeatMap::new(blocks.size())));
    let keep = Headroom::of(blocks.online(), blocks.size(), None, ByteSize::ZERO).low;
    let mut pass = Converted::default();
    for block in candidates {
        if pass.done == most {
            break;
        }
        if started.elapsed() > PASS_DEADLINE {
            tracing::info!("no more boot memory is made movable: time is up");
            break;
        }
        match convert_one(root, blocks, worker, Job { block, task: Task::Convert { keep } }) {
            Ok(()) => pass.done += 1,
            Err(why) => {
                tracing::debug!("{block} stays as it is: {why}");
                pass.failed += 1;
            }
        }
    }
    tracing::info!(
        "{} blocks were made movable in {} ms ({} could not be); {} of {} are movable now",
        pass.done,
        started.elapsed().as_millis(),
        pass.failed,
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
) -> Result<(), String> {
    let done = worker.give([job]).then(|| worker.wait()).flatten();
    let result = done.ok_or("the thread that changes blocks has ended")?.result;
    // One that got stuck half-way counts as stolen, and comes back when it is needed.
    let is_offline = result.as_ref().is_err_and(|failure| failure.is_offline);
    blocks.set(root, job.block, if is_offline { Hold::Leaving } else { Hold::Online });
    result.map_err(|failure| failure.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remove::Plugger;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_sysfs::meminfo::Meminfo;
    use memtide_units::{BlockId, BlockSize};
    use rustix::io::Errno;

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
        let plugger = Plugger::for_tests(&root);
        let seen = crate::runtime::Seen::default();
        let mut blocks = Blocks::read(&root, &seen, plugger.removers()).unwrap();
        let mut worker = Worker::start(&root, blocks.size(), plugger).unwrap();
        (convert(&root, &mut blocks, &mut worker), blocks)
    }

    #[test]
    fn free_boot_memory_becomes_movable_up_to_three_to_one() {
        let fake = guest();
        let (pass, blocks) = converted(&fake);
        assert_eq!(pass, Converted { done: 5, failed: 1 });
        assert_eq!((blocks.movable_count(), blocks.with(Hold::Online).len()), (5, 8));
    }

    #[test]
    fn a_second_pass_converts_nothing_more() {
        let fake = guest();
        converted(&fake);
        assert_eq!(converted(&fake).0.done, 0);
    }

    #[test]
    fn a_block_that_refuses_is_passed_by() {
        let fake = guest();
        fake.refuse_block(BlockId(5), Errno::BUSY);
        let (pass, blocks) = converted(&fake);
        assert_eq!(pass, Converted { done: 4, failed: 2 });
        assert_eq!(blocks.with(Hold::Online).len(), 8);
    }
}
