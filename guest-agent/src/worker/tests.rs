use super::*;
use crate::pieces::tests::add_huge_pages;
use crate::pieces::{Grip, Held, Pieces};
use memtide_sysfs::fake::{FakeBlock, FakeRoot};
use memtide_sysfs::memory::{Zone, read};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::sync::Mutex;

const BUDDY: u64 = 1 << 10;
const SLAB: u64 = 1 << 7;
const PAGES: usize = 32768;

/// Block 1 is the kernel's, 2 and 3 are movable; all free but one slab page in block 3.
fn guest(available_mib: u64) -> (FakeRoot, Worker) {
    crate::alarm::install_handler().unwrap();
    let fake = FakeRoot::new();
    let blocks = [(1, FakeBlock::KERNEL), (2, FakeBlock::MOVABLE), (3, FakeBlock::MOVABLE)];
    fake.add_blocks(BlockSize::X86_SMALL, blocks);
    fake.set_meminfo(Meminfo {
        total: ByteSize::from_mib(384),
        available: ByteSize::from_mib(available_mib),
        ..Meminfo::default()
    });
    let mut flags = vec![BUDDY; 3 * PAGES];
    flags[2 * PAGES + 7] = SLAB;
    fake.put_page_flags(PAGES, &flags);
    let plugger = Plugger::for_tests(&fake.root());
    let worker = Worker::start(&fake.root(), BlockSize::X86_SMALL, plugger).unwrap();
    (fake, worker)
}

fn steal_task(keep_mib: u64) -> Task {
    let keep = ByteSize::from_mib(keep_mib);
    Task::Steal { keep, deadline: MOVABLE_DEADLINE, look: Look::AtRoom }
}

fn run(worker: &mut Worker, block: u64, task: Task) -> Result<(), StealFailure> {
    assert!(worker.give([Job { block: BlockId(block), task }]));
    worker.wait().unwrap().result.map_err(|failure| failure.kind)
}

fn state(fake: &FakeRoot, block: u64) -> (State, Option<Zone>) {
    let block = read(&fake.root(), BlockId(block)).unwrap();
    (block.state, block.current_zone())
}

#[test]
fn a_block_is_stolen_and_returned() {
    let (fake, mut worker) = guest(300);
    let steal = steal_task(100);
    assert_eq!(run(&mut worker, 2, steal), Ok(()));
    assert_eq!(state(&fake, 2).0, State::Offline);
    let back = Task::Return(StateRequest::OnlineMovable);
    assert_eq!(run(&mut worker, 2, back), Ok(()));
    assert_eq!(run(&mut worker, 2, back), Ok(()), "it is online already");
    assert_eq!(state(&fake, 2), (State::Online, Some(Zone::Movable)));
}

#[test]
fn a_block_that_may_hold_its_own_struct_pages_is_not_stolen_or_converted() {
    let (fake, mut worker) = guest(300);
    [1, 2].iter().for_each(|block| fake.put_into_dimm(BlockId(*block), "PNP0C80:00"));
    // From 6.11 on those pages carry no flag: the census takes them for pages that move.
    fake.put("sys/module/memory_hotplug/parameters/memmap_on_memory", "Y\n");
    assert_eq!(run(&mut worker, 2, steal_task(0)), Err(StealFailure::Busy));
    let convert = Task::Convert { keep: ByteSize::ZERO };
    assert_eq!(run(&mut worker, 1, convert), Err(StealFailure::Busy));
    assert_eq!(fake.writes(), []);
    assert_eq!(run(&mut worker, 3, steal_task(0)), Ok(()), "it was there at boot");
}

/// Plugged in while the parameter was on; somebody has switched it off since.
#[test]
fn a_dimm_whose_first_pages_may_be_struct_pages_is_not_stolen() {
    let (fake, mut worker) = guest(300);
    [2, 3].iter().for_each(|block| fake.put_into_dimm(BlockId(*block), "PNP0C80:00"));
    let mut flags = vec![BUDDY; 3 * PAGES];
    flags[PAGES..PAGES + 512].fill(0);
    fake.put_page_flags(PAGES, &flags);
    assert_eq!(run(&mut worker, 2, steal_task(0)), Err(StealFailure::Busy));
    assert_eq!(run(&mut worker, 3, steal_task(0)), Ok(()), "its first pages are free");
}

#[test]
fn a_block_known_to_be_bare_is_stolen_as_long_as_it_is_that_one() {
    let (fake, mut worker) = guest(300);
    let making = memtide_sysfs::memory::inode(&fake.root(), BlockId(2)).unwrap();
    let steal = |making| {
        let look = Look::AtRoomOf(making);
        Task::Steal { keep: ByteSize::ZERO, deadline: MOVABLE_DEADLINE, look }
    };
    assert_eq!(run(&mut worker, 2, steal(making + 1)), Err(StealFailure::Busy));
    assert_eq!(fake.writes(), []);
    assert_eq!(run(&mut worker, 2, steal(making)), Ok(()));
}

/// The kernel says that a block is of a DIMM a moment after it is there.
#[test]
fn a_block_that_turns_out_to_be_of_a_dimm_is_looked_at_like_one() {
    let (fake, mut worker) = guest(300);
    let making = memtide_sysfs::memory::inode(&fake.root(), BlockId(2)).unwrap();
    fake.put_into_dimm(BlockId(2), "PNP0C80:00");
    fake.put("sys/module/memory_hotplug/parameters/memmap_on_memory", "Y\n");
    let look = Look::AtRoomOf(making);
    let steal = Task::Steal { keep: ByteSize::ZERO, deadline: MOVABLE_DEADLINE, look };
    assert_eq!(run(&mut worker, 2, steal), Err(StealFailure::Busy));
    assert_eq!(fake.writes(), []);
}

#[test]
fn a_kernel_block_is_converted() {
    let (fake, mut worker) = guest(300);
    let convert = Task::Convert { keep: ByteSize::from_mib(100) };
    assert_eq!(run(&mut worker, 1, convert), Ok(()));
    assert_eq!(state(&fake, 1), (State::Online, Some(Zone::Movable)));
}

#[test]
fn a_block_is_left_alone_when_it_cannot_go_or_there_is_no_room() {
    let (fake, mut worker) = guest(300);
    let steal = |keep| steal_task(keep);
    let (keep, deadline) = (ByteSize::from_mib(100), KERNEL_DEADLINE);
    let counted = Task::Steal { keep, deadline, look: Look::AtPages };
    assert_eq!(run(&mut worker, 3, counted), Err(StealFailure::Busy));
    assert_eq!(fake.writes(), [], "a page that does not move lies in it");
    assert_eq!(run(&mut worker, 2, steal(200)), Err(StealFailure::NoRoom));
    fake.refuse_block(BlockId(2), Errno::BUSY);
    assert_eq!(run(&mut worker, 2, steal(100)), Err(StealFailure::Busy));
    fake.refuse_block(BlockId(2), Errno::INTR);
    assert_eq!(run(&mut worker, 2, steal(100)), Err(StealFailure::TimedOut));
    assert_eq!(state(&fake, 2).0, State::Online);
}

#[test]
fn a_list_is_worked_off_in_order_and_its_end_is_cut_off_by_a_cancel() {
    let (_fake, mut worker) = guest(300);
    let job = |block| Job { block: BlockId(block), task: steal_task(0) };
    assert!(worker.give([job(3)]) && worker.give([job(2)]));
    let blocks = [worker.wait().unwrap(), worker.wait().unwrap()].map(|done| done.job.block.0);
    assert_eq!(blocks, [3, 2]);
    assert_eq!(worker.wait(), None);
    // A list so long that the cancel comes before its end, whatever the two threads do.
    let many = 10_000;
    assert!(worker.give((0..many).map(|_| job(2))));
    worker.cancel();
    assert!(worker.is_cancelled());
    let ends: Vec<_> = std::iter::from_fn(|| worker.wait()).map(|done| done.result).collect();
    assert_eq!(ends.len(), many);
    let last = ends.last().unwrap().as_ref().unwrap_err();
    assert_eq!(last.kind, StealFailure::Aborted);
    assert!(!worker.is_cancelled(), "all of it has ended");
}

#[test]
fn what_waits_behind_a_removal_is_cut_off_by_a_cancel_too() {
    let (_fake, mut worker) = guest(300);
    let job = |task| Job { block: BlockId(2), task };
    let many = 10_000;
    let steals = std::iter::repeat_n(job(steal_task(0)), many);
    assert!(worker.give(std::iter::once(job(Task::Remove)).chain(steals)));
    // By the books the removal is at work: nobody has taken its end.
    worker.cancel();
    assert!(worker.is_cancelled());
    let last = std::iter::from_fn(|| worker.wait()).last().unwrap();
    assert_eq!(last.result.unwrap_err().kind, StealFailure::Aborted);
}

/// Says when it has begun with a step, and ends it when it is told to.
#[derive(Debug)]
struct SlowGrip {
    begun: Sender<()>,
    goes_on: Mutex<Receiver<()>>,
}

impl Grip for SlowGrip {
    fn hold(&self, _: &File, _: Range<u64>, _: &mut Held) -> io::Result<()> {
        self.begun.send(()).map_err(io::Error::other)?;
        let goes_on = self.goes_on.lock().unwrap();
        goes_on.recv_timeout(Duration::from_secs(10)).map_err(io::Error::other)
    }
}

#[test]
fn memory_in_pieces_is_taken_no_further_than_the_step_at_work_once_that_is_cancelled() {
    let (fake, _) = guest(300);
    add_huge_pages(&fake);
    let dir = tempfile::tempdir().unwrap();
    let ((begun, begins), (go_on, goes_on)) = (channel(), channel());
    let grip = Arc::new(SlowGrip { begun, goes_on: Mutex::new(goes_on) });
    let pieces = Pieces::with_grip(&fake.root(), dir.path().join("huge_pages"), grip).unwrap();
    let plugger = Plugger::for_tests(&fake.root()).with_pieces(Some(pieces.clone()));
    let mut worker = Worker::start(&fake.root(), BlockSize::X86_SMALL, plugger).unwrap();
    let (keep, deadline) = (ByteSize::ZERO, KERNEL_DEADLINE);
    let task = Task::Steal { keep, deadline, look: Look::ForPieces };
    assert!(worker.give([Job { block: BlockId(1), task }]));
    begins.recv_timeout(Duration::from_secs(10)).unwrap();
    worker.cancel();
    go_on.send(()).unwrap();
    let failure = worker.wait().unwrap().result.unwrap_err();
    assert_eq!(failure.kind, StealFailure::Aborted, "{}", failure.text);
    assert!(begins.try_recv().is_err(), "there was another step");
    assert!(pieces.left().is_empty() && pieces.count() == 0);
}

#[test]
fn a_return_that_fails_says_that_the_block_is_offline() {
    let (fake, mut worker) = guest(300);
    assert_eq!(run(&mut worker, 2, steal_task(0)), Ok(()));
    fake.refuse_block(BlockId(2), Errno::NOMEM);
    let task = Task::Return(StateRequest::Online);
    assert!(worker.give([Job { block: BlockId(2), task }]));
    assert!(worker.wait().unwrap().result.unwrap_err().is_offline);
}

#[test]
fn a_job_that_was_waited_for_wakes_nobody_for_ever() {
    use rustix::event::{PollFd, PollFlags, poll};
    let (_fake, mut worker) = guest(300);
    run(&mut worker, 2, steal_task(0)).unwrap();
    // The thread says that it has ended a moment after it has handed over the result.
    while poll(&mut [PollFd::new(&worker, PollFlags::IN)], None) != Ok(1) {}
    assert!(worker.take().is_none());
    let left = poll(&mut [PollFd::new(&worker, PollFlags::IN)], Some(&Default::default()));
    assert_eq!(left, Ok(0));
}

#[test]
fn the_end_of_a_job_wakes_whoever_polls() {
    use rustix::event::{PollFd, PollFlags, poll};
    let (_fake, mut worker) = guest(300);
    assert!(worker.give([Job { block: BlockId(2), task: steal_task(0) }]));
    let woken = loop {
        match poll(&mut [PollFd::new(&worker, PollFlags::IN)], None) {
            Err(Errno::INTR) => {}
            other => break other,
        }
    };
    assert_eq!(woken, Ok(1));
    assert!(worker.take().is_some() && worker.take().is_none());
    assert_eq!(poll(&mut [PollFd::new(&worker, PollFlags::IN)], Some(&Default::default())), Ok(0));
}

#[test]
fn a_larger_block_has_longer_but_not_for_ever() {
    let deadline = |mib| {
        let size = BlockSize::new(ByteSize::from_mib(mib)).unwrap();
        movable_deadline(size).as_secs()
    };
    assert_eq!([64, 128, 256, 1024, 2048].map(deadline), [20, 20, 40, 160, 180]);
}
