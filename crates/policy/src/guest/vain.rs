//! Whether what is paged out comes back.
//!
//! In a guest whose cold memory is gone DAMON still finds something that nobody has touched for a minute: text
//! of programs that run every other minute, above all. Each of them reads it again, at the price of faults and
//! of a disk, and what was missing for one more block is missing as before. The stall of that is far below any
//! goal for pressure, so nothing else would ever end it.

use alloc::vec::Vec;
use core::time::Duration;

use memtide_units::{ByteSize, Instant};

use super::quiet::LONGEST;

/// What is available is compared minute by minute: so long nobody must have touched what is paged out.
const SPAN: Duration = Duration::from_secs(60);
/// Of each minute its second half tells what is available by then.
const SETTLED: Duration = Duration::from_secs(30);
/// Looks are this far apart at least, which bounds their number.
const SPACING: Duration = Duration::from_millis(200);
/// Where less than this goes in that time, it costs next to nothing and says as little.
const LEAST: ByteSize = ByteSize::from_mib(1);
/// It is in vain where at least this part of it was needed again, and less than that became available.
/// In a guest whose cold memory was gone two fifths came back within two minutes, and nothing was gained.
const PART: u64 = 4;
/// What is available moves by this much for any reason.
const GAIN_LEAST: ByteSize = ByteSize::from_mib(4);
/// First pause. Each further one is twice as long, until something is gained.
const FIRST: Duration = Duration::from_secs(120);

/// What there is at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amounts {
    /// `MemAvailable`. What is needed for one more block moves with the working set, by what a sample of pages
    /// says of that.
    pub(super) available: ByteSize,
    /// What was paged out ever.
    pub(super) paged_out: ByteSize,
    /// What was needed again ever, after it had been reclaimed for whatever reason.
    pub(super) refaulted: ByteSize,
    /// What is in use, where that is known.
    pub(super) working_set: Option<ByteSize>,
}

/// What was available in some time: the middle of it, and how far apart its middle half lay. What one
/// burst takes for a second does not count.
#[derive(Clone, Copy, Debug)]
struct Level {
    median: ByteSize,
    spread: ByteSize,
}

impl Level {
    /// Of looks, at least one.
    fn of(mut looks: Vec<ByteSize>) -> Self {
        looks.sort_unstable();
        let at = |quarter: usize| looks[(looks.len() - 1) * quarter / 4];
        Self { median: at(2), spread: at(3) - at(1) }
    }
}

/// One minute.
#[derive(Clone, Debug)]
struct Account {
    since: Instant,
    start: Amounts,
    /// What was available in its second half, so far.
    looks: Vec<ByteSize>,
    /// When the last of them was, or it began.
    looked: Instant,
}

impl Account {
    const fn begin(now: Instant, start: Amounts) -> Self {
        Self { since: now, start, looks: Vec::new(), looked: now }
    }

    /// Takes in a look; true once the minute is over.
    fn look(&mut self, now: Instant, available: ByteSize) -> bool {
        let elapsed = now.since(self.since);
        if elapsed >= SETTLED && now.since(self.looked) >= SPACING {
            self.looks.push(available);
            self.looked = now;
        }
        elapsed >= SPAN
    }
}

/// A minute that is over: what there was at its start, what was available at the end of the one before, where there
/// was one, and at its own.
#[derive(Debug)]
struct Minute {
    start: Amounts,
    before: Option<Level>,
    level: Level,
}

/// Keeps the account.
#[derive(Clone, Debug)]
pub(super) struct Vain {
    account: Option<Account>,
    /// What was available at the end of the minute before.
    before: Option<Level>,
    pause: Duration,
    /// Until when it is left alone, and what was in use when that began.
    until: Option<(Instant, Option<ByteSize>)>,
}

impl Default for Vain {
    fn default() -> Self {
        Self { account: None, before: None, pause: FIRST, until: None }
    }
}

impl Vain {
    /// Answers with how long to leave it from `now` on, if it has been in vain.
    pub(super) fn judge(&mut self, now: Instant, amounts: Amounts) -> Option<Duration> {
        if let Some((until, in_use)) = self.until {
            if now < until && !has_fallen(in_use, amounts.working_set) {
                // What is available is looked at all the same: the next try is compared with it.
                self.end_of_minute(now, amounts);
                return Some(until.since(now));
            }
            (self.until, self.account) = (None, None);
        }
        let Minute { start, before, level } = self.end_of_minute(now, amounts)?;
        let paid = amounts.paged_out - start.paged_out;
        let part = ByteSize::from_bytes(paid.bytes() / PART);
        let comes_back = paid >= LEAST && amounts.refaulted - start.refaulted >= part;
        let was = before.unwrap_or(Level { median: start.available, spread: ByteSize::ZERO });
        let is_gain = gain(&was, &level) >= part.max(GAIN_LEAST);
        if is_gain && before.is_some() {
            self.pause = FIRST;
        }
        if is_gain || !comes_back {
            return None;
        }
        let left = self.pause;
        self.until = Some((now + left, amounts.working_set));
        self.pause = left.saturating_mul(2).min(LONGEST);
        Some(left)
    }

    /// A minute that is over. What was needed again an hour ago says nothing of what goes now, so the next one
    /// begins anew.
    fn end_of_minute(&mut self, now: Instant, amounts: Amounts) -> Option<Minute> {
        let account = self.account.get_or_insert(Account::begin(now, amounts));
        if !account.look(now, amounts.available) {
            return None;
        }
        let Account { start, looks, .. } =
            core::mem::replace(account, Account::begin(now, amounts));
        let level = Level::of(looks);
        Some(Minute { start, before: self.before.replace(level), level })
    }

    /// Something else is missing from now on, or nothing is, or it is not to be known.
    pub(super) fn forget(&mut self) {
        (self.account, self.before) = (None, None);
    }

    /// Blocks come or go: what was in vain may not be any more.
    pub(super) fn begin_anew(&mut self) {
        *self = Self::default();
    }
}

/// How much more is available than was; nothing where that is less than what the middle half of all looks lies
/// apart, which chance does as well (of ten looks at an even tremble once in some thirty times, of thirty hardly
/// ever).
fn gain(was: &Level, is: &Level) -> ByteSize {
    let gain = is.median - was.median;
    if gain >= was.spread.max(is.spread) { gain } else { ByteSize::ZERO }
}

/// By a quarter: there is other cold memory now.
fn has_fallen(before: Option<ByteSize>, now: Option<ByteSize>) -> bool {
    let part = |before: ByteSize| ByteSize::from_bytes(before.bytes() / PART);
    before.zip(now).is_some_and(|(before, now)| now < before - part(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(mib: u64) -> ByteSize {
        ByteSize::from_mib(mib)
    }

    /// Seconds; what is missing to 1000, was paged out, and was needed again, in MiB; the pause that is left, in
    /// seconds.
    fn left(vain: &mut Vain, s: u64, [missing, paged_out, refaulted]: [u64; 3]) -> Option<u64> {
        let now = Instant::from_millis(s * 1_000);
        let (available, paged_out) = (mib(1_000 - missing), mib(paged_out));
        let (refaulted, working_set) = (mib(refaulted), Some(mib(600)));
        let amounts = Amounts { available, paged_out, refaulted, working_set };
        vain.judge(now, amounts).map(|left| left.as_secs())
    }

    #[test]
    fn what_comes_back_is_left_alone_for_longer_each_time() {
        let mut vain = Vain::default();
        let mut at = |s, amounts| left(&mut vain, s, amounts);
        assert_eq!(at(0, [80, 900, 16]), None);
        assert_eq!(at(59, [90, 908, 18]), None, "too early to say");
        assert_eq!(at(60, [90, 908, 18]), Some(120));
        assert_eq!(at(100, [20, 908, 19]), Some(80));
        assert_eq!(at(180, [90, 908, 20]), None);
        assert_eq!(at(240, [87, 916, 22]), Some(240), "available moves as much by itself");
        assert_eq!(at(480, [87, 916, 22]), None);
        assert_eq!(at(540, [87, 916, 26]), None, "of what went earlier");
        assert_eq!(at(600, [87, 920, 26]), None, "nothing has come back yet");
        assert_eq!(at(660, [87, 924, 28]), Some(480));
        assert_eq!(at(1_140, [87, 924, 28]), None);
        assert_eq!(at(1_200, [87, 926, 29]), Some(600), "ten minutes at most");
        assert_eq!(at(1_800, [87, 926, 29]), None);
        assert_eq!(at(1_860, [77, 966, 39]), None, "a quarter of it has become available");
        assert_eq!(at(1_920, [77, 974, 41]), Some(120));
    }

    /// What is available trembles with what programs do, by 32 MiB here; of single looks each second one would show a gain.
    #[test]
    fn a_tremble_is_no_gain_and_hides_none() {
        let tremble = |s: u64| (s / 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59;
        let mut vain = Vain::default();
        let mut paused = 0;
        for s in (0..3_600).step_by(2) {
            let minutes = s / 60;
            let amounts = [80 + tremble(s), 900 + 6 * minutes, 3 * minutes];
            paused += u64::from(left(&mut vain, s, amounts).is_some());
        }
        assert!(paused > 1_500, "{paused} of 1800 looks: nearly all of an hour is left alone");
        let mut vain = Vain::default();
        for s in (0..300).step_by(2) {
            // Half of what goes comes back.
            let amounts = [700 + tremble(s) - 2 * s, 900 + 4 * s, 2 * s];
            assert_eq!(left(&mut vain, s, amounts), None, "after {s} s");
        }
    }

    /// A job that takes 100 MiB for a second now and then hides no gain.
    #[test]
    fn a_burst_hides_no_gain() {
        let mut vain = Vain::default();
        for s in 0..600 {
            let burst = if s % 37 == 0 || s % 60 == 0 { 100 } else { 0 };
            let amounts = [800 + burst - s / 2, 900 + 2 * s / 3, s / 5];
            assert_eq!(left(&mut vain, s, amounts), None, "after {s} s");
        }
    }

    /// A guest that grows pays for its growth with what is cold.
    #[test]
    fn what_stays_away_is_no_loss_whatever_is_missing() {
        let mut vain = Vain::default();
        assert_eq!(left(&mut vain, 0, [80, 100, 0]), None);
        assert_eq!(left(&mut vain, 60, [400, 300, 49]), None);
        assert_eq!(left(&mut vain, 120, [400, 500, 99]), Some(120));
    }

    /// Nothing is cold for an hour, and much is read meanwhile; then a service falls idle.
    #[test]
    fn what_was_needed_long_ago_does_not_count_against_what_is_cold_now() {
        let mut vain = Vain::default();
        for minute in 0..60 {
            assert_eq!(left(&mut vain, 60 * minute, [80 + minute, 100, minute]), None);
        }
        assert_eq!(left(&mut vain, 3_600, [140, 108, 60]), None);
    }

    /// A workload that has ended leaves memory that nobody was asked for in vain.
    #[test]
    fn the_pause_ends_where_much_less_is_in_use() {
        let mut vain = Vain::default();
        assert_eq!(left(&mut vain, 0, [80, 100, 0]), None);
        assert_eq!(left(&mut vain, 60, [80, 108, 4]), Some(120));
        let mut is_left_alone = |s: u64, working_set| {
            let (available, paged_out, refaulted) = (mib(920), mib(108), mib(4));
            let amounts = Amounts { available, paged_out, refaulted, working_set };
            vain.judge(Instant::from_millis(s * 1_000), amounts).is_some()
        };
        assert!(is_left_alone(61, Some(mib(450))));
        assert!(is_left_alone(62, None));
        assert!(!is_left_alone(63, Some(mib(449))));
        assert!(!is_left_alone(64, Some(mib(600))), "it is another account");
    }

    #[test]
    fn blocks_that_come_or_go_end_it_and_another_want_is_another_account() {
        let mut vain = Vain::default();
        assert_eq!(left(&mut vain, 0, [10, 0, 0]), None);
        vain.forget();
        assert_eq!(left(&mut vain, 70, [130, 50, 50]), None, "after a block it is another's room");
        assert_eq!(left(&mut vain, 130, [130, 60, 60]), Some(120));
        vain.begin_anew();
        assert_eq!(left(&mut vain, 131, [130, 60, 60]), None);
    }
}
