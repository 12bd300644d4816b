//! The end-to-end tests: few, on real guests, each check one promise to a user.

use std::path::Path;
use std::time::Duration;

use memtide_api::device::Driver;
use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;

use crate::checks::Checks;
use crate::demo::{self, DemoOptions, Interlude, Pace};
use crate::error::ScenarioError;
use crate::run::Run;

/// The guest of every end-to-end test.
const MEMORY: ByteSize = ByteSize::from_gib(2);

/// A killed agent is back, and its books right, within this.
const RECOVERY: Duration = Duration::from_secs(10);

/// The demo's phases with our own processes killed in between.
pub fn agent(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("agent on {kernel}"));
    let options =
        DemoOptions { kernel, memory: MEMORY, pace: Pace::Quick, artifacts: logs.to_owned() };
    let mut killer = Killer::default();
    let played = demo::play(lab, programs, &options, &mut killer);
    for (what, kept, seen) in killer.found {
        checks.check(&what, kept, seen);
    }
    let Some((report, mut run)) = checks.step("the run reaches its end", played) else {
        return checks;
    };
    checks.step("limits change under a running agent", change_limits(&mut run));
    checks.step("a stopped agent gives the device back to the stock driver", hand_over(&mut run));
    if kernel == Kernel::V6_1 {
        checks.step("an agent that polls follows the host's target", poll(&mut run));
    }
    let _ = std::fs::write(logs.join("run.svg"), demo::picture(&run, &report));
    let blocks = report.blocks;
    checks.check(
        "three quarters of the movable blocks were stolen, none of them still backed",
        report.failures.is_empty(),
        report.failures.join("; "),
    );
    checks.check(
        "blocks came back through the gate",
        blocks.returned > 0 && report.gate.granted > 0,
        format!("{blocks:?} {:?}", report.gate),
    );
    checks.check(
        "a budget too small held a return",
        report.gate.held > 0 && report.gate.held_ms_max > 0,
        format!("{:?}", report.gate),
    );
    let integrity = report.integrity;
    checks.check(
        "every page of the workload is what it was",
        integrity.is_whole(),
        format!("{integrity:?}"),
    );
    checks.check(
        "nobody was killed for want of memory",
        report.guest.oom_kills == 0,
        report.guest.oom_kills,
    );
    let rss = report.rss_mib;
    checks.check(
        "our own processes are small (agent 12, device 6 MiB)",
        (1..=12).contains(&rss.agent) && (1..=6).contains(&rss.device),
        format!("{rss:?}"),
    );
    checks
}

/// Has other limits read anew by the running agent: what is over a lowered maximum goes, what lacks to a raised
/// minimum comes back, and a file that cannot be used is an error that changes nothing.
fn change_limits(run: &mut Run) -> Result<(), ScenarioError> {
    let (low, high) = (ByteSize::from_gib(1), ByteSize::from_mib(1_536));
    let pid = run.guest.agent_pid()?;
    // By the guest's need it would go as well, some time.
    let target = "scale_by = \"target\"";
    read_settings(run, &format!("max = \"{}MiB\"\n{target}\n", low.mib()))?;
    run.watch("no more is online than the maximum", Duration::from_secs(120), |run| {
        run.vm().stolen + low >= MEMORY
    })?;
    let refused = read_settings(run, "min = 512\n").err().map(|error| error.to_string());
    let said = run.guest.run(&["/opt/memtide/bin/memtide-agent", "status"])?;
    let is_said = said.contains("max 1 GiB") && said.contains("agent.toml, line 1");
    run.watch(&format!("an error, {refused:?}, and all as before: {said}"), RECOVERY, |_| {
        refused.is_some() && is_said
    })?;
    read_settings(run, &format!("min = \"{}MiB\"\n", high.mib()))?;
    run.watch("as much is online as the minimum", Duration::from_secs(60), |run| {
        run.vm().stolen + high <= MEMORY
    })?;
    read_settings(run, "")?;
    run.watch("it is the same agent, and its books are right", RECOVERY, |run| {
        run.guest.agent_pid().is_ok_and(|now| now == pid)
            && run.guest.offline_matches(run.vm()).unwrap_or(false)
    })
}

fn read_settings(run: &mut Run, toml: &str) -> Result<(), ScenarioError> {
    run.guest.write_file("/etc/memtide/agent.toml", toml)?;
    run.guest.run(&["systemctl", "reload", "memtide-agent"]).map(|_| ())
}

/// Stops the agent, and starts it again: the device must change hands both times, and what is
/// stolen stay stolen.
fn hand_over(run: &mut Run) -> Result<(), ScenarioError> {
    let deadline = Duration::from_secs(30);
    run.guest.run(&["systemctl", "stop", "memtide-agent"])?;
    run.watch("the stock driver drives", deadline, |run| run.vm().driver == Driver::Stock)?;
    run.guest.run(&["systemctl", "start", "memtide-agent"])?;
    run.watch("the agent drives again", deadline, |run| run.vm().driver == Driver::Agent)?;
    run.watch("the books are right", RECOVERY, |run| {
        run.guest.offline_matches(run.vm()).unwrap_or(false)
    })
}

/// Starts the agent anew without interrupts, as where a machine has none that user space can have:
/// it answers the host all the same.
fn poll(run: &mut Run) -> Result<(), ScenarioError> {
    run.guest.write_file("/etc/memtide/agent.toml", "interrupt = \"poll\"\n")?;
    let killed = run.guest.agent_pid()?;
    run.guest.run(&["systemctl", "restart", "memtide-agent"])?;
    run.watch("another agent drives", Duration::from_secs(30), |run| {
        run.guest.agent_pid().is_ok_and(|pid| pid != killed && pid != 0)
            && run.vm().driver == Driver::Agent
    })?;
    let before = run.vm().stolen;
    let keep = MEMORY - ByteSize::from_mib(768).max(before + ByteSize::from_mib(128));
    run.host.set_target(keep)?;
    run.watch("it steals what the host wants", Duration::from_secs(60), |run| {
        run.vm().stolen > before && run.vm().stolen + keep >= MEMORY
    })?;
    run.watch("the books are right", RECOVERY, |run| {
        run.guest.offline_matches(run.vm()).unwrap_or(false)
    })
}

/// How often the agent is killed while it steals.
const KILLS: usize = 3;

/// Kills our processes between the demo's phases.
#[derive(Default)]
struct Killer {
    found: Vec<(String, bool, String)>,
}

impl Killer {
    fn note(&mut self, what: &str, result: Result<(), ScenarioError>) {
        let seen = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.found.push((what.into(), result.is_ok(), seen));
    }
}

impl Interlude for Killer {
    fn while_stealing(&mut self, run: &mut Run) -> Result<(), ScenarioError> {
        for _ in 0..KILLS {
            let killed = run.guest.agent_pid()?;
            let when = run.guest.kill_stealing_agent()?;
            run.say(&format!("kill -9 of the agent, process {killed}, {when}"));
            let back = run.watch("the agent is back", RECOVERY, |run| {
                run.guest.agent_pid().is_ok_and(|pid| pid != killed && pid != 0)
                    && run.vm().driver == Driver::Agent
                    && run.guest.offline_matches(run.vm()).unwrap_or(false)
            });
            self.note("a killed agent is back with the right books within 10 s", back);
        }
        Ok(())
    }

    fn when_stolen(&mut self, run: &mut Run) -> Result<(), ScenarioError> {
        let stolen = run.vm().stolen;
        run.say("kill -9 of memtided");
        run.host.kill_and_restart_memtided()?;
        let rebuilt = run.watch("the ledger is rebuilt", RECOVERY, |run| {
            run.vm().driver == Driver::Agent && run.vm().stolen == stolen
        });
        self.note("a killed memtided rebuilds its ledger from the agent's hello", rebuilt);
        Ok(())
    }
}
