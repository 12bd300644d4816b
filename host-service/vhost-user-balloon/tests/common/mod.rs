//! A whole VM for the tests but for the VM: the `vhost` crate speaks for the VMM, a fake driver for
//! the guest, and a thread runs the device.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use memtide_api::device::{Answer, Call, DeviceStatus, Event, FromDevice, Outcome, Request, Role};
use memtide_balloon::fake::{Buffer, FakeDriver};
use memtide_balloon::{BLOCK_QUEUE, QUEUES, Settings};
use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange};
use memtide_wire::block::{Hello, RESPONSE_LEN, Request as BlockRequest, Response};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user_balloon::{Options, Service, VmmSource};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// How long anything may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Guest memory: as a real one has it, in two regions with a hole between.
pub const MEMORY: ByteSize = ByteSize::from_mib(64);
const LOW_END: u64 = 640 << 10;
const HIGH_START: u64 = 768 << 10;

/// What an address of the VMM is more than a guest's.
pub const USER_BASE: u64 = 0x7f00_0000_0000;

/// Rings lie from here on, requests and answers from there on, and pages to give up further on.
const RINGS: u64 = 1 << 20;
const REQUEST: u64 = 2 << 20;
const ANSWER: u64 = REQUEST + (64 << 10);

/// Blocks of the fake guest: small, so that many fit.
pub const BLOCK: ByteSize = ByteSize::from_mib(2);

pub const STATS_VQ: u64 = 1 << 1;
pub const REPORTING: u64 = 1 << 5;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A device that runs in a thread, until this is dropped.
pub struct Device {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    directory: tempfile::TempDir,
}

impl Device {
    /// Listens for a VMM.
    pub fn listening(settings: Settings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vmm = VmmSource::Listen(directory.path().join("vm.sock").into());
        Self::with(directory, vmm, settings)
    }

    /// Is connected to one already.
    pub fn connected(settings: Settings) -> (Self, UnixStream) {
        let (vmm, device) = UnixStream::pair().unwrap();
        (Self::with(tempfile::tempdir().unwrap(), VmmSource::Connected(device), settings), vmm)
    }

    fn with(directory: tempfile::TempDir, vmm: VmmSource, settings: Settings) -> Self {
        let control = Some(directory.path().join("vm.ctl").into());
        // Shown by the test harness where a test fails.
        let log = tracing_subscriber::fmt().with_test_writer().with_ansi(false);
        let _ = log.with_max_level(tracing::Level::DEBUG).try_init();
        let (stop, ours) = UnixStream::pair().unwrap();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let service = Service::start(Options { vmm, control, settings }).unwrap();
            ready.send(()).unwrap();
            service.run(&ours)
        });
        is_ready.recv().unwrap();
        Self { stop: Some(stop), thread: Some(thread), directory }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("vm.sock")
    }

    pub fn control_path(&self) -> PathBuf {
        self.directory.path().join("vm.ctl")
    }

    pub fn control(&self) -> Client {
        Client::connect(&self.control_path())
    }

    /// Stops it and waits for its end.
    pub fn end(mut self) {
        self.stop.take();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }

    /// Waits for it to end by itself.
    pub fn ended(mut self) {
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Guest memory as a file, mapped here as the guest sees it.
pub struct Memory {
    pub fd: OwnedFd,
    pub map: GuestMemoryMmap,
    layout: Vec<(u64, u64, u64)>,
}

impl Memory {
    /// All of it is touched, so that every hole shows.
    pub fn new() -> Self {
        let fd = rustix::fs::memfd_create("guest", MemfdFlags::ALLOW_SEALING).unwrap();
        Self::filled(fd)
    }

    /// The same in a file of the caller's.
    pub fn filled(fd: OwnedFd) -> Self {
        rustix::fs::ftruncate(&fd, MEMORY.bytes()).unwrap();
        let low = (0, LOW_END, 0);
        let high = (HIGH_START, MEMORY.bytes() - HIGH_START, HIGH_START);
        let memory = Self::laid_out(fd, vec![low, high]);
        memory.fill();
        memory
    }

    /// Touches all of it.
    pub fn fill(&self) {
        let page = [0xa5; 4096];
        for (start, len, _) in &self.layout {
            for at in (*start..start + len).step_by(4096) {
                self.map.write_slice(&page, GuestAddress(at)).unwrap();
            }
        }
        // What a disk is yet to be given is not there to be counted.
        rustix::fs::fsync(&self.fd).unwrap();
    }

    /// Regions by guest address, length and offset in the file, which is as it is.
    pub fn laid_out(fd: OwnedFd, layout: Vec<(u64, u64, u64)>) -> Self {
        let file = |offset| {
            let file = std::fs::File::from(fd.try_clone().unwrap());
            Some(FileOffset::new(file, offset))
        };
        let ranges = layout
            .iter()
            .map(|(start, len, offset)| (GuestAddress(*start), *len as usize, file(*offset)));
        let map = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        Self { fd, map, layout }
    }

    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let region = |(start, len, offset): &(u64, u64, u64)| VhostUserMemoryRegionInfo {
            guest_phys_addr: *start,
            memory_size: *len,
            userspace_addr: USER_BASE + start,
            mmap_offset: *offset,
            mmap_handle: self.fd.as_raw_fd(),
        };
        self.layout.iter().map(region).collect()
    }

    pub fn resident(&self) -> ByteSize {
        let blocks = rustix::fs::fstat(&self.fd).unwrap().st_blocks;
        ByteSize::from_bytes(blocks as u64 * 512)
    }

    pub fn all_resident() -> ByteSize {
        MEMORY - ByteSize::from_bytes(HIGH_START - LOW_END)
    }
}

/// A VMM with a guest, connected to a device.
pub struct Vm {
    pub frontend: Frontend,
    pub memory: Memory,
    pub drivers: Vec<FakeDriver>,
    pub kicks: Vec<EventFd>,
    pub calls: Vec<EventFd>,
    pub channel: UnixStream,
    sequence: u32,
}

impl Vm {
    /// Negotiates, hands memory over, and starts `queues` with `features`.
    pub fn start(socket: UnixStream, features: u64, queues: &[usize]) -> Self {
        let mut vm = Self::negotiated(socket, features);
        vm.frontend.set_mem_table(&vm.memory.regions()).unwrap();
        vm.start_rings(queues);
        vm
    }

    pub fn negotiated(socket: UnixStream, features: u64) -> Self {
        let memory = Memory::new();
        let drivers = fresh_drivers(&memory);
        Self::negotiated_over(socket, features, (memory, drivers))
    }

    /// Negotiates, hands `memory` over, and starts `queues` with `features`.
    pub fn start_over(socket: UnixStream, memory: Memory, features: u64, queues: &[usize]) -> Self {
        let drivers = fresh_drivers(&memory);
        let mut vm = Self::negotiated_over(socket, features, (memory, drivers));
        vm.frontend.set_mem_table(&vm.memory.regions()).unwrap();
        vm.start_rings(queues);
        vm
    }

    /// A guest that another device has served before: its memory and its rings are as they are.
    pub fn negotiated_over(
        socket: UnixStream,
        features: u64,
        (memory, drivers): (Memory, Vec<FakeDriver>),
    ) -> Self {
        let mut frontend = Frontend::from_stream(socket, QUEUES as u64);
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let acked = features | VERSION_1 | PROTOCOL_FEATURES;
        assert_eq!(offered & acked, acked, "the device offers what the test needs");
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(frontend.get_queue_num().unwrap(), QUEUES as u64);
        let (channel, theirs) = UnixStream::pair().unwrap();
        frontend.set_backend_request_fd(&theirs).unwrap();
        frontend.set_features(acked).unwrap();
        let event = || EventFd::new(libc_efd_nonblock()).unwrap();
        Self {
            frontend,
            memory,
            drivers,
            kicks: (0..QUEUES).map(|_| event()).collect(),
            calls: (0..QUEUES).map(|_| event()).collect(),
            channel,
            sequence: 0,
        }
    }

    /// The VMM loses its device and connects to another one. The guest notices nothing.
    pub fn reconnected(self, socket: UnixStream, features: u64) -> Self {
        let Self { memory, drivers, .. } = self;
        let vm = Self::negotiated_over(socket, features, (memory, drivers));
        vm.frontend.set_mem_table(&vm.memory.regions()).unwrap();
        vm
    }

    pub fn start_rings(&mut self, queues: &[usize]) {
        for &index in queues {
            self.set_up(index, 0);
        }
        for index in 0..QUEUES {
            self.frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// Sets one ring up as QEMU does it, from `base` on. The interrupt that comes of a start is taken.
    pub fn set_up(&mut self, index: usize, base: u16) {
        self.hand_over(index, base);
        let _ = self.calls[index].read();
    }

    /// The same, with that interrupt left to be seen.
    pub fn hand_over(&mut self, index: usize, base: u16) {
        let driver = &self.drivers[index];
        self.frontend.set_vring_num(index, driver.size()).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend.set_vring_addr(index, &addresses(driver)).unwrap();
        self.frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
        self.frontend.set_vring_call(index, &self.calls[index]).unwrap();
    }

    /// Stops every ring as QEMU does it; the positions that the device answers.
    pub fn stop_rings(&mut self, queues: &[usize]) -> Vec<u32> {
        for index in 0..QUEUES {
            self.frontend.set_vring_enable(index, false).unwrap();
        }
        queues.iter().map(|index| self.frontend.get_vring_base(*index).unwrap()).collect()
    }

    /// Hands a chain to a queue, kicks, and waits for the interrupt; bytes that were written.
    pub fn submit(&mut self, index: usize, buffers: &[Buffer]) -> u32 {
        let head = self.drivers[index].add(&self.memory.map, buffers);
        self.kicks[index].write(1).unwrap();
        self.await_used(index, head)
    }

    /// Waits until a chain is answered; bytes that were written.
    pub fn await_used(&mut self, index: usize, head: u16) -> u32 {
        loop {
            wait_readable(&self.calls[index]);
            let _ = self.calls[index].read();
            let used = self.drivers[index].take_used(&self.memory.map);
            if let Some((_, len)) = used.into_iter().find(|(used, _)| *used == head) {
                return len;
            }
        }
    }

    /// Inflates or deflates pages by number.
    pub fn pages(&mut self, index: usize, pfns: impl IntoIterator<Item = u32>) {
        let bytes: Vec<u8> = pfns.into_iter().flat_map(u32::to_le_bytes).collect();
        self.memory.map.write_slice(&bytes, GuestAddress(REQUEST)).unwrap();
        self.submit(index, &[Buffer::Readable(REQUEST, bytes.len() as u32)]);
    }

    /// One request on the block queue, and its answer.
    pub fn ask(&mut self, request: &BlockRequest) -> Response {
        self.sequence += 1;
        let bytes = request.encode(self.sequence);
        let response = self.ask_raw(&bytes);
        assert_eq!(response.sequence, self.sequence);
        response
    }

    pub fn ask_raw(&mut self, bytes: &[u8]) -> Response {
        self.memory.map.write_slice(bytes, GuestAddress(REQUEST)).unwrap();
        let buffers = [
            Buffer::Readable(REQUEST, bytes.len() as u32),
            Buffer::Writable(ANSWER, RESPONSE_LEN as u32),
        ];
        assert_eq!(self.submit(BLOCK_QUEUE, &buffers), RESPONSE_LEN as u32);
        let mut answer = [0; RESPONSE_LEN];
        self.memory.map.read_slice(&mut answer, GuestAddress(ANSWER)).unwrap();
        Response::decode(&answer).unwrap()
    }

    pub fn config(&mut self, offset: u32, len: u32) -> Vec<u8> {
        let flags = vhost::vhost_user::message::VhostUserConfigFlags::empty();
        self.frontend.get_config(offset, len, flags, &vec![0; len as usize]).unwrap().1
    }
}

pub fn fresh_drivers(memory: &Memory) -> Vec<FakeDriver> {
    let driver = |index| {
        let driver = FakeDriver::new(RINGS + index as u64 * FakeDriver::LEN, 128);
        driver.clear(&memory.map);
        driver
    };
    (0..QUEUES).map(driver).collect()
}

pub fn addresses(driver: &FakeDriver) -> VringConfigData {
    VringConfigData {
        queue_max_size: driver.size(),
        queue_size: driver.size(),
        flags: 0,
        desc_table_addr: USER_BASE + driver.descriptors(),
        used_ring_addr: USER_BASE + driver.used_ring(),
        avail_ring_addr: USER_BASE + driver.available_ring(),
        log_addr: None,
    }
}

fn libc_efd_nonblock() -> i32 {
    rustix::event::EventfdFlags::NONBLOCK.bits() as i32
}

/// Waits until `fd` can be read; a test that waits in vain fails here.
pub fn wait_readable(fd: &impl AsRawFd) {
    assert!(is_readable_within(fd, DEADLINE), "nothing came within {DEADLINE:?}");
}

pub fn is_readable_within(fd: &impl AsRawFd, wait: Duration) -> bool {
    // SAFETY: `fd` is borrowed for as long as this lasts.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let time = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&time)).unwrap() > 0
}

/// The block with this number.
pub fn block(number: u64) -> GpaRange {
    GpaRange::new(Gpa(number * BLOCK.bytes()), BLOCK).unwrap()
}

pub fn hello(epoch: u32, stolen: Vec<GpaRange>) -> BlockRequest {
    BlockRequest::Hello(Hello {
        epoch,
        block_size: BlockSize::new(BLOCK).unwrap(),
        present: MEMORY,
        online: MEMORY,
        min: ByteSize::ZERO,
        max: MEMORY,
        stolen,
    })
}

/// A client of the control socket.
pub struct Client {
    reader: BufReader<UnixStream>,
    next: u64,
    events: Vec<Event>,
}

impl Client {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { reader: BufReader::new(stream), next: 1, events: Vec::new() }
    }

    pub fn controller(path: &Device) -> Self {
        let mut client = path.control();
        client.ok(Request::Attach { version: 1, role: Role::Controller });
        client
    }

    pub fn call(&mut self, request: Request) -> Outcome {
        let call = Call { id: self.next, call: request };
        self.next += 1;
        let line = memtide_api::line::to_line(&call).unwrap();
        self.reader.get_mut().write_all(&line).unwrap();
        loop {
            match self.line() {
                FromDevice::Reply(reply) => {
                    assert_eq!(reply.id, call.id);
                    return reply.result;
                }
                FromDevice::Event { event } => self.events.push(event),
            }
        }
    }

    pub fn ok(&mut self, request: Request) -> Answer {
        match self.call(request) {
            Outcome::Ok(answer) => answer,
            Outcome::Error(refusal) => panic!("{refusal}"),
        }
    }

    pub fn refused(&mut self, request: Request) -> String {
        match self.call(request) {
            Outcome::Ok(answer) => panic!("a refusal was expected, not {answer:?}"),
            Outcome::Error(refusal) => refusal.name,
        }
    }

    pub fn status(&mut self) -> DeviceStatus {
        match self.ok(Request::Status) {
            Answer::Status(status) => *status,
            Answer::Done => panic!("a status was asked for"),
        }
    }

    /// Asks for the status until it is as wanted. Each answer is a round through the device's loop.
    pub fn status_when(&mut self, wanted: impl Fn(&DeviceStatus) -> bool) -> DeviceStatus {
        let start = std::time::Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the status stays {status:?}");
            std::thread::yield_now();
        }
    }

    /// The next event that `pick` wants; others are passed over.
    pub fn event<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        for event in self.events.drain(..) {
            if let Some(found) = pick(event) {
                return found;
            }
        }
        loop {
            if let FromDevice::Event { event } = self.line()
                && let Some(found) = pick(event)
            {
                return found;
            }
        }
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    pub fn line(&mut self) -> FromDevice {
        let mut line = String::new();
        assert!(self.reader.read_line(&mut line).unwrap() > 0, "the device closed the connection");
        serde_json::from_str(&line).unwrap()
    }

    /// True where the device answers, false where it has turned the client away.
    pub fn is_served(&mut self) -> bool {
        let _ = self.reader.get_mut().write_all(b"{\"id\":1,\"call\":\"status\"}\n");
        let mut line = String::new();
        self.reader.read_line(&mut line).is_ok() && line.starts_with("{\"id\":1,\"ok\":")
    }

    /// What comes until the device hangs up.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A connection that was reset has ended too.
        let _ = std::io::Read::read_to_end(&mut self.reader, &mut bytes);
        bytes
    }
}
