//! Somebody watches what is touched, and pages out what is not, for as long as the agent runs.
//!
//! DAMON can be somebody else's when the agent starts, and it can end under its hands: somebody stops
//! the kdamond, or it finds no memory for itself. So it is tried again, ever less often. It is never
//! taken from anybody: what the kernel or another program uses now is waited for.

use std::path::PathBuf;
use std::time::Duration;

use memtide_policy::guest::Limits;
use memtide_sysfs::Root;
use memtide_sysfs::damon::{Absence, DamonError};
use memtide_units::Instant;

use crate::blocks::Blocks;
use crate::config::DamonUse;
use crate::damon_watch::{DamonWatch, Finding, ModuleSwitch, Unwatched, Wanted, Watched};
use crate::reclaiming::{Reclaiming, pageout_config};
use crate::status::Lack;
use crate::swap_space::{SwapSpace, SwapUse, SystemTools};

/// From an end to the first attempt: whoever has stopped the kdamond to use DAMON itself has begun by
/// then.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause between two attempts, each of which is some fifty writes to sysfs; and as long as
/// this it must have watched for the next end to count as the first again.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// So often a module is switched off for nothing. Each time it forgets what it has seen; what fails
/// three times within half a minute most likely always does.
const TAKE_OVERS_MAX: u32 = 3;
/// What people read of that.
const TRIED_AGAIN: &str = " (it is tried again, every five minutes at least)";

/// What is wanted, and from where.
#[derive(Clone, Debug)]
pub struct Means {
    /// Where the kernel's files are.
    pub root: Root,
    /// Whether DAMON is used, and from whom it is taken at the start.
    pub damon: DamonUse,
    /// Where cold memory goes.
    pub swap: SwapUse,
    /// From which age on it is cold; `None` where nothing can be paged out, since without PSI the
    /// kernel's loop would take every stall for none.
    pub cold_after: Option<Duration>,
    /// The mark that modules have to be switched on again.
    pub modules_mark: PathBuf,
    /// The mark that a zram device is the agent's own.
    pub zram_mark: PathBuf,
}

/// DAMON, while it is to be had, and what it pages out to.
#[derive(Debug)]
pub struct Watching {
    means: Means,
    damon: Option<DamonWatch>,
    /// After the watch: no kdamond runs any more when they are switched on again.
    modules: ModuleSwitch,
    reclaiming: Option<Reclaiming>,
    /// What was there to page out to while there was a DAMON to do it.
    resting: Option<Reclaiming>,
    lacks: Vec<Lack>,
    attempts: Attempts,
    /// What came of switching modules off.
    take_overs: TakeOvers,
}

/// Attempts that had a module switched off, and failed all the same.
#[derive(Debug, Default)]
struct TakeOvers {
    failed: u32,
    /// How the last one did.
    why: String,
}

impl Watching {
    /// Nobody watches yet; the first attempt is due at once.
    pub fn new(means: Means) -> Self {
        let modules = ModuleSwitch::new(&means.root, means.modules_mark.clone());
        Self {
            means,
            damon: None,
            modules,
            reclaiming: None,
            resting: None,
            lacks: Vec::new(),
            attempts: Attempts::default(),
            take_overs: TakeOvers::default(),
        }
    }

    /// Starts where nobody watches and it is time to try. Takes some milliseconds then; up to a second
    /// where it makes swap for the first time. True where somebody watches from now on.
    pub fn see_to(&mut self, now: Instant, blocks: &Blocks, limits: &Limits) -> bool {
        if !self.attempts.is_due(now) {
            return false;
        }
        match self.start(blocks, limits) {
            Ok(damon) => {
                if !std::mem::take(&mut self.lacks).is_empty() {
                    tracing::info!("DAMON is to be had now: what is touched is watched");
                }
                self.reclaiming = self.somewhere_to_page_out(&damon, blocks);
                self.damon = Some(damon);
                self.attempts.succeeded(now);
                true
            }
            Err(why) if why.may_pass() => {
                self.attempts.failed(now);
                let why = self.take_overs.instead_of(&why).unwrap_or_else(|| why.to_string());
                self.is_unwatched(&format!("{why}{TRIED_AGAIN}"));
                false
            }
            Err(why) => {
                self.attempts.give_up();
                self.is_unwatched(&why.to_string());
                false
            }
        }
    }

    /// DAMON has ended.
    pub fn ended(&mut self, now: Instant, why: &str) {
        self.damon = None;
        if let Some(reclaiming) = self.reclaiming.take() {
            self.resting = Some(reclaiming);
        }
        self.attempts.ended(now);
        self.is_unwatched(&format!("{why}{TRIED_AGAIN}"));
    }

    /// What has been found since the last call.
    pub fn findings(&self) -> Vec<Finding> {
        self.damon.as_ref().map(DamonWatch::findings).unwrap_or_default()
    }

    /// Whoever watches, if somebody does.
    pub fn damon(&self) -> Option<&DamonWatch> {
        self.damon.as_ref()
    }

    /// The same, to order something.
    pub fn damon_mut(&mut self) -> Option<&mut DamonWatch> {
        self.damon.as_mut()
    }

    /// How cold memory is paged out, while it can be.
    pub fn reclaiming(&self) -> Option<&Reclaiming> {
        self.reclaiming.as_ref()
    }

    /// The same, to change it; with whoever watches.
    pub fn pager(&mut self) -> Option<(&mut Reclaiming, &mut DamonWatch)> {
        Some((self.reclaiming.as_mut()?, self.damon.as_mut()?))
    }

    /// What is missing now.
    pub fn lacks(&self) -> &[Lack] {
        &self.lacks
    }

    /// Names of the modules that are off for this.
    pub fn modules_off(&self) -> Vec<String> {
        self.modules.off().iter().map(|module| module.name().to_owned()).collect()
    }

    fn start(&mut self, blocks: &Blocks, limits: &Limits) -> Result<DamonWatch, Unwatched> {
        let Means { root, damon, swap, cold_after, .. } = &self.means;
        let config = |age| pageout_config(limits, blocks.present(), age);
        let wanted = Wanted {
            watched: watched(blocks),
            pageout: cold_after.filter(|_| *swap != SwapUse::Off).map(config),
        };
        let was_off = self.modules_off();
        let started = DamonWatch::start(root, *damon, wanted, &mut self.modules);
        match &started {
            Ok(_) => self.modules.shut(),
            Err(why) if self.modules_off() != was_off => {
                self.take_overs.failed(why);
                let _ = self.modules.restore();
                if self.take_overs.failed >= TAKE_OVERS_MAX {
                    self.modules.shut();
                }
            }
            Err(_) => {}
        }
        for module in self.modules_off().iter().filter(|module| !was_off.contains(module)) {
            tracing::info!("{module} is off for as long as the agent runs");
        }
        started
    }

    /// Somewhere to page out to, where there is somebody to do it: no swap is made for nothing.
    fn somewhere_to_page_out(&mut self, damon: &DamonWatch, blocks: &Blocks) -> Option<Reclaiming> {
        let Means { root, swap, cold_after, zram_mark, .. } = &self.means;
        (*cold_after)?;
        if *swap != SwapUse::Off && damon.feedback().is_none() {
            self.lacks.push(Lack::pageout());
            return None;
        }
        match SwapSpace::prepare(root, *swap, blocks.present(), zram_mark, &SystemTools) {
            Ok(space) => Some(match self.resting.take() {
                Some(before) => before.go_on(space),
                None => Reclaiming::new(space),
            }),
            Err(why) => {
                self.lacks.push(Lack::swap(&why));
                None
            }
        }
    }

    /// The log gets what is news; what is missing from the start on is told with all the rest.
    fn is_unwatched(&mut self, why: &str) {
        let lacks = vec![Lack::damon(why)];
        if !self.lacks.is_empty() && self.lacks != lacks {
            tracing::info!("what is touched is not watched: {why}");
        }
        self.lacks = lacks;
    }
}

/// The memory of this guest, as it is to be watched.
pub fn watched(blocks: &Blocks) -> Watched {
    Watched {
        ranges: blocks.ranges(&blocks.in_use()),
        memory: blocks.ranges(&blocks.all()),
        blocks: blocks.count(),
    }
}

impl TakeOvers {
    fn failed(&mut self, why: &Unwatched) {
        self.failed = self.failed.saturating_add(1);
        self.why = why.to_string();
    }

    /// What people should read where nothing but a module, which is left alone, is in the way.
    fn instead_of(&self, why: &Unwatched) -> Option<String> {
        let Unwatched::Damon(DamonError::Absent(Absence::UsedBy(module))) = why else {
            return None;
        };
        (self.failed >= TAKE_OVERS_MAX).then(|| {
            format!(
                "{}; {name} was switched off for it {TAKE_OVERS_MAX} times and is left alone now: \
                 echo N > /sys/module/{name}/parameters/enabled for one more try",
                self.why,
                name = module.name()
            )
        })
    }
}

/// When to try.
#[derive(Debug)]
struct Attempts {
    /// After the next failure, or end.
    pause: Duration,
    /// `None` while somebody watches, and where nobody ever will.
    due: Option<Instant>,
    /// Since when somebody has watched, or did last.
    since: Instant,
}

impl Default for Attempts {
    fn default() -> Self {
        let (due, since) = (Some(Instant::default()), Instant::default());
        Self { pause: FIRST_PAUSE, due, since }
    }
}

impl Attempts {
    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| now >= due)
    }

    fn succeeded(&mut self, now: Instant) {
        (self.due, self.since) = (None, now);
    }

    fn give_up(&mut self) {
        self.due = None;
    }

    fn failed(&mut self, now: Instant) {
        self.due = Some(now + self.pause);
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
    }

    fn ended(&mut self, now: Instant) {
        if now.since(self.since) >= LONGEST_PAUSE {
            self.pause = FIRST_PAUSE;
        }
        self.failed(now);
    }
}

#[cfg(test)]
mod tests;
