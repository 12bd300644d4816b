//! What the agent and DAMON cost a guest.

use serde::Serialize;

use crate::error::Result;
use crate::subject::Subject;

/// The guest's time since boot; then of each process of ours its name, user and system time in hundredths
/// of a second, and resident pages (proc_pid_stat(5)).
const LOOK: &str = r#"
read -r up _ < /proc/uptime
echo "up $up 0 0"
for stat in /proc/[0-9]*/stat; do
  read -r -a field < $stat || continue
  case ${field[1]} in
    "(memtide-agent)"|"(kdamond."*) echo "${field[1]} ${field[13]} ${field[14]} ${field[23]}";;
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
    /// Resident memory of the agent, in MiB.
    pub agent_mib: f64,
}

/// What was used since the guest booted, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Used {
    at: f64,
    agent: f64,
    damon: f64,
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
            agent_mib: self.agent_mib,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_by_the_guests_own_clock() {
        let before = "up 100.0 0 0\n(memtide-agent) 50 50 1024\n(kdamond.0) 0 200 0\n";
        let after = "up 150.0 0 0\n(memtide-agent) 60 90 1280\n(kdamond.0) 0 225 0\n";
        let parse = |text| Used::parse(text).unwrap();
        let cost = parse(after).since(&parse(before));
        assert_eq!((cost.agent_percent, cost.damon_percent, cost.agent_mib), (1.0, 0.5, 5.0));
        assert_eq!(Used::parse("bash: no such file"), None);
    }
}
