//! A guest with everything running, watched: each look takes a sample, hears the workload, and draws.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memtide_api::device::Driver;
use memtide_api::http::VmStatus;
use memtide_lab::Lab;
use memtide_lab::cargo::Built;
use memtide_lab::machine::rss_kib;
use memtide_lab::rundir::RunDir;
use memtide_units::ByteSize;

use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, GuestSide};
use crate::host_side::{HostLimits, HostSide};
use crate::player::Player;
use crate::report::Rss;
use crate::sample::{Phase, Sample, Timeline};
use crate::screen::{Screen, Words};

/// Between two looks: often enough for a smooth picture, seldom enough that looking costs nothing.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Both halves, and the directory that their sockets meet in.
pub struct Stage {
    /// memtided and the device.
    pub host: HostSide,
    /// The machine.
    pub guest: GuestSide,
    /// Removed with the run.
    pub sockets: RunDir,
}

impl Stage {
    /// Starts the host's half, then the guest's.
    ///
    /// # Errors
    /// Where one of them does not come up.
    pub fn start(
        lab: &Lab,
        programs: &Built,
        limits: HostLimits,
        options: &GuestOptions,
    ) -> Result<Self, ScenarioError> {
        Self::start_in(RunDir::new()?, (lab, programs), (limits, ""), options)
    }

    /// The same in this directory, with these lines about the VM in memtided's configuration.
    ///
    /// # Errors
    /// As [`Stage::start`].
    pub fn start_in(
        sockets: RunDir,
        (lab, programs): (&Lab, &Built),
        host: (HostLimits, &str),
        options: &GuestOptions,
    ) -> Result<Self, ScenarioError> {
        let logs = &options.artifacts;
        std::fs::create_dir_all(logs)
            .map_err(|source| ScenarioError::File { path: logs.clone(), source })?;
        let host = HostSide::start(programs, sockets.path(), logs, host)?;
        let guest = GuestSide::start(lab, programs, &host.vhost_socket(), options)?;
        Ok(Self { host, guest, sockets })
    }
}

/// A run that is going on.
pub struct Run {
    /// The host's half.
    pub host: HostSide,
    /// The guest's half.
    pub guest: GuestSide,
    /// What the workload said.
    pub player: Player,
    /// What was seen.
    pub timeline: Timeline,
    /// The largest resident sizes of our own processes so far, in bytes.
    rss_peak: [ByteSize; 3],
    vm: VmStatus,
    screen: Screen,
    started: Instant,
    logs: PathBuf,
    _sockets: RunDir,
}

impl Run {
    /// Begins to watch.
    pub fn new(stage: Stage, screen: Screen, logs: &Path) -> Self {
        let Stage { host, guest, sockets } = stage;
        Self {
            host,
            guest,
            player: Player::default(),
            timeline: Timeline::default(),
            rss_peak: [ByteSize::ZERO; 3],
            vm: VmStatus::default(),
            screen,
            started: Instant::now(),
            logs: logs.to_owned(),
            _sockets: sockets,
        }
    }

    /// Milliseconds since the run began.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The VM as memtided told last.
    pub fn vm(&self) -> &VmStatus {
        &self.vm
    }

    /// The last sample.
    pub fn last(&self) -> Sample {
        self.timeline.samples.last().copied().unwrap_or_default()
    }

    /// A new phase begins.
    pub fn phase(&mut self, name: &str) {
        let from_ms = self.now_ms();
        self.screen.say(&format!("{:>6.1} s  {name}", from_ms as f64 / 1000.0));
        self.timeline.phases.push(Phase { name: name.to_owned(), from_ms });
    }

    /// A line for the person who watches.
    pub fn say(&mut self, text: &str) {
        self.screen.say(&format!("          {text}"));
    }

    /// Takes one look.
    ///
    /// # Errors
    /// Where the guest has died, or memtided does not answer.
    pub fn look(&mut self) -> Result<(), ScenarioError> {
        crate::interrupt::check()?;
        for line in self.guest.workload_lines()? {
            self.player.read(&line);
        }
        // memtided may be down for a moment, when a scenario kills it: keep what it said last.
        if let Ok(vm) = self.host.vm() {
            self.vm = vm;
        }
        let sample = self.sample()?;
        let previous = self.timeline.samples.last().copied().unwrap_or(sample);
        self.timeline.samples.push(sample);
        self.note_rss();
        let words = self.words();
        self.screen.show(&sample, &previous, &words);
        Ok(())
    }

    /// Looks until `done`.
    ///
    /// # Errors
    /// [`ScenarioError::Deadline`] after `deadline`, or the error of a look.
    pub fn watch(
        &mut self,
        what: &str,
        deadline: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<(), ScenarioError> {
        let start = Instant::now();
        loop {
            let looked = Instant::now();
            self.look()?;
            if done(self) {
                return Ok(());
            }
            if start.elapsed() > deadline {
                return Err(ScenarioError::Deadline {
                    what: what.into(),
                    waited: start.elapsed(),
                    seen: self.seen(),
                });
            }
            std::thread::sleep(LOOK_EVERY.saturating_sub(looked.elapsed()));
        }
    }

    /// Watches for so long.
    ///
    /// # Errors
    /// Of a look.
    pub fn watch_for(&mut self, time: Duration) -> Result<(), ScenarioError> {
        let start = Instant::now();
        self.watch("time passes", time * 2 + LOOK_EVERY, |_| start.elapsed() >= time)
    }

    /// Tells the workload to go on, and waits until it has.
    ///
    /// # Errors
    /// Where the guest cannot be reached.
    pub fn go(&mut self) -> Result<(), ScenarioError> {
        self.player.went();
        self.guest.workload_go()
    }

    /// The largest resident sizes of our processes, rounded up to MiB.
    pub fn rss(&self) -> Rss {
        let [agent, device, memtided] =
            self.rss_peak.map(|size| size.round_up_to(ByteSize::from_mib(1)).mib());
        Rss { agent, device, memtided }
    }

    fn sample(&self) -> Result<Sample, ScenarioError> {
        let telemetry = self.vm.device.as_ref().and_then(|device| device.telemetry.clone());
        let agent = self.vm.driver == Driver::Agent;
        let told = telemetry.filter(|_| agent).unwrap_or_default();
        Ok(Sample {
            at_ms: self.now_ms(),
            guest_total: told.total,
            guest_used: told.total - told.available,
            guest_free: told.free,
            resident: self.guest.resident()?,
            stolen: self.vm.stolen,
            blocks_stolen: told.blocks_stolen,
            blocks_movable: told.blocks_movable,
            blocks_total: told.blocks_total,
            steals_failed: told.steals_failed,
            psi_some_us: told.psi_some_us,
            oom_kills: told.oom_kills,
            held: self.vm.held.is_some(),
        })
    }

    fn words(&self) -> Words {
        let note = self.vm.device.as_ref().and_then(|device| device.telemetry.as_ref());
        let gate = self.vm.gate;
        let counts = format!("asked {}, granted {}, held {}", gate.asked, gate.granted, gate.held);
        let phase = self.timeline.phases.last().map(|phase| phase.name.clone());
        Words {
            phase: phase.unwrap_or_default(),
            agent: note.map(|told| told.note.clone()).unwrap_or_default(),
            gate: match &self.vm.held {
                Some(held) => format!("{counts}; HOLDS {}: {}", held.asked.bytes, held.explanation),
                None => counts,
            },
        }
    }

    fn note_rss(&mut self) {
        let (memtided, device) = self.host.pids();
        let told = self.vm.device.as_ref().and_then(|device| device.telemetry.as_ref());
        let now = [
            told.map(|told| told.agent_rss).unwrap_or_default(),
            device.and_then(rss_of).unwrap_or_default(),
            rss_of(memtided).unwrap_or_default(),
        ];
        for (peak, now) in self.rss_peak.iter_mut().zip(now) {
            *peak = (*peak).max(now);
        }
    }

    /// The last state in a line, for the error that nobody wants to debug without it.
    fn seen(&self) -> String {
        let last = self.last();
        let mut text = format!(
            "driver {:?}, guest {} of {} used, {} of {} movable blocks stolen, host resident {}, workload in \"{}\"{}",
            self.vm.driver,
            last.guest_used,
            last.guest_total,
            last.blocks_stolen,
            last.blocks_movable,
            last.resident,
            self.player.phase,
            if self.player.waiting { " (waiting)" } else { "" }
        );
        let words = self.words();
        text.push_str(&format!("; gate: {}; agent: {}", words.gate, words.agent));
        if let Some(noise) = self.player.noise.last() {
            text.push_str(&format!("; workload printed: {noise}"));
        }
        text.push_str(&format!("; logs in {}", self.logs.display()));
        text
    }
}

/// What a process of this host has in memory, unless it has just ended.
fn rss_of(pid: u32) -> Option<ByteSize> {
    rss_kib(pid).ok().map(ByteSize::from_kib)
}
