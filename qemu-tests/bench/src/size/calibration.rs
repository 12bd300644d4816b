//! How fast this host's own processor is beside a guest whose clock counts instructions.

use std::process::Command;

use memtide_lab::machine::Engine;

use crate::error::{BenchError, Result};
use crate::setting::Clock;
use crate::subject::Subject;

/// What takes an agent its time as well: files that the kernel writes when they are read. The microseconds of
/// each turn.
const SCRIPT: &str = r#"
for turn in 1 2 3 4 5; do
  from=$EPOCHREALTIME
  for ((look = 0; look < 200; look++)); do
    mapfile -t lines < /proc/meminfo
    mapfile -t lines < /proc/vmstat
  done
  to=$EPOCHREALTIME
  echo $((${to/[.,]/} - ${from/[.,]/}))
done
"#;

/// What this guest's clock goes by.
pub(super) fn clock_of(subject: &Subject) -> Result<Clock> {
    if subject.machine().acceleration().engine != Engine::Counted {
        return Ok(Clock::Host);
    }
    let text = subject.bash_with(SCRIPT, &[])?;
    let guest = fastest(&text).ok_or_else(|| subject.unexpected("the calibration", text))?;
    let failed = BenchError::call("run the calibration with bash on this host");
    let output = Command::new("bash").args(["-c", SCRIPT]).output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (who, what) = ("this host".to_owned(), "the calibration");
    let host = fastest(&text).ok_or(BenchError::Unexpected { who, what, text })?;
    Ok(Clock::Counted { host_times_faster: guest / host })
}

/// The turn that nothing disturbed.
fn fastest(text: &str) -> Option<f64> {
    let turns: Option<Vec<f64>> = text.lines().map(|line| line.parse().ok()).collect();
    turns?.into_iter().filter(|us| *us > 0.0).reduce(f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_one_turn_that_is_undisturbed() {
        assert_eq!(fastest("125690\n125094\n130583\n"), Some(125_094.0));
        assert_eq!(fastest(""), None);
        assert_eq!(fastest("bash: no such file\n"), None);
    }
}
