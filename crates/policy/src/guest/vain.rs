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
    /// For one more block.
    pub(super) missing: ByteSize,
    /// What was paged out ever.
    pub(super) paged_out: ByteSize,
    /// What was needed again ever, after it had been reclaimed for whatever reason.
    pub(super) refaulted: ByteSize,
    /// What is in use, where that is known.
    pub(super) working_set: Option<ByteSize>,
}

/// Keeps the account.
#[derive(Clone, Debug)]
pub(super) struct Vain {
    /// What there was when the account began.
    account: Option<(Instant, Amounts)>,
    pause: Duration,
    /// Until when it is left alone, and what was in use when that began.
    until: Option<(Instant, Option<ByteSize>)>,
}

impl Default for Vain {
    fn default() -> Self {
        Self { account: None, pause: FIRST, until: None }
    }
}

impl Vain {
    /// Answers with how long to leave it from `now` on, if it has been in vain.
    pub(super) fn judge(&mut self, now: Instant, amounts: Amounts) -> Option<Duration> {
        if let Some((until, in_use)) = self.until
            && now < until
            && !has_fallen(in_use, amounts.working_set)
        {
            return Some(until.since(now));
        }
        self.until = None;
        let (since, before) = *self.account.get_or_insert((now, amounts));
        if now.since(since) < SPAN {
            return None;
        }
        let paid = amounts.paged_out - before.paged_out;
        let part = ByteSize::from_bytes(paid.bytes() / PART);
        let is_gain = before.missing - amounts.missing >= part.max(GAIN_LEAST);
        let comes_back = paid >= LEAST && amounts.refaulted - before.refaulted >= part;
        if is_gain {
            self.pause = FIRST;
        }
        if is_gain || !comes_back {
            // What was needed again an hour ago says nothing of what goes now.
            self.account = Some((now, amounts));
            return None;
        }
        let left = self.pause;
        self.until = Some((now + left, amounts.working_set));
        self.pause = left.saturating_mul(2).min(LONGEST);
        self.account = None;
        Some(left)
    }

    /// Something else is missing from now on, or nothing is, or it is not to be known.
    pub(super) fn forget(&mut self) {
        self.account = None;
    }

    /// Blocks come or go: what was in vain may not be any more.
    pub(super) fn begin_anew(&mut self) {
        *self = Self::default();
    }
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

    /// Seconds; what is missing, was paged out, and was needed again, in MiB; the pause that is left, in seconds.
    fn left(vain: &mut Vain, s: u64, [missing, paged_out, refaulted]: [u64; 3]) -> Option<u64> {
        let now = Instant::from_millis(s * 1_000);
        let (missing, paged_out, refaulted) = (mib(missing), mib(paged_out), mib(refaulted));
        let amounts = Amounts { missing, paged_out, refaulted, working_set: Some(mib(600)) };
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
            let (missing, paged_out, refaulted) = (mib(80), mib(108), mib(4));
            let amounts = Amounts { missing, paged_out, refaulted, working_set };
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
