//! A guest under test, from outside.

use std::path::Path;
use std::time::{Duration, Instant};

use memtide_lab::machine::Machine;
use memtide_units::ByteSize;
use serde_json::json;

use crate::error::{BenchError, Result};

/// From QEMU's start to the runner's hello.
const BOOT: Duration = Duration::from_secs(180);
/// For filling all of a guest's memory under emulation.
const FILL: Duration = Duration::from_secs(120);
/// For a script in the guest.
const SCRIPT: Duration = Duration::from_secs(60);
/// Before a turn no task stalls for memory for so long: Memtide's agent has to have seen a whole window without. All
/// wait, since punching costs 8 % less while the processors' caches hold what touching has left there.
const CALM: Duration = Duration::from_millis(2_300);
/// Until that is so.
const CALMS: Duration = Duration::from_secs(40);
/// Between two looks at something that takes seconds.
pub(crate) const LOOK: Duration = Duration::from_millis(100);
/// Left free by the filling, so that the guest does not have to reclaim for it.
const SPARED: ByteSize = ByteSize::from_mib(160);

/// Has the kernel write zeros to two files in memory, one on each processor, and removes them. Pages
/// of such files come from `ZONE_MOVABLE` as far as they find room there. (The workload's pattern
/// takes several times as long under emulation, and nothing here reads it.)
const FILLING: &str = r#"
set -e
dir=/run/memtide-bench
mkdir -p $dir
mount -t tmpfs -o size=100%,huge=always tmpfs $dir
fallocate -l $1MiB $dir/a & first=$!
fallocate -l $1MiB $dir/b
wait $first
umount $dir
"#;

/// Where is kept how a guest was at the end.
pub(crate) const GUEST_STATE: &str = "guest.txt";
/// What whoever wonders about a figure would ask the guest.
const STATE: &str = "\
for file in meminfo buddyinfo zoneinfo swaps pressure/memory; do echo \"== $file\"; cat /proc/$file; done
echo '== stat: name, user and system time in hundredths of a second, resident pages'
cat /proc/uptime; cut -d ' ' -f 2,14,15,24 /proc/[0-9]*/stat 2> /dev/null | grep -v ' 0 [0-9] '
echo '== the same of each thread of the agent'
cut -d ' ' -f 2,14,15 /proc/$(systemctl show -P MainPID memtide-agent)/task/*/stat 2> /dev/null
cd /sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/schemes 2> /dev/null && grep -r . */stats
PATH=$PATH:/opt/memtide/bin
for view in status explain wss; do memtide-agent $view; done
true";

/// A guest that runs, or is stopped while another one's turn is.
pub(crate) struct Subject {
    name: &'static str,
    machine: Machine,
    kernel: String,
}

impl Subject {
    /// Takes a machine that boots, and waits until commands can be run in it; `name` is for messages.
    pub(crate) fn new(name: &'static str, machine: Machine) -> Result<Self> {
        let boot = machine.acceleration().engine.patience(BOOT);
        let kernel = machine.wait_ready(boot)?.kernel;
        Ok(Self { name, machine, kernel })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// `uname -r`.
    pub(crate) fn kernel(&self) -> &str {
        &self.kernel
    }

    /// For how long to wait, by the host's clock, for what may take this guest so long by its own.
    pub(crate) fn patience(&self, time: Duration) -> Duration {
        self.machine.acceleration().engine.patience(time)
    }

    /// Its processors stop, and its clock: it disturbs nobody.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.machine.qmp().execute("stop", json!({}))?;
        Ok(())
    }

    /// Its processors go on.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.machine.qmp().execute("cont", json!({}))?;
        Ok(())
    }

    /// Fills nearly all of its memory, so that the host has backing under it, and frees it again.
    pub(crate) fn fill_and_free(&self) -> Result<()> {
        let room = self.meminfo("MemAvailable")? - SPARED;
        let half = (room.mib() / 2).to_string();
        self.bash_within(FILLING, &[half], FILL)?;
        Ok(())
    }

    /// Runs a script of bash's with these words as its arguments; what it prints.
    pub(crate) fn bash_with(&self, script: &str, words: &[String]) -> Result<String> {
        self.bash_within(script, words, SCRIPT)
    }

    fn bash_within(&self, script: &str, words: &[String], within: Duration) -> Result<String> {
        let mut argv = vec!["bash", "-c", script, "bash"];
        argv.extend(words.iter().map(String::as_str));
        Ok(self.machine.guest().check(&argv, self.patience(within))?)
    }

    /// A line of `/proc/meminfo`, such as `MemTotal`.
    pub(crate) fn meminfo(&self, field: &str) -> Result<ByteSize> {
        let text = self.read("/proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        kib.map(ByteSize::from_kib).ok_or_else(|| self.unexpected("/proc/meminfo", text))
    }

    /// How long ago it booted, by its own clock.
    pub(crate) fn uptime(&self) -> Result<Duration> {
        let text = self.read("/proc/uptime")?;
        let seconds = text.split(' ').next().and_then(|seconds| seconds.parse().ok());
        let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        uptime.ok_or_else(|| self.unexpected("/proc/uptime", text))
    }

    /// Busy time of its processors since it booted.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let text = self.read("/proc/stat")?;
        crate::clocks::of_guest(&text).ok_or_else(|| self.unexpected("/proc/stat", text))
    }

    /// Tasks that its OOM killer has ended since it booted.
    pub(crate) fn oom_kills(&self) -> Result<u64> {
        let text = self.read("/proc/vmstat")?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills
            .and_then(|kills| kills.trim().parse().ok())
            .ok_or_else(|| self.unexpected("/proc/vmstat", text))
    }

    /// Stall for memory since it booted, in microseconds.
    pub(crate) fn stalled_us(&self) -> Result<u64> {
        let text = self.read("/proc/pressure/memory")?;
        let some = text.lines().find_map(|line| line.strip_prefix("some ")?.split_once("total="));
        let total = some.and_then(|(_, total)| total.trim().parse().ok());
        total.ok_or_else(|| self.unexpected("/proc/pressure/memory", text))
    }

    /// Waits until no task has stalled for memory for a while.
    pub(crate) fn wait_calm(&self) -> Result<()> {
        let started = Instant::now();
        let mut last = (started, self.stalled_us()?);
        while last.0.elapsed() < CALM {
            memtide_scenarios::interrupt::check()?;
            std::thread::sleep(LOOK);
            let now = self.stalled_us()?;
            if now != last.1 {
                last = (Instant::now(), now);
            }
            if started.elapsed() > CALMS {
                let (who, what) = (self.name.to_owned(), "no task stalls for memory");
                let seen = format!("{now} us of stall, and more each second");
                return Err(BenchError::Late { who, what, waited: CALMS, seen });
            }
        }
        Ok(())
    }

    /// How the guest is now, for people: a file of that name in `directory`, mostly [`GUEST_STATE`].
    pub(crate) fn keep_state(&self, directory: &Path, name: &str) -> Result<()> {
        let text = self.bash_with(STATE, &[])?;
        let path = directory.join(name);
        let failed = |source| BenchError::File { doing: "write", path: path.clone(), source };
        std::fs::write(&path, text).map_err(failed)
    }

    /// The error that a guest's text is not what it should be.
    pub(crate) fn unexpected(&self, what: &'static str, text: String) -> BenchError {
        BenchError::Unexpected { who: self.name.to_owned(), what, text }
    }

    fn read(&self, path: &str) -> Result<String> {
        let bytes = self.machine.guest().read_file(path)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
