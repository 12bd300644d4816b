//! A function that goes from driver to driver, and back, from wherever somebody stopped.

use super::*;
use memtide_sysfs::fake::FakeRoot;

const MEMTIDE: [u16; 4] = [0x1af4, 0x1045, 0x1af4, 0x1100];
const NETWORK: [u16; 4] = [0x1af4, 0x1041, 0x1af4, 0x1100];

fn guest() -> (FakeRoot, Address) {
    let fake = FakeRoot::new();
    let balloon = "0000:00:03.0".parse().unwrap();
    fake.add_pci("0000:00:02.0".parse().unwrap(), NETWORK, Some("virtio-pci"));
    fake.add_pci(balloon, MEMTIDE, Some("virtio-pci"));
    (fake, balloon)
}

fn driver(fake: &FakeRoot, address: Address) -> Option<String> {
    pci::driver(&fake.root(), address).unwrap()
}

fn none_to_load(_: &str) -> io::Result<()> {
    panic!("the module is there")
}

#[test]
fn a_takeover_and_the_way_back_can_be_repeated() {
    let (fake, balloon) = guest();
    let root = fake.root();
    let load = |module: &str| {
        fake.add_pci_driver(module);
        Ok(())
    };
    assert_eq!(find(&root, None, &must_not_ask).unwrap().address, balloon);
    assert_eq!(take(&root, balloon, &load).unwrap(), root.path("dev/uio0"));
    assert_eq!(take(&root, balloon, &none_to_load).unwrap(), root.path("dev/uio0"));
    give_back(&root, balloon).unwrap();
    assert_eq!(driver(&fake, balloon).as_deref(), Some("virtio-pci"));
    give_back(&root, balloon).unwrap();
    assert_eq!(driver(&fake, balloon).as_deref(), Some("virtio-pci"));
}

#[test]
fn without_the_module_the_stock_driver_is_never_disturbed() {
    let (fake, balloon) = guest();
    let load = |_: &str| Err(io::Error::other("FATAL: Module uio_pci_generic not found"));
    let error = take(&fake.root(), balloon, &load).unwrap_err();
    assert!(matches!(&error, TakeoverError::NoModule(said) if said.contains("not found")));
    let unbound = fake.writes().iter().any(|(path, _)| path.ends_with("unbind"));
    assert!(!unbound, "{:?}", fake.writes());
}

#[test]
fn a_module_that_does_not_bind_gives_the_function_back() {
    let (fake, balloon) = guest();
    let error = take(&fake.root(), balloon, &|_: &str| Ok(())).unwrap_err();
    assert!(matches!(error, TakeoverError::NotBound { .. }), "{error}");
    assert_eq!(driver(&fake, balloon).as_deref(), Some("virtio-pci"));
}

#[test]
fn lockdown_is_seen_before_anything_is_touched() {
    let (fake, _) = guest();
    fake.put("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
    let error = must_not_be_locked_down(&fake.root()).unwrap_err();
    assert!(matches!(&error, TakeoverError::Lockdown(mode) if mode == "integrity"));
    assert_eq!(fake.writes(), []);
    fake.put("sys/kernel/security/lockdown", "[none] integrity confidentiality\n");
    must_not_be_locked_down(&fake.root()).unwrap();
}

/// Where an agent that was killed, or somebody else, may have left the function.
#[derive(Clone, Copy, Debug)]
struct Left {
    driver: Option<&'static str>,
    overridden: bool,
    module: Module,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Module {
    Loaded,
    Loadable,
    Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Take,
    GiveBack,
}

impl Left {
    fn guest(self) -> (FakeRoot, Address) {
        let (fake, balloon) = guest();
        let root = fake.root();
        if self.module == Module::Loaded || self.driver == Some(UIO) {
            fake.add_pci_driver(UIO);
        }
        if self.driver != Some("virtio-pci") {
            pci::unbind(&root, balloon).unwrap();
        }
        if self.overridden || self.driver == Some(UIO) {
            pci::set_driver_override(&root, balloon, Some(UIO)).unwrap();
        }
        if self.driver == Some(UIO) {
            pci::probe_drivers(&root, balloon).unwrap();
        }
        if !self.overridden {
            pci::set_driver_override(&root, balloon, None).unwrap();
        }
        (fake, balloon)
    }
}

/// A root whose nth write from now on kills the writer, before or after it is carried out.
#[derive(Debug)]
struct Deadly {
    root: Root,
    left: std::sync::atomic::AtomicUsize,
    comes_through: bool,
}

impl memtide_sysfs::Writer for Deadly {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let is_last = self.left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 0;
        if is_last && !self.comes_through {
            std::panic::resume_unwind(Box::new("killed"));
        }
        let done = self.root.write(path, text);
        if is_last {
            std::panic::resume_unwind(Box::new("killed"));
        }
        done.map_err(io::Error::other)
    }
}

fn call(fake: &FakeRoot, root: &Root, balloon: Address, module: Module, call: Call) -> bool {
    let load = |name: &str| match module {
        Module::Missing => Err(io::Error::other("not found")),
        Module::Loaded | Module::Loadable => {
            fake.add_pci_driver(name);
            // A driver that is loaded is offered what has none, and takes what is kept for it.
            let root = fake.root();
            if pci::driver_override(&root, balloon).unwrap().as_deref() == Some(name) {
                settle(&root, balloon).unwrap();
            }
            Ok(())
        }
    };
    match call {
        Call::Take => take(root, balloon, &load).is_ok(),
        Call::GiveBack => give_back(root, balloon).is_ok(),
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(100))]
    #[test]
    fn wherever_an_agent_was_killed_the_next_call_ends_right(
        driver_left in proptest::sample::select(vec![None, Some("virtio-pci"), Some(UIO)]),
        overridden: bool,
        module in proptest::sample::select(vec![Module::Loaded, Module::Loadable, Module::Missing]),
        kills in proptest::collection::vec((proptest::sample::select(vec![Call::Take, Call::GiveBack]), 0_usize..6, proptest::bool::ANY), 0..4),
        last in proptest::sample::select(vec![Call::Take, Call::GiveBack]),
    ) {
        let (fake, balloon) = Left { driver: driver_left, overridden, module }.guest();
        for (what, left, comes_through) in kills {
            let deadly = Deadly { root: fake.root(), left: left.into(), comes_through };
            let root = Root::with_writer(fake.path(), std::sync::Arc::new(deadly));
            let killed = std::panic::AssertUnwindSafe(|| call(&fake, &root, balloon, module, what));
            let _ = std::panic::catch_unwind(killed);
        }
        let can_have = module != Module::Missing || fake.root().exists(format!("sys/bus/pci/drivers/{UIO}"));
        let done = call(&fake, &fake.root(), balloon, module, last);
        let found = driver(&fake, balloon);
        let expected = if last == Call::Take && can_have { UIO } else { "virtio-pci" };
        proptest::prop_assert_eq!(found.as_deref(), Some(expected));
        proptest::prop_assert_eq!(done, last == Call::GiveBack || can_have);
        if expected != UIO {
            let left = pci::driver_override(&fake.root(), balloon).unwrap();
            proptest::prop_assert_eq!(left, None);
            proptest::prop_assert_eq!(left_behind(&fake.root(), None).unwrap(), vec![]);
        }
    }
}

fn must_not_ask(_: Address) -> bool {
    panic!("there is but one")
}

#[test]
fn of_several_balloons_the_one_of_memtides_is_found() {
    let (fake, balloon) = guest();
    let root = fake.root();
    let second: Address = "0000:00:04.0".parse().unwrap();
    fake.add_pci(second, [0x1af4, 0x1002, 0x1af4, 5], Some("virtio-pci"));
    let found = |is_memtide: IsMemtide<'_>| find(&root, None, is_memtide).map(|f| f.address);
    assert_eq!(found(&|address| address == balloon).unwrap(), balloon);
    assert_eq!(found(&|address| address == second).unwrap(), second);
    for all_or_none in [true, false] {
        let several = found(&|_| all_or_none).unwrap_err().to_string();
        assert!(several.contains("0000:00:03.0, 0000:00:04.0"), "{several}");
    }
    // What an agent left is its successor's, even while the device cannot be asked.
    fake.add_pci_driver(UIO);
    pci::set_driver_override(&root, balloon, Some(UIO)).unwrap();
    pci::unbind(&root, balloon).unwrap();
    pci::probe_drivers(&root, balloon).unwrap();
    assert_eq!(found(&must_not_ask).unwrap(), balloon);
}

#[test]
fn a_balloon_on_which_the_stock_driver_failed_is_probed_anew() {
    let (fake, balloon) = guest();
    let root = fake.root();
    let second: Address = "0000:00:04.0".parse().unwrap();
    fake.add_pci(second, [0x1af4, 0x1002, 0x1af4, 5], Some("virtio-pci"));
    settle_others(&root, balloon);
    assert_eq!(fake.writes(), [], "nothing is known of a virtio device");
    fake.put_virtio_on_pci("virtio4", second);
    fake.add_virtio("virtio4", "0x0005", "010001");
    settle_others(&root, balloon);
    let writes = fake.writes();
    let paths: Vec<_> = writes.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths.len(), 2, "{writes:?}");
    assert!(paths[0].ends_with("unbind") && paths[1].ends_with("drivers_probe"), "{paths:?}");
    assert_eq!(writes[0].1, second.to_string());
    // With its driver it is left alone.
    fake.bind_virtio("virtio4", "virtio_balloon");
    settle_others(&root, balloon);
    assert_eq!(fake.writes().len(), 2);
}

#[test]
fn the_one_that_is_named_is_taken_if_it_is_a_balloon() {
    let (fake, balloon) = guest();
    let network = "0000:00:02.0".parse().unwrap();
    let wrong = find(&fake.root(), Some(network), &must_not_ask);
    assert!(matches!(wrong, Err(TakeoverError::NotABalloon(..))));
    assert_eq!(find(&fake.root(), Some(balloon), &must_not_ask).unwrap().address, balloon);
}
