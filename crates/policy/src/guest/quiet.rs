//! After a return nothing is stolen for a while, longer each time a steal is regretted.

use core::time::Duration;

use memtide_units::Instant;

/// First quiet time: what a workload that has just grown may need to show what it touches.
const FIRST: Duration = Duration::from_secs(10);
/// Longest: a guest that breathes slower than this is worth following.
pub(super) const LONGEST: Duration = Duration::from_secs(600);
/// A return this soon after a steal says that the steal was wrong: ACMA's working set interval.
const REGRET: Duration = Duration::from_secs(60);

/// Until when nothing is stolen.
#[derive(Clone, Debug)]
pub(super) struct Quiet {
    length: Duration,
    until: Instant,
    stolen: Option<Instant>,
}

impl Default for Quiet {
    fn default() -> Self {
        Self { length: FIRST, until: Instant::default(), stolen: None }
    }
}

impl Quiet {
    /// A block was stolen.
    pub(super) fn stole(&mut self, now: Instant) {
        self.stolen = Some(now);
    }

    /// A return became necessary: the next steal waits, twice as long as last time if the last
    /// steal is not even a minute old, and ten seconds if it was longer ago.
    pub(super) fn returning(&mut self, now: Instant) {
        let regretted = self.stolen.take().is_some_and(|stolen| now.since(stolen) < REGRET);
        if regretted {
            self.length = self.length.saturating_mul(2).min(LONGEST);
        } else if now >= self.until + self.length {
            self.length = FIRST;
        }
        self.until = now + self.length;
    }

    /// Blocks came back, perhaps long after they were asked for: the quiet time starts over.
    pub(super) fn returned(&mut self, now: Instant) {
        self.until = now + self.length;
    }

    /// How much longer nothing is stolen.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        Some(self.until.since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Instant {
        Instant::from_millis(s * 1_000)
    }

    #[test]
    fn regretted_steals_make_the_agent_patient_and_a_good_time_makes_it_forget() {
        let mut quiet = Quiet::default();
        assert_eq!(quiet.left(at(0)), None);
        quiet.stole(at(0));
        quiet.returning(at(5));
        assert_eq!(quiet.left(at(5)), Some(Duration::from_secs(20)));
        quiet.stole(at(30));
        quiet.returning(at(40));
        assert_eq!(quiet.left(at(40)), Some(Duration::from_secs(40)));
        quiet.stole(at(100));
        quiet.returning(at(900));
        assert_eq!(quiet.left(at(900)), Some(FIRST));
    }

    #[test]
    fn patience_ends_at_ten_minutes() {
        let mut quiet = Quiet::default();
        for n in 0..20 {
            quiet.stole(at(n));
            quiet.returning(at(n));
        }
        assert_eq!(quiet.left(at(19)), Some(LONGEST));
    }
}
