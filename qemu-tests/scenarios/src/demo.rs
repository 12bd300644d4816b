//! The demo: a workload grows, goes cold, frees and grows again, and the host's gate decides.

use std::path::PathBuf;
use std::time::Duration;

use memtide_api::device::Driver;
use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;

use crate::chart::{self, Caption};
use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, Unit};
use crate::host_side::HostLimits;
use crate::report::{Blocks, Gate, Guest, Report, Resident};
use crate::run::{Run, Stage};
use crate::screen::Screen;

/// Steps of growth while the host's budget is too small, each well within what the guest has
/// online, so that it lives on however long the gate holds. So many pass the agent's threshold, even
/// where half of the guest could not be made movable: a third of it in all.
const SMALL_STEPS: usize = 16;
/// After a step the agent has this long to ask: it looks ten times a second when memory is short.
const ASKS_WITHIN: Duration = Duration::from_millis(1200);

/// What the demo plays.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The guest's memory.
    pub memory: ByteSize,
    /// About a minute instead of a few.
    pub pace: Pace,
    /// Where logs, picture and guest files go.
    pub artifacts: PathBuf,
}

/// How long the phases last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Long enough to look at.
    Normal,
    /// As short as it can be.
    Quick,
}

impl Pace {
    fn hot(self) -> Duration {
        match self {
            Self::Normal => Duration::from_secs(20),
            Self::Quick => Duration::from_secs(4),
        }
    }

    fn held(self) -> Duration {
        match self {
            Self::Normal => Duration::from_secs(8),
            Self::Quick => Duration::from_secs(2),
        }
    }
}

/// Where to stop between phases and do something harsh to a process of ours.
pub trait Interlude {
    /// The workload holds its memory and the agent has begun to steal what was freed.
    ///
    /// # Errors
    /// Of what it does.
    fn while_stealing(&mut self, run: &mut Run) -> Result<(), ScenarioError>;

    /// Everything is stolen that will be.
    ///
    /// # Errors
    /// Of what it does.
    fn when_stolen(&mut self, run: &mut Run) -> Result<(), ScenarioError>;
}

/// The demo proper: nothing harsh.
pub struct Undisturbed;

impl Interlude for Undisturbed {
    fn while_stealing(&mut self, _: &mut Run) -> Result<(), ScenarioError> {
        Ok(())
    }

    fn when_stolen(&mut self, _: &mut Run) -> Result<(), ScenarioError> {
        Ok(())
    }
}

/// Sizes of the workload's phases, from the guest's memory.
struct Sizes {
    /// What it allocates first.
    heap: ByteSize,
    /// What of it stays hot.
    hot: ByteSize,
    /// By how much it grows at a time while the budget is too small.
    step: ByteSize,
    /// By how much it grows at once when the budget is raised.
    rest: ByteSize,
}

impl Sizes {
    fn of(memory: ByteSize) -> Self {
        let share = |percent| ByteSize::from_mib(memory.mib() * percent / 100);
        let step = ByteSize::from_mib((memory.mib() / 48).max(32));
        let regrown = share(45).max(step.times(SMALL_STEPS as u64 + 1) + share(10));
        let rest = regrown - step.times(SMALL_STEPS as u64 + 1);
        Self { heap: share(50), hot: share(12), step, rest }
    }

    fn script(&self, pace: Pace) -> String {
        let mib = |size: ByteSize| format!("{}MiB", size.mib());
        let (heap, hot, seconds) = (mib(self.heap), mib(self.hot), pace.hot().as_secs());
        let (step, rest) = (mib(self.step), mib(self.rest));
        let steps = format!("grow more {step}; wait; ").repeat(SMALL_STEPS);
        format!(
            "wait; alloc heap {heap}; verify heap; hot heap {hot} {seconds}s; files 32MiB 2s; wait; \
             free heap; wait; alloc more {step}; wait; {steps}\
             grow more {rest}; verify; hot more {hot} 2s; wait; verify; free more"
        )
    }
}

/// Plays the demo and returns what was measured.
///
/// # Errors
/// Where the run could not go on; promises that were not kept are in the report instead.
pub fn play(
    lab: &Lab,
    programs: &Built,
    options: &DemoOptions,
    interlude: &mut dyn Interlude,
) -> Result<(Report, Run), ScenarioError> {
    let mut run = start(lab, programs, options)?;
    let (accelerator, accelerator_reason) = run.guest.accelerator();
    let mut report = Report {
        accelerator,
        accelerator_reason,
        kernel: run.guest.kernel_release().to_owned(),
        qemu: lab.qemu().version().to_string(),
        guest_mib: options.memory.mib(),
        ..Report::default()
    };
    let sizes = Sizes::of(options.memory);
    settle(&mut run)?;
    run.guest.start_workload(&sizes.script(options.pace))?;
    grow(&mut run)?;
    free(&mut run, &mut report, interlude)?;
    hold(&mut run, options.pace)?;
    regrow(&mut run, &mut report)?;
    finish(&mut run, &mut report);
    Ok((report, run))
}

/// Picture of a finished run.
pub fn picture(run: &Run, report: &Report) -> String {
    let caption = Caption {
        title: "A guest gives its memory to the host, and gets it back through the gate".into(),
        subtitle: format!(
            "Linux {}, {} MiB, QEMU {} under {}; host view read from the guest's memfd",
            report.kernel,
            report.guest_mib,
            report.qemu,
            report.accelerator.to_uppercase()
        ),
        memory: ByteSize::from_mib(report.guest_mib),
    };
    chart::draw(&run.timeline, &caption)
}

fn start(lab: &Lab, programs: &Built, options: &DemoOptions) -> Result<Run, ScenarioError> {
    let logs = &options.artifacts;
    let limits = HostLimits { budget: Some(options.memory), min: guaranteed(options.memory) };
    println!("starting the guest (under emulation this takes 10 to 30 s) ...");
    let guest = GuestOptions::new((options.kernel, options.memory), Unit::Enabled, logs);
    let stage = Stage::start(lab, programs, limits, &guest)?;
    let header = format!(
        "memtide demo: {} guest, kernel {}, logs in {}",
        options.memory,
        options.kernel,
        logs.display()
    );
    Ok(Run::new(stage, Screen::new(header, options.memory), logs))
}

/// What the host guarantees the guest: little enough that the gate has something to decide.
fn guaranteed(memory: ByteSize) -> ByteSize {
    ByteSize::from_mib(memory.mib() / 4)
}

/// Waits until the agent drives the device and has had its first look around.
fn settle(run: &mut Run) -> Result<(), ScenarioError> {
    run.phase("agent starts");
    run.watch("the agent has said hello", Duration::from_secs(120), |run| {
        run.vm().driver == Driver::Agent && run.last().blocks_total > 0
    })?;
    run.watch("blocks became movable", Duration::from_secs(60), |run| run.last().blocks_movable > 0)
}

fn grow(run: &mut Run) -> Result<(), ScenarioError> {
    run.watch("the workload is ready", Duration::from_secs(30), |run| run.player.waiting)?;
    run.phase("workload grows, part stays hot");
    run.go()?;
    run.watch("the workload has grown", Duration::from_secs(240), |run| run.player.waiting)
}

/// The workload frees; the agent steals until nothing changes any more.
fn free(
    run: &mut Run,
    report: &mut Report,
    interlude: &mut dyn Interlude,
) -> Result<(), ScenarioError> {
    run.phase("workload frees, agent steals");
    let before = run.last().blocks_stolen;
    run.go()?;
    run.watch("the workload has freed", Duration::from_secs(60), |run| run.player.waiting)?;
    run.watch("the agent steals", Duration::from_secs(60), |run| {
        run.last().blocks_stolen > before
    })?;
    interlude.while_stealing(run)?;
    wait_until_stolen(run)?;
    interlude.when_stolen(run)?;
    let last = run.last();
    report.blocks.movable = last.blocks_movable;
    report.blocks.total = last.blocks_total;
    report.host_resident_mib.after_steal = last.resident.mib();
    let stolen_backed = run.guest.resident_in_stolen(run.vm())?;
    report.stolen_but_resident_kib = stolen_backed.kib();
    check_steal(run, report);
    Ok(())
}

/// Until at least three quarters are stolen and the count has stood still for a while.
fn wait_until_stolen(run: &mut Run) -> Result<(), ScenarioError> {
    const STILL_MS: u64 = 4_000;
    let mut since = (0, run.now_ms());
    let waited = run.watch("three quarters are stolen", Duration::from_secs(120), |run| {
        let last = run.last();
        if last.blocks_stolen != since.0 {
            since = (last.blocks_stolen, last.at_ms);
        }
        let enough = last.blocks_stolen * 4 >= last.blocks_movable * 3 && last.blocks_movable > 0;
        enough && last.at_ms - since.1 >= STILL_MS
    });
    match waited {
        // Too few is a promise broken, which the report tells; the run goes on.
        Err(ScenarioError::Deadline { seen, .. }) => {
            run.say(&format!("three quarters were not reached: {seen}"));
            Ok(())
        }
        other => other,
    }
}

/// What the steal promised.
fn check_steal(run: &Run, report: &mut Report) {
    let last = run.last();
    if last.blocks_stolen * 4 < last.blocks_movable * 3 {
        report.failures.push(format!(
            "only {} of {} movable blocks were stolen, fewer than 75 %",
            last.blocks_stolen, last.blocks_movable
        ));
    }
    let online = ByteSize::from_mib(report.guest_mib) - run.vm().stolen;
    let allowed = online + ByteSize::from_bytes(online.bytes() / 20);
    if last.resident > allowed {
        report.failures.push(format!(
            "{} are resident after the steal, more than the guest's {online} online and 5 %",
            last.resident
        ));
    }
    if report.stolen_but_resident_kib > 0 {
        report.failures.push(format!(
            "{} KiB of backing were found under stolen blocks",
            report.stolen_but_resident_kib
        ));
    }
}

/// With a budget of what the guest has, growth makes the agent ask and the gate hold.
///
/// An agent that asked because memory fell fast calls that off once it falls no more, so the
/// workload grows until what is asked for stays asked for.
fn hold(run: &mut Run, pace: Pace) -> Result<(), ScenarioError> {
    run.phase("budget too small");
    run.host.set_budget(run.vm().committed)?;
    for _ in 0..SMALL_STEPS {
        run.go()?;
        run.watch("the workload grew a little", Duration::from_secs(30), |run| run.player.waiting)?;
        if is_held_for(run, pace.held())? {
            break;
        }
    }
    let table = run.host.memtide(&["vm", crate::host_side::VM])?;
    for line in table.lines() {
        run.say(line);
    }
    Ok(())
}

/// Whether the gate comes to hold a return that the agent still wants so much later.
fn is_held_for(run: &mut Run, time: Duration) -> Result<bool, ScenarioError> {
    match run.watch("the gate holds", ASKS_WITHIN, |run| run.vm().held.is_some()) {
        Err(ScenarioError::Deadline { .. }) => return Ok(false),
        other => other?,
    }
    if let Some(held) = run.vm().held.clone() {
        run.say(&format!("held: {}", held.explanation));
    }
    run.watch_for(time)?;
    let held = run.vm().held.is_some();
    if !held {
        run.say("the agent has called it off: the workload goes on growing");
    }
    Ok(held)
}

/// The budget grows, and the workload with it.
fn regrow(run: &mut Run, report: &mut Report) -> Result<(), ScenarioError> {
    run.phase("budget raised, workload grows again");
    let held = run.vm().held.is_some();
    if !held {
        report.failures.push("no return stayed held although the budget was too small".into());
    }
    run.host.set_budget(ByteSize::from_mib(report.guest_mib))?;
    if held {
        run.watch("the held return is granted", Duration::from_secs(30), |run| {
            run.vm().held.is_none()
        })?;
    }
    grow_to_the_end(run)?;
    report.host_resident_mib.after_return = run.last().resident.mib();
    Ok(())
}

/// Sends the workload on through the small steps that are left and the large one.
fn grow_to_the_end(run: &mut Run) -> Result<(), ScenarioError> {
    for _ in 0..=SMALL_STEPS {
        run.watch("the workload has grown again", Duration::from_secs(240), |r| r.player.waiting)?;
        if run.player.last_grown.starts_with("hot more") {
            return Ok(());
        }
        run.go()?;
    }
    run.watch("the workload has grown again", Duration::from_secs(240), |r| r.player.waiting)
}

/// Ends the workload and adds up.
fn finish(run: &mut Run, report: &mut Report) {
    run.phase("last check of every page");
    let ended = run.go().and_then(|()| {
        run.watch("the workload ends", Duration::from_secs(120), |r| r.player.finished)
    });
    if let Err(error) = ended {
        report.failures.push(error.to_string());
    }
    let samples = &run.timeline.samples;
    let peak =
        |value: fn(&crate::sample::Sample) -> u64| samples.iter().map(value).max().unwrap_or(0);
    let gate = run.vm().gate;
    report.host_resident_mib =
        Resident { peak: peak(|s| s.resident.mib()), ..report.host_resident_mib };
    let counters =
        run.vm().device.as_ref().map(|device| device.counters.clone()).unwrap_or_default();
    let block = run.vm().device.as_ref().and_then(|d| d.hello.as_ref()).map(|h| h.block_size);
    let block = block.unwrap_or(ByteSize::from_mib(128));
    report.blocks = Blocks {
        stolen_peak: u32::try_from(peak(|s| u64::from(s.blocks_stolen))).unwrap_or(u32::MAX),
        returned: counters.returned.bytes() / block.bytes().max(1),
        failed: run.last().steals_failed,
        ..report.blocks
    };
    report.gate = Gate {
        asked: gate.asked,
        granted: gate.granted,
        held: gate.held,
        held_ms_max: gate.held_ms_max,
    };
    report.integrity = run.player.integrity;
    let psi = |sample: Option<&crate::sample::Sample>| sample.map_or(0, |s| s.psi_some_us);
    let first_told = samples.iter().find(|s| s.blocks_total > 0);
    report.guest = Guest {
        oom_kills: run.last().oom_kills,
        psi_some_us: psi(samples.last()).saturating_sub(psi(first_told)),
    };
    report.rss_mib = run.rss();
    report.tlb_neighbour = run.player.tlb_neighbour;
    report.seconds = run.now_ms() / 1000;
    check_end(run, report);
}

/// What the whole run promised.
fn check_end(run: &Run, report: &mut Report) {
    let mut promise = |kept: bool, broken: String| {
        if !kept {
            report.failures.push(broken);
        }
    };
    let integrity = run.player.integrity;
    promise(integrity.pages_bad == 0, format!("{} pages were bad", integrity.pages_bad));
    promise(integrity.pages_checked > 0, "no page was checked".into());
    let kills = run.last().oom_kills;
    promise(kills == 0, format!("the guest's OOM killer ended {kills} tasks"));
    let gate = run.vm().gate;
    promise(gate.granted > 0, "the gate granted nothing".into());
    promise(run.player.errors.is_empty(), format!("workload: {}", run.player.errors.join("; ")));
}
