//! The thread that changes blocks' states: one after the other, from a list that it is given.
//!
//! Offlining blocks: for milliseconds when the block is free, for seconds when it is full, and for
//! ever when its pages find no room. So it happens on a thread of its own, after a last look at
//! what is free, and in a kernel zone at what is in the block, under an [`Alarm`], and can be ended
//! from outside. Migration costs were seen not to show in PSI, so that look is not optional.
//!
//! The thread goes from one block to the next without asking: while the host drops the first, the
//! next are on their way, and whoever waits for the host has them ready to be reported.

mod deadlines;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use memtide_policy::guest::{Census, SkipReason, StealFailure, precheck};
use memtide_sysfs::kpageflags::{PageCensus, PageFlags};
use memtide_sysfs::meminfo::Meminfo;
use memtide_sysfs::memory::{Origins, State, StateRequest, WriteError, write_state};
use memtide_sysfs::{Error, Root, memory};
use memtide_units::{BlockId, BlockSize, ByteSize, GpaRange};
use rustix::event::EventfdFlags;

pub use self::deadlines::{KERNEL_DEADLINE, MOVABLE_DEADLINE, movable_deadline};

use self::deadlines::CONVERT_DEADLINE;
use crate::alarm::{Alarm, SIGNAL};
use crate::pace::timed;
use crate::pieces::PiecesError;
use crate::remove::{PlugError, Plugger, STRUCT_PAGE};

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
        /// What to look at first.
        look: Look,
    },
    /// Put it online in this way; plug it in before, where it was removed.
    Return(StateRequest),
    /// Remove what it belongs to, all of which is offline.
    Remove,
    /// Take it offline and put it online again in `ZONE_MOVABLE`.
    Convert {
        /// Must stay available.
        keep: ByteSize,
    },
}

/// What to look at before a block is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Is there room for what may be in it? Enough in `ZONE_MOVABLE`: the few pages there that do
    /// not move have the kernel say busy at once (mm/page_isolation.c, `has_unmovable_pages`), and
    /// counting takes 0.2 s for 128 MiB under emulation, in which a free block is gone ten times.
    AtRoom,
    /// The same for a block of which one making ([`memtide_sysfs::memory::Block::inode`]) is known not to
    /// hold its own `struct page`s: is it still that one, and still of no DIMM? All that plugs memory in need not be
    /// asked then.
    AtRoomOf(u64),
    /// Also: does all that is in it move? In a kernel zone most blocks fail for that.
    AtPages,
    /// Not at the block at all: it cannot be emptied, and pieces are to stand for it.
    ForPieces,
}

impl Look {
    /// Which making of the block it is taken for, where that is looked at.
    pub fn making(self) -> Option<u64> {
        match self {
            Self::AtRoomOf(making) => Some(making),
            Self::AtRoom | Self::AtPages | Self::ForPieces => None,
        }
    }
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
    /// One that left the block as it was.
    pub fn new(kind: StealFailure, text: impl ToString) -> Self {
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
    /// Processor time that it took. Work that the kernel leaves to threads of its own is in nobody's time.
    pub cost: Duration,
}

/// The thread, from outside. Dropping it ends the job at work and joins the thread.
#[derive(Debug)]
pub struct Worker {
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    wake: Arc<OwnedFd>,
    is_cancelled: Arc<AtomicBool>,
    stealing_us: Arc<AtomicU64>,
    /// What it was given and has not ended, the one at work first.
    given: VecDeque<Job>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. [`crate::alarm::install_handler`] must have been called.
    ///
    /// # Errors
    /// What eventfd(2) or thread creation says.
    pub fn start(root: &Root, size: BlockSize, plugger: Plugger) -> io::Result<Self> {
        let (jobs, todo) = channel();
        let (report, done) = channel();
        let wake =
            Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let stealing_us = Arc::new(AtomicU64::new(0));
        let hands = Hands {
            root: root.clone(),
            size,
            flags: PageFlags::open(root),
            plugger,
            is_cancelled: Arc::clone(&is_cancelled),
            stealing_us: Arc::clone(&stealing_us),
        };
        let waker = Arc::clone(&wake);
        let thread = std::thread::Builder::new()
            .name("memtide-blocks".into())
            .stack_size(STACK)
            .spawn(move || hands.work(&todo, &report, &waker))?;
        let (jobs, thread) = (Some(jobs), Some(thread));
        let given = VecDeque::new();
        Ok(Self { jobs, done, wake, is_cancelled, stealing_us, given, thread })
    }

    /// Processor time that steals have taken since the start, the one at work not counted. Work that the
    /// kernel leaves to threads of its own is in nobody's time.
    pub fn steal_time(&self) -> Duration {
        Duration::from_micros(self.stealing_us.load(Ordering::Relaxed))
    }

    /// The job at work, if any.
    pub fn current(&self) -> Option<Job> {
        self.given.front().copied()
    }

    /// Jobs that have not ended, the one at work first.
    pub fn jobs(&self) -> impl Iterator<Item = Job> {
        self.given.iter().copied()
    }

    /// Gives it jobs, to be done in this order, after those that it has and that have not been cancelled. False
    /// where the thread has ended.
    #[must_use]
    pub fn give(&mut self, jobs: impl IntoIterator<Item = Job>) -> bool {
        let Some(todo) = &self.jobs else { return false };
        if self.given.is_empty() {
            self.is_cancelled.store(false, Ordering::SeqCst);
        }
        for job in jobs {
            if todo.send(job).is_err() {
                return false;
            }
            self.given.push_back(job);
        }
        true
    }

    /// Whether what it has was cancelled, and has not ended yet. What it would be given now would end too.
    pub fn is_cancelled(&self) -> bool {
        !self.given.is_empty() && self.is_cancelled.load(Ordering::SeqCst)
    }

    /// Ends a steal or a conversion at work and those that were to follow it; a return or a removal is
    /// quick and always finishes. Each end comes through [`Self::take`] like any other, so this may be called
    /// again until all have come: a signal just before the system call is lost.
    pub fn cancel(&self) {
        let ends = |job: Job| !matches!(job.task, Task::Return(_) | Task::Remove);
        if !self.jobs().any(ends) {
            return;
        }
        self.is_cancelled.store(true, Ordering::SeqCst);
        // What finishes by itself is not disturbed; those behind it end before they begin.
        let Some(thread) = self.thread.as_ref().filter(|_| self.current().is_some_and(ends)) else {
            return;
        };
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
        self.given.pop_front();
        Some(done)
    }

    /// Waits for the job at work to end.
    pub fn wait(&mut self) -> Option<Done> {
        self.current()?;
        let done = self.done.recv().ok()?;
        self.given.pop_front();
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
        while !self.given.is_empty() && !thread.is_finished() {
            self.is_cancelled.store(true, Ordering::SeqCst);
            let _ = nix::sys::pthread::pthread_kill(thread.as_pthread_t(), SIGNAL);
            if self.done.recv_timeout(Duration::from_millis(20)).is_ok() {
                self.given.pop_front();
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
    plugger: Plugger,
    is_cancelled: Arc<AtomicBool>,
    stealing_us: Arc<AtomicU64>,
}

impl Hands {
    fn work(&self, todo: &Receiver<Job>, report: &Sender<Done>, wake: &OwnedFd) {
        let mut alarm = Alarm::of_this_thread();
        while let Ok(job) = todo.recv() {
            let (result, cost) = timed(|| match &mut alarm {
                Ok(alarm) => self.carry_out(job, alarm),
                Err(error) => Err(Failure::new(StealFailure::Busy, format!("no timer: {error}"))),
            });
            if matches!(job.task, Task::Steal { .. }) {
                self.stealing_us.fetch_add(cost.as_micros() as u64, Ordering::Relaxed);
            }
            if report.send(Done { job, result, cost }).is_err() {
                return;
            }
            let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
        }
    }

    fn carry_out(&self, job: Job, alarm: &mut Alarm) -> Result<(), Failure> {
        match job.task {
            Task::Steal { keep, look: Look::ForPieces, .. } => {
                self.check_wanted()?;
                self.take_pieces(job.block, keep)
            }
            Task::Steal { keep, deadline, look } => {
                self.check_wanted()?;
                self.look(job.block, keep, look)?;
                self.take_offline(job.block, deadline, alarm)
            }
            Task::Return(how) => self.put_online(job.block, how),
            Task::Remove => self.remove(job.block),
            Task::Convert { keep } => {
                self.check_wanted()?;
                self.look(job.block, keep, Look::AtPages)?;
                self.take_offline(job.block, CONVERT_DEADLINE, alarm)?;
                // Rather in a kernel zone again than offline.
                self.put_online(job.block, StateRequest::OnlineMovable)
                    .or_else(|_| self.put_online(job.block, StateRequest::Online))
            }
        }
    }

    /// Whatever fails, the block rests: the next try would find the same. Not where it is cancelled,
    /// which it looks for after each step.
    fn take_pieces(&self, block: BlockId, keep: ByteSize) -> Result<(), Failure> {
        let busy = |why: &dyn ToString| Failure::new(StealFailure::Busy, why.to_string());
        let pieces = self.plugger.pieces().ok_or_else(|| busy(&"no huge pages"))?;
        let is_wanted = || !self.is_cancelled.load(Ordering::SeqCst);
        pieces.take(block, self.size, keep, &is_wanted).map_err(|error| match error {
            PiecesError::Unwanted => Failure::new(StealFailure::Aborted, error),
            error => busy(&format!("no huge pages for {block}: {error}")),
        })
    }

    fn take_offline(
        &self,
        block: BlockId,
        deadline: Duration,
        alarm: &mut Alarm,
    ) -> Result<(), Failure> {
        self.check_wanted()?;
        let write = || write_state(&self.root, block, StateRequest::Offline);
        let written = alarm.around(deadline, write);
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failure(&error)),
            Err(error) => Err(Failure::new(StealFailure::Busy, format!("no deadline: {error}"))),
        }
    }

    fn check_wanted(&self) -> Result<(), Failure> {
        if self.is_cancelled.load(Ordering::SeqCst) {
            return Err(Failure::new(StealFailure::Aborted, "not wanted any more"));
        }
        Ok(())
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
    fn look(&self, block: BlockId, keep: ByteSize, look: Look) -> Result<(), Failure> {
        let unreadable = |error: Error| Failure::new(StealFailure::Busy, error);
        self.look_at_structs(block, look)?;
        let census = self.census(block, look).map_err(unreadable)?;
        let info = Meminfo::read(&self.root).map_err(unreadable)?;
        let memory = crate::senses::memory(&info);
        precheck(&memory, &census, self.size, keep).map_err(|skip| {
            let kind = match skip {
                SkipReason::Unmovable { .. } => StealFailure::Busy,
                SkipReason::NoRoom { .. } => StealFailure::NoRoom,
            };
            Failure::new(kind, format!("{block}: {skip}"))
        })
    }

    /// A block that may hold its own `struct page`s is not stolen, whatever a count would say: the host would
    /// drop them, and the kernel needs them still.
    fn look_at_structs(&self, block: BlockId, look: Look) -> Result<(), Failure> {
        let is_another =
            |making: u64| memory::inode(&self.root, block).is_ok_and(|now| now != making);
        let why = match look {
            Look::AtRoomOf(making) if is_another(making) => {
                "other memory has been plugged in there"
            }
            Look::AtRoomOf(_) if matches!(memory::dimm_of(&self.root, block), Ok(None)) => {
                return Ok(());
            }
            _ if !self.may_hold_own_structs(block) => return Ok(()),
            _ => "it may hold its own struct pages",
        };
        Err(Failure::new(StealFailure::Busy, format!("{block}: {why}")))
    }

    /// Where nobody counts, everything in the block has to be moved.
    fn census(&self, block: BlockId, look: Look) -> Result<Census, Error> {
        let to_migrate = self.size.size();
        match (look, &self.flags, self.size.range(block)) {
            (Look::AtPages, Ok(flags), Some(range)) => self.count(flags, range),
            _ => Ok(Census { to_migrate, unmovable_pages: 0 }),
        }
    }

    /// Whether it may, by what plugged it in, and its first pages do not show that it does not: one
    /// that is free, or a process's, holds no `struct page`. The kernel's parameter alone says
    /// nothing of blocks that were plugged in before somebody changed it.
    fn may_hold_own_structs(&self, block: BlockId) -> bool {
        let is_on = || memory::may_hold_own_structs(&self.root);
        let Ok(origins) = Origins::read(&self.root, self.size) else { return is_on() };
        if !origins.can_hold_own_structs(block) {
            return false;
        }
        is_on() || self.flags.as_ref().is_ok_and(|flags| !self.starts_with_others(flags, block))
    }

    fn starts_with_others(&self, flags: &PageFlags, block: BlockId) -> bool {
        let page = rustix::param::page_size() as u64;
        let structs = ByteSize::from_bytes(self.size.size().bytes() / page * STRUCT_PAGE);
        let first = self.size.range(block).and_then(|r| GpaRange::new(r.start(), structs).ok());
        let Some(Ok(counts)) = first.map(|first| flags.census(first)) else { return false };
        counts.free + counts.lru + counts.hugetlb > 0
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
        match self.plugger.put_online(block, how) {
            Ok(()) => Ok(()),
            // In the wanted state already: somebody was faster.
            Err(PlugError::Block(WriteError::Invalid { .. })) if self.is_online(block) => Ok(()),
            Err(error) => {
                Err(Failure { is_offline: true, ..Failure::new(StealFailure::Busy, error) })
            }
        }
    }

    fn remove(&self, block: BlockId) -> Result<(), Failure> {
        self.plugger.removers().remove(block).map_err(|error| Failure {
            is_offline: true,
            ..Failure::new(StealFailure::Busy, error)
        })
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
mod tests;
