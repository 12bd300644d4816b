//! What is to be done to blocks, in order: returns before steals, one at a time.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use crate::worker::{Done, Job, Task, Worker};

/// The worker and its list.
#[derive(Debug)]
pub struct Hands {
    worker: Worker,
    returns: VecDeque<Job>,
    steals: VecDeque<Job>,
    is_aborting: bool,
}

impl Hands {
    /// With nothing to do yet.
    pub fn new(worker: Worker) -> Self {
        Self { worker, returns: VecDeque::new(), steals: VecDeque::new(), is_aborting: false }
    }

    /// Puts jobs on the list of steals, in this order.
    pub fn steal(&mut self, jobs: impl IntoIterator<Item = Job>) {
        self.is_aborting = false;
        self.steals.extend(jobs);
        self.proceed();
    }

    /// Puts a block on the list of those to put online; a steal at work makes way for it.
    pub fn put_online(&mut self, job: Job) {
        self.returns.push_back(job);
        self.abort();
        self.proceed();
    }

    /// Empties the list of steals and ends the one at work.
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

    /// True while anything is at work or on a list.
    pub fn is_busy(&self) -> bool {
        self.worker.current().is_some() || !self.returns.is_empty() || !self.steals.is_empty()
    }

    /// The job that has ended, if one has; the next one is under way then.
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
        let next = self.returns.pop_front().or_else(|| self.steals.pop_front());
        if let Some(job) = next
            && !self.worker.give(job)
        {
            tracing::error!("{}: the thread that changes blocks has ended", job.block);
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
    use crate::worker::MOVABLE_DEADLINE;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_sysfs::meminfo::Meminfo;
    use memtide_sysfs::memory::StateRequest;
    use memtide_units::{BlockId, BlockSize, ByteSize};
    use std::time::{Duration, Instant};

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
        let mut hands = Hands::new(Worker::start(&fake.root(), BlockSize::X86_SMALL).unwrap());
        let steal = Task::Steal { keep: ByteSize::ZERO, deadline: MOVABLE_DEADLINE };
        hands.steal([4, 3, 2].map(|n| Job { block: BlockId(n), task: steal }));
        let task = Task::Return(StateRequest::OnlineMovable);
        assert_eq!(next(&mut hands).job.block, BlockId(4));
        hands.put_online(Job { block: BlockId(4), task });
        let (mut done, mut blocks) = (vec![], vec![]);
        while hands.is_busy() {
            let end = next(&mut hands);
            blocks.push(end.job.block);
            done.push(end.job.task);
        }
        assert_eq!(done.last(), Some(&task));
        assert!(!blocks.contains(&BlockId(2)), "it was only on the list");
    }
}
