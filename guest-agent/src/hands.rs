//! What is to be done to blocks, in order: returns before steals.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use memtide_units::BlockId;

use crate::worker::{Done, Job, Task, Worker};

/// The worker, and what it will be given next. It is given either all returns that wait or as many steals
/// as the host can keep up with, so that it need not wait for anybody between two blocks.
#[derive(Debug)]
pub struct Hands {
    worker: Worker,
    returns: Vec<Job>,
    steals: VecDeque<Job>,
    /// So many blocks may be taken before the host has dropped more.
    room: usize,
    is_aborting: bool,
}

impl Hands {
    /// With nothing to do yet, and no limit.
    pub fn new(worker: Worker) -> Self {
        let (returns, steals, room) = (Vec::new(), VecDeque::new(), usize::MAX);
        Self { worker, returns, steals, room, is_aborting: false }
    }

    /// So many blocks may be taken from now on, those at work included, before this is called again.
    pub fn set_room(&mut self, room: usize) {
        self.room = room;
        self.proceed();
    }

    /// Puts jobs on the list of steals, in this order.
    pub fn steal(&mut self, jobs: impl IntoIterator<Item = Job>) {
        self.is_aborting = false;
        self.steals.extend(jobs);
        self.proceed();
    }

    /// Removes something. An abort before it is at work forgets it.
    pub fn remove(&mut self, block: BlockId) {
        self.steals.push_back(Job { block, task: Task::Remove });
        self.proceed();
    }

    /// Makes a block movable. An abort forgets it, or ends it.
    pub fn convert(&mut self, job: Job) {
        self.steals.push_back(job);
        self.proceed();
    }

    /// Puts a block on the list of those to put online; a steal or a conversion at work makes way for it.
    pub fn put_online(&mut self, job: Job) {
        self.returns.push(job);
        self.abort();
        self.proceed();
    }

    /// Empties the list of steals and ends those that the worker has, and a conversion.
    pub fn abort(&mut self) {
        self.steals.clear();
        self.is_aborting = self.worker.jobs().any(makes_way);
        if self.is_aborting {
            self.worker.cancel();
        }
    }

    /// Takes no more than so many of the blocks that it has to take. Where the worker has more of them already,
    /// it ends those: who wants the first ones still asks for them anew.
    pub fn shorten(&mut self, to: u64) {
        let at_work = self.worker.jobs().filter(|job| is_steal(*job)).count();
        match usize::try_from(to).unwrap_or(usize::MAX).checked_sub(at_work) {
            Some(left) => self.steals.truncate(left),
            None => self.abort(),
        }
    }

    /// True while a steal is at work, behind something that is, or on the list.
    pub fn is_stealing(&self) -> bool {
        self.worker.jobs().any(is_steal) || !self.steals.is_empty()
    }

    /// True while something is at work; what is on a list alone waits for room.
    pub fn is_at_work(&self) -> bool {
        self.worker.current().is_some()
    }

    /// Processor time that steals have taken since the start.
    pub fn steal_time(&self) -> Duration {
        self.worker.steal_time()
    }

    /// True while anything is at work or on a list.
    pub fn is_busy(&self) -> bool {
        self.is_at_work() || !self.returns.is_empty() || !self.steals.is_empty()
    }

    /// The job that has ended, if one has; the next ones are under way then.
    pub fn take(&mut self) -> Option<Done> {
        let done = self.worker.take();
        if done.as_ref().is_some_and(|done| is_steal(done.job) && done.result.is_ok()) {
            self.room = self.room.saturating_sub(1);
        }
        self.proceed();
        if self.is_aborting && self.worker.jobs().any(makes_way) {
            // The signal may have come just before the system call.
            self.worker.cancel();
        }
        done
    }

    fn proceed(&mut self) {
        let current = self.worker.current();
        let has_ended = if !self.returns.is_empty() {
            current.is_none() && !self.worker.give(self.returns.drain(..))
        } else if current.is_none_or(is_steal) && !self.worker.is_cancelled() {
            let count = self.steals_that_fit();
            count > 0 && !self.worker.give(self.steals.drain(..count))
        } else {
            false
        };
        if has_ended {
            tracing::error!("the thread that changes blocks has ended");
        }
    }

    /// How many of the list, from its front, there is room for.
    fn steals_that_fit(&self) -> usize {
        let mut room = self.room.saturating_sub(self.worker.jobs().count());
        let fits = |job: &&Job| {
            let fits = room > 0 || !is_steal(**job);
            room = room.saturating_sub(usize::from(is_steal(**job)));
            fits
        };
        self.steals.iter().take_while(fits).count()
    }
}

/// Whether it takes memory for the host.
fn is_steal(job: Job) -> bool {
    matches!(job.task, Task::Steal { .. })
}

/// Whether a return need not wait for its end.
fn makes_way(job: Job) -> bool {
    matches!(job.task, Task::Steal { .. } | Task::Convert { .. })
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

    fn hands() -> (FakeRoot, Hands) {
        crate::alarm::install_handler().unwrap();
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, (1..5).map(|n| (n, FakeBlock::MOVABLE)));
        let available = ByteSize::from_gib(1);
        fake.set_meminfo(Meminfo { total: available, available, ..Meminfo::default() });
        let plugger = Plugger::for_tests(&fake.root());
        let worker = Worker::start(&fake.root(), BlockSize::X86_SMALL, plugger).unwrap();
        (fake, Hands::new(worker))
    }

    #[test]
    fn steals_wait_for_room_and_nothing_else_does() {
        let (_fake, mut hands) = hands();
        hands.set_room(2);
        let (keep, deadline) = (ByteSize::ZERO, MOVABLE_DEADLINE);
        let task = Task::Steal { keep, deadline, look: Look::AtRoom };
        hands.steal([4, 3, 2, 1].map(|n| Job { block: BlockId(n), task }));
        let ended = [next(&mut hands), next(&mut hands)].map(|done| done.job.block.0);
        assert_eq!((ended, hands.is_at_work(), hands.is_stealing()), ([4, 3], false, true));
        hands.set_room(1);
        assert_eq!(next(&mut hands).job.block, BlockId(2));
        assert!(!hands.is_at_work());
        let task = Task::Return(StateRequest::OnlineMovable);
        hands.put_online(Job { block: BlockId(4), task });
        assert_eq!(next(&mut hands).job.block, BlockId(4));
        assert!(!hands.is_busy(), "what waited has made way");
        hands.set_room(0);
        hands.remove(BlockId(3));
        assert_eq!(next(&mut hands).job.task, Task::Remove);
    }

    #[test]
    fn a_list_is_shortened_at_its_end_and_what_is_at_work_ends_where_even_that_is_too_much() {
        let (fake, mut hands) = hands();
        let (keep, deadline) = (ByteSize::ZERO, MOVABLE_DEADLINE);
        let task = Task::Steal { keep, deadline, look: Look::AtRoom };
        let state = "sys/devices/system/memory/memory4/state";
        fake.stall(state);
        hands.set_room(2);
        hands.steal([4, 3, 2, 1].map(|n| Job { block: BlockId(n), task }));
        hands.shorten(9);
        hands.shorten(3);
        fake.allow(state);
        hands.set_room(4);
        let ended = [(); 3].map(|()| next(&mut hands).job.block.0);
        assert_eq!((ended, hands.is_busy()), ([4, 3, 2], false));
        // So many that the worker is still at them.
        let many = 10_000;
        hands.set_room(many);
        hands.steal(std::iter::repeat_n(Job { block: BlockId(1), task }, many));
        hands.shorten(1);
        let mut last = None;
        while hands.is_busy() {
            last = hands.take().or(last);
        }
        assert_eq!(last.unwrap().result.unwrap_err().kind, StealFailure::Aborted);
    }

    #[test]
    fn a_conversion_makes_way_for_a_return() {
        let (fake, mut hands) = hands();
        fake.put_page_flags(0, &[1 << 10; 5 * 32768]);
        let state = "sys/devices/system/memory/memory3/state";
        fake.stall(state);
        let convert = |block| Job { block, task: Task::Convert { keep: ByteSize::ZERO } };
        hands.convert(convert(BlockId(3)));
        // What is at work already is no longer on the list.
        let started = Instant::now();
        while !fake.writes().iter().any(|(path, _)| path == state) {
            assert!(started.elapsed() < Duration::from_secs(10), "it does not begin");
        }
        assert!(!hands.is_stealing());
        let task = Task::Return(StateRequest::OnlineMovable);
        hands.put_online(Job { block: BlockId(4), task });
        assert!(hands.worker.is_cancelled(), "it is interrupted");
        // The fake's write is not, and the block does not stay offline.
        fake.allow(state);
        let ended = [next(&mut hands), next(&mut hands)].map(|done| done.job.block.0);
        assert_eq!((ended, hands.is_busy()), ([3, 4], false));
        let zone = memtide_sysfs::memory::read(&fake.root(), BlockId(3)).unwrap().current_zone();
        assert_eq!(zone, Some(memtide_sysfs::memory::Zone::Movable));
    }

    #[test]
    fn returns_come_before_steals_and_send_them_away() {
        let (_fake, mut hands) = hands();
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
