//! A VMM that sets rings up and tears them down in any order, while its guest goes on: no chain is
//! lost, none answered twice, and nothing is reclaimed but what was asked for.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;
use std::time::Instant;

use common::{DEADLINE, Device, Memory, Vm, addresses};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{QUEUES, Settings};
use memtide_units::ByteSize;
use proptest::prelude::*;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

const INFLATE: usize = 0;

/// Pages that are given up lie from here on, far from rings and requests.
const FIRST_PFN: u32 = 0x1000;

/// Chains that wait at a time at most; the fake driver does not look for free descriptors.
const WAITING_MAX: usize = 100;

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask,
    Kick,
    Disable,
    Enable,
    Stop,
    /// Where the VMM believes that the ring goes on.
    Start(Base),
    NewKick,
    NewCall,
    SameAddresses,
    SameMemory,
    HighMemoryGoesAndComes,
    SameFeatures,
    ReadConfiguration,
}

#[derive(Clone, Copy, Debug)]
enum Base {
    AsStopped,
    Available,
    Zero,
}

fn step() -> impl Strategy<Value = Step> {
    let base = prop_oneof![Just(Base::AsStopped), Just(Base::Available), Just(Base::Zero)];
    prop_oneof![
        6 => Just(Step::Ask),
        4 => Just(Step::Kick),
        1 => Just(Step::Disable),
        2 => Just(Step::Enable),
        1 => Just(Step::Stop),
        2 => base.prop_map(Step::Start),
        1 => Just(Step::NewKick),
        1 => Just(Step::NewCall),
        1 => Just(Step::SameAddresses),
        1 => Just(Step::SameMemory),
        1 => Just(Step::HighMemoryGoesAndComes),
        1 => Just(Step::SameFeatures),
        1 => Just(Step::ReadConfiguration),
    ]
}

/// A VM, what its driver has asked for, and what it was answered.
struct World {
    vm: Vm,
    asked: Vec<u16>,
    answered: Vec<u16>,
    is_started: bool,
    stopped_at: u16,
}

impl World {
    fn new(vm: Vm) -> Self {
        Self { vm, asked: vec![], answered: vec![], is_started: true, stopped_at: 0 }
    }

    fn take_used(&mut self) {
        let used = self.vm.drivers[INFLATE].take_used(&self.vm.memory.map);
        self.answered.extend(used.iter().map(|(head, _)| *head));
    }

    fn ask(&mut self) {
        self.take_used();
        if self.asked.len() - self.answered.len() == WAITING_MAX {
            return;
        }
        let number = self.asked.len() as u32;
        let at = (3 << 20) + u64::from(number % 1024) * 4;
        let pfn = FIRST_PFN + number;
        self.vm.memory.map.write_slice(&pfn.to_le_bytes(), GuestAddress(at)).unwrap();
        let chain = [Buffer::Readable(at, 4)];
        self.asked.push(self.vm.drivers[INFLATE].add(&self.vm.memory.map, &chain));
    }

    fn enable(&mut self, enabled: bool) {
        self.vm.frontend.set_vring_enable(INFLATE, enabled).unwrap();
    }

    fn stop(&mut self) {
        if self.is_started {
            self.stopped_at = self.vm.frontend.get_vring_base(INFLATE).unwrap() as u16;
            self.is_started = false;
        }
    }

    fn start(&mut self, base: Base) {
        if !self.is_started {
            let base = match base {
                Base::AsStopped => self.stopped_at,
                Base::Available => self.asked.len() as u16,
                Base::Zero => 0,
            };
            self.vm.set_up(INFLATE, base);
            self.is_started = true;
        }
    }

    fn go(&mut self, step: Step) {
        match step {
            Step::Ask => self.ask(),
            Step::Kick => self.vm.kicks[INFLATE].write(1).unwrap(),
            Step::Disable => self.enable(false),
            Step::Enable => self.enable(true),
            Step::Stop => self.stop(),
            Step::Start(base) => self.start(base),
            Step::NewKick if self.is_started => {
                self.vm.frontend.set_vring_kick(INFLATE, &self.vm.kicks[INFLATE]).unwrap();
            }
            Step::NewCall => {
                self.vm.frontend.set_vring_call(INFLATE, &self.vm.calls[INFLATE]).unwrap();
            }
            Step::SameAddresses => {
                let addresses = addresses(&self.vm.drivers[INFLATE]);
                self.vm.frontend.set_vring_addr(INFLATE, &addresses).unwrap();
            }
            Step::SameMemory => {
                self.vm.frontend.set_mem_table(&self.vm.memory.regions()).unwrap();
            }
            Step::HighMemoryGoesAndComes => {
                let high = self.vm.memory.regions().pop().unwrap();
                self.vm.frontend.remove_mem_region(&high).unwrap();
                self.vm.kicks[INFLATE].write(1).unwrap();
                self.vm.frontend.add_mem_region(&high).unwrap();
            }
            Step::SameFeatures => {
                let features = common::VERSION_1 | common::PROTOCOL_FEATURES;
                self.vm.frontend.set_features(features).unwrap();
            }
            Step::ReadConfiguration => assert_eq!(self.vm.config(16, 4), *b"MTDE"),
            Step::NewKick => {}
        }
    }

    /// The VMM sets everything up, and all that was asked for is answered.
    fn settle(&mut self) {
        self.start(Base::AsStopped);
        (0..QUEUES).for_each(|index| self.vm.frontend.set_vring_enable(index, true).unwrap());
        self.vm.kicks[INFLATE].write(1).unwrap();
        let start = Instant::now();
        while self.answered.len() < self.asked.len() {
            assert!(start.elapsed() < DEADLINE, "{:?} of {:?}", self.answered, self.asked);
            self.take_used();
            std::thread::yield_now();
        }
        // Whatever was answered once too often would come before this answer.
        self.ask();
        self.vm.kicks[INFLATE].write(1).unwrap();
        while self.answered.len() < self.asked.len() {
            assert!(start.elapsed() < DEADLINE, "the last one is not answered");
            self.take_used();
        }
        assert_eq!(self.answered, self.asked);
    }

    fn gone_pages(&self) -> BTreeSet<u32> {
        let mut byte = [0];
        let is_gone = |pfn: &u32| {
            rustix::io::pread(&self.vm.memory.fd, &mut byte, u64::from(*pfn) << 12).unwrap();
            byte == [0]
        };
        (0..self.asked.len() as u32 + 8).map(|n| FIRST_PFN + n).filter(is_gone).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_chain_is_lost_or_answered_twice(steps in prop::collection::vec(step(), 0..120)) {
        let (device, socket) = Device::connected(Settings::default());
        let mut world = World::new(Vm::start(socket, 0, &[INFLATE]));
        for step in steps {
            world.go(step);
        }
        world.settle();
        let asked = world.asked.len() as u32;
        prop_assert_eq!(world.gone_pages(), (FIRST_PFN..FIRST_PFN + asked).collect());
        let gone = ByteSize::from_kib(4).times(u64::from(asked));
        prop_assert_eq!(world.vm.memory.resident(), Memory::all_resident() - gone);
        prop_assert_eq!(device.control().status().counters.inflated, gone);
    }
}
