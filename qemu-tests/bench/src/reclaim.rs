//! The measurement as a whole: everybody boots, then takes turns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use memtide_lab::cargo::Built;
use memtide_lab::machine::{Backing, GuestClock};
use memtide_lab::rundir::RunDir;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;

use crate::contest::Contestant;
use crate::error::{BenchError, Result};
use crate::figures::{Figures, Spread};
use crate::huge_pages::{HugePages, POOL};
use crate::machines::Machines;
use crate::memtide::Memtide;
use crate::meter::{Moved, Round};
use crate::qemu_devices::{QemuBalloon, VirtioMem};
use crate::raw::Raw;
use crate::report::{RawFigures, Report, Setting};
use crate::subject::Subject;

/// The packages whose programs are measured, for `memtide_lab::cargo::build`.
pub const PACKAGES: [&str; 3] = ["memtide-agent", "memtide-lab-guest", "vhost-user-balloon"];

/// What of a guest's memory is moved: five eighths leave it room to live, and fit into the three
/// quarters that the agent makes movable.
const MOVED_EIGHTHS: u64 = 5;
/// Guests that wait for their turn hold this much of their memory, in eighths of it: what they have
/// booted in and what did not move.
const WAITING_EIGHTHS: u64 = 3;
/// Turns in each round of Memtide and of the raw limit, in turns: what is promised of their ratio lies
/// nearer to what is measured than single turns of either to each other, and these are quick.
const CLOSE_TURNS: usize = 3;
/// Turns of the device by itself: they take three seconds or four, and single ones differ by a fifth.
const ALONE_ROUNDS: usize = 30;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The guests' kernel.
    pub kernel: Kernel,
    /// Memory of each guest.
    pub memory: ByteSize,
    /// Rounds. In each everybody has a turn, and Memtide and the raw limit have two more.
    pub rounds: usize,
    /// Whether Memtide is measured on huge pages too.
    pub huge_pages: HugePagesUse,
    /// Where logs go.
    pub artifacts: PathBuf,
}

/// Whether huge pages are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePagesUse {
    /// They are reserved for the time of the measurement.
    Reserve,
    /// Memtide on huge pages is left out.
    LeaveOut,
}

impl Options {
    /// What moves in each turn: whole blocks.
    fn moved(&self) -> ByteSize {
        let share = ByteSize::from_bytes(self.memory.bytes() / 8 * MOVED_EIGHTHS);
        share.round_down_to(memtide_units::BlockSize::X86_SMALL.size())
    }
}

/// Measures; `say` gets a line for each step.
///
/// # Errors
/// The first step that fails. Guests, processes and huge pages are gone in any case.
pub fn run(
    lab: &Lab,
    programs: &Built,
    options: &Options,
    say: &mut dyn FnMut(&str),
) -> Result<Report> {
    let started = Instant::now();
    check_memory(options)?;
    let sockets = RunDir::new()?;
    let machines = Machines {
        lab,
        programs,
        kernel: options.kernel,
        memory: options.memory,
        vcpus: 2,
        clock: GuestClock::Host,
        artifacts: options.artifacts.clone(),
        tools: &["memtide-agent"],
        agent_options: "--scale-by target",
        swap_disk: None,
    };
    say("the device by itself, and a punch by hand");
    let log = options.artifacts.join("alone-device.log");
    let (device_alone, raw_punch) =
        crate::alone::measure(programs, sockets.path(), &log, ALONE_ROUNDS)?;
    say("the guests boot, one after the other");
    let mut stage = Stage::start(&machines, options, &sockets, say)?;
    let kernel = stage.raw.subject().kernel().to_owned();
    stage.warm_up(say)?;
    let rounds = stage.play(options.rounds, say)?;
    let mut report = stage.report(&rounds);
    let engine = stage.raw.subject().machine().acceleration().engine;
    report.device_alone = device_alone.into();
    report.raw_punch = raw_punch.into();
    report.setting = Setting {
        kernel,
        qemu: lab.qemu().version().to_string(),
        accelerator: engine.to_string(),
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        guest_memory_mib: options.memory.mib(),
        moved_mib: options.moved().mib(),
        rounds: options.rounds,
        close_turns: options.rounds * CLOSE_TURNS,
        seconds: started.elapsed().as_secs(),
    };
    report.compare();
    Ok(report)
}

/// Whoever takes part. Huge pages are given back after the guest that uses them is gone, for fields
/// are dropped in this order.
struct Stage {
    memtide: Memtide,
    memtide_hugetlb: Option<Memtide>,
    balloon: QemuBalloon,
    virtio_mem: VirtioMem,
    raw: Raw,
    _huge_pages: Option<HugePages>,
}

/// Turns of each, by its guest's name.
type Turns = BTreeMap<&'static str, Vec<Round>>;

impl Stage {
    /// Boots everybody, one after the other: under emulation a guest that is starved while it boots
    /// may not find its own timer.
    fn start(
        machines: &Machines<'_>,
        options: &Options,
        sockets: &RunDir,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let (moved, sockets) = (options.moved(), sockets.path());
        let mut ready = |subject: &Subject| {
            subject.freeze()?;
            say(&format!("{} is ready", subject.name()));
            Ok::<(), BenchError>(())
        };
        let huge_pages = match options.huge_pages {
            HugePagesUse::Reserve => Some(HugePages::reserve(POOL.as_ref(), options.memory)?),
            HugePagesUse::LeaveOut => None,
        };
        let raw = Raw::start(machines, moved)?;
        ready(raw.subject())?;
        let memtide = Memtide::start(machines, ("memtide", Backing::Memfd), sockets, moved)?;
        ready(memtide.subject())?;
        let mut memtide_hugetlb = None;
        if huge_pages.is_some() {
            let what = ("memtide-hugetlb", Backing::HugeMemfd);
            let huge = Memtide::start(machines, what, sockets, moved)?;
            ready(huge.subject())?;
            memtide_hugetlb = Some(huge);
        }
        let virtio_mem = VirtioMem::start(machines, moved)?;
        ready(virtio_mem.subject())?;
        let balloon = QemuBalloon::start(machines, moved)?;
        ready(balloon.subject())?;
        Ok(Self { memtide, memtide_hugetlb, balloon, virtio_mem, raw, _huge_pages: huge_pages })
    }

    fn all(&mut self) -> Vec<&mut dyn Contestant> {
        let Self { memtide, memtide_hugetlb, balloon, virtio_mem, raw, .. } = self;
        let mut all: Vec<&mut dyn Contestant> = vec![raw, memtide];
        if let Some(huge) = memtide_hugetlb {
            all.push(huge);
        }
        all.push(virtio_mem);
        all.push(balloon);
        all
    }

    /// A turn of each that does not count: an emulator translates what a guest executes for the first time. And
    /// the guest touches its memory itself; it has just booted, and hardly a page of it was ever used.
    fn warm_up(&mut self, say: &mut dyn FnMut(&str)) -> Result<()> {
        for contestant in self.all() {
            contestant.subject().thaw()?;
            contestant.subject().fill_and_free()?;
            take_turn(contestant, "a turn that does not count", say)?;
        }
        self.raw.parts.clear();
        Ok(())
    }

    fn play(&mut self, rounds: usize, say: &mut dyn FnMut(&str)) -> Result<Turns> {
        let mut turns = Turns::new();
        for round in 1..=rounds {
            let which = format!("round {round} of {rounds}");
            for contestant in self.all() {
                take_counted_turn(contestant, &which, say, &mut turns)?;
            }
            for _ in 1..CLOSE_TURNS {
                take_counted_turn(&mut self.raw, &which, say, &mut turns)?;
                take_counted_turn(&mut self.memtide, &which, say, &mut turns)?;
            }
        }
        Ok(turns)
    }

    fn report(&self, turns: &Turns) -> Report {
        let of = |contestant: &dyn Contestant| {
            let turns = turns.get(contestant.subject().name());
            Figures::of(turns.map_or(&[], Vec::as_slice))
        };
        Report {
            memtide: of(&self.memtide),
            memtide_hugetlb: self.memtide_hugetlb.as_ref().map(|huge| of(huge)),
            qemu_virtio_mem: of(&self.virtio_mem),
            qemu_virtio_balloon: of(&self.balloon),
            raw: self.raw_figures(of(&self.raw)),
            ..Report::default()
        }
    }

    fn raw_figures(&self, figures: Figures) -> RawFigures {
        let of = |part: fn(&crate::raw::Parts) -> &Moved| {
            Spread::of(self.raw.parts.iter().map(|parts| part(parts).rate()))
        };
        let (offline, punch) = (of(|parts| &parts.offline), of(|parts| &parts.punch));
        RawFigures {
            figures,
            offline_gib_s: offline.median,
            punch_gib_s: punch.median,
            offline_spread: offline,
            punch_spread: punch,
        }
    }
}

/// A turn of a guest that has waited; it is noted.
fn take_counted_turn(
    contestant: &mut dyn Contestant,
    which: &str,
    say: &mut dyn FnMut(&str),
    turns: &mut Turns,
) -> Result<()> {
    touch_all(contestant)?;
    let turn = take_turn(contestant, which, say)?;
    turns.entry(contestant.subject().name()).or_default().push(turn);
    Ok(())
}

/// One turn of a guest whose memory has been touched; it is stopped afterwards.
fn take_turn(
    contestant: &mut dyn Contestant,
    which: &str,
    say: &mut dyn FnMut(&str),
) -> Result<Round> {
    memtide_scenarios::interrupt::check()?;
    let turn = contestant.turn()?;
    contestant.subject().freeze()?;
    let (name, there, back) =
        (contestant.subject().name(), turn.reclaim.rate(), turn.give_back.rate());
    say(&format!("{which}: {name:<20} {there:>6.2} GiB/s reclaimed, {back:>6.2} returned"));
    Ok(turn)
}

/// Puts backing under all of a guest that is stopped, and has it run.
fn touch_all(contestant: &dyn Contestant) -> Result<()> {
    let subject = contestant.subject();
    let (memories, page) = contestant.backing();
    for memory in memories {
        crate::touch::touch(subject.machine().qemu_pid(), memory, page)?;
    }
    subject.thaw()
}

/// All guests live at once; one of them at a time has all of its memory.
fn check_memory(options: &Options) -> Result<()> {
    let eighth = options.memory.bytes() / 8;
    let huge = match options.huge_pages {
        HugePagesUse::Reserve => options.memory,
        HugePagesUse::LeaveOut => ByteSize::ZERO,
    };
    let needed = huge + options.memory + ByteSize::from_bytes(3 * WAITING_EIGHTHS * eighth);
    let path = PathBuf::from("/proc/meminfo");
    let text = std::fs::read_to_string(&path).map_err(|source| BenchError::File {
        doing: "read",
        path,
        source,
    })?;
    let available = available(&text);
    if available.is_some_and(|available| available < needed) {
        let available = available.unwrap_or_default();
        return Err(BenchError::NoMemory { needed, available });
    }
    Ok(())
}

fn available(meminfo: &str) -> Option<ByteSize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok().map(ByteSize::from_kib)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(memory: ByteSize) -> Options {
        Options {
            kernel: Kernel::V7_3,
            memory,
            rounds: 1,
            huge_pages: HugePagesUse::LeaveOut,
            artifacts: PathBuf::new(),
        }
    }

    #[test]
    fn whole_blocks_move() {
        assert_eq!(options(ByteSize::from_gib(4)).moved(), ByteSize::from_mib(2560));
        assert_eq!(options(ByteSize::from_gib(2)).moved(), ByteSize::from_mib(1280));
    }

    #[test]
    fn a_host_that_is_too_small_is_told_so() {
        assert_eq!(
            available("MemTotal: 5 kB\nMemAvailable:  2048 kB\n"),
            Some(ByteSize::from_mib(2))
        );
        let error = check_memory(&options(ByteSize::from_gib(1 << 20))).unwrap_err().to_string();
        assert!(error.contains("--memory"), "{error}");
    }
}
