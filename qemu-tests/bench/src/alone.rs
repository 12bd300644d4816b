//! The device by itself: a fake driver has it drop memory, beside the same memory dropped by hand.
//!
//! The `vhost` crate's frontend stands for the VMM. The memory is a memfd that is mapped and touched
//! here, as a VMM has it; requests name 256 MiB each, as the agent's do.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use memtide_balloon::fake::{Buffer, FakeDriver};
use memtide_balloon::{BLOCK_QUEUE, QUEUES};
use memtide_lab::cargo::Built;
use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange};
use memtide_wire::block::{Hello, RESPONSE_LEN, Request, Response, Verdict};
use memtide_wire::features;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate};
use rustix::process::Pid;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{BenchError, Result};
use crate::figures::Spread;
use crate::memtide::Device;
use crate::meter::Moved;
use crate::processors::{self, run_on};

/// What is dropped in one turn.
const MOVED: ByteSize = ByteSize::from_gib(1);
/// Rings, requests and answers lie behind it.
const RINGS: u64 = MOVED.bytes();
const REQUEST: u64 = RINGS + (1 << 20);
const ANSWER: u64 = REQUEST + (64 << 10);
const MEMORY: ByteSize = ByteSize::from_bytes(MOVED.bytes() + (128 << 20));
/// One request of the agent's.
const REPORT: ByteSize = ByteSize::from_mib(256);
/// One hole of the raw punch.
const HOLE: ByteSize = ByteSize::from_mib(128);
/// What an address of the VMM is more than a guest's.
const USER_BASE: u64 = 0x7f00_0000_0000;
const RING_SIZE: u16 = 128;
/// Where the configuration has the epoch of the hello that the device wants (docs/protocol.md).
const HELLO_EPOCH: u32 = 32;
/// The vhost-user protocol's own feature bit.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// For an answer of the device, in milliseconds.
const ANSWERS_MS: i32 = 20_000;

/// Rates of the device and of the raw punch, in GiB a second, in turns. On a thread of its own, for
/// it chooses processors.
pub(crate) fn measure(
    programs: &Built,
    sockets: &Path,
    log: &Path,
    rounds: usize,
) -> Result<(Spread, Spread)> {
    let panicked = |_| BenchError::Device("could not be measured: a thread panicked".into());
    std::thread::scope(|scope| {
        scope
            .spawn(|| take_turns(programs, sockets, log, rounds))
            .join()
            .unwrap_or_else(|e| Err(panicked(e)))
    })
}

fn take_turns(
    programs: &Built,
    sockets: &Path,
    log: &Path,
    rounds: usize,
) -> Result<(Spread, Spread)> {
    let device = Device::start(programs, &sockets.join("alone"), log)?;
    // One processor touches memory and the other one punches it, whoever does: a page costs more to
    // drop on a processor that has not touched it.
    let allowed = processors::allowed();
    let (touching, punching) = (allowed[0], allowed[allowed.len() - 1]);
    run_on(Pid::from_raw(device.pid().cast_signed()), punching)?;
    let mut vm = Vm::connect(device.socket())?;
    let (mut by_device, mut by_hand) = (vec![], vec![]);
    for round in 0..rounds {
        // Who is first takes turns too: what the second one finds may be another by and by.
        let is_first = round % 2 == 0;
        for is_devices_turn in [is_first, !is_first] {
            memtide_scenarios::interrupt::check()?;
            run_on(None, touching)?;
            vm.memory.touch()?;
            if is_devices_turn {
                by_device.push(vm.by_device()?.rate());
            } else {
                run_on(None, punching)?;
                by_hand.push(vm.memory.by_hand()?.rate());
            }
        }
    }
    Ok((Spread::of(by_device), Spread::of(by_hand)))
}

/// Guest memory as a memfd, mapped here.
struct Memory {
    file: File,
    map: GuestMemoryMmap,
}

impl Memory {
    fn new() -> Result<Self> {
        let failed = BenchError::call("memory for the fake guest");
        let fd: OwnedFd = rustix::fs::memfd_create("fake-guest", MemfdFlags::CLOEXEC)
            .map_err(|e| failed(e.into()))?;
        let file = File::from(fd);
        file.set_len(MEMORY.bytes()).map_err(&failed)?;
        let offset = FileOffset::new(file.try_clone().map_err(&failed)?, 0);
        let whole = (GuestAddress(0), MEMORY.bytes() as usize, Some(offset));
        let map = GuestMemoryMmap::from_ranges_with_files([whole])
            .map_err(|error| failed(std::io::Error::other(error)))?;
        Ok(Self { file, map })
    }

    /// Writes to every page that will be dropped.
    fn touch(&self) -> Result<()> {
        let page = [0xa5; 4096];
        for at in (0..MOVED.bytes()).step_by(page.len()) {
            self.map.write_slice(&page, GuestAddress(at)).map_err(memory)?;
        }
        Ok(())
    }

    fn resident(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&self.file).map_err(BenchError::call("fstat of the memfd"))?;
        Ok(stat.st_blocks.cast_unsigned() * 512)
    }

    fn by_hand(&self) -> Result<Moved> {
        let before = self.resident()?;
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let started = Instant::now();
        for at in (0..MOVED.bytes()).step_by(HOLE.bytes() as usize) {
            fallocate(&self.file, mode, at, HOLE.bytes())
                .map_err(BenchError::call("punch hole"))?;
        }
        self.moved(before, started.elapsed())
    }

    /// What went since there were `before` bytes: all that was touched, or the figure would be of
    /// something else.
    fn moved(&self, before: u64, time: Duration) -> Result<Moved> {
        let bytes = before.saturating_sub(self.resident()?);
        if bytes != MOVED.bytes() {
            let gone = ByteSize::from_bytes(bytes);
            return Err(BenchError::Device(format!("dropped {gone} when {MOVED} were there")));
        }
        Ok(Moved { bytes, time, ..Moved::default() })
    }
}

/// A VMM and a guest for the device's eyes.
struct Vm {
    frontend: Frontend,
    memory: Memory,
    driver: FakeDriver,
    kick: EventFd,
    call: EventFd,
    /// Waits for `call`.
    called: Epoll,
    sequence: u32,
}

impl Vm {
    /// Negotiates, starts the block queue, and says hello.
    fn connect(socket: &Path) -> Result<Self> {
        let memory = Memory::new()?;
        let mut frontend = Frontend::connect(socket, QUEUES as u64).map_err(vhost)?;
        frontend.set_owner().map_err(vhost)?;
        frontend.get_features().map_err(vhost)?;
        let protocol = frontend.get_protocol_features().map_err(vhost)?;
        frontend.set_protocol_features(protocol).map_err(vhost)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(features::VERSION_1 | PROTOCOL_FEATURES).map_err(vhost)?;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY.bytes(),
            userspace_addr: USER_BASE,
            mmap_offset: 0,
            mmap_handle: memory.file.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).map_err(vhost)?;
        let event = || EventFd::new(0).map_err(BenchError::call("eventfd"));
        let driver = FakeDriver::new(RINGS, RING_SIZE);
        driver.clear(&memory.map);
        let (kick, call) = (event()?, event()?);
        let called = Epoll::new().map_err(BenchError::call("epoll"))?;
        let readable = EpollEvent::new(EventSet::IN, 0);
        called
            .ctl(ControlOperation::Add, call.as_raw_fd(), readable)
            .map_err(BenchError::call("epoll"))?;
        let mut vm = Self { frontend, memory, driver, kick, call, called, sequence: 0 };
        vm.start_block_queue()?;
        vm.hello()?;
        Ok(vm)
    }

    fn start_block_queue(&mut self) -> Result<()> {
        let (frontend, driver) = (&mut self.frontend, &self.driver);
        let addresses = VringConfigData {
            queue_max_size: driver.size(),
            queue_size: driver.size(),
            flags: 0,
            desc_table_addr: USER_BASE + driver.descriptors(),
            used_ring_addr: USER_BASE + driver.used_ring(),
            avail_ring_addr: USER_BASE + driver.available_ring(),
            log_addr: None,
        };
        frontend.set_vring_num(BLOCK_QUEUE, driver.size()).map_err(vhost)?;
        frontend.set_vring_base(BLOCK_QUEUE, 0).map_err(vhost)?;
        frontend.set_vring_addr(BLOCK_QUEUE, &addresses).map_err(vhost)?;
        frontend.set_vring_kick(BLOCK_QUEUE, &self.kick).map_err(vhost)?;
        frontend.set_vring_call(BLOCK_QUEUE, &self.call).map_err(vhost)?;
        frontend.set_vring_enable(BLOCK_QUEUE, true).map_err(vhost)
    }

    fn hello(&mut self) -> Result<()> {
        let flags = VhostUserConfigFlags::empty();
        let (_, epoch) = self.frontend.get_config(HELLO_EPOCH, 4, flags, &[0; 4]).map_err(vhost)?;
        let epoch = epoch.try_into().map(u32::from_le_bytes).unwrap_or_default();
        let hello = Hello {
            ejected: Vec::new(),
            epoch,
            block_size: BlockSize::X86_SMALL,
            present: MEMORY,
            online: MEMORY,
            min: ByteSize::ZERO,
            max: MEMORY,
            stolen: vec![],
        };
        self.ask(&Request::Hello(hello))
    }

    /// Reports all of the memory, one request after the other, as one agent does.
    fn by_device(&mut self) -> Result<Moved> {
        let before = self.memory.resident()?;
        let started = Instant::now();
        for at in (0..MOVED.bytes()).step_by(REPORT.bytes() as usize) {
            let range =
                GpaRange::new(Gpa(at), REPORT).map_err(|e| BenchError::Device(e.to_string()))?;
            self.ask(&Request::Steal(vec![range]))?;
        }
        self.memory.moved(before, started.elapsed())
    }

    /// One request, and the wait for its answer.
    fn ask(&mut self, request: &Request) -> Result<()> {
        self.sequence += 1;
        let bytes = request.encode(self.sequence);
        self.memory.map.write_slice(&bytes, GuestAddress(REQUEST)).map_err(memory)?;
        let buffers = [
            Buffer::Readable(REQUEST, bytes.len() as u32),
            Buffer::Writable(ANSWER, RESPONSE_LEN as u32),
        ];
        self.driver.add(&self.memory.map, &buffers);
        self.kick.write(1).map_err(BenchError::call("kick"))?;
        while self.driver.take_used(&self.memory.map).is_empty() {
            self.wait_call()?;
        }
        let mut answer = [0; RESPONSE_LEN];
        self.memory.map.read_slice(&mut answer, GuestAddress(ANSWER)).map_err(memory)?;
        match Response::decode(&answer).map(|response| response.verdict) {
            Some(Verdict::Ok) => Ok(()),
            other => Err(BenchError::Device(format!("answered {other:?}"))),
        }
    }

    fn wait_call(&self) -> Result<()> {
        let mut events = [EpollEvent::default()];
        match self.called.wait(ANSWERS_MS, &mut events) {
            Ok(0) => Err(BenchError::Device(format!("has not answered for {ANSWERS_MS} ms"))),
            Ok(_) => self.call.read().map(drop).map_err(BenchError::call("the call eventfd")),
            Err(source) => Err(BenchError::Call { what: "waiting for the device", source }),
        }
    }
}

fn vhost(error: impl std::fmt::Display) -> BenchError {
    BenchError::Device(format!("did not take a vhost-user message: {error}"))
}

fn memory(error: vm_memory::GuestMemoryError) -> BenchError {
    BenchError::Call { what: "the fake guest's memory", source: std::io::Error::other(error) }
}
