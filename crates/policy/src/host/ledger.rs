//! The books: who holds what.

use alloc::collections::BTreeMap;

use memtide_units::ByteSize;

/// A VM's number in one ledger; names are for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub u32);

/// What the operator says about a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    min: ByteSize,
    max: ByteSize,
}

/// Limits that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a guarantee (min) of {min} is more than the limit (max) of {max}: \
     lower min or raise max"
)]
pub struct LimitsError {
    /// The guarantee.
    pub min: ByteSize,
    /// The limit below it.
    pub max: ByteSize,
}

impl Limits {
    /// Nothing is guaranteed, nothing limited.
    pub const NONE: Self = Self { min: ByteSize::ZERO, max: ByteSize::MAX };

    /// A guarantee and a limit; [`ByteSize::MAX`] for no limit.
    ///
    /// # Errors
    /// [`LimitsError`] where `min` is above `max`.
    pub fn new(min: ByteSize, max: ByteSize) -> Result<Self, LimitsError> {
        if min > max { Err(LimitsError { min, max }) } else { Ok(Self { min, max }) }
    }

    /// Returns below it are granted always and at once.
    pub const fn min(self) -> ByteSize {
        self.min
    }

    /// Returns above it are held.
    pub const fn max(self) -> ByteSize {
        self.max
    }
}

/// What is known of the connection to a VM's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nobody has tried to reach it yet: the books are incomplete.
    Unheard,
    /// Its device speaks.
    Connected,
    /// Its device spoke once and does not now. The VM may live: what it held counts on.
    Lost,
    /// There is no device, hence no VM: it holds nothing.
    Gone,
}

/// What a device says that its VM holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// All memory that the VMM gave it; zero while no VMM is connected.
    pub memory: ByteSize,
    /// What of it is stolen.
    pub stolen: ByteSize,
    /// What of it is in a stock driver's balloon.
    pub balloon: ByteSize,
    /// What of it has backing on the host now.
    pub resident: ByteSize,
    /// True bottom of what it uses, whatever its guest says: what is resident. A stolen map is a
    /// guest's word, and after a reboot without an agent it describes another kernel.
    pub at_least: ByteSize,
    /// The unit in which it can give memory up: a memory block with an agent, a page without.
    pub unit: ByteSize,
    /// Somebody in the guest listens to a balloon target.
    pub answers_targets: bool,
}

impl Holdings {
    /// A VM that is not there.
    pub const NONE: Self = Self {
        memory: ByteSize::ZERO,
        stolen: ByteSize::ZERO,
        balloon: ByteSize::ZERO,
        resident: ByteSize::ZERO,
        at_least: ByteSize::ZERO,
        unit: ByteSize::from_kib(4),
        answers_targets: false,
    };
}

/// One VM's page in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// What the operator says.
    pub limits: Limits,
    /// What the device said last.
    pub holdings: Holdings,
    /// Whether it can say more.
    pub link: Link,
}

impl Account {
    /// What the VM may use without asking: its memory less what is stolen or in the balloon, and
    /// never less than what it is known to use.
    pub fn committed(&self) -> ByteSize {
        let held = &self.holdings;
        let booked = held.memory.saturating_sub(held.stolen).saturating_sub(held.balloon);
        booked.max(held.at_least.min(held.memory))
    }

    /// What of its memory it does without now.
    pub fn given_up(&self) -> ByteSize {
        self.holdings.memory.saturating_sub(self.committed())
    }

    /// What it holds beyond its guarantee.
    pub fn above_min(&self) -> ByteSize {
        self.committed().saturating_sub(self.limits.min)
    }
}

/// All accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    accounts: BTreeMap<VmId, Account>,
}

impl Ledger {
    /// Opens an account for a VM that nothing is known of yet.
    pub fn open(&mut self, vm: VmId, limits: Limits) {
        let account = Account { limits, holdings: Holdings::NONE, link: Link::Unheard };
        self.accounts.insert(vm, account);
    }

    /// A VM's account.
    pub fn account(&self, vm: VmId) -> Option<&Account> {
        self.accounts.get(&vm)
    }

    /// All of them, in the order of their numbers.
    pub fn accounts(&self) -> impl Iterator<Item = (VmId, &Account)> {
        self.accounts.iter().map(|(vm, account)| (*vm, account))
    }

    /// The operator changed his mind.
    pub fn set_limits(&mut self, vm: VmId, limits: Limits) {
        self.with(vm, |account| account.limits = limits);
    }

    /// A device told all: what was booked before is forgotten.
    pub fn observed(&mut self, vm: VmId, holdings: Holdings) {
        self.with(vm, |account| {
            account.holdings = holdings;
            account.link = Link::Connected;
        });
    }

    /// The stolen part has a new size; its backing is dropped already, or may come back from now.
    pub fn stolen_is(&mut self, vm: VmId, stolen: ByteSize) {
        self.with(vm, |account| {
            account.holdings.stolen = stolen;
            account.forget_old_residency();
        });
    }

    /// A stock driver's balloon has a new size.
    pub fn balloon_is(&mut self, vm: VmId, balloon: ByteSize) {
        self.with(vm, |account| {
            account.holdings.balloon = balloon;
            account.forget_old_residency();
        });
    }

    /// The connection to its device is lost: what it held counts on.
    pub fn lost(&mut self, vm: VmId) {
        self.with(vm, |account| account.link = Link::Lost);
    }

    /// Its device ended in good order, or never was: it holds nothing.
    pub fn gone(&mut self, vm: VmId) {
        self.with(vm, |account| {
            account.holdings = Holdings::NONE;
            account.link = Link::Gone;
        });
    }

    /// What all VMs together may use without asking.
    pub fn committed(&self) -> ByteSize {
        self.accounts.values().map(Account::committed).sum()
    }

    /// What all VMs together have backing for.
    pub fn resident(&self) -> ByteSize {
        self.accounts.values().map(|account| account.holdings.resident).sum()
    }

    /// How many VMs nobody has tried to reach yet.
    pub fn unheard(&self) -> usize {
        self.accounts.values().filter(|account| account.link == Link::Unheard).count()
    }

    fn with(&mut self, vm: VmId, change: impl FnOnce(&mut Account)) {
        if let Some(account) = self.accounts.get_mut(&vm) {
            change(account);
        }
    }
}

impl Account {
    /// For a word that is known to be true, as in a simulation: a bound from before it would hide
    /// it until the next poll. A service that hears it from a guest polls at once instead.
    fn forget_old_residency(&mut self) {
        let held = &mut self.holdings;
        let booked = held.memory.saturating_sub(held.stolen).saturating_sub(held.balloon);
        held.at_least = held.at_least.min(booked);
        held.resident = held.resident.min(booked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mib(n: u64) -> ByteSize {
        ByteSize::from_mib(n)
    }

    fn holdings(memory: u64, stolen: u64, balloon: u64) -> Holdings {
        Holdings {
            memory: mib(memory),
            stolen: mib(stolen),
            balloon: mib(balloon),
            ..Holdings::NONE
        }
    }

    fn one(holdings: Holdings) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.open(VmId(1), Limits::NONE);
        ledger.observed(VmId(1), holdings);
        ledger
    }

    #[test]
    fn a_lost_vm_counts_on_and_one_that_is_gone_does_not() {
        let mut ledger = one(holdings(2048, 512, 0));
        ledger.lost(VmId(1));
        assert_eq!(ledger.committed(), mib(1536));
        ledger.gone(VmId(1));
        assert_eq!(ledger.committed(), ByteSize::ZERO);
    }

    #[test]
    fn resident_memory_contradicts_a_stale_map() {
        let mut stale = holdings(2048, 1024, 0);
        stale.resident = mib(1800);
        stale.at_least = mib(1800);
        let mut ledger = one(stale);
        assert_eq!(ledger.committed(), mib(1800));
        ledger.stolen_is(VmId(1), mib(1536));
        assert_eq!(ledger.committed(), mib(512), "an event is newer than the poll");
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused() {
        let error = Limits::new(mib(2), mib(1)).unwrap_err().to_string();
        assert!(error.contains("2 MiB") && error.contains("lower min"), "{error}");
    }

    proptest! {
        /// Whatever a device claims, a VM holds something between nothing and all of its memory.
        #[test]
        fn committed_stays_between_nothing_and_everything(
            memory in any::<u64>(), stolen in any::<u64>(), balloon in any::<u64>(), floor in any::<u64>()
        ) {
            let size = ByteSize::from_bytes;
            let ledger = one(Holdings {
                memory: size(memory),
                stolen: size(stolen),
                balloon: size(balloon),
                at_least: size(floor),
                ..Holdings::NONE
            });
            prop_assert!(ledger.committed() <= size(memory));
        }
    }
}
