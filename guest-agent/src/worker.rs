//! The thread that changes blocks' states, one job at a time.
//!
//! Offlining blocks: for milliseconds when the block is free, for seconds when it is full, and for
//! ever when its pages find no room. So it happens on a thread of its own, after a last look at
//! what is in the block and at what is free, under an [`Alarm`], and can be ended from outside.
//! Migration costs were seen not to show in PSI, so that look is not optional.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use memtide_policy::guest::{Census, Memory, SkipReason, StealFailure, precheck};
use memtide_sysfs::kpageflags::{PageCensus, PageFlags};
use memtide_sysfs::meminfo::Meminfo;
use memtide_sysfs::memory::{State, StateRequest, WriteError, write_state};
use memtide_sysfs::{Error, Root, memory};
use memtide_units::{BlockId, BlockSize, ByteSize, GpaRange};
use rustix::event::EventfdFlags;

use crate::alarm::{Alarm, SIGNAL};

/// For a block in `ZONE_MOVABLE`. A full one of 128 MiB took up to 10.6 s under emulation, a tenth
/// of it on hardware.
pub const MOVABLE_DEADLINE: Duration = Duration::from_secs(20);
/// For a block in a kernel zone: a page that will not move has the kernel try for ever at full
/// speed, and there is another block to try.
pub const KERNEL_DEADLINE: Duration = Duration::from_secs(3);
/// A conversion is a favour to the future and must not hold up the start.
const CONVERT_DEADLINE: Duration = Duration::from_secs(2);
/// Parts of a block that are counted one after the other.
const SLICES: u64 = 16;
/// Reading files and making system calls need little stack.
const STACK: usize = 128 << 10;

/// Something to do with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Which block.
    pub block: BlockId,
    /// What.
    pub task: Task,
}

/// What to do with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Take it offline if that leaves so much available.
    Steal {
        /// Bytes.
        keep: ByteSize,
        /// Give up after this long.
        deadline: Duration,
    },
    /// Put it online in this way.
    Return(StateRequest),
    /// Take it offline and put it online again in `ZONE_MOVABLE`.
    Convert {
        /// Must stay available.
        keep: ByteSize,
    },
}

/// Why a job failed. The block is as it was before, except where `is_offline` says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the policy makes of it.
    pub kind: StealFailure,
    /// What to tell people.
    pub text: String,
    /// A conversion that got half-way, or a return that failed: the block is offline.
    pub is_offline: bool,
}

impl Failure {
    fn new(kind: StealFailure, text: impl ToString) -> Self {
        Self { kind, text: text.to_string(), is_offline: false }
    }
}

/// A job that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Which.
    pub job: Job,
    /// How.
    pub result: Result<(), Failure>,
}

/// The thread, from outside. Dropping it ends the job at work and joins the thread.
#[derive(Debug)]
pub struct Worker {
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    wake: Arc<OwnedFd>,
    is_cancelled: Arc<AtomicBool>,
    current: Option<Job>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. [`crate::alarm::install_handler`] must have been called.
    ///
    /// # Errors
    /// What eventfd(2) or thread creation says.
    pub fn start(root: &Root, size: BlockSize) -> io::Result<Self> {
        let (jobs, todo) = channel();
        let (report, done) = channel();
        let wake =
            Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let hands = Hands {
            root: root.clone(),
            size,
            flags: PageFlags::open(root),
            is_cancelled: Arc::clone(&is_cancelled),
        };
        let waker = Arc::clone(&wake);
        let thread = std::thread::Builder::new()
            .name("memtide-blocks".into())
            .stack_size(STACK)
            .spawn(move || hands.work(&todo, &report, &waker))?;
        let (jobs, thread) = (Some(jobs), Some(thread));
        Ok(Self { jobs, done, wake, is_cancelled, current: None, thread })
    }

    /// The job at work, if any.
    pub fn current(&self) -> Option<Job> {
        self.current
    }

    /// Gives it a job. False while it has one.
    #[must_use]
    pub fn give(&mut self, job: Job) -> bool {
        if self.current.is_some() {
            return false;
        }
        self.is_cancelled.store(false, Ordering::SeqCst);
        let given = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        self.current = given.then_some(job);
        given
    }

    /// Ends a steal or a conversion at work; a return is quick and always finishes. The end comes
    /// through [`Self::take`] like any other, so this may be called again until it has come: a
    /// signal just before the system call is lost.
    pub fn cancel(&self) {
        let ends = |job: Job| !matches!(job.task, Task::Return(_));
        let Some(thread) = self.thread.as_ref().filter(|_| self.current.is_some_and(ends)) else {
            return;
        };
        self.is_cancelled.store(true, Ordering::SeqCst);
        // The thread has not been joined, so the handle names a thread of ours.
        if let Err(error) = nix::sys::pthread::pthread_kill(thread.as_pthread_t(), SIGNAL) {
            tracing::debug!("the blocks' thread cannot be interrupted: {error}");
        }
    }

    /// The job that has ended, if it has.
    pub fn take(&mut self) -> Option<Done> {
        // First, and even if nothing has ended: the thread wakes us after it has handed over a
        // result, which may have been taken by then. What is left would wake us for ever.
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
        let done = self.done.try_recv().ok()?;
        self.current = None;
        Some(done)
    }

    /// Waits for the job at work to end.
    pub fn wait(&mut self) -> Option<Done> {
        self.current?;
        let done = self.done.recv().ok()?;
        self.current = None;
        Some(done)
    }
}

impl AsFd for Worker {
    /// Readable when a job has ended.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        let Some(thread) = self.thread.take() else { return };
        while self.current.is_some() && !thread.is_finished() {
            self.is_cancelled.store(true, Ordering::SeqCst);
            let _ = nix::sys::pthread::pthread_kill(thread.as_pthread_t(), SIGNAL);
            if self.done.recv_timeout(Duration::from_millis(20)).is_ok() {
                break;
            }
        }
        let _ = thread.join();
    }
}

/// What the thread works with.
struct Hands {
    root: Root,
    size: BlockSize,
    flags: Result<PageFlags, Error>,
    is_cancelled: Arc<AtomicBool>,
}

impl Hands {
    fn work(&self, todo: &Receiver<Job>, report: &Sender<Done>, wake: &OwnedFd) {
        let mut alarm = Alarm::of_this_thread();
        while let Ok(job) = todo.recv() {
            let result = match &mut alarm {
                Ok(alarm) => self.carry_out(job, alarm),
                Err(error) => Err(Failure::new(StealFailure::Busy, format!("no timer: {error}"))),
            };
            if report.send(Done { job, result }).is_err() {
                return;
            }
            let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
        }
    }

    fn carry_out(&self, job: Job, alarm: &mut Alarm) -> Result<(), Failure> {
        match job.task {
            Task::Steal { keep, deadline } => self.take_offline(job.block, keep, deadline, alarm),
            Task::Return(how) => self.put_online(job.block, how),
            Task::Convert { keep } => {
                self.take_offline(job.block, keep, CONVERT_DEADLINE, alarm)?;
                // Rather in a kernel zone again than offline.
                self.put_online(job.block, StateRequest::OnlineMovable)
                    .or_else(|_| self.put_online(job.block, StateRequest::Online))
            }
        }
    }

    fn take_offline(
        &self,
        block: BlockId,
        keep: ByteSize,
        deadline: Duration,
        alarm: &mut Alarm,
    ) -> Result<(), Failure> {
        self.look(block, keep)?;
        if self.is_cancelled.load(Ordering::SeqCst) {
            return Err(Failure::new(StealFailure::Aborted, "not wanted any more"));
        }
        let write = || write_state(&self.root, block, StateRequest::Offline);
        let written = alarm.around(deadline, write);
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failure(&error)),
            Err(error) => Err(Failure::new(StealFailure::Busy, format!("no deadline: {error}"))),
        }
    }

    fn failure(&self, error: &WriteError) -> Failure {
        let kind = match error {
            WriteError::Interrupted { .. } if self.is_cancelled.load(Ordering::SeqCst) => {
                StealFailure::Aborted
            }
            WriteError::Interrupted { .. } => StealFailure::TimedOut,
            WriteError::Busy { .. } | WriteError::Invalid { .. } | WriteError::Other(_) => {
                StealFailure::Busy
            }
        };
        Failure::new(kind, error)
    }

    /// The last look: can it be emptied, and is there room for what is in it?
    fn look(&self, block: BlockId, keep: ByteSize) -> Result<(), Failure> {
        let unreadable = |error: Error| Failure::new(StealFailure::Busy, error);
        let census = self.census(block).map_err(unreadable)?;
        let info = Meminfo::read(&self.root).map_err(unreadable)?;
        let memory = Memory { total: info.total, free: info.free, available: info.available };
        precheck(&memory, &census, self.size, keep).map_err(|skip| {
            let kind = match skip {
                SkipReason::Unmovable { .. } => StealFailure::Busy,
                SkipReason::NoRoom { .. } => StealFailure::NoRoom,
            };
            Failure::new(kind, format!("{block}: {skip}"))
        })
    }

    /// Where nobody can count, everything in the block has to be moved. And where blocks may hold
    /// their own `struct page`s none is stolen, whatever a count would say: the host would drop
    /// them, and the kernel needs them still.
    fn census(&self, block: BlockId) -> Result<Census, Error> {
        let to_migrate = self.size.size();
        if memory::may_hold_own_structs(&self.root) {
            return Ok(Census { to_migrate, unmovable_pages: 1 });
        }
        match (&self.flags, self.size.range(block)) {
            (Ok(flags), Some(range)) => self.count(flags, range),
            _ => Ok(Census { to_migrate, unmovable_pages: 0 }),
        }
    }

    /// Counts in slices, and stops at the first page that does not move: under emulation a whole
    /// block takes 0.2 s to count, and most blocks that fail do so in their first slice.
    fn count(&self, flags: &PageFlags, range: GpaRange) -> Result<Census, Error> {
        let slice = ByteSize::from_bytes(range.len().bytes().div_ceil(SLICES));
        let mut sum = Census::default();
        let mut at = range.start();
        while at < range.end() && sum.unmovable_pages == 0 {
            let left = ByteSize::from_bytes(range.end().0 - at.0).min(slice);
            let Ok(part) = GpaRange::new(at, left) else { break };
            let counted = census(&flags.census(part)?);
            sum.to_migrate += counted.to_migrate;
            sum.unmovable_pages += counted.unmovable_pages;
            at = part.end();
        }
        Ok(sum)
    }

    fn put_online(&self, block: BlockId, how: StateRequest) -> Result<(), Failure> {
        match write_state(&self.root, block, how) {
            Ok(()) => Ok(()),
            // In the wanted state already: somebody was faster.
            Err(WriteError::Invalid { .. }) if self.is_online(block) => Ok(()),
            Err(error) => {
                Err(Failure { is_offline: true, ..Failure::new(StealFailure::Busy, error) })
            }
        }
    }

    fn is_online(&self, block: BlockId) -> bool {
        memory::read(&self.root, block).is_ok_and(|block| block.state == State::Online)
    }
}

/// The kernel's page counts, as the policy wants them. Of the pages that say nothing of themselves
/// most are on per-CPU lists and go by themselves; room for them is counted all the same.
pub fn census(counts: &PageCensus) -> Census {
    let page = rustix::param::page_size() as u64;
    Census {
        to_migrate: ByteSize::from_bytes(counts.to_migrate().saturating_mul(page)),
        unmovable_pages: counts.unmovable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_sysfs::memory::{Zone, read};
    use rustix::io::Errno;

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
        let worker = Worker::start(&fake.root(), BlockSize::X86_SMALL).unwrap();
        (fake, worker)
    }

    fn steal_task(keep_mib: u64) -> Task {
        Task::Steal { keep: ByteSize::from_mib(keep_mib), deadline: MOVABLE_DEADLINE }
    }

    fn run(worker: &mut Worker, block: u64, task: Task) -> Result<(), StealFailure> {
        assert!(worker.give(Job { block: BlockId(block), task }));
        assert!(!worker.give(Job { block: BlockId(block), task }), "one at a time");
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
    fn where_blocks_may_hold_their_own_struct_pages_none_is_stolen_or_converted() {
        let (fake, mut worker) = guest(300);
        // From 6.11 on those pages carry no flag: the census takes them for pages that move.
        fake.put("sys/module/memory_hotplug/parameters/memmap_on_memory", "Y\n");
        assert_eq!(run(&mut worker, 2, steal_task(0)), Err(StealFailure::Busy));
        let convert = Task::Convert { keep: ByteSize::ZERO };
        assert_eq!(run(&mut worker, 1, convert), Err(StealFailure::Busy));
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
        assert_eq!(run(&mut worker, 3, steal(100)), Err(StealFailure::Busy));
        assert_eq!(run(&mut worker, 2, steal(200)), Err(StealFailure::NoRoom));
        fake.refuse_block(BlockId(2), Errno::BUSY);
        assert_eq!(run(&mut worker, 2, steal(100)), Err(StealFailure::Busy));
        fake.refuse_block(BlockId(2), Errno::INTR);
        assert_eq!(run(&mut worker, 2, steal(100)), Err(StealFailure::TimedOut));
        assert_eq!(state(&fake, 2).0, State::Online);
    }

    #[test]
    fn a_return_that_fails_says_that_the_block_is_offline() {
        let (fake, mut worker) = guest(300);
        assert_eq!(run(&mut worker, 2, steal_task(0)), Ok(()));
        fake.refuse_block(BlockId(2), Errno::NOMEM);
        assert!(worker.give(Job { block: BlockId(2), task: Task::Return(StateRequest::Online) }));
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
        assert!(worker.give(Job { block: BlockId(2), task: steal_task(0) }));
        let woken = loop {
            match poll(&mut [PollFd::new(&worker, PollFlags::IN)], None) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        assert_eq!(woken, Ok(1));
        assert!(worker.take().is_some() && worker.take().is_none());
        assert_eq!(
            poll(&mut [PollFd::new(&worker, PollFlags::IN)], Some(&Default::default())),
            Ok(0)
        );
    }
}
