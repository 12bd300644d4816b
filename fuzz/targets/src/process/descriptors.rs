//! What the device may be handed as a descriptor, and whether it gave everything back.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::pipe::PipeFlags;

/// A name that no other mapping of the process has.
pub(super) const MEMORY_NAME: &str = "memtide-fuzz-guest";

/// Bytes of the file that does not end on a page.
pub(super) const ODD_LEN: u64 = (1 << 16) + 77;

/// What comes with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub(super) enum Kind {
    /// The guest's memory: that below the blocks, and the blocks.
    Low,
    Blocks,
    /// A memfd that does not end on a page, and may be cut short while it is mapped.
    Odd,
    Empty,
    Sealed,
    ReadOnly,
    Null,
    Kick,
    Call,
    /// The end of a pipe that is never read.
    Pipe,
    /// A channel for the device's own messages.
    Channel,
    /// A file that a device's state may be in.
    State,
    Directory,
}

/// One of each, made once. Nothing that the device may do to them outlives an input, but for the
/// flag `O_NONBLOCK`.
pub(super) struct Descriptors {
    pub(super) low: OwnedFd,
    pub(super) blocks: OwnedFd,
    pub(super) odd: OwnedFd,
    empty: OwnedFd,
    sealed: OwnedFd,
    read_only: OwnedFd,
    null: OwnedFd,
    state: OwnedFd,
    pub(super) kick: OwnedFd,
    call: OwnedFd,
    pipe: OwnedFd,
    _pipe_reader: OwnedFd,
    channel: OwnedFd,
    hearer: OwnedFd,
    directory: OwnedFd,
    /// Can always be read.
    pub(super) ready: OwnedFd,
    lent: Cell<bool>,
}

pub(super) fn memfd(len: u64) -> OwnedFd {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let fd = rustix::fs::memfd_create(MEMORY_NAME, flags).expect("a memfd");
    rustix::fs::ftruncate(&fd, len).expect("it may have any length");
    fd
}

fn eventfd(count: u32) -> OwnedFd {
    rustix::event::eventfd(count, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
        .expect("an eventfd")
}

impl Descriptors {
    pub(super) fn new(low: u64, blocks: u64) -> Self {
        let (pipe_reader, pipe) =
            rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).expect("a pipe");
        let (channel, hearer) = UnixStream::pair().expect("a pair of sockets");
        hearer.set_nonblocking(true).expect("a socket");
        let sealed = memfd(1 << 20);
        rustix::fs::fcntl_add_seals(&sealed, SealFlags::WRITE).expect("nobody has mapped it");
        Self {
            low: memfd(low),
            blocks: memfd(blocks),
            odd: memfd(ODD_LEN),
            empty: memfd(0),
            sealed,
            read_only: File::open("/proc/self/exe").expect("this program").into(),
            null: File::options().read(true).write(true).open("/dev/null").expect("it").into(),
            state: memfd(0),
            kick: eventfd(0),
            call: eventfd(0),
            pipe,
            _pipe_reader: pipe_reader,
            channel: channel.into(),
            hearer: hearer.into(),
            directory: File::open("/").expect("it is there").into(),
            ready: eventfd(1),
            lent: Cell::new(false),
        }
    }

    /// Guest memory is not as it was from now on.
    pub(super) fn lend(&self) {
        self.lent.set(true);
    }

    /// True where it has been lent since this was last asked.
    pub(super) fn take_lent(&self) -> bool {
        self.lent.replace(false)
    }

    pub(super) fn get(&self, kind: Kind) -> BorrowedFd<'_> {
        if matches!(kind, Kind::Low | Kind::Blocks | Kind::Odd) {
            self.lend();
        }
        match kind {
            Kind::Low => &self.low,
            Kind::Blocks => &self.blocks,
            Kind::Odd => &self.odd,
            Kind::Empty => &self.empty,
            Kind::Sealed => &self.sealed,
            Kind::ReadOnly => &self.read_only,
            Kind::Null => &self.null,
            Kind::Kick => &self.kick,
            Kind::Call => &self.call,
            Kind::Pipe => &self.pipe,
            Kind::Channel => &self.channel,
            Kind::State => &self.state,
            Kind::Directory => &self.directory,
        }
        .as_fd()
    }

    /// Has the file hold this state, to be read from its start.
    pub(super) fn put_state(&self, state: &[u8]) {
        rustix::fs::ftruncate(&self.state, 0).expect("a file of our own");
        rustix::io::pwrite(&self.state, state, 0).expect("a file of our own");
        rustix::fs::seek(&self.state, SeekFrom::Start(0)).expect("a file");
    }

    /// Takes out what an input has left in them.
    pub(super) fn drain(&self) {
        self.put_state(&[]);
        // A device that took one of these for a channel has moved its offset.
        for fd in [&self.low, &self.blocks, &self.odd, &self.sealed, &self.read_only] {
            rustix::fs::seek(fd, SeekFrom::Start(0)).expect("a file");
        }
        let mut bytes = [0; 4096];
        for fd in [&self.kick, &self.call, &self._pipe_reader, &self.hearer] {
            while matches!(rustix::io::read(fd, &mut bytes), Ok(1..)) {}
        }
    }
}

/// What a process holds of its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holdings {
    descriptors: usize,
    /// Pages of address space.
    pages: u64,
}

impl Holdings {
    pub(super) fn now() -> Self {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
        let pages = statm.split(' ').next().and_then(|pages| pages.parse().ok());
        Self { descriptors: open_descriptors(), pages: pages.expect("it begins with the size") }
    }

    /// # Panics
    /// Where more is held than `before`.
    pub(super) fn check(self, before: Self) {
        assert_eq!(self.descriptors, before.descriptors, "descriptors were left open");
        // The heap grows now and then: only where something has, it is looked at closely.
        if self.pages > before.pages {
            assert_eq!(mappings_of_guest_memory(), 2, "guest memory is mapped still");
        }
    }
}

/// From Linux 6.2 on the directory's size is the number of open descriptors (fs/proc/fd.c).
fn open_descriptors() -> usize {
    match rustix::fs::stat("/proc/self/fd").expect("Linux has it").st_size {
        0 => std::fs::read_dir("/proc/self/fd").expect("Linux has it").count(),
        size => size as usize,
    }
}

fn mappings_of_guest_memory() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux has it");
    maps.lines().filter(|line| line.contains(MEMORY_NAME)).count()
}
