//! `memtide-agent check`: what the agent would find here, and what would follow; nothing is changed.

use std::fmt;
use std::io;
use std::path::Path;

use memtide_sysfs::damon::{self, Absence};
use memtide_sysfs::kpageflags::PageFlags;
use memtide_sysfs::memory::Origins;
use memtide_sysfs::pci::Function;
use memtide_sysfs::{Root, memory, swaps, virtio, zram};
use memtide_units::ByteSize;

use crate::config::{Config, DamonUse};
use crate::dma::{Area, DmaError};
use crate::pieces::Pieces;
use crate::remove::{PluggedBy, Removers, Unit};
use crate::run::RunError;
use crate::runtime::{RuntimeError, ejected_path};
use crate::status::Lack;
use crate::suitable;
use crate::swap_space::{NO_SWAP_FOR_KUBELET, SwapUse, is_kubernetes_node};
use crate::takeover::{self, IsMemtide, LoadModule, TakeoverError, UIO};

/// What cannot be learned from files.
pub struct Probes<'a> {
    /// Whether a module can be loaded, without loading it.
    pub can_load: LoadModule<'a>,
    /// Whether memory can be pinned.
    pub can_pin: &'a dyn Fn() -> io::Result<()>,
    /// Whether a balloon is a Memtide device.
    pub is_memtide: IsMemtide<'a>,
}

/// What was looked at, and what was found.
#[derive(Debug)]
pub struct Line {
    what: &'static str,
    found: Found,
}

/// What was found.
#[derive(Debug)]
pub enum Found {
    /// All is well; how.
    Well(String),
    /// The agent works without it, and how.
    Lacks(Lack),
    /// The agent cannot run.
    Forbids(RunError),
}

/// The whole look.
#[derive(Debug)]
pub struct Report(Vec<Line>);

impl Report {
    /// Why the agent cannot run here, if it cannot: the first reason.
    pub fn obstacle(self) -> Option<RunError> {
        self.0.into_iter().find_map(|line| match line.found {
            Found::Forbids(error) => Some(error),
            Found::Well(_) | Found::Lacks(_) => None,
        })
    }
}

/// Looks at everything that the agent needs or would like to have.
pub fn check(config: &Config, root: &Root, probes: &Probes<'_>) -> Report {
    let driven = takeover::find(root, config.pci, probes.is_memtide);
    let free_pages = free_pages(root, driven.as_ref().ok());
    Report(vec![
        Line { what: "balloon", found: balloon(driven) },
        Line { what: "device", found: device(&config.runtime_dir) },
        Line { what: "lockdown", found: lockdown(root) },
        Line { what: "module", found: module(root, probes) },
        Line { what: "pinning", found: pinning(probes) },
        Line { what: "directory", found: directory(&config.runtime_dir) },
        Line { what: "blocks", found: blocks(root) },
        Line { what: "structs", found: structs(root, &config.runtime_dir) },
        Line { what: "pieces", found: pieces(root, &config.runtime_dir) },
        Line { what: "pressure", found: pressure(root) },
        Line { what: "access", found: access(config, root) },
        Line { what: "page flags", found: page_flags(root) },
        Line { what: "swap", found: swap(config, root, probes) },
        Line { what: "free pages", found: free_pages },
    ])
}

fn balloon(driven: Result<Function, TakeoverError>) -> Found {
    match driven {
        Ok(function) => {
            let driver = function.driver.as_deref().unwrap_or("no driver");
            let (address, vendor, device) = (function.address, function.vendor, function.device);
            Found::Well(format!("{address} ({vendor:04x}:{device:04x}), driven by {driver}"))
        }
        Err(error) => Found::Forbids(error.into()),
    }
}

fn device(runtime_dir: &Path) -> Found {
    match crate::runtime::must_not_be_silent(runtime_dir) {
        Ok(()) => Found::Well("no agent has seen it fall silent".into()),
        Err(error) => Found::Forbids(error.into()),
    }
}

fn lockdown(root: &Root) -> Found {
    match takeover::lockdown(root) {
        Ok(None) => Found::Well("none".into()),
        Ok(Some(mode)) => Found::Forbids(TakeoverError::Lockdown(mode).into()),
        Err(error) => Found::Forbids(error.into()),
    }
}

fn module(root: &Root, probes: &Probes<'_>) -> Found {
    if root.exists(format!("sys/bus/pci/drivers/{UIO}")) {
        return Found::Well(format!("{UIO} is loaded"));
    }
    match (probes.can_load)(UIO) {
        Ok(()) => Found::Well(format!("{UIO} can be loaded")),
        Err(error) => Found::Forbids(TakeoverError::NoModule(error.to_string()).into()),
    }
}

fn pinning(probes: &Probes<'_>) -> Found {
    match (probes.can_pin)() {
        Ok(()) => Found::Well("memory for the device can be pinned".into()),
        Err(error) => Found::Forbids(DmaError::Pin(error).into()),
    }
}

/// The directory itself may not be there yet: what it will lie on is what counts.
fn directory(path: &Path) -> Found {
    let Some(there) = path.ancestors().find(|path| path.exists()) else {
        return Found::Forbids(DmaError::NotTmpfs(path.into()).into());
    };
    if there == path
        && let Err(error) = crate::private::check_directory(path)
    {
        return Found::Forbids(RuntimeError::NotPrivate(error).into());
    }
    match Area::must_be_tmpfs(there) {
        Ok(()) => Found::Well(format!("{} is on a tmpfs", path.display())),
        Err(error) => Found::Forbids(error.into()),
    }
}

fn blocks(root: &Root) -> Found {
    let (size, blocks) = match memory::block_size(root).and_then(|s| Ok((s, memory::list(root)?))) {
        Ok(found) => found,
        Err(error) => return Found::Forbids(RuntimeError::NoBlocks(error).into()),
    };
    let origins = Origins::read(root, size).ok();
    let own = |origins: &Origins| {
        blocks.iter().filter(|block| origins.may_hold_own_structs(block.id)).count()
    };
    match origins.as_ref().map(own) {
        None if memory::may_hold_own_structs(root) => {
            return Found::Lacks(Lack::plain_blocks(blocks.len()));
        }
        Some(count) if count > 0 => return Found::Lacks(Lack::plain_blocks(count)),
        _ => {}
    }
    let may_go = blocks.iter().filter(|block| !block.never_offline()).count();
    let size = size.size();
    Found::Well(format!("{} of {size}, {may_go} of them may go offline", blocks.len()))
}

/// Whether stolen memory can be removed, `struct page`s and all, and how.
fn structs(root: &Root, runtime_dir: &Path) -> Found {
    let removers = Removers::new(root, ejected_path(runtime_dir));
    let mut all = Vec::new();
    for remover in removers.all() {
        match remover.units(root) {
            Ok(units) => all.extend(units.into_iter().map(|unit| (remover.name(), unit))),
            Err(error) => return Found::Lacks(Lack::removal(&error.to_string())),
        }
    }
    let said = |(way, unit): &(&str, Unit)| {
        let by_host = match unit.by {
            PluggedBy::Guest => "",
            PluggedBy::Host => ", if memtided has the VM's QMP socket",
        };
        format!("{} ({way}, {} blocks{by_host})", unit.name, unit.blocks.len())
    };
    let (small, large): (Vec<_>, Vec<_>) = all.iter().partition(|(_, unit)| unit.is_small());
    if !small.is_empty() {
        let names: Vec<String> = small.into_iter().map(said).collect();
        return Found::Well(format!("go with what is stolen whole: {}", names.join(", ")));
    }
    if !large.is_empty() {
        let names: Vec<String> = large.into_iter().map(said).collect();
        return Found::Lacks(Lack::removal(&format!(
            "to bring back one block would need struct pages for all of {}; make several devices \
             of it",
            names.join(", ")
        )));
    }
    Found::Lacks(Lack::removal(
        "no device of the DAX bus is driven by kmem, there is no DIMM, and what was there at boot cannot \
         be unplugged",
    ))
}

/// Whether what cannot be emptied can go in pieces. Whether the balloon takes them shows when it is
/// driven.
fn pieces(root: &Root, runtime_dir: &Path) -> Found {
    match Pieces::find(root, runtime_dir.join("huge_pages")) {
        Ok(_) => Found::Well(
            "what cannot go offline goes in huge pages, and seven of eight of their struct pages \
             with it"
                .into(),
        ),
        Err(why) => Found::Lacks(Lack::pieces(&why.to_string())),
    }
}

fn pressure(root: &Root) -> Found {
    match suitable::pressure(root) {
        Ok(()) => Found::Well("PSI tells of it".into()),
        Err(error) => Found::Forbids(error.into()),
    }
}

fn access(config: &Config, root: &Root) -> Found {
    if config.damon == DamonUse::Off {
        return Found::Lacks(Lack::damon("switched off by the configuration (damon = \"off\")"));
    }
    match damon::probe(root) {
        Ok(found) => {
            let tuner = if found.intervals_goal { "kernel" } else { "agent" };
            Found::Well(format!("DAMON is free; the {tuner} tunes how often it looks"))
        }
        Err(Absence::Running(_)) if damon::is_ours(root).unwrap_or(false) => {
            Found::Well("DAMON works for the agent already, or for one that was killed".into())
        }
        Err(Absence::UsedBy(module)) if config.damon.takes_over(module) => Found::Well(format!(
            "DAMON is {}'s, which is switched off for as long as the agent runs",
            module.name()
        )),
        Err(Absence::SetUp(_)) if config.damon != DamonUse::Polite => Found::Well(
            "DAMON is free: what somebody has set up there, and stopped, makes room".into(),
        ),
        Err(absence) => Found::Lacks(Lack::damon(&absence.to_string())),
    }
}

fn page_flags(root: &Root) -> Found {
    match PageFlags::open(root) {
        Ok(_) => Found::Well("the kernel tells what its pages are".into()),
        Err(error) => Found::Lacks(Lack::census(&error.to_string())),
    }
}

fn swap(config: &Config, root: &Root, probes: &Probes<'_>) -> Found {
    let areas = match swaps::read(root) {
        _ if config.swap == SwapUse::Off => {
            return Found::Lacks(Lack::swap("switched off by the configuration (swap = \"off\")"));
        }
        Ok(areas) => areas,
        Err(error) => return Found::Lacks(Lack::swap(&error.to_string())),
    };
    if !areas.is_empty() {
        let size: ByteSize = areas.iter().map(|area| area.size).sum();
        return Found::Well(format!("cold memory can be paged out to {size} of swap"));
    }
    if config.swap == SwapUse::Existing {
        return Found::Lacks(Lack::swap("this guest has none, and swap is \"existing\""));
    }
    if config.swap == SwapUse::Auto && is_kubernetes_node(root) {
        return Found::Lacks(Lack::swap(NO_SWAP_FOR_KUBELET));
    }
    if zram::is_loaded(root) {
        return Found::Well("none; zram is there to make one".into());
    }
    match (probes.can_load)("zram") {
        Ok(()) => Found::Well("none; zram can be loaded to make one".into()),
        Err(error) => Found::Lacks(Lack::swap(&format!("no zram: {error}"))),
    }
}

/// Of the balloon that the agent will drive itself this says nothing: its stock driver, which may report
/// now, goes then.
fn free_pages(root: &Root, driven: Option<&Function>) -> Found {
    let driven = driven.and_then(|function| virtio::of_pci(root, function.address).ok()?);
    match virtio::free_page_reporters(root) {
        Ok(mut names) => {
            names.retain(|name| Some(name) != driven.as_ref());
            if names.is_empty() {
                let why = "no balloon besides the agent's does it";
                return Found::Lacks(Lack::free_page_reporting(why));
            }
            Found::Well(format!("reported to the host by {}", names.join(", ")))
        }
        Err(error) => Found::Lacks(Lack::free_page_reporting(&error.to_string())),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Line { what, found } in &self.0 {
            match found {
                Found::Well(how) => writeln!(f, "ok     {what:<10} {how}")?,
                Found::Lacks(lack) => {
                    writeln!(f, "lacks  {what:<10} {}: {}", lack.what, lack.effect)?;
                }
                Found::Forbids(error) => writeln!(f, "no     {what:<10} {error}")?,
            }
        }
        let forbids = self.0.iter().any(|line| matches!(line.found, Found::Forbids(_)));
        f.write_str(if forbids {
            "The agent cannot run here.\n"
        } else {
            "The agent can run here. Whether the balloon has a gate shows when it does.\n"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Wishes;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_sysfs::psi::Psi;
    use memtide_units::BlockSize;
    use rustix::io::Errno;

    fn guest() -> FakeRoot {
        let fake = FakeRoot::new();
        let kind = |n| if n == 0 { FakeBlock::HOLE } else { FakeBlock::KERNEL };
        fake.add_blocks(BlockSize::X86_SMALL, (0..8).map(|n| (n, kind(n))));
        let balloon = "0000:00:03.0".parse().unwrap();
        fake.add_pci(balloon, [0x1af4, 0x1002, 0x1af4, 5], Some("virtio-pci"));
        fake.set_psi(Psi::default());
        fake.put("proc/swaps", "Filename Type Size Used Priority\n");
        fake
    }

    fn look(fake: &FakeRoot, probes: &Probes<'_>) -> (String, Option<u8>) {
        let wishes =
            Wishes { runtime_dir: Some("/dev/shm/memtide-agent".into()), ..Wishes::default() };
        let report = check(&wishes.check().unwrap(), &fake.root(), probes);
        (report.to_string(), report.obstacle().map(|error| error.exit_status()))
    }

    fn fine() -> Probes<'static> {
        Probes { can_load: &|_| Ok(()), can_pin: &|| Ok(()), is_memtide: &|_| false }
    }

    #[test]
    fn a_good_guest_is_looked_at_and_left_as_it_was() {
        let fake = guest();
        let (text, status) = look(&fake, &fine());
        assert_eq!((status, fake.writes()), (None, vec![]), "{text}");
        for line in [
            "ok     balloon    0000:00:03.0 (1af4:1002), driven by virtio-pci",
            "ok     module     uio_pci_generic can be loaded",
            "ok     blocks     8 of 128 MiB, 7 of them may go offline",
            "lacks  structs    memory that can be removed: no device of the DAX bus",
            "lacks  pieces     a way to take memory that cannot go offline: ",
            "lacks  access     access monitoring (DAMON)",
            "ok     swap       none; zram can be loaded to make one",
            "lacks  free pages free page reporting: no balloon besides the agent's does it",
            "The agent can run here.",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_balloon_that_only_reports_is_told_from_the_one_to_drive() {
        let fake = guest();
        let report = |name: &str, address: &str| {
            fake.add_virtio(name, "0x0005", "010001");
            fake.bind_virtio(name, "virtio_balloon");
            fake.put_virtio_on_pci(name, address.parse().unwrap());
        };
        report("virtio1", "0000:00:03.0");
        let lacks = "lacks  free pages";
        let (text, _) = look(&fake, &fine());
        assert!(text.contains(lacks), "the agent will take it\n{text}");
        let second = "0000:00:04.0".parse().unwrap();
        fake.add_pci(second, [0x1af4, 0x1002, 0x1af4, 5], Some("virtio-pci"));
        report("virtio2", "0000:00:04.0");
        let probes = Probes { is_memtide: &|address| address != second, ..fine() };
        let (text, status) = look(&fake, &probes);
        assert!(text.contains("ok     balloon    0000:00:03.0"), "{text}");
        assert!(text.contains("ok     free pages reported to the host by virtio2"), "{text}");
        assert_eq!(status, None);
    }

    #[test]
    fn who_has_damon_is_told() {
        use memtide_sysfs::damon::{Module, Monitor, pause_module};
        use memtide_sysfs::fake::FakeDamon;
        let said = |fake: &FakeRoot| {
            let (text, _) = look(fake, &fine());
            text.lines().find(|line| line.contains(" access ")).unwrap_or_default().to_owned()
        };
        let fake = guest();
        fake.add_damon(FakeDamon::V6_12);
        assert_eq!(
            said(&fake),
            "ok     access     DAMON is free; the agent tunes how often it looks"
        );
        let monitor = Monitor::start(&fake.root(), &crate::damon_watch::tests::config()).unwrap();
        assert!(said(&fake).starts_with("ok     access     DAMON works for the agent already"));
        drop(monitor);
        fake.put("sys/module/damon_reclaim/parameters/enabled", "Y\n");
        let text = said(&fake);
        assert!(text.starts_with("lacks") && text.contains("damon_reclaim uses DAMON"), "{text}");
        let fake = guest();
        fake.add_damon(FakeDamon::V7_3);
        assert!(said(&fake).contains("damon_stat's, which is switched off for as long"));
        let pause = pause_module(&fake.root(), Module::Stat).unwrap();
        assert!(said(&fake).contains("the kernel tunes how often it looks"));
        drop(pause);
    }

    #[test]
    fn each_obstacle_has_a_sentence_and_a_status_of_its_own() {
        let denied = || Err(io::Error::from(Errno::PERM));
        type Case<'a> = (&'a str, u8, &'a dyn Fn(&FakeRoot), Probes<'a>);
        let cases: [Case<'_>; 7] = [
            (
                "no virtio balloon",
                4,
                &|fake| fake.remove("sys/bus/pci/devices/0000:00:03.0"),
                fine(),
            ),
            (
                "several virtio balloons",
                5,
                &|fake| {
                    let second = "0000:00:04.0".parse().unwrap();
                    fake.add_pci(second, [0x1af4, 0x1045, 0x1af4, 0x1100], None);
                },
                fine(),
            ),
            (
                "locked down (integrity)",
                6,
                &|fake| fake.put("sys/kernel/security/lockdown", "none [integrity] x\n"),
                fine(),
            ),
            (
                "not found",
                7,
                &|_| {},
                Probes { can_load: &|_| Err(io::Error::other("not found")), ..fine() },
            ),
            ("psi=1", 12, &|fake| fake.remove("proc/pressure/memory"), fine()),
            ("io_uring_disabled", 8, &|_| {}, Probes { can_pin: &denied, ..fine() }),
            ("cannot take memory offline", 3, &|fake| fake.remove("sys/devices/system"), fine()),
        ];
        for (sentence, expected, change, probes) in cases {
            let fake = guest();
            change(&fake);
            let (text, status) = look(&fake, &probes);
            assert_eq!(status, Some(expected), "{text}");
            assert!(text.contains(sentence) && text.contains("cannot run here"), "{text}");
        }
    }
}
