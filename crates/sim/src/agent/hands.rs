//! The thread that changes blocks: one after the other, returns before steals, with a last look
//! before each steal and a deadline on it (guest-agent's `hands.rs` and `worker.rs`).

use std::collections::VecDeque;
use std::time::Duration;

use memtide_policy::guest::{Census, SkipReason, StealFailure, precheck};
use memtide_units::{BlockId, ByteSize, Instant};

use crate::kernel::{End, Kernel, Zone};

/// For a block in `ZONE_MOVABLE`, by its size, and for one in a kernel zone.
const MOVABLE_DEADLINE: Duration = Duration::from_secs(20);
const MOVABLE_DEADLINE_MOST: Duration = Duration::from_secs(180);
const KERNEL_DEADLINE: Duration = Duration::from_secs(3);

/// What is done to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Taken offline, if that leaves so much available.
    Steal { keep: ByteSize },
    /// Put online.
    Return,
}

/// A job that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) block: BlockId,
    pub(super) task: Task,
    pub(super) result: Result<(), StealFailure>,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    block: BlockId,
    task: Task,
    began: Instant,
    /// A return ends then, a steal is ended then.
    until: Instant,
}

/// The thread, and what it will do next.
#[derive(Debug, Default)]
pub(super) struct Hands {
    at_work: Option<Job>,
    steals: VecDeque<(BlockId, ByteSize)>,
    returns: VecDeque<BlockId>,
    is_aborting: bool,
    /// When the last job ended: the next one starts then, in the middle of a tick.
    free_since: Instant,
    /// What steals have taken in all.
    stealing: Duration,
}

impl Hands {
    /// To be taken offline, in this order.
    pub(super) fn steal(&mut self, blocks: Vec<BlockId>, keep: ByteSize) {
        self.is_aborting = false;
        self.steals.extend(blocks.into_iter().map(|block| (block, keep)));
    }

    /// To be put online: a steal at work makes way.
    pub(super) fn put_online(&mut self, now: Instant, block: BlockId) {
        self.returns.push_back(block);
        self.free_since = self.free_since.max(now);
        self.abort();
    }

    /// Ends the steal at work and those that were to follow.
    pub(super) fn abort(&mut self) {
        self.is_aborting = self.is_stealing();
    }

    /// Takes no more than so many of those that it has; the one at work ends only where that is none.
    pub(super) fn shorten(&mut self, to: u64) {
        let to = usize::try_from(to).unwrap_or(usize::MAX);
        match to.checked_sub(usize::from(self.at_work_on_steal())) {
            Some(left) => self.steals.truncate(left),
            None => self.abort(),
        }
    }

    fn at_work_on_steal(&self) -> bool {
        self.at_work.is_some_and(|job| matches!(job.task, Task::Steal { .. }))
    }

    /// True while a steal is at work or to come.
    pub(super) fn is_stealing(&self) -> bool {
        self.at_work_on_steal() || !self.steals.is_empty()
    }

    /// Processor time that steals have taken: all of it, as if nothing was waited for in between.
    pub(super) fn steal_time(&self) -> Duration {
        self.stealing
    }

    /// One tick; answers with what has ended in it.
    pub(super) fn work(&mut self, now: Instant, kernel: &mut Kernel) -> Vec<Done> {
        let mut ended = Vec::new();
        if self.is_aborting {
            let aborted = |(block, keep)| Done {
                block,
                task: Task::Steal { keep },
                result: Err(StealFailure::Aborted),
            };
            ended.extend(self.steals.drain(..).map(aborted));
        }
        loop {
            match self.at_work {
                Some(job) => {
                    let Some(done) = self.end_of(now, job, kernel) else { break };
                    self.at_work = None;
                    ended.push(done);
                }
                None => match self.begin(now, kernel) {
                    Some(Err(done)) => ended.push(done),
                    Some(Ok(job)) => self.at_work = Some(job),
                    None => break,
                },
            }
        }
        self.is_aborting &= self.is_stealing();
        ended
    }

    /// How the job at work has ended, if it has.
    fn end_of(&mut self, now: Instant, job: Job, kernel: &mut Kernel) -> Option<Done> {
        let Job { block, task, began, until } = job;
        let result = match task {
            Task::Return if now < until => return None,
            Task::Return => {
                kernel.put_online(block, Zone::Movable);
                self.free_since = until;
                Ok(())
            }
            Task::Steal { .. } => {
                let result = match kernel.offline_end() {
                    Some(End::Offline) => Ok(()),
                    Some(End::Busy) => Err(StealFailure::Busy),
                    None if self.is_aborting => Err(StealFailure::Aborted),
                    None if now >= until => Err(StealFailure::TimedOut),
                    None => return None,
                };
                kernel.interrupt_offline();
                self.free_since = now;
                self.stealing += now.since(began);
                result
            }
        };
        Some(Done { block, task, result })
    }

    /// The next job: begun, or over at once.
    fn begin(&mut self, now: Instant, kernel: &mut Kernel) -> Option<Result<Job, Done>> {
        if let Some(block) = self.returns.pop_front() {
            let until = self.free_since + kernel.onlining_time();
            return Some(Ok(Job { block, task: Task::Return, began: now, until }));
        }
        let (block, keep) = self.steals.pop_front()?;
        let task = Task::Steal { keep };
        let refused = |failure| Done { block, task, result: Err(failure) };
        Some(match look_and_write(now, block, keep, kernel) {
            Ok(deadline) => Ok(Job { block, task, began: now, until: now + deadline }),
            Err(failure) => Err(refused(failure)),
        })
    }
}

/// The last look, and the write.
fn look_and_write(
    now: Instant,
    block: BlockId,
    keep: ByteSize,
    kernel: &mut Kernel,
) -> Result<Duration, StealFailure> {
    let (census, deadline) = match kernel.block(block).zone {
        // Nobody counts there: all of it might have to move.
        Zone::Movable => {
            let to_migrate = kernel.unit().size();
            let small_blocks = u32::try_from(to_migrate.mib().div_ceil(128)).unwrap_or(u32::MAX);
            let deadline = MOVABLE_DEADLINE.saturating_mul(small_blocks).min(MOVABLE_DEADLINE_MOST);
            (Census { to_migrate, unmovable_pages: 0 }, deadline)
        }
        Zone::Kernel => (super::census(kernel, block), KERNEL_DEADLINE),
    };
    precheck(&kernel.memory(), &census, kernel.unit(), keep).map_err(|skip| match skip {
        SkipReason::Unmovable { .. } => StealFailure::Busy,
        SkipReason::NoRoom { .. } => StealFailure::NoRoom,
    })?;
    kernel.begin_offline(now, block).map_err(|_| StealFailure::Busy)?;
    Ok(deadline)
}
