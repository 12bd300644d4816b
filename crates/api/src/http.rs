//! memtided's HTTP API on a unix socket, version 1.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /v1/host` | | [`HostStatus`] |
//! | `PUT /v1/host` | [`HostChange`] | [`HostStatus`] |
//! | `GET /v1/vms/NAME` | | [`VmStatus`] |
//! | `PUT /v1/vms/NAME` | [`VmChange`] | [`VmStatus`] |
//! | `GET /v1/vms/NAME/access` | | [`VmAccess`] |
//!
//! A refusal has a status of 400, 404, 405, 409 or 503 and a [`Refusal`] as its body.

use memtide_access::History;
use memtide_units::ByteSize;
use serde::{Deserialize, Serialize};

pub use crate::device::Refusal;
use crate::device::{DeviceStatus, Driver, PendingReturn};

/// Where memtided listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/memtide/memtided.sock";

/// The host and all its VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Version of memtided.
    pub version: String,
    /// Memory that the VMs together may have.
    pub budget: ByteSize,
    /// Where the budget comes from.
    pub budget_source: BudgetSource,
    /// What the VMs hold by the ledger.
    pub committed: ByteSize,
    /// What of it is resident.
    pub resident: ByteSize,
    /// `MemAvailable` of the host.
    pub host_available: ByteSize,
    /// Every VM, by name.
    pub vms: Vec<VmStatus>,
}

/// Where a budget comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetSource {
    /// From what the host has free, with a reserve.
    #[default]
    Host,
    /// From the configuration or the API.
    Given,
}

/// One VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name in memtided's configuration.
    pub name: String,
    /// memtided's connection to its device.
    pub state: VmState,
    /// Who drives the balloon.
    pub driver: Driver,
    /// All memory it was promised.
    pub memory: ByteSize,
    /// What it may use now, by the ledger: its memory less what is stolen or in the balloon.
    pub committed: ByteSize,
    /// What is stolen.
    pub stolen: ByteSize,
    /// What of it is not in the VM now: its guest has ejected it.
    #[serde(default)]
    pub ejected: ByteSize,
    /// What is resident on the host, from the backing.
    pub resident: ByteSize,
    /// Guaranteed.
    pub min: ByteSize,
    /// Never more than this.
    pub max: ByteSize,
    /// Bytes that the host wants in the balloon now.
    pub target: ByteSize,
    /// The return that is held, and why.
    pub held: Option<HeldReturn>,
    /// What the gate did for it.
    pub gate: GateCounters,
    /// Why memory that its guest ejects cannot be plugged in again, where that is configured and not
    /// so.
    #[serde(default)]
    pub plugging: Option<String>,
    /// The device's own words.
    pub device: Option<Box<DeviceStatus>>,
}

/// What was touched in a VM, as its agent has told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmAccess {
    /// How long ago the agent told it last, in milliseconds.
    pub age_ms: u64,
    /// All of it. Times are of memtided's own clock.
    pub history: History,
}

/// memtided's connection to a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "why")]
pub enum VmState {
    /// No device yet; the text says what was tried.
    #[default]
    Starting,
    /// Connected.
    Connected,
    /// The connection failed or was lost; tried again.
    Lost(String),
}

/// A return that the gate holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldReturn {
    /// The question.
    #[serde(flatten)]
    pub asked: PendingReturn,
    /// The reason in a sentence, with numbers.
    pub explanation: String,
}

/// What the gate did for one VM since memtided started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateCounters {
    /// Returns asked for.
    pub asked: u64,
    /// Granted, at once or later.
    pub granted: u64,
    /// Held for a while, whatever came of it.
    pub held: u64,
    /// Denied.
    pub denied: u64,
    /// Taken by the guest unasked.
    pub taken: u64,
    /// The longest a return was held, in milliseconds, the present one included.
    pub held_ms_max: u64,
}

/// What to change of a VM; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmChange {
    /// A new guarantee.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<ByteSize>,
    /// A new limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<ByteSize>,
    /// How much memory the VM shall keep: the balloon's target is its memory less this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<ByteSize>,
}

/// What to change of the host; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostChange {
    /// A new budget, or `"host"` for what the host has free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// What the VMs together may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// What the host has free, with a reserve.
    Host,
    /// So many bytes.
    Bytes(ByteSize),
}
