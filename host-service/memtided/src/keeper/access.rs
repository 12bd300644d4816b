//! What was touched in a VM, as its agent tells, kept for people.
//!
//! A guest may tell anything. What it costs is bounded: a history is 120 KiB, and a look is taken in
//! every few seconds at most, however often there is a new one.

use std::time::Duration;

use memtide_access::{Digest, History, Limits};
use memtide_api::device::Driver;
use memtide_api::http::{Refusal, VmAccess};
use memtide_policy::host::VmId;
use memtide_units::Instant;

use super::{Keeper, Refused};

/// Between two looks that are taken in: to cut a history anew for other memory takes some
/// milliseconds, and a guest may tell of other memory each time.
const APART: Duration = Duration::from_secs(2);

/// The history of one VM.
#[derive(Debug)]
pub(super) struct Access {
    history: History,
    /// When the agent told last, and its name for what it told.
    heard: Option<(Instant, u64)>,
}

impl Default for Access {
    fn default() -> Self {
        Self { history: History::new(Limits::HOST), heard: None }
    }
}

impl Access {
    /// The agent has told, perhaps what it had told before.
    pub(super) fn hear(&mut self, now: Instant, mut digest: Digest) {
        let is_old = |&(at, told): &(Instant, u64)| told == digest.at_ms || now.since(at) < APART;
        if self.heard.as_ref().is_some_and(is_old) {
            return;
        }
        self.heard = Some((now, digest.at_ms));
        // Its clock is its own business.
        digest.at_ms = now.as_millis();
        self.history.observe(digest);
    }
}

impl Keeper {
    /// What was touched in a VM.
    ///
    /// # Errors
    /// [`Refused::NotNow`] with the reason why nothing is known.
    pub fn vm_access(&self, now: Instant, id: VmId) -> Result<VmAccess, Refused> {
        let Access { history, heard } = &self.vm(id).access;
        match heard {
            Some((at, _)) => {
                let age_ms = u64::try_from(now.since(*at).as_millis()).unwrap_or(u64::MAX);
                Ok(VmAccess { age_ms, history: history.clone() })
            }
            None => Err(Refused::NotNow(Refusal {
                name: "nothing-told".into(),
                message: self.why_nothing_is_told(id),
            })),
        }
    }

    fn why_nothing_is_told(&self, id: VmId) -> String {
        let vm = self.vm(id);
        let name = &vm.name;
        match vm.device.as_ref().map(|device| device.driver) {
            None => format!(
                "nothing is known of what {name} touches, since there is no connection to its device: \
                 `memtide vm {name}` says why"
            ),
            Some(Driver::Agent) => format!(
                "the agent in {name} has not told what is touched there: it tells some ten seconds after \
                 its start, if its kernel has DAMON (Debian: 6.12 and later) and the agent is no older \
                 than this memtided; `memtide-agent status` in the guest says what it lacks"
            ),
            Some(Driver::Stock | Driver::None) => format!(
                "no memtide-agent drives the balloon of {name}, and a standard driver does not tell what \
                 is touched: start memtide-agent in the guest"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_access::{Amounts, Cell, Layout};
    use memtide_units::{ByteSize, Gpa, GpaRange};

    fn digest(at_ms: u64, mib: u64) -> Digest {
        let memory = GpaRange::new(Gpa(0), ByteSize::from_mib(mib)).unwrap();
        let layout = Layout::new(&[memory], 512).unwrap();
        let cells = vec![Cell::UNWATCHED; layout.cells()];
        Digest { at_ms, watched_ms: 0, amounts: Amounts::default(), layout, cells }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn the_same_look_is_taken_in_once_and_none_too_soon() {
        let mut access = Access::default();
        for (now, told) in [(1_000, 50), (4_000, 50), (5_000, 70), (5_500, 90), (8_000, 91)] {
            access.hear(at(now), digest(told, 256));
        }
        let looks: u64 = access.history.columns().map(|column| column.snapshots).sum();
        assert_eq!(looks, 3);
        assert_eq!(access.history.last().unwrap().at_ms, 8_000, "in memtided's time");
    }

    #[test]
    fn a_guest_of_a_thousand_faces_fills_no_memory() {
        let mut access = Access::default();
        for n in 0..2_000 {
            access.hear(at(n * 2_000), digest(n, 1 + n % 700));
        }
        assert!(access.history.footprint() < 160 << 10);
    }
}
