use super::*;
use memtide_sysfs::fake::FakeRoot;
use rustix::io::Errno;
use std::cell::RefCell;
use std::path::PathBuf;
use tempfile::TempDir;

const HEAD: &str = "Filename Type Size Used Priority\n";

/// Tools that change the fake kernel as the real ones change theirs.
struct FakeTools<'a> {
    fake: &'a FakeRoot,
    has_module: bool,
    fails: Option<&'static str>,
    ran: RefCell<Vec<String>>,
}

impl SwapTools for FakeTools<'_> {
    fn load_zram(&self) -> io::Result<()> {
        if !self.has_module {
            return Err(io::Error::other("FATAL: Module zram not found"));
        }
        self.fake.add_zram("lzo [lz4]\n");
        Ok(())
    }

    fn run(&self, tool: &'static str, device: &str) -> io::Result<()> {
        self.ran.borrow_mut().push(format!("{tool} {device}"));
        if self.fails == Some(tool) {
            return Err(io::Error::other(format!("{tool}: Operation not permitted")));
        }
        match tool {
            "swapon" => {
                self.fake.put("proc/swaps", &format!("{HEAD}{device} partition 524284 0 -2\n"));
            }
            "swapoff" => self.fake.put("proc/swaps", HEAD),
            _ => {}
        }
        Ok(())
    }
}

struct Guest {
    fake: FakeRoot,
    dir: TempDir,
}

impl Guest {
    fn new() -> Self {
        let fake = FakeRoot::new();
        fake.put("proc/swaps", HEAD);
        let available = ByteSize::from_mib(500);
        fake.set_meminfo(Meminfo { total: available, available, ..Meminfo::default() });
        Self { fake, dir: tempfile::tempdir().unwrap() }
    }

    fn tools(&self) -> FakeTools<'_> {
        FakeTools { fake: &self.fake, has_module: true, fails: None, ran: RefCell::default() }
    }

    fn mark(&self) -> PathBuf {
        self.dir.path().join("zram")
    }

    fn prepare(&self, how: SwapUse, tools: &FakeTools<'_>) -> Result<SwapSpace, String> {
        SwapSpace::prepare(&self.fake.root(), how, ByteSize::from_gib(1), &self.mark(), tools)
    }

    fn undo(&self, tools: &FakeTools<'_>) -> Result<Undone, String> {
        undo(&self.fake.root(), &self.mark(), tools)
    }
}

const OURS: SwapSpace = SwapSpace::Ours(Zram(0));

#[test]
fn a_guest_without_swap_gets_one_that_a_later_agent_finds_and_hands_back() {
    let guest = Guest::new();
    let tools = guest.tools();
    assert_eq!(guest.prepare(SwapUse::Zram, &tools), Ok(OURS));
    assert_eq!(*tools.ran.borrow(), ["mkswap /dev/zram0", "swapon /dev/zram0"]);
    assert_eq!(guest.fake.get("sys/block/zram0/disksize"), "536870912\n");
    // After a restart, or kill -9: the mounts of the service that was are no more.
    guest.fake.put("proc/swaps", &format!("{HEAD}/zram0 partition 524284 0 -2\n"));
    assert_eq!(guest.prepare(SwapUse::Zram, &tools), Ok(OURS));
    assert_eq!(tools.ran.borrow().len(), 2, "it is as it was");
    assert_eq!(guest.undo(&tools), Ok(Undone::Gone));
    assert_eq!(tools.ran.borrow().last().unwrap(), "swapoff /dev/zram0");
    assert!(!guest.mark().exists() && !Zram(0).exists(&guest.fake.root()));
    assert_eq!(guest.undo(&tools), Ok(Undone::Gone));
}

#[test]
fn swap_that_is_there_is_used_and_left_alone() {
    let guest = Guest::new();
    guest.fake.put("proc/swaps", &format!("{HEAD}/dev/sda2 partition 1024 0 -2\n"));
    let tools = guest.tools();
    for how in [SwapUse::Zram, SwapUse::Existing] {
        assert_eq!(guest.prepare(how, &tools), Ok(SwapSpace::Existing));
    }
    assert_eq!(guest.undo(&tools), Ok(Undone::Gone));
    assert!(tools.ran.borrow().is_empty());
    assert!(guest.prepare(SwapUse::Off, &tools).unwrap_err().contains("switched off"));
}

#[test]
fn why_there_is_none_is_a_sentence_and_nothing_is_left_behind() {
    let guest = Guest::new();
    let why = guest.prepare(SwapUse::Existing, &guest.tools()).unwrap_err();
    assert!(why.contains("forbids making one"), "{why}");
    let tools = FakeTools { has_module: false, ..guest.tools() };
    let why = guest.prepare(SwapUse::Zram, &tools).unwrap_err();
    assert_eq!(why, "no zram: FATAL: Module zram not found");
    let tools = FakeTools { fails: Some("swapon"), ..guest.tools() };
    let why = guest.prepare(SwapUse::Zram, &tools).unwrap_err();
    assert_eq!(why, "swapon: Operation not permitted");
    assert!(!guest.mark().exists() && !Zram(0).exists(&guest.fake.root()));
    guest.fake.remove("proc/swaps");
    let why = guest.prepare(SwapUse::Zram, &guest.tools()).unwrap_err();
    assert!(why.contains("proc/swaps does not exist"), "{why}");
}

#[test]
fn what_a_killed_agent_left_half_done_is_done_anew() {
    let guest = Guest::new();
    guest.fake.add_zram("[lz4]\n");
    guest.fake.put("sys/block/zram0/disksize", "536870912\n");
    std::fs::write(guest.mark(), "0 536870912").unwrap();
    let tools = guest.tools();
    // The fake's first device is gone with it, and hot_add makes no other.
    let why = guest.prepare(SwapUse::Zram, &tools).unwrap_err();
    assert!(why.contains("zram0"), "{why}");
    assert!(!guest.mark().exists());
    guest.fake.add_zram("[lz4]\n");
    assert_eq!(guest.prepare(SwapUse::Zram, &tools), Ok(OURS));
}

#[test]
fn a_device_that_has_become_somebody_elses_is_left_alone() {
    let guest = Guest::new();
    guest.fake.add_zram("[lz4]\n");
    guest.fake.put("sys/block/zram0/disksize", "4096\n");
    std::fs::write(guest.mark(), "0 536870912").unwrap();
    assert_eq!(guest.undo(&guest.tools()), Ok(Undone::Gone));
    assert!(Zram(0).exists(&guest.fake.root()) && !guest.mark().exists());
}

#[test]
fn what_finds_no_room_in_memory_stays_where_it_is() {
    let guest = Guest::new();
    let tools = guest.tools();
    guest.prepare(SwapUse::Zram, &tools).unwrap();
    let area = |used_kib: u64| format!("{HEAD}/dev/zram0 partition 524284 {used_kib} -2\n");
    guest.fake.put("proc/swaps", &area(400 << 10));
    let (used, available) = (ByteSize::from_mib(400), ByteSize::from_mib(500));
    assert_eq!(guest.undo(&tools), Ok(Undone::Full { used, available }));
    assert!(guest.mark().exists());
    guest.fake.put("proc/swaps", &area(372 << 10));
    assert_eq!(guest.undo(&tools), Ok(Undone::Gone));
}

#[test]
fn a_device_that_stays_busy_stays_and_is_remembered() {
    let guest = Guest::new();
    let tools = guest.tools();
    guest.prepare(SwapUse::Zram, &tools).unwrap();
    guest.fake.refuse("sys/class/zram-control/hot_remove", Errno::BUSY);
    assert!(guest.undo(&tools).unwrap_err().contains("hot_remove"));
    assert!(guest.mark().exists());
    guest.fake.allow("sys/class/zram-control/hot_remove");
    assert_eq!(guest.undo(&tools), Ok(Undone::Gone));
}

#[test]
fn a_device_whose_memory_is_used_up_is_full() {
    let guest = Guest::new();
    guest.prepare(SwapUse::Zram, &guest.tools()).unwrap();
    let (swap_total, swap_free) = (ByteSize::from_mib(512), ByteSize::from_mib(400));
    let meminfo = Meminfo { swap_total, swap_free, ..Meminfo::default() };
    let free = |used_mib: u64| {
        let used = used_mib << 20;
        guest.fake.put("sys/block/zram0/mm_stat", &format!("1 1 {used} 0 0 0 0 0 0\n"));
        OURS.now(&guest.fake.root(), &meminfo).free.mib()
    };
    assert_eq!([free(10), free(100), free(256)], [400, 312, 0]);
    let costs = |stored_mib: u64, used_mib: u64| {
        let stat = format!("{} 1 {} 0 0 0 0 0 0\n", stored_mib << 20, used_mib << 20);
        guest.fake.put("sys/block/zram0/mm_stat", &stat);
        OURS.now(&guest.fake.root(), &meminfo).costs
    };
    assert_eq!([costs(15, 15), costs(100, 80)], [Permille(0), Permille(800)]);
    assert_eq!(SwapSpace::Existing.now(&guest.fake.root(), &meminfo).free, swap_free);
}

/// As Fedora sets it up, and as many do beside it.
#[test]
fn swap_that_somebody_else_has_in_memory_costs_memory_too() {
    let guest = Guest::new();
    let zram = "/dev/zram0 partition 524284 102400 100\n";
    guest
        .fake
        .put("sys/block/zram0/mm_stat", &format!("{} 1 {} 0 0 0 0 0 0\n", 100 << 20, 25 << 20));
    let costs = |areas: &str| {
        guest.fake.put("proc/swaps", &format!("{HEAD}{areas}"));
        SwapSpace::Existing.now(&guest.fake.root(), &Meminfo::default()).costs
    };
    assert_eq!(costs(zram), Permille(250));
    assert_eq!(costs(&format!("{zram}/dev/vdb partition 524284 153600 -2\n")), Permille(100));
    assert_eq!(costs("/dev/vdb partition 524284 153600 -2\n"), Permille(0));
}
