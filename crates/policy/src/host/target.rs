//! How large each balloon shall be.
//!
//! Three things make a balloon: the VM's limit (`max`), what an operator asked for (`keep`), and a
//! squeeze. The largest of them is the target. Only the squeeze is a policy. It is on when the VMs
//! hold more than a given budget, when the host itself is short, or when the first return in the
//! gate's line waits for budget that richer VMs hold. Each round asks every VM that can give for a
//! share of what is missing, in proportion to what it holds above its guarantee, counted from what
//! it has given up *now*. So nothing adds up behind a guest that does not answer, and what one VM
//! cannot give the next rounds ask of the others. When there is room again the squeeze is let go in
//! the same small steps.
//!
//! To an agent the target is also the ceiling up to which it asks for returns without an
//! emergency: a squeeze that stays on without need would starve it. Hence the care to let go.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use memtide_units::{ByteSize, Instant, Permille};

use super::balance::Balance;
use super::{Account, Gate, Held, HostObservation, Link, VmId};

/// Time between rounds: long enough for a guest to offline a block or inflate some hundred MiB, so
/// that a round sees what the one before has brought.
const ROUND: Duration = Duration::from_secs(2);
/// One round moves at most about a sixteenth of a VM's memory, or 256 MiB of a small one: a guest that is
/// squeezed faster meets pressure before its agent can tell.
const STEP_SHARE: Permille = Permille(62);
const STEP_MIN: ByteSize = ByteSize::from_mib(256);

/// Why a balloon has the size it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nobody wants anything of the VM.
    Nothing,
    /// Its memory less its limit.
    Limit,
    /// An operator asked for it.
    Operator,
    /// The VMs together hold too much, or one waits for what others hold.
    Squeeze,
}

/// A balloon's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose.
    pub vm: VmId,
    /// How much memory the VM shall do without.
    pub balloon: ByteSize,
    /// Why.
    pub cause: Cause,
}

/// What every balloon shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetPlan {
    /// One per VM that has memory, whether it changed or not.
    pub targets: Vec<Target>,
    /// When to step again at the latest, where a squeeze is on.
    pub wait: Option<Duration>,
    /// What is missing, to be asked of the VMs; zero where all is well.
    pub missing: ByteSize,
}

/// The squeezes that are on, and the operators' wishes.
#[derive(Clone, Debug, Default)]
pub struct TargetPolicy {
    squeezed: BTreeMap<VmId, ByteSize>,
    keep: BTreeMap<VmId, ByteSize>,
    last_round: Option<Instant>,
}

impl TargetPolicy {
    /// An operator wants the VM to keep no more than this; `None` takes the wish back.
    pub fn set_keep(&mut self, vm: VmId, keep: Option<ByteSize>) {
        match keep {
            Some(keep) => self.keep.insert(vm, keep),
            None => self.keep.remove(&vm),
        };
    }

    /// What an operator wants the VM to keep.
    pub fn keep(&self, vm: VmId) -> Option<ByteSize> {
        self.keep.get(&vm).copied()
    }

    /// A squeeze that an earlier life of this policy put on: it is let go when there is room.
    pub fn resume(&mut self, vm: VmId, squeezed: ByteSize) {
        if !squeezed.is_zero() {
            self.squeezed.insert(vm, squeezed);
        }
    }

    /// The squeeze that is on.
    pub fn squeezed(&self, vm: VmId) -> ByteSize {
        self.squeezed.get(&vm).copied().unwrap_or_default()
    }

    /// A VM took memory back unasked: what it has given up now is all that is wanted of it until
    /// the next round, or its agent would be sent to steal at once what it just could not spare.
    pub fn eased(&mut self, vm: VmId, given_up: ByteSize) {
        if let Some(squeezed) = self.squeezed.get_mut(&vm) {
            *squeezed = given_up.min(*squeezed);
        }
    }

    /// Decides on every balloon. A VM with a return open at the gate is not squeezed: it just said
    /// that it needs more, and a squeeze that is on makes room for what it asks.
    /// `waiting` is the report of the gate's step before this one.
    pub fn step(
        &mut self,
        now: Instant,
        seen: &HostObservation<'_>,
        gate: &Gate,
        waiting: &[Held],
    ) -> TargetPlan {
        self.make_room_for_asks(seen, gate);
        let balance = Balance::of(seen, gate, waiting);
        let active = match balance {
            Balance::Excess(_) | Balance::Wanted { .. } => true,
            Balance::Even => false,
            Balance::Room(_) => !self.squeezed.is_empty(),
        };
        if active && self.last_round.is_none_or(|last| now.since(last) >= ROUND) {
            self.last_round = Some(now);
            self.round(balance, seen, gate);
        }
        let targets = seen.ledger.accounts().filter_map(|(vm, account)| self.target(vm, account));
        TargetPlan {
            targets: targets.collect(),
            wait: active.then(|| self.until_round(now)),
            missing: balance.missing(),
        }
    }

    fn round(&mut self, balance: Balance, seen: &HostObservation<'_>, gate: &Gate) {
        match balance {
            Balance::Even => {}
            Balance::Room(bytes) => self.let_go(bytes, seen),
            Balance::Excess(bytes) => self.squeeze(bytes, ByteSize::ZERO, seen, gate),
            Balance::Wanted { bytes, above_min } => self.squeeze(bytes, above_min, seen, gate),
        }
    }

    fn make_room_for_asks(&mut self, seen: &HostObservation<'_>, gate: &Gate) {
        for (vm, account) in seen.ledger.accounts() {
            if let Some(ask) = gate.open(vm) {
                self.eased(vm, account.given_up() - ask.bytes);
            }
        }
    }

    /// Asks `missing` of the VMs that hold more than `floor` above their guarantees, and leaves
    /// each at least that.
    fn squeeze(
        &mut self,
        missing: ByteSize,
        floor: ByteSize,
        seen: &HostObservation<'_>,
        gate: &Gate,
    ) {
        let can_give = |vm: VmId, account: &Account| {
            account.link == Link::Connected
                && account.holdings.answers_targets
                && gate.open(vm).is_none()
        };
        let givers: Vec<_> = seen
            .ledger
            .accounts()
            .filter(|(vm, account)| can_give(*vm, account))
            .map(|(vm, account)| (vm, account, account.above_min() - floor))
            .filter(|(_, _, surplus)| !surplus.is_zero())
            .collect();
        let together: ByteSize = givers.iter().map(|(_, _, surplus)| *surplus).sum();
        for (vm, account, surplus) in givers {
            let share = part_of(missing, surplus, together).min(surplus).min(step_cap(account));
            self.squeezed.insert(vm, in_units(account.given_up() + share, account));
        }
    }

    fn let_go(&mut self, room: ByteSize, seen: &HostObservation<'_>) {
        let together: ByteSize = self.squeezed.values().copied().sum();
        let caps: BTreeMap<VmId, ByteSize> =
            seen.ledger.accounts().map(|(vm, account)| (vm, step_cap(account))).collect();
        for (vm, squeezed) in &mut self.squeezed {
            let cap = caps.get(vm).copied().unwrap_or(ByteSize::MAX);
            let share = part_of(room, *squeezed, together).min(cap);
            *squeezed -= share.round_up_to(ByteSize::from_kib(4));
        }
        self.squeezed.retain(|_, squeezed| !squeezed.is_zero());
    }

    fn target(&self, vm: VmId, account: &Account) -> Option<Target> {
        let memory = account.holdings.memory;
        if memory.is_zero() {
            return None;
        }
        let wishes = [
            (self.squeezed(vm), Cause::Squeeze),
            (self.keep(vm).map_or(ByteSize::ZERO, |keep| memory - keep), Cause::Operator),
            (memory - account.limits.max(), Cause::Limit),
        ];
        let (balloon, cause) = wishes.into_iter().max_by_key(|(balloon, _)| *balloon)?;
        let balloon = balloon.min(memory - account.limits.min());
        let cause = if balloon.is_zero() { Cause::Nothing } else { cause };
        Some(Target { vm, balloon, cause })
    }

    fn until_round(&self, now: Instant) -> Duration {
        self.last_round.map_or(Duration::ZERO, |last| ROUND.saturating_sub(now.since(last)))
    }
}

/// The most that one round moves of a VM.
fn step_cap(account: &Account) -> ByteSize {
    STEP_SHARE.of(account.holdings.memory).max(STEP_MIN)
}

/// A balloon in whole units of the guest that leaves it its guarantee.
fn in_units(balloon: ByteSize, account: &Account) -> ByteSize {
    let unit = account.holdings.unit;
    let most = account.holdings.memory.saturating_sub(account.limits.min());
    balloon.round_up_to(unit).min(most.round_down_to(unit))
}

/// `weight / together` of `whole`, rounded up so that a remainder is asked of somebody.
fn part_of(whole: ByteSize, weight: ByteSize, together: ByteSize) -> ByteSize {
    let product = u128::from(whole.bytes()) * u128::from(weight.bytes());
    let part = product.div_ceil(u128::from(together.bytes()).max(1));
    ByteSize::from_bytes(u64::try_from(part).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Budget, Holdings, HostMemory, Ledger, Limits};
    use super::*;

    fn mib(n: u64) -> ByteSize {
        ByteSize::from_mib(n)
    }

    fn seen(ledger: &Ledger, budget: Budget, available: u64) -> HostObservation<'_> {
        let memory =
            HostMemory { total: ByteSize::from_gib(64), available: ByteSize::from_gib(available) };
        HostObservation { ledger, budget, memory }
    }

    fn stock(memory: u64, balloon: u64) -> Holdings {
        Holdings {
            memory: mib(memory),
            balloon: mib(balloon),
            answers_targets: true,
            ..Holdings::NONE
        }
    }

    fn ledger(vms: &[(u64, u64, u64)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (number, (memory, balloon, min)) in (1..).zip(vms) {
            let vm = VmId(number);
            ledger.open(vm, Limits::new(mib(*min), ByteSize::MAX).unwrap());
            ledger.observed(vm, stock(*memory, *balloon));
        }
        ledger
    }

    fn balloons(plan: &TargetPlan) -> Vec<u64> {
        plan.targets.iter().map(|target| target.balloon.mib()).collect()
    }

    #[test]
    fn a_host_budget_squeezes_only_a_host_that_is_short() {
        let ledger = ledger(&[(40 << 10, 0, 0), (40 << 10, 0, 0)]);
        let mut policy = TargetPolicy::default();
        let now = Instant::from_millis(0);
        let plan = policy.step(now, &seen(&ledger, Budget::Host, 10), &Gate::default(), &[]);
        assert_eq!(balloons(&plan), [0, 0], "overcommitted, but nothing is short");
        let plan = policy.step(now, &seen(&ledger, Budget::Host, 1), &Gate::default(), &[]);
        assert!(plan.missing > mib(2000), "{plan:?}");
        assert!(balloons(&plan).iter().all(|mib| *mib > 1000), "{plan:?}");
    }

    #[test]
    fn who_holds_more_above_the_guarantee_is_asked_for_more() {
        let ledger = ledger(&[(4096, 0, 1024), (2048, 0, 1024)]);
        let mut policy = TargetPolicy::default();
        let budget = Budget::Given(mib(6144 - 256));
        let now = Instant::from_millis(0);
        let plan = policy.step(now, &seen(&ledger, budget, 60), &Gate::default(), &[]);
        let got = balloons(&plan);
        assert!(got[0] > 2 * got[1] && got[1] > 0, "{plan:?}");
        assert!(plan.targets.iter().all(|target| target.cause == Cause::Squeeze));
    }

    #[test]
    fn a_limit_and_an_operator_make_balloons_without_any_shortage() {
        let mut ledger = ledger(&[(4096, 0, 512)]);
        let mut policy = TargetPolicy::default();
        let now = Instant::from_millis(0);
        ledger.set_limits(VmId(1), Limits::new(mib(512), mib(3072)).unwrap());
        let plan = policy.step(now, &seen(&ledger, Budget::Host, 60), &Gate::default(), &[]);
        assert_eq!((balloons(&plan), plan.targets[0].cause), (Vec::from([1024]), Cause::Limit));
        policy.set_keep(VmId(1), Some(mib(2048)));
        let plan = policy.step(now, &seen(&ledger, Budget::Host, 60), &Gate::default(), &[]);
        assert_eq!((balloons(&plan), plan.targets[0].cause), (Vec::from([2048]), Cause::Operator));
        policy.set_keep(VmId(1), Some(mib(100)));
        let plan = policy.step(now, &seen(&ledger, Budget::Host, 60), &Gate::default(), &[]);
        assert_eq!(balloons(&plan), [4096 - 512], "never below the guarantee");
    }

    #[test]
    fn a_squeeze_is_let_go_when_there_is_room_again() {
        let mut ledger = ledger(&[(4096, 0, 0)]);
        let mut policy = TargetPolicy::default();
        let mut largest = 0;
        for round in 0..40_u64 {
            let now = Instant::from_millis(round * 2000);
            let budget = Budget::Given(if round < 20 { mib(3072) } else { mib(8192) });
            let plan = policy.step(now, &seen(&ledger, budget, 60), &Gate::default(), &[]);
            ledger.balloon_is(VmId(1), plan.targets[0].balloon);
            largest = largest.max(plan.targets[0].balloon.mib());
        }
        assert!((1024..1200).contains(&largest), "{largest} MiB for the GiB that is missing");
        assert_eq!(ledger.committed(), mib(4096));
    }

    #[test]
    fn a_guest_that_does_not_answer_is_not_asked_for_ever_more() {
        let ledger = ledger(&[(4096, 0, 0)]);
        let mut policy = TargetPolicy::default();
        for round in 0..100_u64 {
            let now = Instant::from_millis(round * 2000);
            let budget = Budget::Given(mib(1024));
            let plan = policy.step(now, &seen(&ledger, budget, 60), &Gate::default(), &[]);
            assert!(plan.targets[0].balloon <= mib(257), "{plan:?}");
        }
    }

    proptest! {
        /// Guests that do what they are asked end within the budget, or at their guarantees, and
        /// stay there: the policy does not swing.
        #[test]
        fn obedient_guests_settle(
            vms in prop::collection::vec((256_u64..8192, 0_u64..256), 1..6),
            budget in 512_u64..20_000,
        ) {
            let vms: Vec<_> = vms.into_iter().map(|(memory, min)| (memory, 0, min)).collect();
            let mut ledger = ledger(&vms);
            let mut policy = TargetPolicy::default();
            let mut last = Vec::new();
            for round in 0..300_u64 {
                let now = Instant::from_millis(round * 2000);
                let observed = seen(&ledger, Budget::Given(mib(budget)), 60);
                let plan = policy.step(now, &observed, &Gate::default(), &[]);
                for target in &plan.targets {
                    let account = *ledger.account(target.vm).unwrap();
                    prop_assert!(account.holdings.memory - target.balloon >= account.limits.min());
                    ledger.balloon_is(target.vm, target.balloon);
                }
                if round > 290 {
                    prop_assert_eq!(&last, &plan.targets, "still moving");
                }
                last = plan.targets;
            }
            let mins: u64 = vms.iter().map(|(_, _, min)| *min).sum();
            prop_assert!(ledger.committed() <= mib(budget.max(mins)));
        }
    }
}
