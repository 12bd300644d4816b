//! Whether what is paged out comes back.
//!
//! In a guest whose cold memory is gone DAMON still finds something that nobody has touched for a minute: text
//! of programs that run every other minute, above all. Each of them reads it again, at the price of faults and
//! of a disk, and what was missing for one more block is missing as before. The stall of that is far below any
//! goal for pressure, so nothing else would ever end it.

use core::time::Duration;

use memtide_units::{ByteSize, Instant};

use super::quiet::LONGEST;

/// What was missing is compared over a minute at least: so long nobody must have touched what is paged out.
const SPAN: Duration = Duration::from_secs(60);
/// And once so much was paged out. Less costs next to nothing, and says as little.
const LEAST: ByteSize = ByteSize::from_mib(1);
/// It is in vain where at least this part of it was needed again, and less than that became available.
/// In a guest whose cold memory was gone two fifths came back within two minutes, and nothing was gained.
const PART: u64 = 4;
/// First pause. Each further one is twice as long, until something is gained.
const FIRST: Duration = Duration::from_secs(120);

/// What there is at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amounts {
    /// For one more block, or for what should be available.
    pub(super) missing: ByteSize,
    /// What was paged out ever.
    pub(super) paged_out: ByteSize,
    /// What was needed again ever, after it had been reclaimed for whatever reason.
    pub(super) reread: ByteSize,
}

/// Keeps the account.
#[derive(Clone, Debug)]
pub(super) struct Vain {
    /// What there was when the account began.
    account: Option<(Instant, Amounts)>,
    pause: Duration,
    until: Option<Instant>,
}

impl Default for Vain {
    fn default() -> Self {
        Self { account: None, pause: FIRST, until: None }
    }
}

impl Vain {
    /// Answers with how long to leave it from `now` on, if it has been in vain.
    pub(super) fn judge(&mut self, now: Instant, amounts: Amounts) -> Option<Duration> {
        if let Some(until) = self.until.filter(|until| now < *until) {
            return Some(until.since(now));
        }
        self.until = None;
        let (since, before) = *self.account.get_or_insert((now, amounts));
        let paid = amounts.paged_out - before.paged_out;
        if now.since(since) < SPAN || paid < LEAST {
            return None;
        }
        let part = ByteSize::from_bytes(paid.bytes() / PART);
        let (gained, again) = (before.missing - amounts.missing, amounts.reread - before.reread);
        if gained >= part || again < part {
            (self.account, self.pause) = (Some((now, amounts)), FIRST);
            return None;
        }
        let left = self.pause;
        self.until = Some(now + left);
        self.pause = left.saturating_mul(2).min(LONGEST);
        self.account = None;
        Some(left)
    }

    /// Something else is missing from now on, or nothing is.
    pub(super) fn forget(&mut self) {
        self.account = None;
    }

    /// A block can be taken: it was not in vain.
    pub(super) fn gained(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(mib: u64) -> ByteSize {
        ByteSize::from_mib(mib)
    }

    /// Seconds; what is missing, was paged out, and was needed again, in MiB; the pause that is left, in seconds.
    fn left(vain: &mut Vain, s: u64, [missing, paged_out, reread]: [u64; 3]) -> Option<u64> {
        let now = Instant::from_millis(s * 1_000);
        let (missing, paged_out, reread) = (mib(missing), mib(paged_out), mib(reread));
        vain.judge(now, Amounts { missing, paged_out, reread }).map(|left| left.as_secs())
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
        assert_eq!(at(240, [89, 916, 22]), Some(240), "an eighth is too little");
        assert_eq!(at(480, [89, 916, 22]), None);
        assert_eq!(at(600, [89, 916, 24]), None, "that was of earlier times");
        assert_eq!(at(630, [89, 917, 24]), Some(480));
        assert_eq!(at(1_110, [89, 917, 24]), None);
        assert_eq!(at(1_170, [89, 919, 26]), Some(600), "ten minutes at most");
        assert_eq!(at(1_770, [89, 919, 26]), None);
        assert_eq!(at(1_830, [79, 959, 36]), None, "a quarter of it has become available");
        assert_eq!(at(1_890, [79, 967, 38]), Some(120));
    }

    /// A guest that grows pays for its growth with what is cold.
    #[test]
    fn what_stays_away_is_no_loss_whatever_is_missing() {
        let mut vain = Vain::default();
        assert_eq!(left(&mut vain, 0, [80, 100, 0]), None);
        assert_eq!(left(&mut vain, 60, [400, 300, 49]), None);
        assert_eq!(left(&mut vain, 120, [400, 500, 99]), Some(120));
    }

    #[test]
    fn a_block_that_can_be_taken_is_a_gain_and_another_want_another_account() {
        let mut vain = Vain::default();
        assert_eq!(left(&mut vain, 0, [10, 0, 0]), None);
        vain.forget();
        assert_eq!(left(&mut vain, 70, [130, 50, 50]), None, "after a block it is another's room");
        assert_eq!(left(&mut vain, 130, [130, 60, 60]), Some(120));
        vain.gained();
        assert_eq!(left(&mut vain, 131, [130, 60, 60]), None);
    }
}
