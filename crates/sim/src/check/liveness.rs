//! What must happen in time.

use std::time::Duration;

use memtide_policy::guest::{Answer, Headroom, Limits};
use memtide_units::{ByteSize, Instant, Permille, PpMillion};

use super::{Moment, Promise, Since, Terms, is_willing};
use crate::kernel::{Kernel, Killed, Kind, Pace, State};

/// What is granted is online within so long, besides the time that putting its blocks online takes.
const COMES_BACK: Duration = Duration::from_secs(2);
/// A gate that is willing decides, and is asked again, within so long: the longest retry of a held
/// ticket and of a lost device, twice.
const IS_HEARD: Duration = Duration::from_secs(10);
/// A guest that is about to run out has asked within so long; after a denial it may rest for two.
const ASKS: Duration = Duration::from_secs(4);
/// A guest that stalls for a hundredth of its time, ten times the usual goal, has got something back
/// within so long.
const RELIEF: Duration = Duration::from_secs(6);
const BAD_STALL: PpMillion = PpMillion(10_000);
/// While the cache is thrashing kswapd keeps about so much more free than a guest needs to live.
const KSWAPD: ByteSize = ByteSize::from_mib(32);
/// Stalls are looked at over this long.
const WINDOW: Duration = Duration::from_secs(2);
/// A host that has just become willing, or an agent that has just started, gets so long before a
/// kill is blamed on them.
const GRACE: Duration = Duration::from_secs(3);
/// Over its maximum a guest may not have back what it gave up: a kill within so long of a steal that left little is
/// that steal's doing. Long after it is the guest's own, which has grown past what it may have.
const AFTER_STEAL: Duration = Duration::from_secs(10);
/// Little is less than this share of what is online. Who wants more than that within seconds has grown past the
/// maximum just as well: a burst is a quarter of the guest.
const LITTLE: Permille = Permille(100);

#[derive(Debug)]
pub(super) struct Liveness {
    terms: Terms,
    granted: Since,
    unheard: Since,
    unasked: Since,
    stalling: Since,
    /// The start of the present window, and what had been stalled and returned by then.
    window: (Instant, u64, u64),
    /// Since when the host has been willing and an agent at work.
    willing: Since,
    /// What was online at the last look.
    online: ByteSize,
    /// When a steal of more than the maximum last left little.
    shrunk: Option<Instant>,
}

impl Liveness {
    pub(super) fn new(terms: Terms) -> Self {
        let never = Since::default();
        Self {
            terms,
            granted: never,
            unheard: never,
            unasked: never,
            stalling: never,
            window: (Instant::default(), 0, 0),
            willing: never,
            online: ByteSize::ZERO,
            shrunk: None,
        }
    }

    pub(super) fn limited(&mut self, limits: Limits) {
        self.terms.limits = limits;
    }

    pub(super) fn disturbed(&mut self, _now: Instant) {
        let Self { granted, unheard, unasked, stalling, willing, .. } = self;
        for since in [granted, unheard, unasked, stalling, willing] {
            since.restart();
        }
    }

    pub(super) fn ticked(&mut self, at: &Moment<'_>) -> Vec<(Promise, String)> {
        let mut found = Vec::new();
        self.note_steal(at);
        let ticket = at.agent.and_then(|agent| agent.ticket());
        let willing = (is_willing(at.host) && at.agent.is_some()).then_some(());
        let willing = self.willing.observe(at.now, willing);

        let granted = ticket.filter(|held| held.answer == Answer::Granted);
        let blocks = granted.map_or(0, |held| held.blocks.len() as u64);
        let time = self.granted.observe(at.now, granted.map(|_| ()));
        if time > COMES_BACK + onlining(at.kernel, blocks) {
            found.push((Promise::ComesBack, format!("{blocks} blocks were granted {time:?} ago")));
            self.granted.restart();
        }

        let waits = ticket.filter(|held| held.answer != Answer::Granted && !willing.is_zero());
        let time = self.unheard.observe(at.now, waits.map(|_| ()));
        if time > IS_HEARD {
            let asked = waits.map_or(0, |held| held.blocks.len());
            let what =
                format!("{asked} blocks have been asked for since {time:?} at a willing gate");
            found.push((Promise::IsHeard, what));
            self.unheard.restart();
        }

        let memory = at.kernel.memory();
        let emergency = self.emergency(at);
        let returnable = at.returnable(&self.terms.limits);
        let is_short = memory.available < emergency && !returnable.is_zero() && ticket.is_none();
        let time = self.unasked.observe(at.now, is_short.then_some(()));
        if time > ASKS {
            let available = memory.available;
            let what = format!(
                "{available} available for {time:?}, {returnable} could come back, and nobody asks"
            );
            found.push((Promise::Asks, what));
            self.unasked.restart();
        }
        if !willing.is_zero() {
            found.extend(self.unrelieved(at));
        }
        found
    }

    /// Below this a guest is about to run out.
    fn emergency(&self, at: &Moment<'_>) -> ByteSize {
        Headroom::of(at.kernel.online(), self.terms.unit, None, ByteSize::ZERO).emergency
    }

    /// How long the guest stalls badly, and nothing comes back.
    fn unrelieved(&mut self, at: &Moment<'_>) -> Option<(Promise, String)> {
        let (start, stalled, returned) = self.window;
        let elapsed = at.now.since(start);
        if elapsed < WINDOW {
            return None;
        }
        let now = (at.kernel.psi().some_us, at.agent.map_or(0, |agent| agent.deeds.returned));
        self.window = (at.now, now.0, now.1);
        let us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let stall = PpMillion::of_time(now.0 - stalled, us);
        let returnable = at.returnable(&self.terms.limits);
        // Where much is free more would not help: what was lost is being read back.
        let is_short = at.kernel.memory().free < self.emergency(at) + KSWAPD;
        let is_bad = stall > BAD_STALL && now.1 == returned && is_short && !returnable.is_zero();
        let time = self.stalling.observe(at.now, is_bad.then_some(()));
        (time > RELIEF).then(|| {
            self.stalling.restart();
            let what = format!("{stall} for {time:?}, and {returnable} could come back");
            (Promise::Relief, what)
        })
    }

    /// Nobody but the agent takes blocks away, so that what has gone since the last look is stolen; and none of
    /// what is about to go can be had.
    fn note_steal(&mut self, at: &Moment<'_>) {
        let online = at.kernel.online();
        let before = std::mem::replace(&mut self.online, online);
        let is_stealing = at.kernel.blocks().iter().any(|block| block.state == State::GoingOffline);
        let is_little = at.kernel.memory().available < LITTLE.of(online);
        if (online < before || is_stealing) && before > self.terms.limits.max() && is_little {
            self.shrunk = Some(at.now);
        }
    }

    /// How long ago a steal of more than the maximum left little, where that is to blame for a kill.
    fn shrunk_for(&self, at: &Moment<'_>) -> Option<Duration> {
        let time = at.now.since(self.shrunk?);
        (time <= AFTER_STEAL).then_some(time)
    }

    /// Nobody is killed while memory could come back from a host that has been willing for a while, nor right
    /// after a steal that the maximum asked for: whether anybody is willing does not matter to that.
    pub(super) fn killed(&mut self, at: &Moment<'_>, killed: Killed) -> Vec<(Promise, String)> {
        let Killed { wanted, movable_free } = killed;
        let one = self.terms.unit.size();
        if wanted == Kind::Kernel && movable_free >= one {
            let what =
                format!("no room for the kernel's own while {movable_free} is free elsewhere");
            return vec![(Promise::KernelMemory, what)];
        }
        // A steal that ended in this tick counts.
        self.note_steal(at);
        if let Some(time) = self.shrunk_for(at) {
            let what = format!(
                "{wanted:?} memory ran out {time:?} after a steal that only the maximum asked for left little"
            );
            return vec![(Promise::NobodyKilled, what)];
        }
        let willing = self.willing.0.map_or(Duration::ZERO, |since| at.now.since(since));
        let returnable = at.returnable(&self.terms.limits);
        if willing < GRACE || returnable.is_zero() {
            return Vec::new();
        }
        let what = format!(
            "{wanted:?} memory ran out while {returnable} could come back from a host that is willing"
        );
        vec![(Promise::NobodyKilled, what)]
    }
}

/// The longest that putting so many blocks online takes.
fn onlining(kernel: &Kernel, blocks: u64) -> Duration {
    let small = blocks * kernel.unit().size().bytes().div_ceil(128 << 20);
    let each = match kernel.machine().pace {
        Pace::Emulated => Duration::from_millis(80),
        Pace::Hardware => Duration::from_millis(8),
    };
    each * u32::try_from(small).unwrap_or(u32::MAX)
}
