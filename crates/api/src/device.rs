//! The device-service protocol: JSON lines over the device's control socket.
//!
//! The device listens. A client sends [`Call`]s and gets one [`Reply`] for each; a client that
//! attached gets [`Event`]s between them. One client at a time may attach as controller: it decides
//! returns. With nobody attached as controller the device decides by its local rule, and anybody may
//! decide what that holds.
//!
//! ```text
//! > {"id":1,"call":{"attach":{"version":1,"role":"controller"}}}
//! < {"id":1,"ok":{"status":{...}}}
//! < {"event":{"return_asked":{"ticket":7,"bytes":134217728,...}}}
//! > {"id":2,"call":{"decide":{"ticket":7,"decision":"grant"}}}
//! < {"id":2,"ok":"done"}
//! ```

use std::collections::BTreeMap;

use memtide_access::Digest;
use memtide_units::{ByteSize, GpaRange, PpMillion};
use serde::{Deserialize, Serialize};

/// Version of this protocol. A device refuses to attach clients of another.
pub const VERSION: u32 = 1;

/// A request to the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Chosen by the client; the reply carries it.
    pub id: u64,
    /// What is asked.
    pub call: Request,
}

/// What a client may ask of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Get events from now on; answered with the status.
    Attach {
        /// [`VERSION`] of the client.
        version: u32,
        /// Whether it decides or watches.
        role: Role,
    },
    /// Answered with the status.
    Status,
    /// How large the balloon shall be (a stock driver inflates to it, the agent steals that much);
    /// rounded down to 4 KiB pages.
    SetTarget {
        /// Bytes that the guest shall do without; zero gives it all.
        balloon: ByteSize,
    },
    /// What this VM is guaranteed: returns below it are granted at once, by the device itself.
    SetMin {
        /// In bytes of guest memory.
        min: ByteSize,
    },
    /// What becomes of returns above the guarantee when no controller is attached; until the device
    /// process ends.
    SetLocalRule {
        /// The rule.
        rule: LocalRule,
    },
    /// The answer to a return.
    Decide {
        /// The one that asked.
        ticket: u32,
        /// The gate's word.
        decision: Decision,
    },
    /// Make the agent say hello again, so that the books are rebuilt from the guest's own map.
    AskHello,
    /// Memory that this controller plugs into the VM again when its guest has ejected it and wants it
    /// back: what is plugged in now and what is not. Replaces what was said before. The guest is told
    /// that it may eject as long as this controller is attached.
    SetPluggable {
        /// At most [`PLUGGABLE_MAX`], disjoint.
        ranges: Vec<GpaRange>,
    },
}

/// Ranges of [`Request::SetPluggable`] at most: a call is one line of at most 4 KiB. Neighbours can be joined.
pub const PLUGGABLE_MAX: usize = 48;

/// What the device does with returns when no controller is there to decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalRule {
    /// Grants them all.
    #[default]
    Grant,
    /// Grants them as long as the balloon stays as large as its target, and holds the rest.
    Target,
    /// Holds them until somebody decides.
    Hold,
}

/// Who answers a return above the guaranteed minimum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decider {
    /// The controller that is attached.
    Controller,
    /// The one that has left and is waited for (`--controller-grace`).
    AbsentController,
    /// The local rule, or whoever decides by hand what that holds.
    #[default]
    LocalRule,
}

/// What an attached client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Decides returns. One at a time: a new controller replaces one whose connection is gone.
    Controller,
    /// Watches.
    Observer,
}

/// The gate's word on a return.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The guest may have the blocks.
    Grant,
    /// Not yet. The reason is a name of `memtide_wire::block::HoldReason`, such as `host-budget`.
    Hold(String),
    /// No; the ticket is gone.
    Deny(String),
}

/// What the device answers: to a call, or by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FromDevice {
    /// The answer to the call of that id.
    Reply(Reply),
    /// Something happened.
    Event {
        /// What.
        event: Event,
    },
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The call's id; zero where the line could not be read that far.
    pub id: u64,
    /// How it went.
    #[serde(flatten)]
    pub result: Outcome,
}

/// How a call went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It went well.
    Ok(Answer),
    /// It was refused; nothing changed.
    Error(Refusal),
}

/// The answer of a call that went well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Carried out.
    Done,
    /// How the device is.
    Status(Box<DeviceStatus>),
}

/// A refused call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{name}: {message}")]
pub struct Refusal {
    /// Its stable name, such as `no-such-ticket`.
    pub name: String,
    /// What, why, and what to do.
    pub message: String,
}

/// Who drives the device in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// Nobody: the guest boots, or no driver is loaded.
    #[default]
    None,
    /// A standard balloon driver.
    Stock,
    /// memtide-agent.
    Agent,
}

/// Something that happened in the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Another driver, or none.
    DriverChanged {
        /// The present one.
        driver: Driver,
    },
    /// The agent said hello.
    Hello(AgentHello),
    /// Blocks were stolen and their backing dropped.
    Stolen {
        /// Which.
        ranges: Vec<GpaRange>,
        /// What is stolen in all, after it.
        stolen: ByteSize,
    },
    /// The agent asks for blocks; sent once per ticket, unless its urgency or ranges change.
    ReturnAsked(PendingReturn),
    /// The agent took the question back.
    ReturnCancelled {
        /// Which.
        ticket: u32,
    },
    /// The agent has its grant; the blocks are the guest's again.
    Returned {
        /// Which question.
        ticket: u32,
        /// The blocks.
        ranges: Vec<GpaRange>,
        /// Who granted it.
        by: GrantedBy,
        /// What is stolen still.
        stolen: ByteSize,
    },
    /// The agent could not wait and took blocks unasked.
    Taken {
        /// Which.
        ranges: Vec<GpaRange>,
        /// What is stolen still.
        stolen: ByteSize,
    },
    /// How the guest is, once a second at most.
    Telemetry(GuestTelemetry),
    /// The agent is about to eject these, all of them stolen.
    Ejecting {
        /// Which.
        ranges: Vec<GpaRange>,
    },
    /// The agent waits for these to be plugged in again. It may say so more than once.
    PlugWanted {
        /// Which.
        ranges: Vec<GpaRange>,
    },
    /// A stock driver's balloon has another size.
    Balloon {
        /// Its `actual`.
        actual: ByteSize,
    },
}

/// Whose word a grant was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantedBy {
    /// The controller's, or where there is none that of whoever decided by hand.
    Controller,
    /// It lay below the guaranteed minimum.
    Minimum,
    /// The device's local rule, since no controller is attached.
    LocalRule,
}

/// What an agent said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHello {
    /// The epoch it answered.
    pub epoch: u32,
    /// Size of the guest's memory blocks.
    pub block_size: ByteSize,
    /// All memory the guest has.
    pub present: ByteSize,
    /// What of it was online.
    pub online: ByteSize,
    /// The agent's own lower limit.
    pub min: ByteSize,
    /// The agent's own upper limit.
    pub max: ByteSize,
    /// What it holds stolen.
    pub stolen: Vec<GpaRange>,
}

/// A return that has been asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingReturn {
    /// The agent's number for it.
    pub ticket: u32,
    /// How much.
    pub bytes: ByteSize,
    /// Which blocks.
    pub ranges: Vec<GpaRange>,
    /// `comfort`, `pressure` or `emergency`.
    pub urgency: Urgency,
    /// How long it has waited, in milliseconds.
    pub waited_ms: u64,
    /// Why it waits: a name of `memtide_wire::block::HoldReason`.
    pub reason: String,
}

/// How badly a return is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// Room for growth that nobody waits for.
    Comfort,
    /// Free memory is falling or pressure is over the goal.
    Pressure,
    /// The guest is about to run out of memory.
    Emergency,
}

/// One piece of guest memory and where its backing lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Guest-physical addresses.
    pub range: GpaRange,
    /// Where `range` starts in the backing file.
    pub file_offset: ByteSize,
    /// The file, by inode: regions of one memfd share it.
    pub inode: u64,
}

/// How a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Process id of the device.
    pub pid: u32,
    /// The VMM is connected.
    pub vmm_connected: bool,
    /// Who drives it.
    pub driver: Driver,
    /// Feature bits that the driver acked.
    pub features: u64,
    /// The same by name: `must-tell-host`, `event-idx`; `bit-N` for what has none.
    #[serde(default)]
    pub feature_names: Vec<String>,
    /// Guest memory.
    pub memory: Vec<MemoryRegion>,
    /// What of it is resident on the host now, from the backing files.
    pub resident: ByteSize,
    /// What the balloon shall be.
    pub target: ByteSize,
    /// What a stock driver says the balloon is.
    pub actual: ByteSize,
    /// The guaranteed minimum.
    pub min: ByteSize,
    /// Who answers returns now.
    #[serde(default)]
    pub decider: Decider,
    /// The rule for when no controller is attached.
    #[serde(default)]
    pub local_rule: LocalRule,
    /// Stolen blocks, joined, in address order.
    pub stolen: Vec<GpaRange>,
    /// What the controller plugs in again when the guest has ejected it; in address order.
    #[serde(default)]
    pub pluggable: Vec<GpaRange>,
    /// The last hello.
    pub hello: Option<AgentHello>,
    /// The return that waits.
    pub pending: Option<PendingReturn>,
    /// The last telemetry.
    pub telemetry: Option<GuestTelemetry>,
    /// How old that is, in milliseconds.
    #[serde(default)]
    pub telemetry_age_ms: Option<u64>,
    /// The stock driver's statistics by name (`tag-N` for unknown tags): bytes or counts.
    pub stats: BTreeMap<String, u64>,
    /// How old they are, in milliseconds.
    #[serde(default)]
    pub stats_age_ms: Option<u64>,
    /// How often they are asked for while somebody reads them, in milliseconds; zero for never.
    #[serde(default)]
    pub stats_interval_ms: u64,
    /// What the device has done since it started.
    pub counters: Counters,
}

/// Counts since the device process started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Bytes inflated by a stock driver.
    pub inflated: ByteSize,
    /// Bytes deflated by a stock driver.
    pub deflated: ByteSize,
    /// Bytes that free page reporting named.
    pub reported: ByteSize,
    /// Bytes stolen by the agent.
    pub stolen: ByteSize,
    /// Bytes returned to the agent.
    pub returned: ByteSize,
    /// Returns asked for.
    pub returns_asked: u64,
    /// Returns granted.
    pub returns_granted: u64,
    /// Returns that had to wait for a decision other than a grant.
    pub returns_held: u64,
    /// Bytes taken unasked.
    pub taken: ByteSize,
    /// Times that a stock driver was told of a new balloon size.
    #[serde(default)]
    pub notices: u64,
    /// Times that this was begun and called off, since its device was about to stop.
    #[serde(default)]
    pub notices_called_off: u64,
    /// Punch holes made.
    pub punches: u64,
    /// Punch holes that failed.
    pub punch_errors: u64,
    /// Requests that were refused, by the reason's name.
    pub refused: BTreeMap<String, u64>,
}

/// How the guest is, as its agent says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestTelemetry {
    /// Online memory, less the kernel's reserve (`MemTotal`).
    pub total: ByteSize,
    /// `MemFree`.
    pub free: ByteSize,
    /// `MemAvailable`.
    pub available: ByteSize,
    /// `Cached`.
    pub cached: ByteSize,
    /// Memory touched lately, by DAMON; zero where nobody watches.
    pub working_set: ByteSize,
    /// Used memory not touched lately, by DAMON.
    pub cold: ByteSize,
    /// PSI some for memory since boot, in microseconds.
    pub psi_some_us: u64,
    /// PSI full for memory since boot, in microseconds.
    pub psi_full_us: u64,
    /// PSI some for memory over ten seconds, in millionths.
    pub psi_some_avg10: PpMillion,
    /// OOM kills since boot.
    pub oom_kills: u32,
    /// Memory blocks.
    pub blocks_total: u32,
    /// Blocks in ZONE_MOVABLE, stolen ones included.
    pub blocks_movable: u32,
    /// Blocks stolen now.
    pub blocks_stolen: u32,
    /// Steals that failed.
    pub steals_failed: u32,
    /// Resident memory of the agent.
    pub agent_rss: ByteSize,
    /// The agent's last decision and its reason.
    pub note: String,
    /// What was touched where, where somebody watches and tells. Its time is of the agent's own clock: the
    /// same look has the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heat: Option<Box<Digest>>,
}

#[cfg(test)]
mod tests;
