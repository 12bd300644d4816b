//! A descriptor chain from a guest that is not trusted: walked once, checked, and read once.
//!
//! A guest may change descriptors and buffers while they are looked at. So the descriptors are
//! copied before anything is believed about them, and a request's bytes are copied before they are
//! decoded; nothing is read from the guest a second time.

use std::ops::Deref;

use memtide_units::{ByteSize, Gpa, GpaRange};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::memory::RequestMemory;

/// Descriptors in one chain at most, as QEMU has it (`VIRTQUEUE_MAX_SIZE`). An indirect table could
/// name 65535 (virtio 1.3, 2.7.5.3); Linux's balloon uses 32 at most.
pub(crate) const DESCRIPTORS_MAX: usize = 1024;

/// What is wrong with a chain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("a descriptor chain ends without an end: it loops, leaves its table or passes 4 GiB")]
    Broken,
    #[error("a descriptor chain has more than {DESCRIPTORS_MAX} descriptors")]
    TooMany,
    #[error("a request has {0} bytes, more than {1}")]
    TooLong(u64, usize),
    #[error("a request leaves {0} bytes for its answer, which needs {1}")]
    NoRoom(u64, usize),
    #[error("a buffer is not in the guest's memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

impl ChainError {
    /// Its name in the counters.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Broken | Self::TooMany => "bad-chain",
            Self::TooLong(..) => "too-long",
            Self::NoRoom(..) => "no-room",
            Self::Memory(_) => "outside-memory",
        }
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
struct Segment {
    start: u64,
    len: u32,
    access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// A chain whose descriptors have been copied.
#[derive(Debug)]
pub(crate) struct Chain {
    segments: Vec<Segment>,
}

impl Chain {
    /// Walks the chain to its end.
    pub(crate) fn collect<M>(mut chain: DescriptorChain<M>) -> Result<Self, ChainError>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let mut segments = Vec::new();
        let mut goes_on = true;
        for descriptor in chain.by_ref() {
            if segments.len() == DESCRIPTORS_MAX {
                return Err(ChainError::TooMany);
            }
            let access = if descriptor.is_write_only() { Access::Write } else { Access::Read };
            goes_on = descriptor.has_next();
            segments.push(Segment { start: descriptor.addr().0, len: descriptor.len(), access });
        }
        // The iterator stops without a word at whatever it does not like; a chain that was walked
        // to its end has a last descriptor that names no next one.
        if goes_on { Err(ChainError::Broken) } else { Ok(Self { segments }) }
    }

    /// How many descriptors it has.
    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    fn of(&self, access: Access) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.access == access)
    }

    /// Bytes that the driver wrote for the device.
    pub(crate) fn readable(&self) -> u64 {
        self.of(Access::Read).map(|segment| u64::from(segment.len)).sum()
    }

    /// Bytes that the device may write.
    pub(crate) fn writable(&self) -> u64 {
        self.of(Access::Write).map(|segment| u64::from(segment.len)).sum()
    }

    /// The writable buffers as addresses, for a queue whose buffers *are* the message.
    pub(crate) fn writable_ranges(&self) -> impl Iterator<Item = GpaRange> + '_ {
        self.of(Access::Write).filter_map(|segment| {
            let len = ByteSize::from_bytes(u64::from(segment.len));
            GpaRange::new(Gpa(segment.start), len).ok()
        })
    }

    /// The readable bytes as one request of at most `max` bytes.
    pub(crate) fn read_all<M: RequestMemory>(
        &self,
        memory: &M,
        max: usize,
    ) -> Result<Vec<u8>, ChainError> {
        if self.readable() > max as u64 {
            return Err(ChainError::TooLong(self.readable(), max));
        }
        self.read_up_to(memory, max)
    }

    /// The first readable bytes, at most `max` of them.
    pub(crate) fn read_up_to<M: RequestMemory>(
        &self,
        memory: &M,
        max: usize,
    ) -> Result<Vec<u8>, ChainError> {
        let mut bytes = Vec::new();
        for segment in self.of(Access::Read) {
            let room = max - bytes.len();
            append(memory, *segment, room.min(segment.len as usize), &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Checks that an answer of `len` bytes has room, in guest memory.
    pub(crate) fn require_room<M: GuestMemory>(
        &self,
        memory: &M,
        len: usize,
    ) -> Result<(), ChainError> {
        if self.writable() < len as u64 {
            return Err(ChainError::NoRoom(self.writable(), len));
        }
        let mut rest = len;
        for segment in self.of(Access::Write) {
            let (at, now) = (GuestAddress(segment.start), rest.min(segment.len as usize));
            if now > 0 && !memory.check_range(at, now, vm_memory::Permissions::Write) {
                return Err(ChainError::Memory(GuestMemoryError::InvalidGuestAddress(at)));
            }
            rest -= now;
        }
        Ok(())
    }

    /// Writes an answer across the writable buffers and says how many bytes that were.
    pub(crate) fn write<M: GuestMemory>(
        &self,
        memory: &M,
        answer: &[u8],
    ) -> Result<u32, ChainError> {
        let mut rest = answer;
        for segment in self.of(Access::Write) {
            let (now, later) = rest.split_at(rest.len().min(segment.len as usize));
            memory.write_slice(now, GuestAddress(segment.start))?;
            rest = later;
        }
        Ok((answer.len() - rest.len()) as u32)
    }
}

/// Appends the first `len` bytes of `segment`. The buffer grows only after the addresses are known
/// to be memory, so a descriptor that claims 4 GiB of nothing costs nothing.
fn append<M: RequestMemory>(
    memory: &M,
    segment: Segment,
    len: usize,
    bytes: &mut Vec<u8>,
) -> Result<(), ChainError> {
    if len == 0 {
        return Ok(());
    }
    let at = GuestAddress(segment.start);
    if !memory.check_range(at, len, vm_memory::Permissions::Read) {
        return Err(ChainError::Memory(GuestMemoryError::InvalidGuestAddress(at)));
    }
    let old = bytes.len();
    bytes.resize(old + len, 0);
    memory.copy_out(at, &mut bytes[old..])?;
    Ok(())
}
