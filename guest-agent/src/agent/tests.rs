//! A whole agent against a fake kernel and a fake device, under a clock of the test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use memtide_policy::guest::{
    COLD_AFTER, Controller, KernelZone, Limits, LimitsWish, Mode, ScaleBy, Settings,
};
use memtide_sysfs::Error;
use memtide_sysfs::fake::{FakeBlock, FakeRoot};
use memtide_sysfs::meminfo::Meminfo;
use memtide_sysfs::memory::{State, StateRequest, Zone, read, write_state};
use memtide_sysfs::psi::{Line, Psi};
use memtide_units::{BlockId, BlockSize, ByteSize, GpaRange, Instant};
use memtide_wire::block::{HoldReason, RefuseReason, Request, Response, Verdict};
use rustix::io::Errno;
use tempfile::TempDir;

mod ejection;
mod host;
mod pieces;
mod plain;
mod plugged;
mod removal;
mod reports;
mod rest;
mod settings;
mod silence;
mod strangers;
mod trust;
mod watching;
mod zones;

use super::{Agent, Parts, Woken};
use crate::access::AccessHistory;
use crate::blocks::Blocks;
use crate::config::{Conversion, DamonUse};
use crate::decisions::Decisions;
use crate::hands::Hands;
use crate::link::Link;
use crate::overcommit::Overcommit;
use crate::pieces::tests::FakeGrip;
use crate::pieces::{Pieces, enter};
use crate::remove::{Plugger, Policy, Removers};
use crate::run::RunError;
use crate::runtime::RuntimeDir;
use crate::senses::Senses;
use crate::swap_space::SwapUse;
use crate::virtio::balloon_queues::Way;
use crate::virtio::fake::{FakeDevice, Given, answer};
use crate::watching::{Means, Watching};
use crate::worker::Worker;

const SIZE: BlockSize = BlockSize::X86_SMALL;
const PAGES: usize = 32768;
const STEP_MS: u64 = 50;

/// A guest with 1 GiB in eight blocks, of which 2 to 7 are movable, and its host.
struct World {
    fake: FakeRoot,
    device: FakeDevice,
    runtime: TempDir,
    agent: Agent,
    now: u64,
    /// All requests but telemetry, in order.
    heard: Vec<Request>,
    hellos: Verdict,
    returns: Verdict,
    steals: Verdict,
    ejects: Verdict,
    /// What it says when it is asked to plug something in.
    agrees: Verdict,
    /// The DIMMs that it plugs in when it has agreed.
    plugs: Vec<&'static str>,
    /// What happens to plugged memory by itself, when the host was asked.
    policies: Vec<String>,
    guaranteed: ByteSize,
    answers: bool,
    /// Steals are read and not answered.
    loses_steals: bool,
    /// Pages of each block that are in a plain balloon.
    pages: BTreeMap<u64, usize>,
    statistics: u32,
}

/// Sentences that `explain` would show.
fn decisions(world: &World, about: &str) -> Vec<String> {
    let entries = crate::decisions::read(&world.agent.parts.runtime.decisions()).unwrap();
    entries.into_iter().map(|entry| entry.text).filter(|text| text.contains(about)).collect()
}

impl World {
    fn new() -> Self {
        Self::with_used(100)
    }

    fn with_used(used_mib: u64) -> Self {
        Self::on(FakeDevice::new(), used_mib)
    }

    /// On a balloon as QEMU makes it.
    fn plain() -> Self {
        Self::on(FakeDevice::plain(), 100)
    }

    fn on(device: FakeDevice, used_mib: u64) -> Self {
        crate::alarm::install_handler().unwrap();
        let fake = FakeRoot::new();
        let kind = |n| match n {
            0 => FakeBlock::HOLE,
            1 => FakeBlock::KERNEL,
            _ => FakeBlock::MOVABLE,
        };
        fake.add_blocks(SIZE, (0..8).map(|n| (n, kind(n))));
        fake.put_page_flags(0, &[1 << 10; 8 * PAGES]);
        fake.set_psi(Psi::default());
        fake.set_meminfo(meminfo(1024, used_mib));
        let runtime = tempfile::tempdir().unwrap();
        let agent = agent(&fake, &device, &runtime, 0);
        let (heard, ok) = (vec![], Verdict::Ok);
        Self {
            fake,
            device,
            runtime,
            agent,
            now: 0,
            heard,
            hellos: ok,
            returns: ok,
            steals: ok,
            ejects: ok,
            agrees: ok,
            plugs: vec![],
            policies: vec![],
            guaranteed: ByteSize::from_mib(384),
            answers: true,
            loses_steals: false,
            pages: BTreeMap::new(),
            statistics: 0,
        }
    }

    /// kill -9, and a new agent.
    fn restart(&mut self) {
        let spare = tempfile::tempdir().unwrap();
        let placeholder = agent(&self.fake, &FakeDevice::new(), &spare, self.now);
        drop(std::mem::replace(&mut self.agent, placeholder));
        self.device.transport().reset(Duration::from_secs(1)).unwrap();
        self.agent = agent(&self.fake, &self.device, &self.runtime, self.now);
        self.heard.clear();
    }

    /// Lets `ms` pass, with the host answering and the kernel done at the end of each step.
    fn run(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.step(Woken { by_device: self.answers, ..Woken::default() });
        }
    }

    fn step(&mut self, woken: Woken) {
        self.turn(woken);
        self.settle();
        self.host();
        self.now += STEP_MS;
    }

    /// The fake's meminfo is a file, and for a moment half empty while the other thread rewrites it.
    fn turn(&mut self, woken: Woken) {
        let now = Instant::from_millis(self.now);
        // By the clock: on a busy machine that thread may have to wait for a processor.
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            match self.agent.turn(now, woken) {
                Err(RunError::Kernel(Error::Garbage { path, .. })) if path.ends_with("meminfo") => {
                    std::thread::yield_now();
                }
                other => {
                    other.unwrap();
                    return;
                }
            }
        }
        panic!("the fake's meminfo stays half empty");
    }

    /// Waits for the thread that changes blocks: the only thing here that takes real time.
    fn settle(&self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        if self.agent.parts.hands.is_busy() {
            let mut fds = [PollFd::new(&self.agent.parts.hands, PollFlags::IN)];
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 10, tv_nsec: 0 }));
        }
    }

    fn grow_to(&self, used_mib: u64) {
        self.fake.set_meminfo(meminfo(self.online() * 128, used_mib));
    }

    fn state(&self, block: u64) -> (State, Option<Zone>) {
        let found = std::iter::repeat_with(|| read(&self.fake.root(), BlockId(block)));
        // As for meminfo: a file that is being rewritten is empty for a moment.
        let block = found.take(10_000).find_map(Result::ok).unwrap();
        (block.state, block.current_zone())
    }

    fn online(&self) -> u64 {
        (0..8).filter(|block| self.state(*block).0 == State::Online).count() as u64
    }

    fn offline(&self) -> BTreeSet<u64> {
        (0..8).filter(|block| self.state(*block).0 == State::Offline).collect()
    }
}

fn agent(fake: &FakeRoot, device: &FakeDevice, runtime: &TempDir, now: u64) -> Agent {
    let root = fake.root();
    let runtime = RuntimeDir::open(runtime.path()).unwrap();
    let seen = runtime.seen(&root).unwrap();
    let removers = Removers::new(&root, runtime.ejected());
    let policy = Policy::new(&root, runtime.auto_online());
    let mut blocks = Blocks::read(&root, &seen, &removers).unwrap();
    let grip = Arc::new(FakeGrip::default());
    let pieces = Pieces::with_grip(&root, runtime.huge_pages(), grip).ok();
    if let Some(pieces) = &pieces {
        pieces.resume();
        enter(pieces, &mut blocks, Conversion::Convert);
    }
    let plugger = Plugger::new(&root, removers.clone(), policy.clone()).with_pieces(pieces.clone());
    let wish = LimitsWish { min: Some(ByteSize::from_mib(384)), ..LimitsWish::default() };
    let controller = Controller::new(Settings {
        block: SIZE,
        limits: Limits::new(blocks.present(), wish).unwrap(),
        scale_by: ScaleBy::Use,
        kernel_zone: KernelZone::Leave,
        gate_deadline: Some(Duration::from_secs(10)),
        first_ticket: 1,
    });
    let watching = Watching::new(Means {
        root: root.clone(),
        damon: DamonUse::TakeOver,
        swap: SwapUse::Existing,
        cold_after: Some(COLD_AFTER),
        modules_mark: runtime.damon_modules(),
        zram_mark: runtime.zram(),
    });
    let enable = Box::new(|| Ok(()));
    let link = Link::new(Instant::from_millis(now), device.transport(), device.area(), enable);
    Agent::new(Parts {
        access: AccessHistory::resume(&root, runtime.access(), 0),
        decisions: Decisions::resume(&runtime.decisions()),
        hands: Hands::new(Worker::start(&root, SIZE, plugger).unwrap()),
        senses: Senses::open(&root).0,
        root,
        runtime,
        seen,
        blocks,
        link,
        controller,
        wish,
        watching,
        pieces,
        held: policy.resume(&removers).unwrap(),
        removers,
        policy,
        overcommit: None,
        how_online: StateRequest::OnlineMovable,
        conversion: Conversion::Convert,
        lacks: vec![],
    })
}

fn meminfo(total_mib: u64, used_mib: u64) -> Meminfo {
    let left = ByteSize::from_mib(total_mib.saturating_sub(used_mib));
    let total = ByteSize::from_mib(total_mib);
    Meminfo { total, free: left, available: left, ..Meminfo::default() }
}

fn blocks(ranges: &[GpaRange]) -> impl Iterator<Item = u64> + '_ {
    let ids = |range: &GpaRange| {
        range.start().0 / SIZE.size().bytes()..range.end().0 / SIZE.size().bytes()
    };
    ranges.iter().flat_map(ids)
}

#[test]
fn an_idle_guest_gives_its_top_blocks_away_and_the_host_hears_of_each() {
    let mut world = World::new();
    world.run(20_000);
    assert!(matches!(&world.heard[0], Request::Hello(hello) if hello.stolen.is_empty()));
    // 384 MiB is the minimum.
    assert_eq!(world.offline(), BTreeSet::from([3, 4, 5, 6, 7]));
    assert_eq!(world.believed(), world.offline());
}

#[test]
fn what_was_decided_is_written_down_for_people() {
    let mut world = World::new();
    world.run(20_000);
    let entries = crate::decisions::read(&world.agent.parts.runtime.decisions()).unwrap();
    let texts: Vec<&str> = entries.iter().map(|entry| entry.text.as_str()).collect();
    assert!(texts.iter().any(|text| text.starts_with("steal memory7")), "{texts:?}");
    assert!(texts.last().unwrap().contains("below the minimum"), "{texts:?}");
    assert!(entries.windows(2).all(|two| two[0].to_ms <= two[1].from_ms));
}

#[test]
fn a_growing_guest_asks_and_puts_online_only_what_was_granted() {
    let mut world = World::new();
    world.run(20_000);
    world.returns = Verdict::Held(HoldReason::HostBudget);
    world.grow_to(350);
    world.run(3_000);
    let asked = world.heard.iter().filter(|request| matches!(request, Request::Return(_))).count();
    assert!(asked > 3, "a held return is asked again: {:?}", world.heard);
    assert_eq!(world.online(), 3, "nothing is put online before the grant");
    world.returns = Verdict::Ok;
    world.run(1_000);
    assert!(world.online() > 3);
    assert_eq!(world.state(3), (State::Online, Some(Zone::Movable)), "the nearest comes first");
    assert_eq!(world.believed(), world.offline());
}

#[test]
fn a_return_is_asked_again_as_soon_as_the_host_rings() {
    let mut world = World::new();
    world.run(20_000);
    world.returns = Verdict::Held(HoldReason::HostBudget);
    world.grow_to(350);
    world.run(500);
    world.returns = Verdict::Ok;
    world.device.configure(|_| {});
    world.run(100);
    assert!(world.online() > 3);
}

/// Who waits for an answer or a block must not be left alone because memory lies still.
#[test]
fn an_agent_may_be_left_alone_for_a_second_only_while_nothing_is_under_way() {
    let mut world = World::new();
    world.run(20_000);
    let second = Duration::from_secs(1);
    let still = world.agent.still().unwrap();
    assert!(still.latest > Duration::ZERO && still.latest <= second, "{still:?}");
    world.returns = Verdict::Held(HoldReason::HostBudget);
    world.grow_to(350);
    world.run(500);
    assert_eq!(world.agent.still(), None, "a return is held");
}

#[test]
fn a_restarted_agent_tells_what_it_finds_and_leaves_what_was_never_its_own() {
    let mut world = World::new();
    write_state(&world.fake.root(), BlockId(7), StateRequest::Offline).unwrap();
    world.restart();
    assert_eq!(world.agent.parts.seen.foreign, BTreeSet::new(), "the first agent saw it online");
    world.run(20_000);
    let offline = world.offline();
    world.restart();
    world.run(100);
    let Request::Hello(hello) = &world.heard[0] else { panic!("{:?}", world.heard) };
    assert_eq!(blocks(&hello.stolen).collect::<BTreeSet<_>>(), offline);
}

#[test]
fn a_block_that_the_host_does_not_take_comes_back_and_rests() {
    let mut world = World::new();
    world.steals = Verdict::Refused(RefuseReason::ReclaimFailed);
    world.run(2_500);
    let offered = world.heard.iter().filter(|request| matches!(request, Request::Steal(_))).count();
    assert_eq!((offered, world.online()), (1, 8));
    world.run(3_000);
    assert!(!world.believed().contains(&7), "it cools down");
    assert_eq!(world.offline(), BTreeSet::new());
}

#[test]
fn pressure_ends_stealing_and_what_nobody_has_heard_of_comes_back() {
    let mut world = World::new();
    world.run(2_100);
    for n in 1..60 {
        let some = Line { total_us: n * 10_000, ..Line::default() };
        world.fake.set_psi(Psi { some, ..Psi::default() });
        world.run(100);
    }
    assert_eq!(world.believed(), world.offline());
    assert!(world.offline().len() <= 1, "{}", world.agent.note());
}

#[test]
fn an_operator_gets_everything_back() {
    let mut world = World::new();
    world.run(20_000);
    world.agent.set_mode(Mode::Restore);
    world.run(2_000);
    assert_eq!(world.online(), 8);
    assert_eq!(world.believed(), BTreeSet::new());
}

#[test]
fn goodbye_is_said_after_everything_else() {
    let mut world = World::new();
    world.run(20_000);
    world.agent.begin_farewell();
    for _ in 0..5 {
        let now = Instant::from_millis(world.now);
        if world.agent.end_farewell(now) {
            break;
        }
        world.host();
    }
    assert_eq!(world.heard.last(), Some(&Request::Goodbye));
    assert_eq!(world.believed(), world.offline());
}

#[test]
fn what_others_took_offline_just_before_the_goodbye_stays_theirs() {
    let mut world = World::new();
    world.run(200);
    write_state(&world.fake.root(), BlockId(7), StateRequest::Offline).unwrap();
    world.agent.begin_farewell();
    while !world.agent.end_farewell(Instant::from_millis(world.now)) {
        world.host();
    }
    world.restart();
    assert_eq!(world.agent.parts.seen.foreign, BTreeSet::from([BlockId(7)]));
}

#[test]
fn large_mappings_are_allowed_while_blocks_are_stolen_and_at_no_other_time() {
    const FILE: &str = "proc/sys/vm/overcommit_memory";
    let mut world = World::new();
    world.fake.put(FILE, "0\n");
    let mark = world.agent.parts.runtime.overcommit();
    world.agent.parts.overcommit = Some(Overcommit::new(&world.fake.root(), mark.clone()));
    world.run(200);
    assert_eq!((world.fake.get(FILE).as_str(), world.online()), ("0\n", 8));
    world.run(20_000);
    assert_eq!((world.fake.get(FILE).as_str(), world.online()), ("1\n", 3));
    world.agent.set_mode(Mode::Restore);
    world.run(5_000);
    assert_eq!((world.fake.get(FILE).as_str(), world.online()), ("0\n", 8));
    // What an agent left that was killed with blocks stolen, which came back since.
    world.fake.put(FILE, "1\n");
    std::fs::write(&mark, "0").unwrap();
    world.agent.parts.overcommit = Some(Overcommit::new(&world.fake.root(), mark));
    world.turn(Woken::default());
    assert_eq!(world.fake.get(FILE), "0\n");
}

#[test]
fn the_status_and_telemetry_tell_what_is_so() {
    let mut world = World::new();
    world.run(20_000);
    let status = world.agent.status(Instant::from_millis(world.now));
    assert_eq!(status.blocks.stolen.len(), 5);
    assert_eq!(status.limits.host_guarantees, ByteSize::from_mib(384));
    assert_eq!((status.counters.stolen, status.device_silent_s), (5, None));
    let written = crate::status::Status::read(&world.agent.parts.runtime.status()).unwrap();
    assert_eq!(written.blocks, status.blocks);
}
