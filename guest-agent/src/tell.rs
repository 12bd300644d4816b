//! Telling the running agent something: by a signal, and hearing of it in its status.

use std::path::Path;
use std::time::{Duration, Instant};

use memtide_policy::guest::Mode;
use nix::sys::signal::Signal;

use crate::runtime::status_path;
use crate::status::{Reloads, Status};

/// An agent says what came of new settings within a turn. It waits for no file and no host in one; the longest
/// that a turn took under emulation, with swap to be made, was a second.
const RELOADED: Duration = Duration::from_secs(20);
/// Between two looks at its status.
const LOOK: Duration = Duration::from_millis(50);

/// The status of the agent that runs now.
///
/// # Errors
/// That none does, and what to do.
pub(crate) fn running(runtime_dir: &Path) -> Result<Status, String> {
    let path = status_path(runtime_dir);
    let status = Status::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!(
            "no agent runs here ({} is not there): systemctl start memtide-agent, or name the \
             agent's own --runtime-dir",
            path.display()
        ),
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => format!(
            "{} is not understood ({error}): is it of an agent of another version? Then systemctl \
             restart memtide-agent",
            path.display()
        ),
        _ => format!("{} cannot be read: {error}", path.display()),
    })?;
    // A status outlives an agent that was killed.
    let name = std::fs::read_to_string(format!("/proc/{}/comm", status.pid)).unwrap_or_default();
    if name.trim() != "memtide-agent" {
        return Err(format!(
            "no agent runs (the last one was pid {}): systemctl start memtide-agent",
            status.pid
        ));
    }
    Ok(status)
}

/// Has it go on, or give everything back.
///
/// # Errors
/// That it cannot be told.
pub(crate) fn set_mode(runtime_dir: &Path, mode: Mode) -> Result<String, String> {
    let status = running(runtime_dir)?;
    let signal = match mode {
        Mode::Tune => Signal::SIGUSR1,
        Mode::Restore => Signal::SIGUSR2,
    };
    send(&status, signal)?;
    Ok(match mode {
        Mode::Restore => {
            format!("{} stolen blocks are being asked back\n", status.blocks.stolen.len())
        }
        Mode::Tune => "the agent scales memory again\n".into(),
    })
}

/// Has it read its settings anew, and waits for what comes of it.
///
/// # Errors
/// That it cannot be told, or why it could not use them: it goes by the old ones then.
pub(crate) fn reload(runtime_dir: &Path) -> Result<String, String> {
    let before = running(runtime_dir)?;
    let Some(Reloads { times, .. }) = before.reloads else {
        // The signal would end it.
        return Err(format!(
            "the running agent ({}) cannot read settings anew: systemctl restart memtide-agent",
            before.version
        ));
    };
    send(&before, Signal::SIGHUP)?;
    let start = Instant::now();
    while start.elapsed() < RELOADED {
        std::thread::sleep(LOOK);
        let status = running(runtime_dir)?;
        if let Some(reloads) = status.reloads.as_ref().filter(|reloads| reloads.times != times) {
            return outcome(&status, reloads);
        }
    }
    let s = RELOADED.as_secs();
    Err(format!("the agent (pid {}) says nothing for {s} s: see its journal", before.pid))
}

fn outcome(status: &Status, reloads: &Reloads) -> Result<String, String> {
    if let Some(why) = &reloads.refused {
        return Err(format!("the settings stay as they were: {why}"));
    }
    let limits = &status.limits;
    let (min, max, goal) = (limits.min, limits.max, limits.psi_goal);
    let mut said = format!("min {min}, max {max}, pressure goal {goal} from now on\n");
    if !reloads.at_next_start.is_empty() {
        let later = reloads.at_next_start.join(", ");
        said += &format!("{later} takes effect at the next start\n");
    }
    Ok(said)
}

fn send(status: &Status, signal: Signal) -> Result<(), String> {
    let pid = i32::try_from(status.pid).map_err(|error| error.to_string())?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)
        .map_err(|error| format!("the agent (pid {pid}) cannot be told: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_new_settings_is_said() {
        let mut status = crate::status::tests::status();
        let mut said = |reloads| {
            status.reloads = Some(reloads);
            outcome(&status, status.reloads.as_ref().unwrap())
        };
        let taken = Reloads { times: 1, ..Reloads::default() };
        let limits = "min 512 MiB, max 2 GiB, pressure goal 0.10 % from now on\n";
        assert_eq!(said(taken.clone()), Ok(limits.into()));
        let later = Reloads { at_next_start: vec!["swap".into()], ..taken.clone() };
        assert_eq!(said(later), Ok(format!("{limits}swap takes effect at the next start\n")));
        let refused = Reloads { refused: Some("agent.toml, line 1".into()), ..taken };
        assert_eq!(said(refused), Err("the settings stay as they were: agent.toml, line 1".into()));
    }
}
