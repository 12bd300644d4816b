//! What a client wants changed: checked as a whole, then done as a whole.

use memtide_api::device::Request;
use memtide_api::http::{Budget, HostChange, Refusal, VmChange};
use memtide_policy::host::{Limits, VmId};
use memtide_units::ByteSize;

use super::Keeper;

/// Why a change was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such VM.
    #[error(transparent)]
    Unknown(Refusal),
    /// The change makes no sense.
    #[error(transparent)]
    Invalid(Refusal),
    /// It makes sense, but not now.
    #[error(transparent)]
    NotNow(Refusal),
}

fn invalid(name: &str, message: String) -> Refused {
    Refused::Invalid(Refusal { name: name.into(), message })
}

impl Keeper {
    /// Finds a VM by name.
    ///
    /// # Errors
    /// [`Refused::Unknown`] names the VMs that there are.
    pub fn find(&self, name: &str) -> Result<VmId, Refused> {
        self.ids().find(|id| self.vm(*id).name == name).ok_or_else(|| {
            let names: Vec<&str> = self.vms.iter().map(|vm| vm.name.as_str()).collect();
            let known = match names.as_slice() {
                [] => "none: add one to its configuration or start it with --vm".into(),
                names => names.join(", "),
            };
            let message = format!("there is no VM {name:?}; memtided knows {known}");
            Refused::Unknown(Refusal { name: "unknown-vm".into(), message })
        })
    }

    /// Changes the host.
    ///
    /// # Errors
    /// [`Refused::Invalid`]; nothing is changed then.
    pub fn change_host(&mut self, change: &HostChange) -> Result<(), Refused> {
        if let Some(budget) = change.budget {
            if budget == Budget::Bytes(ByteSize::ZERO) {
                let message = "a budget of nothing lets no VM have memory: give more, or \"host\"";
                return Err(invalid("budget-zero", message.into()));
            }
            match budget {
                Budget::Host => tracing::info!("a new budget: what the host has free"),
                Budget::Bytes(bytes) => tracing::info!("a new budget: {bytes}"),
            }
            self.budget = budget;
        }
        Ok(())
    }

    /// Changes a VM. What it shall keep is forgotten when that is all of its memory.
    ///
    /// # Errors
    /// [`Refused`]; nothing is changed then.
    pub fn change_vm(&mut self, id: VmId, change: &VmChange) -> Result<(), Refused> {
        let limits = self.new_limits(id, change)?;
        let keep = change.target.map(|keep| self.new_keep(id, keep, limits)).transpose()?;
        let wish = keep
            .unwrap_or(self.targets.keep(id))
            .map_or_else(|| "all it has".into(), |keep| keep.to_string());
        tracing::info!(
            vm = self.vm(id).name, min = %limits.min(), max = %limits.max(), keep = wish, "changed"
        );
        if limits != self.limits(id) {
            self.ledger.set_limits(id, limits);
            self.send(id, Request::SetMin { min: limits.min() });
        }
        if let Some(keep) = keep {
            self.targets.set_keep(id, keep);
        }
        Ok(())
    }

    fn new_limits(&self, id: VmId, change: &VmChange) -> Result<Limits, Refused> {
        let old = self.limits(id);
        let min = change.min.unwrap_or(old.min());
        if min.is_zero() {
            let message = "a guarantee (min) of nothing lets a guest be squeezed to death: give \
                           what it needs to stay alive, such as 512MiB";
            return Err(invalid("min-zero", message.into()));
        }
        Limits::new(min, change.max.unwrap_or(old.max()))
            .map_err(|error| invalid("min-above-max", error.to_string()))
    }

    fn new_keep(
        &self,
        id: VmId,
        keep: ByteSize,
        limits: Limits,
    ) -> Result<Option<ByteSize>, Refused> {
        let memory = self.ledger.account(id).map_or(ByteSize::ZERO, |a| a.holdings.memory);
        if memory.is_zero() {
            let message = format!(
                "{} has no memory yet: a target can be set once its VMM is connected to its device",
                self.vm(id).name
            );
            return Err(Refused::NotNow(Refusal { name: "not-connected".into(), message }));
        }
        if keep > memory {
            let message = format!("the VM has {memory} and cannot keep {keep}: give at most that");
            return Err(invalid("target-above-memory", message));
        }
        if keep < limits.min() {
            let min = limits.min();
            let message =
                format!("a target of {keep} is less than the {min} guaranteed: lower min as well");
            return Err(invalid("target-below-min", message));
        }
        Ok((keep < memory).then_some(keep))
    }
}
