//! After a return, or a steal that hurt, nothing is stolen for a while, longer each time.

use core::time::Duration;

use memtide_units::Instant;

/// First quiet time: what a workload that has just grown may need to show what it touches.
const FIRST: Duration = Duration::from_secs(10);
/// Longest: a guest that breathes slower than this is worth following.
pub(super) const LONGEST: Duration = Duration::from_secs(600);
/// A return this soon after a steal says that the steal was wrong: ACMA's working set interval.
const REGRET: Duration = Duration::from_secs(60);

/// Why nothing is stolen for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Blocks came back.
    Return,
    /// Tasks stalled while blocks were stolen.
    Stall,
}

/// Until when nothing is stolen.
#[derive(Clone, Debug)]
pub(super) struct Quiet {
    length: Duration,
    until: Option<Instant>,
    cause: Cause,
    stolen: Option<Instant>,
}

impl Default for Quiet {
    fn default() -> Self {
        Self { length: FIRST, until: None, cause: Cause::Return, stolen: None }
    }
}

impl Quiet {
    /// A block was stolen.
    pub(super) fn stole(&mut self, now: Instant) {
        self.stolen = Some(now);
    }

    /// Whether a block was stolen within this time.
    pub(super) fn stole_within(&self, now: Instant, time: Duration) -> bool {
        self.stolen.is_some_and(|stolen| now.since(stolen) < time)
    }

    /// A return became necessary: the next steal waits, twice as long as last time if the last
    /// steal is not even a minute old, and ten seconds if it was longer ago.
    pub(super) fn returning(&mut self, now: Instant) {
        let is_regretted = self.stole_within(now, REGRET);
        if is_regretted {
            self.length = self.length.saturating_mul(2).min(LONGEST);
        } else if !self.is_remembered(now) {
            self.length = FIRST;
        }
        self.rest(now, Cause::Return);
    }

    /// Tasks stalled while a block was stolen, or right after: that is a mistake that was seen before
    /// it became a return. The next steal waits ten seconds, and twice as long as last time if that is
    /// not long over.
    pub(super) fn hurt(&mut self, now: Instant) {
        let again = self.length.saturating_mul(2).min(LONGEST);
        self.length = if self.is_remembered(now) { again } else { FIRST };
        self.rest(now, Cause::Stall);
    }

    fn rest(&mut self, now: Instant, cause: Cause) {
        self.stolen = None;
        (self.until, self.cause) = (Some(now + self.length), cause);
    }

    /// Blocks came back, perhaps long after they were asked for: the quiet time starts over.
    pub(super) fn returned(&mut self, now: Instant) {
        (self.until, self.cause) = (Some(now + self.length), Cause::Return);
    }

    /// How much longer nothing is stolen, and why.
    pub(super) fn left(&self, now: Instant) -> Option<(Duration, Cause)> {
        let left = self.until?.since(now);
        (!left.is_zero()).then_some((left, self.cause))
    }

    /// For how long something has to be spare before it is stolen, where that has been learned: what
    /// was given up too early once is needed in turns. It is forgotten when it has not happened
    /// again for as long as nothing was stolen, or a minute.
    pub(super) fn learned(&self, now: Instant) -> Option<Duration> {
        (self.length > FIRST && self.is_remembered(now)).then_some(self.length)
    }

    fn is_remembered(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until + self.length.max(REGRET))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Instant {
        Instant::from_millis(s * 1_000)
    }

    fn left(quiet: &Quiet, s: u64) -> Option<u64> {
        quiet.left(at(s)).map(|(left, _)| left.as_secs())
    }

    #[test]
    fn regretted_steals_make_the_agent_patient_and_a_good_time_makes_it_forget() {
        let mut quiet = Quiet::default();
        assert_eq!(left(&quiet, 0), None);
        quiet.stole(at(0));
        quiet.returning(at(5));
        assert_eq!(left(&quiet, 5), Some(20));
        quiet.stole(at(30));
        quiet.returning(at(40));
        assert_eq!(left(&quiet, 40), Some(40));
        assert_eq!(quiet.learned(at(139)), Some(Duration::from_secs(40)));
        assert_eq!(quiet.learned(at(140)), None);
        quiet.stole(at(100));
        quiet.returning(at(900));
        assert_eq!((left(&quiet, 900), quiet.learned(at(900))), (Some(10), None));
    }

    #[test]
    fn what_hurts_again_soon_rests_twice_as_long_and_a_good_time_makes_it_forget() {
        let mut quiet = Quiet::default();
        let mut now = 3;
        for rest in [10, 20, 40, 80, 160, 320, 600, 600] {
            quiet.stole(at(now));
            quiet.hurt(at(now));
            assert_eq!(quiet.left(at(now)), Some((Duration::from_secs(rest), Cause::Stall)));
            now += rest + 50;
        }
        quiet.hurt(at(now + 1_200));
        assert_eq!(left(&quiet, now + 1_200), Some(10));
    }

    #[test]
    fn a_return_right_after_a_stall_is_the_same_mistake() {
        let mut quiet = Quiet::default();
        quiet.stole(at(0));
        quiet.hurt(at(1));
        quiet.returning(at(4));
        assert_eq!(left(&quiet, 4), Some(10));
    }

    #[test]
    fn patience_ends_at_ten_minutes() {
        let mut quiet = Quiet::default();
        for n in 0..20 {
            quiet.stole(at(n));
            quiet.returning(at(n));
        }
        assert_eq!(left(&quiet, 19), Some(600));
    }
}
