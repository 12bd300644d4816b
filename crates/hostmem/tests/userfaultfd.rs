//! Memory that a monitor watches through userfaultfd (postcopy, a lazily restored snapshot): a punch
//! does not wait for the monitor, and the monitor learns of it by the next fault.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use memtide_hostmem::{RegionSpec, Regions};
use memtide_units::{ByteSize, Gpa, GpaRange};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags};

const LEN: usize = 16 * 4096;

/// include/uapi/linux/userfaultfd.h: `UFFDIO_API`, `UFFDIO_REGISTER`, `UFFDIO_ZEROPAGE`, with their
/// structures as plain numbers.
const API: Opcode = opcode::read_write::<[u64; 3]>(0xaa, 0x3f);
const REGISTER: Opcode = opcode::read_write::<[u64; 4]>(0xaa, 0x00);
const ZEROPAGE: Opcode = opcode::read_write::<[u64; 4]>(0xaa, 0x04);
const UFFD_API: u64 = 0xaa;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;

/// A mapping of the file, watched by a userfaultfd.
struct Watched {
    uffd: OwnedFd,
    start: usize,
}

impl Watched {
    /// `None` where the host does not allow userfaultfd.
    fn new(file: &OwnedFd) -> Option<Self> {
        // SAFETY: the flags are valid, and the descriptor that comes of it is owned from then on.
        let uffd = unsafe {
            rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK)
        };
        let uffd = uffd.ok()?;
        let (flags, protection) = (MapFlags::SHARED, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice; it is never unmapped.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), LEN, protection, flags, file, 0) };
        let watched = Self { uffd, start: start.unwrap() as usize };
        let api = &mut [UFFD_API, FEATURE_EVENT_REMOVE | FEATURE_MISSING_SHMEM, 0];
        watched.ask::<API, _>(api).ok()?;
        let register = &mut [watched.start as u64, LEN as u64, MODE_MISSING, 0];
        watched.ask::<REGISTER, _>(register).unwrap();
        Some(watched)
    }

    /// The next event, as its number, if one comes within `wait`.
    fn event(&self, wait: Duration) -> Option<u8> {
        let mut fds = [PollFd::new(&self.uffd, PollFlags::IN)];
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&wait)).unwrap();
        let mut message = [0; 32];
        rustix::io::read(&self.uffd, &mut message).ok().map(|_| message[0])
    }

    /// Answers the fault on the first page with zeros.
    fn answer_with_zeros(&self) {
        self.ask::<ZEROPAGE, _>(&mut [self.start as u64, 4096, 0, 0]).unwrap();
    }

    /// One request, with the structure that belongs to it; the ranges in it lie in the mapping.
    fn ask<const REQUEST: Opcode, T>(&self, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: each request of this file names its structure in its number.
        let request = unsafe { Updater::<REQUEST, T>::new(argument) };
        // SAFETY: the requests change the mapping, of which nobody holds a reference.
        unsafe { rustix::ioctl::ioctl(&self.uffd, request) }
    }
}

/// Runs `work` in a thread of its own; what comes of it, if it comes within ten seconds.
fn within_seconds<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver
}

#[test]
fn a_punch_does_not_wait_for_the_monitor() {
    let file = rustix::fs::memfd_create("hostmem-uffd", MemfdFlags::CLOEXEC).unwrap();
    rustix::io::pwrite(&file, &[0xa5; LEN], 0).unwrap();
    let Some(watched) = Watched::new(&file) else {
        eprintln!("skipped: this host does not allow userfaultfd");
        return;
    };
    let range = GpaRange::new(Gpa(0), ByteSize::from_bytes(LEN as u64)).unwrap();
    let fd = file.as_fd().try_clone_to_owned().unwrap();
    let regions = Regions::new([RegionSpec { range, fd, file_offset: ByteSize::ZERO }]).unwrap();
    let punched = within_seconds(move || regions.punch(range).map(|report| report.bytes));
    let punched = punched.recv_timeout(Duration::from_secs(10)).expect("it waits for nobody");
    assert_eq!(punched.unwrap(), range.len());
    assert_eq!(watched.event(Duration::ZERO), None, "only madvise makes such events");

    let start = watched.start;
    // SAFETY: the mapping lives as long as the process; a byte of it may be read at any time.
    let touched = within_seconds(move || unsafe { std::ptr::read_volatile(start as *const u8) });
    assert_eq!(watched.event(Duration::from_secs(10)), Some(EVENT_PAGEFAULT));
    watched.answer_with_zeros();
    assert_eq!(touched.recv_timeout(Duration::from_secs(10)).unwrap(), 0);
}
