//! What the running agent says of itself, for `memtide-agent status` and for other programs.

mod lack;

use std::fmt;
use std::io;
use std::path::Path;

use memtide_units::{BlockId, ByteSize, PpMillion};
use serde::{Deserialize, Serialize};

use crate::runtime::replace;

pub use self::lack::{Lack, say_lack};

use self::lack::WATCHING;

/// What has happened since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Blocks stolen and reported; those found at start included.
    pub stolen: usize,
    /// Steals that failed.
    pub steals_failed: usize,
    /// Blocks put online again.
    pub returned: usize,
    /// Of these, without a grant.
    pub taken_unasked: usize,
    /// Introductions that the host accepted.
    pub hellos: usize,
    /// Times that the device was lost.
    pub device_losses: usize,
    /// Blocks that somebody else put online while the host was dropping them.
    pub dropped_online: usize,
    /// Times that something stolen was removed, `struct page`s and all.
    #[serde(default)]
    pub removals: usize,
}

/// The `struct page`s of stolen blocks, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StructPages {
    /// Of removed blocks, and most of those of pieces: these are memory again.
    pub freed: ByteSize,
    /// Of blocks that are only offline, and the rest of those of pieces.
    pub remain: ByteSize,
    /// Of all memory, where the kernel counts them (from 6.11 on).
    pub all: Option<ByteSize>,
}

/// The limits in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// Bytes that are never stolen below.
    pub min: ByteSize,
    /// Bytes that are never gone beyond.
    pub max: ByteSize,
    /// Acceptable pressure, in millionths.
    pub psi_goal: PpMillion,
    /// Bytes below which the host grants always and at once.
    pub host_guarantees: ByteSize,
    /// Bytes that the host wants in the balloon.
    pub host_wants: ByteSize,
}

/// The guest's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// In all blocks.
    pub present: ByteSize,
    /// In online blocks.
    pub online: ByteSize,
    /// `MemAvailable`.
    pub available: ByteSize,
    /// Touched lately, where somebody watches.
    pub working_set: Option<ByteSize>,
    /// Share of the last ten seconds in which some task stalled, in millionths, where there is PSI.
    pub pressure_avg10: Option<PpMillion>,
}

/// The memory blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCounts {
    /// Bytes of each.
    pub size: ByteSize,
    /// How many there are.
    pub total: usize,
    /// How many are movable; stolen ones included.
    pub movable: usize,
    /// Which are stolen.
    pub stolen: Vec<BlockId>,
    /// Those of them that cannot be emptied, and that pieces of 2 MiB from elsewhere stand for.
    #[serde(default)]
    pub in_pieces: Vec<BlockId>,
    /// Which are on their way out or back.
    pub in_transit: Vec<BlockId>,
    /// Which somebody else has taken offline.
    pub foreign: Vec<BlockId>,
}

/// How DAMON watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStatus {
    /// Into how many regions it divides the memory.
    pub regions: usize,
    /// Milliseconds between two looks at a page of each.
    pub sample_ms: u64,
    /// Milliseconds over which looks are summed up.
    pub aggregation_ms: u64,
    /// Who tunes these times: `kernel` or `agent`.
    pub tuned_by: String,
    /// Modules of the kernel that are switched off for it, until the agent ends.
    #[serde(default)]
    pub modules_off: Vec<String>,
}

/// How cold memory is paged out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReclaimStatus {
    /// Whether it is now, and why or why not.
    pub doing: String,
    /// Bytes paged out since the agent started.
    pub paged_out: ByteSize,
    /// Bytes looked through for that, free memory among them.
    pub tried: ByteSize,
    /// Bytes that a second may have now, where the kernel tells.
    pub per_second: Option<ByteSize>,
    /// All swap.
    pub swap_total: ByteSize,
    /// What of it can take more.
    pub swap_free: ByteSize,
    /// The device that the agent has made for it.
    pub own_device: Option<String>,
}

/// A return that the gate has not granted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateStatus {
    /// Its ticket.
    pub ticket: u32,
    /// Blocks asked for.
    pub blocks: usize,
    /// How urgently.
    pub urgency: String,
    /// Why it is held, where the gate said so.
    pub reason: Option<String>,
}

/// What came of settings that were read anew while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloads {
    /// How often they were.
    pub times: u64,
    /// Why the last ones could not be used, if they could not: all is as it was before.
    pub refused: Option<String>,
    /// Settings that say something else now than at the start, and take effect at the next.
    pub at_next_start: Vec<String>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// `tune` or `restore`.
    pub mode: String,
    /// What was decided last, and why.
    pub doing: String,
    /// For how many seconds the device has not answered, if it does not.
    pub device_silent_s: Option<u64>,
    /// The limits in force.
    pub limits: LimitsStatus,
    /// What came of settings that were read anew; `None` of an agent that cannot do that.
    #[serde(default)]
    pub reloads: Option<Reloads>,
    /// The guest's memory.
    pub memory: MemoryStatus,
    /// The memory blocks.
    pub blocks: BlockCounts,
    /// What stealing saves beside the memory itself.
    #[serde(default)]
    pub struct_pages: StructPages,
    /// Virtio devices through which the kernel tells the host what is free; where there is none, free
    /// memory is the host's again only when it is stolen.
    #[serde(default)]
    pub free_page_reporters: Vec<String>,
    /// How DAMON watches, once it has seen something.
    #[serde(default)]
    pub watching: Option<WatchStatus>,
    /// How cold memory is paged out, where it can be.
    pub reclaim: Option<ReclaimStatus>,
    /// The return that is pending, if any.
    pub gate: Option<GateStatus>,
    /// What has happened.
    pub counters: Counters,
    /// What this guest lacks.
    pub lacks: Vec<Lack>,
}

impl Status {
    /// Why nobody watches what is touched, if nobody does.
    pub fn unwatched(&self) -> Option<&str> {
        self.lacks.iter().find_map(|lack| lack.what.strip_prefix(WATCHING))
    }

    /// Replaces the status file.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace(path, &serde_json::to_string(self)?)
    }

    /// Reads a status file.
    ///
    /// # Errors
    /// What the kernel says; InvalidData for a file of another version.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
    }
}

impl fmt::Display for WatchStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { regions, sample_ms, aggregation_ms, tuned_by, modules_off } = self;
        write!(f, "{regions} regions, a look at each every {sample_ms} ms, summed up over ")?;
        write!(f, "{aggregation_ms} ms (tuned by the {tuned_by})")?;
        match &modules_off[..] {
            [] => Ok(()),
            [one] => write!(f, "; {one} is off meanwhile"),
            several => write!(f, "; {} are off meanwhile", several.join(" and ")),
        }
    }
}

impl fmt::Display for Reloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.refused {
            writeln!(f, "  settings   are those of before the last reload: {why}")?;
        }
        if !self.at_next_start.is_empty() {
            let later = self.at_next_start.join(", ");
            writeln!(f, "  settings   {later}: changed, and used from the next start on")?;
        }
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limits, memory, blocks, counters, .. } = self;
        writeln!(f, "memtide-agent {} (pid {}), mode {}", self.version, self.pid, self.mode)?;
        writeln!(f, "  doing      {}", self.doing)?;
        match self.device_silent_s {
            None => writeln!(f, "  device     answers")?,
            Some(s) => writeln!(f, "  device     has not answered for {s} s")?,
        }
        write!(f, "  memory     {} online of {}", memory.online, memory.present)?;
        writeln!(f, ", {} available", memory.available)?;
        match memory.working_set {
            Some(set) => writeln!(f, "  in use     {set} touched in the last half minute")?,
            None => writeln!(f, "  in use     nobody watches")?,
        }
        write!(f, "  limits     min {}, max {}", limits.min, limits.max)?;
        write!(f, ", pressure goal {}", limits.psi_goal)?;
        match memory.pressure_avg10 {
            Some(pressure) => writeln!(f, " (now {pressure})")?,
            None => writeln!(f)?,
        }
        if let Some(reloads) = &self.reloads {
            write!(f, "{reloads}")?;
        }
        write!(f, "  host       guarantees {}", limits.host_guarantees)?;
        writeln!(f, ", wants {} in the balloon", limits.host_wants)?;
        write!(f, "  blocks     {} of {}: {} movable", blocks.total, blocks.size, blocks.movable)?;
        write!(f, ", {} stolen", blocks.stolen.len())?;
        if !blocks.in_pieces.is_empty() {
            write!(f, " ({} of them in pieces of 2 MiB)", blocks.in_pieces.len())?;
        }
        writeln!(f, ", {} foreign", blocks.foreign.len())?;
        let StructPages { freed, remain, .. } = self.struct_pages;
        if !blocks.stolen.is_empty() {
            writeln!(f, "  structs    {freed} of struct pages freed, {remain} remain")?;
        }
        match self.free_page_reporters.as_slice() {
            [] => writeln!(f, "  free       stays with the guest until it is stolen")?,
            names => writeln!(f, "  free       is reported to the host by {}", names.join(", "))?,
        }
        if let Some(watching) = &self.watching {
            writeln!(f, "  watching   {watching}")?;
        }
        if let Some(reclaim) = &self.reclaim {
            write!(f, "  reclaim    {}; {} paged out so far", reclaim.doing, reclaim.paged_out)?;
            write!(f, ", {} of {} of swap free", reclaim.swap_free, reclaim.swap_total)?;
            match &reclaim.own_device {
                Some(device) => writeln!(f, " ({device}, the agent's own)")?,
                None => writeln!(f)?,
            }
        }
        if let Some(gate) = &self.gate {
            write!(f, "  return     {} blocks asked back ({})", gate.blocks, gate.urgency)?;
            let reason = gate.reason.as_deref().unwrap_or("no answer yet");
            writeln!(f, ", ticket {}: {reason}", gate.ticket)?;
        }
        write!(f, "  so far     {} stolen, {} returned", counters.stolen, counters.returned)?;
        write!(f, " ({} unasked)", counters.taken_unasked)?;
        write!(f, ", {} steals failed", counters.steals_failed)?;
        writeln!(f, ", device lost {} times", counters.device_losses)?;
        if counters.dropped_online > 0 {
            write!(f, "  DAMAGE     {} blocks were put online by", counters.dropped_online)?;
            writeln!(f, " somebody else while the host dropped them: reboot this guest")?;
        }
        for lack in &self.lacks {
            writeln!(f, "  lacks      {}: {}", lack.what, lack.effect)?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn status() -> Status {
        let mib = ByteSize::from_mib;
        Status {
            version: "0.1.0".into(),
            pid: 7,
            mode: "tune".into(),
            doing: "rest: 500 MiB available, one more block needs 600 MiB".into(),
            device_silent_s: None,
            limits: LimitsStatus {
                min: mib(512),
                max: mib(2048),
                psi_goal: PpMillion(1_000),
                host_guarantees: mib(512),
                host_wants: ByteSize::ZERO,
            },
            reloads: Some(Reloads {
                times: 2,
                refused: Some("agent.toml, line 1: it is empty".into()),
                at_next_start: vec!["swap".into(), "damon".into()],
            }),
            memory: MemoryStatus {
                present: mib(2048),
                online: mib(1792),
                available: mib(500),
                working_set: Some(mib(100)),
                pressure_avg10: Some(PpMillion(0)),
            },
            blocks: BlockCounts {
                size: mib(128),
                total: 16,
                movable: 12,
                stolen: vec![BlockId(1), BlockId(14), BlockId(15)],
                in_pieces: vec![BlockId(1)],
                in_transit: vec![],
                foreign: vec![],
            },
            struct_pages: StructPages { freed: mib(2), remain: mib(2), all: None },
            free_page_reporters: vec!["virtio2".into()],
            watching: Some(WatchStatus {
                regions: 96,
                sample_ms: 50,
                aggregation_ms: 1000,
                tuned_by: "kernel".into(),
                modules_off: vec!["damon_stat".into()],
            }),
            reclaim: Some(ReclaimStatus {
                doing: "cold memory stays: enough is available without it".into(),
                paged_out: mib(7),
                tried: mib(900),
                per_second: None,
                swap_total: mib(1024),
                swap_free: mib(1000),
                own_device: Some("/dev/zram0".into()),
            }),
            gate: None,
            counters: Counters { stolen: 2, ..Counters::default() },
            lacks: vec![Lack::interrupt()],
        }
    }

    #[test]
    fn people_read_what_is_and_what_is_missing() {
        let text = status().to_string();
        for line in [
            "device     answers",
            "1.7 GiB online of 2 GiB, 500 MiB available",
            "min 512 MiB, max 2 GiB, pressure goal 0.10 % (now 0.00 %)",
            "settings   are those of before the last reload: agent.toml, line 1: it is empty",
            "settings   swap, damon: changed, and used from the next start on",
            "16 of 128 MiB: 12 movable, 3 stolen (1 of them in pieces of 2 MiB), 0 foreign",
            "structs    2 MiB of struct pages freed, 2 MiB remain",
            "free       is reported to the host by virtio2",
            "watching   96 regions, a look at each every 50 ms, summed up over 1000 ms (tuned by the \
             kernel); damon_stat is off meanwhile",
            "reclaim    cold memory stays: enough is available without it; 7 MiB paged out so far, \
             1000 MiB of 1 GiB of swap free (/dev/zram0, the agent's own)",
            "lacks      an interrupt of the balloon device: the device is looked at",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn programs_read_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        assert!(Status::read(&path).is_err());
        status().write(&path).unwrap();
        assert_eq!(Status::read(&path).unwrap(), status());
    }
}
