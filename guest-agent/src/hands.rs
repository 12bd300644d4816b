//! What is to be done to blocks, in order: returns before steals.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use memtide_units::BlockId;

use crate::worker::{Done, Job, Task, Worker};

/// The worker, and what it will be given next. It is given either all returns that wait or all
/// steals, so that it need not wait for anybody between two blocks.
#[derive(Debug)]
pub struct Hands {
    worker: Worker,
    returns: Vec<Job>,
    steals: Vec<Job>,
    is_aborting: bool,
}

impl Hands {
    /// With nothing to do yet.
    pub fn new(worker: Worker) -> Self {
        Self { worker, returns: Vec::new(), steals: Vec::new(), is_aborting: false }
    }

    /// Puts jobs on the list of steals, in this order.
    pub fn steal(&mut self, jobs: impl IntoIterator<Item = Job>) {
        self.is_aborting = false;
        self.steals.extend(jobs);
        self.proceed();
    }

    /// Removes something. An abort before it is at work forgets it.
    pub fn remove(&mut self, block: BlockId) {
        self.steals.push(Job { block, task: Task::Remove });
        self.proceed();
    }

    /// Puts a block on the list of those to put online; a steal at work makes way for it.
    pub fn put_online(&mut self, job: Job) {
        self.returns.push(job);
        self.abort();
        self.proceed();
    }

    /// Empties the list of steals and ends those that the worker has.
    pub fn abort(&mut self) {
        self.steals.clear();
        self.is_aborting = self.is_stealing();
        if self.is_aborting {
            self.worker.cancel();
        }
    }

    /// True while a steal is at work or on the list.
    pub fn is_stealing(&self) -> bool {
        let at_work =
            self.worker.current().is_some_and(|job| matches!(job.task, Task::Steal { .. }));
        at_work || !self.steals.is_empty()
    }

    /// Processor time that steals have taken since the start.
    pub fn steal_time(&self) -> Duration {
        self.worker.steal_time()
    }

    /// True while anything is at work or on a list.
    pub fn is_busy(&self) -> bool {
        self.worker.current().is_some() || !self.returns.is_empty() || !self.steals.is_empty()
    }

    /// The job that has ended, if one has; the next ones are under way then.
    pub fn take(&mut self) -> Option<Done> {
        let done = self.worker.take();
        self.proceed();
        if self.is_aborting && self.is_stealing() {
            // The signal may have come just before the system call.
            self.worker.cancel();
        }
        done
    }

    fn proceed(&mut self) {
        if self.worker.current().is_some() {
            return;
        }
        let list = if self.returns.is_empty() { &mut self.steals } else { &mut self.returns };
        if !list.is_empty() && !self.worker.give(list.drain(..)) {
            tracing::error!("the thread that changes blocks has ended");
        }
    }
}

impl AsFd for Hands {
    /// Readable when a job has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.worker.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remove::Plugger;
    use crate::worker::{Look, MOVABLE_DEADLINE};
    use memtide_policy::guest::StealFailure;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_sysfs::meminfo::Meminfo;
    use memtide_sysfs::memory::StateRequest;
    use memtide_units::{BlockSize, ByteSize};
    use std::time::Instant;

    fn next(hands: &mut Hands) -> Done {
        let started = Instant::now();
        loop {
            if let Some(done) = hands.take() {
                return done;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "nothing ends");
            std::thread::yield_now();
        }
    }

    #[test]
    fn returns_come_before_steals_and_send_them_away() {
        crate::alarm::install_handler().unwrap();
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, (1..5).map(|n| (n, FakeBlock::MOVABLE)));
        let available = ByteSize::from_gib(1);
        fake.set_meminfo(Meminfo { total: available, available, ..Meminfo::default() });
        let plugger = Plugger::new(&fake.root(), "/nowhere".into());
        let worker = Worker::start(&fake.root(), BlockSize::X86_SMALL, plugger).unwrap();
        let mut hands = Hands::new(worker);
        let (keep, deadline) = (ByteSize::ZERO, MOVABLE_DEADLINE);
        let steal = Task::Steal { keep, deadline, look: Look::AtRoom };
        // So many that the worker is still at them when the return comes.
        let list = std::iter::once(4).chain(std::iter::repeat_n(3, 10_000)).chain([2]);
        hands.steal(list.map(|n| Job { block: BlockId(n), task: steal }));
        let task = Task::Return(StateRequest::OnlineMovable);
        assert_eq!(next(&mut hands).job.block, BlockId(4));
        hands.put_online(Job { block: BlockId(4), task });
        let mut ends = vec![];
        while hands.is_busy() {
            ends.push(next(&mut hands));
        }
        let [.., cut_off, returned] = &ends[..] else { panic!("{ends:?}") };
        assert_eq!((returned.job.task, &returned.result), (task, &Ok(())));
        assert_eq!(cut_off.job.block, BlockId(2));
        let why = cut_off.result.as_ref().unwrap_err().kind;
        assert_eq!(why, StealFailure::Aborted, "it was only on the list");
    }
}
