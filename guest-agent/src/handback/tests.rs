use super::*;
use crate::config::Wishes;
use crate::damon_watch::{DamonWatch, ModuleSwitch, Wanted, Watched};
use crate::reload::Source;
use memtide_sysfs::fake::{FakeBlock, FakeDamon, FakeRoot};
use memtide_sysfs::memory::{State, Zone, read, write_state};
use memtide_units::BlockSize;

const MEMTIDE: [u16; 4] = [0x1af4, 0x1045, 0x1af4, 0x1100];
const OVERCOMMIT: &str = "proc/sys/vm/overcommit_memory";
const DAMON_STAT: &str = "sys/module/damon_stat/parameters/enabled";

/// A guest in which an agent stole blocks 3 and 4, and block 2 was offline before it came.
struct Guest {
    fake: FakeRoot,
    dir: tempfile::TempDir,
    balloon: Address,
}

impl Guest {
    fn new() -> Self {
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, (1..6).map(|n| (n, FakeBlock::MOVABLE)));
        let balloon = "0000:00:03.0".parse().unwrap();
        fake.add_pci(balloon, MEMTIDE, Some("virtio-pci"));
        fake.put(OVERCOMMIT, "0\n");
        Self { fake, dir: tempfile::tempdir().unwrap(), balloon }
    }

    /// What an agent that was killed in full swing leaves behind.
    fn abandoned() -> Self {
        let guest = Self::new();
        let root = guest.fake.root();
        guest.fake.add_pci_driver(takeover::UIO);
        takeover::take(&root, guest.balloon, &|_| Ok(())).unwrap();
        write_state(&root, BlockId(2), StateRequest::Offline).unwrap();
        let runtime = RuntimeDir::open(guest.dir.path()).unwrap();
        runtime.seen(&root).unwrap();
        for block in [3, 4] {
            write_state(&root, BlockId(block), StateRequest::Offline).unwrap();
        }
        Overcommit::new(&root, runtime.overcommit()).allow().unwrap();
        guest.fake.put(DAMON_STAT, "N\n");
        std::fs::write(runtime.damon_modules(), "damon_stat\n").unwrap();
        guest
    }

    fn settings(&self) -> Config {
        let wishes = Wishes { runtime_dir: Some(self.dir.path().into()), ..Wishes::default() };
        wishes.check().unwrap()
    }

    fn hand_back(&self, stolen: Stolen) -> Result<(), RunError> {
        hand_back(&self.settings(), &self.fake.root(), stolen)
    }

    fn run(&self) -> Result<(), RunError> {
        run(&self.settings(), &self.fake.root(), &Purpose::Serve(Source::default()))
    }

    fn driver(&self) -> Option<String> {
        pci::driver(&self.fake.root(), self.balloon).unwrap()
    }

    fn offline(&self) -> Vec<u64> {
        let state = |n: &u64| read(&self.fake.root(), BlockId(*n)).unwrap().state;
        (1..6).filter(|n| state(n) == State::Offline).collect()
    }
}

#[test]
fn what_a_killed_agent_has_changed_is_put_back_and_what_it_stole_stays_stolen() {
    let guest = Guest::abandoned();
    for _ in 0..2 {
        guest.hand_back(Stolen::Leave).unwrap();
        assert_eq!(guest.driver().as_deref(), Some("virtio-pci"));
        assert_eq!(
            (guest.fake.get(OVERCOMMIT), guest.fake.get(DAMON_STAT)),
            ("0\n".into(), "Y\n".into())
        );
        assert_eq!(guest.offline(), [2, 3, 4]);
    }
}

#[test]
fn for_a_package_that_goes_blocks_come_back_though_the_host_cannot_be_asked() {
    let guest = Guest::abandoned();
    guest.hand_back(Stolen::Return(Duration::from_secs(1))).unwrap();
    assert_eq!(guest.offline(), [2], "that one is somebody else's");
    assert_eq!(guest.driver().as_deref(), Some("virtio-pci"));
}

#[test]
fn where_no_agent_ever_ran_nothing_is_touched() {
    let guest = Guest::new();
    write_state(&guest.fake.root(), BlockId(5), StateRequest::Offline).unwrap();
    let before = guest.fake.writes().len();
    for stolen in [Stolen::Leave, Stolen::Return(Duration::from_secs(1))] {
        guest.hand_back(stolen).unwrap();
    }
    assert_eq!((guest.offline(), guest.fake.writes().len()), (vec![5], before));
    guest.fake.remove("sys/bus/pci");
    guest.hand_back(Stolen::Leave).unwrap();
}

#[test]
fn damon_is_stopped_before_its_statistics_come_back() {
    let guest = Guest::abandoned();
    guest.fake.add_damon(FakeDamon::V7_3);
    let range = BlockSize::X86_SMALL.range(BlockId(1)).unwrap();
    let mark = guest.dir.path().join("damon_modules");
    let root = guest.fake.root();
    let watched = Watched { ranges: vec![range], memory: vec![], blocks: 4 };
    let wanted = Wanted { watched, pageout: None };
    let mut stat = ModuleSwitch::new(&root, mark.clone());
    let watch = DamonWatch::start(&root, DamonUse::TakeOver, wanted, &mut stat);
    // As after kill -9.
    std::mem::forget((watch.unwrap(), stat));
    guest.hand_back(Stolen::Leave).unwrap();
    assert_eq!(guest.fake.get(DAMON_STAT), "Y\n");
    assert!(!mark.exists());
}

#[test]
fn a_swap_device_that_was_not_in_use_yet_goes() {
    let guest = Guest::abandoned();
    guest.fake.add_zram("[lz4]\n");
    guest.fake.put("proc/swaps", "Filename Type Size Used Priority\n");
    std::fs::write(guest.dir.path().join("zram"), "0 536870912").unwrap();
    guest.hand_back(Stolen::Leave).unwrap();
    assert!(!guest.fake.root().exists("sys/block/zram0"));
    assert!(!guest.dir.path().join("zram").exists());
}

#[test]
fn a_silent_device_stays_without_a_driver() {
    let guest = Guest::abandoned();
    RuntimeDir::open(guest.dir.path()).unwrap().mark_silent();
    guest.hand_back(Stolen::Return(Duration::from_secs(1))).unwrap();
    assert_eq!((guest.driver(), guest.offline()), (None, vec![2]));
}

#[test]
fn one_thing_that_fails_does_not_keep_the_others_from_being_done() {
    let guest = Guest::abandoned();
    guest.fake.refuse("sys/bus/pci/drivers_probe", rustix::io::Errno::PERM);
    guest.fake.refuse_block(BlockId(3), rustix::io::Errno::NOMEM);
    assert!(guest.hand_back(Stolen::Return(Duration::from_secs(1))).is_err());
    assert_eq!(guest.offline(), [2, 3]);
    assert_eq!(guest.fake.get(OVERCOMMIT), "0\n");
}

/// A balloon of QEMU's vhost-user kind behind UIO, whose registers are a file: a host that wants a
/// block in the balloon, and nobody who would answer.
fn with_registers(guest: &Guest) {
    const BAR: usize = 0x4000;
    const NUM_PAGES_OF_A_BLOCK: u32 = 32768;
    let device = format!("sys/bus/pci/devices/{}", guest.balloon);
    let mut registers = vec![0; BAR];
    registers[0x2000..0x2004].copy_from_slice(&NUM_PAGES_OF_A_BLOCK.to_le_bytes());
    guest.fake.put_bytes(&format!("{device}/config"), &crate::virtio::caps::tests::qemu_config());
    guest.fake.put_bytes(&format!("{device}/resource2"), &registers);
}

#[test]
fn the_configuration_of_a_silent_device_is_read_by_nobody() {
    let guest = Guest::abandoned();
    with_registers(&guest);
    guest.hand_back(Stolen::Leave).unwrap();
    assert_eq!(guest.offline(), [2, 4], "it was read: the stock driver is about to take a block");
    let back = read(&guest.fake.root(), BlockId(3)).unwrap();
    assert_eq!(back.current_zone(), Some(Zone::Movable), "a repaired agent can steal it again");

    let guest = Guest::abandoned();
    with_registers(&guest);
    RuntimeDir::open(guest.dir.path()).unwrap().mark_silent();
    let before = guest.fake.writes().len();
    let refused = guest.run().unwrap_err();
    assert_eq!(refused.exit_status(), 11);
    let said = refused.to_string();
    assert!(said.contains("ends this VM") && said.contains("/silent and start"), "{said}");
    assert_eq!(
        (guest.driver().as_deref(), guest.fake.writes().len()),
        (Some(takeover::UIO), before)
    );
    guest.hand_back(Stolen::Leave).unwrap();
    assert_eq!((guest.driver(), guest.offline()), (None, vec![2, 3, 4]));
    guest.hand_back(Stolen::Return(Duration::from_secs(1))).unwrap();
    assert_eq!((guest.driver(), guest.offline()), (None, vec![2]));
}

#[test]
fn while_the_device_may_still_drop_memory_no_block_comes_back() {
    let guest = Guest::abandoned();
    let unbind = format!("sys/bus/pci/devices/{}/driver/unbind", guest.balloon);
    guest.fake.refuse(&unbind, rustix::io::Errno::IO);
    assert!(guest.hand_back(Stolen::Return(Duration::from_secs(1))).is_err());
    assert_eq!(guest.offline(), [2, 3, 4]);
    assert_eq!(guest.fake.get(OVERCOMMIT), "0\n", "the rest is done");
    RuntimeDir::open(guest.dir.path()).unwrap().mark_silent();
    assert!(guest.hand_back(Stolen::Return(Duration::from_secs(1))).is_err());
    assert_eq!(guest.offline(), [2], "a dead device drops nothing");
}
