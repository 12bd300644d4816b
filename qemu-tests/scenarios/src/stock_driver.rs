//! The guest's stock driver against our device: what Linux does with a balloon, on each kernel.
//!
//! A boot costs more than what is done with it, so each kernel's guest is another kind of guest: in
//! what holds its memory, how much it has, and what its kernel was told.

mod lives;
mod plug;
mod suspend;

use std::path::Path;
use std::time::Duration;

use memtide_api::device::Driver;
use memtide_lab::cargo::Built;
use memtide_lab::machine::{Backing, OnReset};
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, Shape, Unit};
use crate::host_side::HostLimits;
use crate::run::{Run, Stage};
use crate::screen::Screen;
use crate::wait::{self, Look};

/// Where a tmpfs is on every Debian host.
const TMPFS: &str = "/dev/shm";

/// `VIRTIO_BALLOON_F_PAGE_POISON`.
const PAGE_POISON: u64 = 1 << 4;

/// Addresses from here on are above the hole that PCI devices have below 4 GiB.
const ABOVE_HOLE: ByteSize = ByteSize::from_gib(4);

/// Plays everything that a stock driver does on this kernel.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("stock driver on {kernel}"));
    let kind = Kind::of(kernel, logs);
    let started = start(lab, programs, &kind, logs);
    let what = format!("a guest of {} starts, {}", kind.memory, kind.words);
    if let Some(mut run) = checks.step(&what, started) {
        run_checks(&mut checks, &mut run, &kind);
    }
    checks
}

/// What is special about the guest of a kernel.
struct Kind {
    kernel: Kernel,
    memory: ByteSize,
    shape: Shape,
    words: &'static str,
}

impl Kind {
    fn of(kernel: Kernel, logs: &Path) -> Self {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let resets = Shape { on_reset: OnReset::Boots, ..Shape::default() };
        let memory = ByteSize::from_gib(2);
        match kernel {
            // Pages are zeroed when they are freed, so the driver wants to say what they hold.
            Kernel::V6_1 => Self {
                kernel,
                memory,
                shape: Shape {
                    backing: Backing::FileIn(TMPFS.into()),
                    kernel_arguments: words(&["init_on_free=1"]),
                    ..resets
                },
                words: "its memory a file on tmpfs, its pages zeroed when freed",
            },
            Kernel::V6_12 => Self {
                kernel,
                memory,
                shape: Shape { backing: Backing::FileIn(logs.to_owned()), ..resets },
                words: "its memory a file on a disk",
            },
            // Room above the hole, and what is plugged in may be unplugged.
            Kernel::V7_3 => Self {
                kernel,
                memory: ByteSize::from_gib(6),
                shape: Shape {
                    memory_max: Some(ByteSize::from_gib(8)),
                    kernel_arguments: words(&["memhp_default_state=online_movable"]),
                    ..resets
                },
                words: "with memory above 4 GiB and room for more",
            },
        }
    }

    /// What `memtide` is told to leave the guest, for a balloon of this size.
    fn without(&self, balloon: ByteSize) -> ByteSize {
        self.memory - balloon
    }
}

fn start(lab: &Lab, programs: &Built, kind: &Kind, logs: &Path) -> Result<Run, ScenarioError> {
    let limits = HostLimits { budget: None, min: ByteSize::from_mib(512) };
    let options = GuestOptions {
        shape: kind.shape.clone(),
        ..GuestOptions::new((kind.kernel, kind.memory), Unit::Absent, logs)
    };
    let stage = Stage::start(lab, programs, limits, &options)?;
    stage.guest.run(&["modprobe", "virtio_balloon"])?;
    let screen = Screen::new(format!("stock driver on {}", kind.kernel), kind.memory);
    Ok(Run::new(stage, screen, logs))
}

fn run_checks(checks: &mut Checks, run: &mut Run, kind: &Kind) {
    checks.step("the stock driver binds", drives(run));
    sizes(checks, run, kind);
    checks.step("it delivers statistics", statistics(run));
    let reported = free_page_reporting(run);
    checks.step("free memory is reported and leaves the host's books", reported);
    match kind.kernel {
        Kernel::V6_1 => {
            let features = run.vm().device.as_ref().map_or(0, |device| device.features);
            checks.check(
                "the driver of a guest that zeroes freed pages says so",
                features & PAGE_POISON != 0,
                format!("{features:#x}"),
            );
        }
        Kernel::V6_12 => {}
        Kernel::V7_3 => {
            let regions = run.vm().device.iter().flat_map(|device| &device.memory);
            let above = regions.filter(|region| region.range.start().0 >= ABOVE_HOLE.bytes());
            checks.check("there is memory above 4 GiB", above.count() > 0, "none");
            checks.step("memory comes and goes while the rings run", plug::plug(run, kind));
        }
    }
    let unloaded = lives::unload(run, kind);
    checks.step("the module is unloaded while inflated, and loaded again", unloaded);
    checks.step("the guest sleeps and wakes with an inflated balloon", suspend::sleep(run, kind));
    let rebooted = lives::reboot(run, kind);
    checks.step("the guest reboots, and its balloon is what it was", rebooted);
    if kind.kernel == Kernel::V7_3 {
        checks.step("the guest is reset in the middle of an inflation", lives::reset(run, kind));
    }
}

/// Inflation and deflation to `num_pages`, as the guest sees them.
fn sizes(checks: &mut Checks, run: &mut Run, kind: &Kind) {
    let before = run.guest.mem_total().unwrap_or_default();
    let half = ByteSize::from_mib(512);
    checks.step("it inflates to num_pages", balloon_is(run, kind, half));
    let during = run.guest.mem_total().unwrap_or_default();
    checks.check(
        "the guest has that much less",
        before - during >= ByteSize::from_mib(500),
        format!("{before} before, {during} after"),
    );
    checks.step("it deflates again", balloon_is(run, kind, ByteSize::ZERO));
}

/// Sets the balloon and waits until the driver has followed.
fn balloon_is(run: &mut Run, kind: &Kind, balloon: ByteSize) -> Result<(), ScenarioError> {
    run.host.set_target(kind.without(balloon))?;
    follows(run, balloon)
}

/// Waits until the balloon is that large; and as much larger as memory was plugged in, since the
/// guest is told what to keep.
fn follows(run: &mut Run, balloon: ByteSize) -> Result<(), ScenarioError> {
    let what = format!("the balloon is {balloon}");
    run.watch(&what, Duration::from_secs(120), |run| {
        run.vm().device.as_ref().is_some_and(|device| {
            let plugged = plug::plugged(&device.memory);
            device.actual == device.target && device.target == balloon + plugged
        })
    })
}

fn drives(run: &mut Run) -> Result<(), ScenarioError> {
    run.watch("the stock driver drives", Duration::from_secs(30), |run| {
        run.vm().driver == Driver::Stock
    })
}

fn statistics(run: &mut Run) -> Result<(), ScenarioError> {
    wait::until("statistics arrive", Duration::from_secs(20), || {
        run.look()?;
        let stats = run.vm().device.as_ref().map(|device| device.stats.clone()).unwrap_or_default();
        Ok(match stats.get("total_memory") {
            Some(total) if *total > 1 << 30 => Look::Found(()),
            _ => Look::NotYet(format!("{stats:?}")),
        })
    })
}

/// Fills and frees 512 MiB: what was resident for it must go without anybody asking.
fn free_page_reporting(run: &mut Run) -> Result<(), ScenarioError> {
    run.guest.start_workload("alloc heap 512MiB; wait; free heap; wait")?;
    run.watch("the workload has filled", Duration::from_secs(60), |run| run.player.waiting)?;
    let filled = run.guest.resident()?;
    run.go()?;
    run.watch("reporting gives the memory back", Duration::from_secs(60), |run| {
        let given = filled - run.last().resident;
        run.player.waiting && given >= ByteSize::from_mib(400)
    })?;
    run.go()
}
