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
    /// The end of a pipe that a state may come through: each input has its own, see [`Feed`].
    Feed,
}

impl Kind {
    fn bit(self) -> u32 {
        1 << self as u32
    }
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
    pipe_reader: OwnedFd,
    channel: OwnedFd,
    hearer: OwnedFd,
    directory: OwnedFd,
    /// Can always be read.
    pub(super) ready: OwnedFd,
    /// Kinds that the device was lent, or that were written to, since they were last as at first: a
    /// bit for each.
    touched: Cell<u32>,
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
        let (pipe_reader, pipe) = pipe();
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
            pipe_reader,
            channel: channel.into(),
            hearer: hearer.into(),
            directory: File::open("/").expect("it is there").into(),
            ready: eventfd(1),
            touched: Cell::new(0),
        }
    }

    /// This one is not as it was from now on.
    pub(super) fn touch(&self, kind: Kind) {
        self.touched.set(self.touched.get() | kind.bit());
    }

    fn is_touched(&self, kind: Kind) -> bool {
        self.touched.get() & kind.bit() != 0
    }

    /// True where guest memory may not be as it was at first.
    pub(super) fn is_memory_touched(&self) -> bool {
        [Kind::Low, Kind::Blocks, Kind::Odd].into_iter().any(|kind| self.is_touched(kind))
    }

    /// One of this kind, but for [`Kind::Feed`].
    pub(super) fn get(&self, kind: Kind) -> Option<BorrowedFd<'_>> {
        self.touch(kind);
        let fd = match kind {
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
            Kind::Feed => return None,
        };
        Some(fd.as_fd())
    }

    /// Has the file hold this state, to be read from its start.
    pub(super) fn put_state(&self, state: &[u8]) {
        self.touch(Kind::State);
        rustix::fs::ftruncate(&self.state, 0).expect("a file of our own");
        rustix::io::pwrite(&self.state, state, 0).expect("a file of our own");
        rustix::fs::seek(&self.state, SeekFrom::Start(0)).expect("a file");
    }

    /// A kick of the guest's: one descriptor for all rings.
    pub(super) fn kick(&self) {
        self.touch(Kind::Kick);
        // A counter that is full is a kick as well.
        _ = rustix::io::write(&self.kick, &1_u64.to_ne_bytes());
    }

    /// Takes out what an input has left in them. What it has not touched is left alone: that would
    /// be most of the system calls of a short input.
    pub(super) fn drain(&self) {
        if self.is_touched(Kind::State) {
            self.put_state(&[]);
        }
        let files = [
            (Kind::Low, &self.low),
            (Kind::Blocks, &self.blocks),
            (Kind::Odd, &self.odd),
            (Kind::Sealed, &self.sealed),
            (Kind::ReadOnly, &self.read_only),
        ];
        for (_, fd) in files.into_iter().filter(|(kind, _)| self.is_touched(*kind)) {
            // A device that took it for a channel has moved its offset.
            rustix::fs::seek(fd, SeekFrom::Start(0)).expect("a file");
        }
        let channels = [
            (Kind::Kick, &self.kick),
            (Kind::Call, &self.call),
            (Kind::Pipe, &self.pipe_reader),
            (Kind::Channel, &self.hearer),
        ];
        let mut bytes = [0; 4096];
        for (_, fd) in channels.into_iter().filter(|(kind, _)| self.is_touched(*kind)) {
            while matches!(rustix::io::read(fd, &mut bytes), Ok(1..)) {}
        }
        self.touched.set(0);
    }
}

/// A pipe that bytes are put into until it ends.
pub(super) struct Feed {
    pub(super) reader: OwnedFd,
    writer: Option<OwnedFd>,
    pub(super) written: usize,
}

impl Feed {
    pub(super) fn new() -> Self {
        let (reader, writer) = pipe();
        Self { reader, writer: Some(writer), written: 0 }
    }

    pub(super) fn write(&mut self, bytes: &[u8], ends: bool) {
        if let Some(writer) = &self.writer {
            // One that is full stays full until the device reads.
            self.written += rustix::io::write(writer, bytes).unwrap_or(0);
        }
        if ends {
            self.writer = None;
        }
    }
}

/// Its reading and its writing end.
fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).expect("a pipe")
}

/// What this process holds of its kernel.
pub(super) struct Holdings {
    /// Open, as it is read after each input.
    statm: File,
    descriptors: usize,
    /// Pages of address space, when they were last looked at.
    pages: Cell<u64>,
}

impl Holdings {
    pub(super) fn now() -> Self {
        let statm = File::open("/proc/self/statm").expect("Linux has it");
        let pages = Cell::new(address_space(&statm));
        Self { statm, descriptors: open_descriptors(), pages }
    }

    /// # Panics
    /// Where more is held than at first.
    pub(super) fn check(&self) {
        assert_eq!(open_descriptors(), self.descriptors, "descriptors were left open");
        // The heap grows now and then: only where something has, it is looked at closely.
        let pages = address_space(&self.statm);
        if pages > self.pages.replace(pages) {
            assert_eq!(mappings_of_guest_memory(), 2, "guest memory is mapped still");
        }
    }
}

/// Pages of it, the first number of `statm` (Documentation/filesystems/proc.rst).
fn address_space(statm: &File) -> u64 {
    let mut text = [0; 128];
    let len = rustix::io::pread(statm, &mut text, 0).expect("Linux has it");
    let size = text[..len].split(|byte| *byte == b' ').next();
    let size = size.and_then(|size| std::str::from_utf8(size).ok()?.parse().ok());
    size.expect("it begins with the size")
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
