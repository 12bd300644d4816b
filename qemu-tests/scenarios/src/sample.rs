//! What a run looked like at one moment, and the whole run as a timeline.

use memtide_units::ByteSize;

/// One look at guest and host, about twice a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Milliseconds since the run began.
    pub at_ms: u64,
    /// `MemTotal` of the guest; zero while nobody tells.
    pub guest_total: ByteSize,
    /// `MemTotal - MemAvailable` of the guest.
    pub guest_used: ByteSize,
    /// `MemFree` of the guest.
    pub guest_free: ByteSize,
    /// Guest memory that is resident on the host, from the memfd.
    pub resident: ByteSize,
    /// Stolen blocks by memtided's ledger.
    pub stolen: ByteSize,
    /// Blocks stolen, by the agent.
    pub blocks_stolen: u32,
    /// Movable blocks, stolen ones included, by the agent.
    pub blocks_movable: u32,
    /// All blocks, by the agent.
    pub blocks_total: u32,
    /// Steals that failed, by the agent.
    pub steals_failed: u32,
    /// PSI some for memory since the guest booted, in microseconds.
    pub psi_some_us: u64,
    /// OOM kills since the guest booted.
    pub oom_kills: u32,
    /// The gate holds a return now.
    pub held: bool,
}

/// A part of the run with a name.
#[derive(Clone, Debug)]
pub struct Phase {
    /// What happens in it.
    pub name: String,
    /// When it began, in milliseconds since the run did.
    pub from_ms: u64,
}

/// All samples of a run and its phases, in the order of time.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Samples.
    pub samples: Vec<Sample>,
    /// Phases; each lasts until the next.
    pub phases: Vec<Phase>,
}

impl Timeline {
    /// When the last sample was taken.
    pub fn end_ms(&self) -> u64 {
        self.samples.last().map_or(0, |sample| sample.at_ms)
    }

    /// Phases with their ends.
    pub fn spans(&self) -> impl Iterator<Item = (&Phase, u64)> {
        let ends = self.phases.iter().skip(1).map(|next| next.from_ms).chain([self.end_ms()]);
        self.phases.iter().zip(ends)
    }

    /// Spans of time in which the gate held a return.
    pub fn held_spans(&self) -> Vec<(u64, u64)> {
        let mut spans: Vec<(u64, u64)> = Vec::new();
        let mut since = None;
        for sample in &self.samples {
            match (since, sample.held) {
                (None, true) => since = Some(sample.at_ms),
                (Some(from), false) => {
                    spans.push((from, sample.at_ms));
                    since = None;
                }
                _ => {}
            }
        }
        spans.extend(since.map(|from| (from, self.end_ms())));
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_spans_join_neighbouring_samples() {
        let samples = [false, true, true, false, true]
            .into_iter()
            .zip(0..)
            .map(|(held, n)| Sample { at_ms: n * 500, held, ..Sample::default() })
            .collect();
        let timeline = Timeline { samples, phases: Vec::new() };
        assert_eq!(timeline.held_spans(), [(500, 1500), (2000, 2000)]);
    }
}
