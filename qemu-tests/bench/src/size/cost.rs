//! What the agent, DAMON and the kernel's other threads cost a guest.

use serde::Serialize;

use crate::error::Result;
use crate::setting::Clock;
use crate::subject::Subject;

/// The guest's time since boot; then of each process of ours, of DAMON's threads and of the kernel's others, whose
/// parent is process 2, a name, user and system time in hundredths of a second, and resident pages
/// (proc_pid_stat(5)).
const LOOK: &str = r#"
read -r up _ < /proc/uptime
echo "up $up 0 0"
for stat in /proc/[0-9]*/stat; do
  read -r -a field < $stat || continue
  name=${field[1]}
  [[ ${field[3]} != 2 || $name == "(kdamond."* ]] || name=kernel
  case $name in
    "(memtide-agent)"|"(memtide-workloa)"|"(kdamond."*|kernel) echo "$name ${field[13]} ${field[14]} ${field[23]}";;
  esac
done 2> /dev/null
true
"#;

/// Processor time over some time, and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Of the agent, in percent of one processor.
    pub agent_percent: f64,
    /// Of DAMON's threads.
    pub damon_percent: f64,
    /// Of the kernel's other threads, such as kswapd, kcompactd and those that write to disks.
    pub kernel_percent: f64,
    /// Of the workload and its neighbours.
    pub workload_percent: f64,
    /// Resident memory of the agent, in MiB.
    pub agent_mib: f64,
    /// The same in instructions, where the guest's clock counts these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Instructions>,
}

/// Millions of instructions in a second of the guest's time; a hundredth of a counted processor are ten.
///
/// Where several processors of a guest are busy, these are upper bounds: they take turns and share the clock,
/// and by the guest's accounts each was busy for all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Instructions {
    /// Of the agent.
    pub agent: f64,
    /// Of DAMON's threads.
    pub damon: f64,
    /// Of the kernel's other threads.
    pub kernel: f64,
    /// What the agent and DAMON would take of this host's own processor, in percent: an estimate, by the
    /// ratio that the setting tells ([`Clock::Counted`]).
    pub agent_and_damon_host_percent: f64,
}

/// What was used since the guest booted, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Used {
    at: f64,
    agent: f64,
    damon: f64,
    kernel: f64,
    workload: f64,
    agent_mib: f64,
}

impl Used {
    /// Until now.
    pub(super) fn so_far(subject: &Subject) -> Result<Self> {
        let text = subject.bash_with(LOOK, &[])?;
        Self::parse(&text).ok_or_else(|| subject.unexpected("the look at /proc", text))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut used = Self::default();
        for line in text.lines() {
            let (name, numbers) = line.split_once(' ')?;
            let numbers: Vec<f64> =
                numbers.split(' ').map_while(|word| word.parse().ok()).collect();
            let [first, second, pages] = numbers[..] else { return None };
            let seconds = (first + second) / 100.0;
            match name {
                "up" => used.at = first,
                "(memtide-agent)" => {
                    used.agent += seconds;
                    used.agent_mib = pages * 4096.0 / f64::from(1 << 20);
                }
                "(memtide-workloa)" => used.workload += seconds,
                "kernel" => used.kernel += seconds,
                _ => used.damon += seconds,
            }
        }
        (used.at > 0.0).then_some(used)
    }

    /// What came since then.
    pub(super) fn since(&self, before: &Self) -> Cost {
        let seconds = (self.at - before.at).max(0.01);
        let percent = |now: f64, then: f64| (now - then).max(0.0) * 100.0 / seconds;
        Cost {
            agent_percent: percent(self.agent, before.agent),
            damon_percent: percent(self.damon, before.damon),
            kernel_percent: percent(self.kernel, before.kernel),
            workload_percent: percent(self.workload, before.workload),
            agent_mib: self.agent_mib,
            instructions: None,
        }
    }
}

impl Cost {
    /// With instructions, where the clock counts these.
    #[must_use]
    pub(super) fn by(self, clock: Option<Clock>) -> Self {
        /// Of a processor that takes a nanosecond for each.
        const MILLIONS_IN_A_PERCENT: f64 = 10.0;
        let Some(Clock::Counted { host_times_faster }) = clock else { return self };
        let instructions = Instructions {
            agent: self.agent_percent * MILLIONS_IN_A_PERCENT,
            damon: self.damon_percent * MILLIONS_IN_A_PERCENT,
            kernel: self.kernel_percent * MILLIONS_IN_A_PERCENT,
            agent_and_damon_host_percent: (self.agent_percent + self.damon_percent)
                / host_times_faster,
        };
        Self { instructions: Some(instructions), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_by_the_guests_own_clock() {
        let before = "up 100.0 0 0\n(memtide-agent) 50 50 1024\n(kdamond.0) 0 200 0\n";
        let after = "up 150.0 0 0\n(memtide-agent) 60 90 1280\nkernel 0 15 0\n(kdamond.0) 0 225 0\n\
                     kernel 0 10 0\n(memtide-workloa) 2000 500 1\n";
        let parse = |text| Used::parse(text).unwrap();
        let cost = parse(after).since(&parse(before));
        assert_eq!((cost.agent_percent, cost.damon_percent, cost.agent_mib), (1.0, 0.5, 5.0));
        assert_eq!((cost.kernel_percent, cost.workload_percent), (0.5, 50.0));
        assert_eq!(cost.by(Some(Clock::Host)).instructions, None);
        let counted =
            cost.by(Some(Clock::Counted { host_times_faster: 3.0 })).instructions.unwrap();
        assert_eq!((counted.agent, counted.damon, counted.kernel), (10.0, 5.0, 5.0));
        assert_eq!(counted.agent_and_damon_host_percent, 0.5);
        assert_eq!(Used::parse("bash: no such file"), None);
    }
}
