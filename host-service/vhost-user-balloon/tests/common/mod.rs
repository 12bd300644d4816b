//! A whole VM for the tests but for the VM: the `vhost` crate speaks for the VMM, a fake driver for
//! the guest, and a thread runs the device.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test program uses a part of it"
)]

mod client;
mod memory;
mod vm;

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use memtide_balloon::Settings;
use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange};
use memtide_wire::block::{Hello, Request as BlockRequest};
use rustix::event::{PollFd, PollFlags, Timespec};
use vhost_user_balloon::{Options, Service, VmmSource};

pub use client::Client;
pub use memory::Memory;
pub use vm::{Vm, addresses, fresh_drivers};

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
        ejected: Vec::new(),
        epoch,
        block_size: BlockSize::new(BLOCK).unwrap(),
        present: MEMORY,
        online: MEMORY,
        min: ByteSize::ZERO,
        max: MEMORY,
        stolen,
    })
}
