//! One ring, as the VMM sets it up, starts and stops it.
//!
//! What the VMM says is kept as it was said; a usable queue is made of it whenever the ring is
//! started or guest memory changes. What does not fit memory then makes this ring unusable and
//! nothing else: the addresses come from a guest, and the VMM would die of a closed socket.

use std::sync::atomic::Ordering;

use memtide_units::Instant;
use memtide_wire::features::RING_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::eventfd::EventFd;
use super::memory::{LostMemory, MemoryTable};
use super::protocol::VringAddr;

/// Largest split queue (virtio 1.3, 2.7: at most 32768 descriptors).
const SIZE_MAX: u16 = 32_768;

/// Is there something to do?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Work {
    #[default]
    None,
    Waiting,
    /// Its guest has talked too much: at this time.
    Later(Instant),
}

/// May the ring be worked on? Off until the VMM enables it, unless protocol features were not
/// negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Switch {
    #[default]
    Off,
    On,
}

/// Has the driver been told of all its answers?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Yes,
    /// Perhaps not, and there is nothing to tell it with.
    NotYet,
}

#[derive(Debug, Default)]
enum State {
    /// Before a kick descriptor came, or after GET_VRING_BASE.
    #[default]
    Stopped,
    /// Set up and in memory.
    Ready(Queue),
    /// Set up, but not so that it could be used.
    Broken,
}

/// One ring.
#[derive(Debug, Default)]
pub(crate) struct Vring {
    size: u32,
    addresses: Option<VringAddr>,
    /// Where to go on in the available ring.
    next_available: u16,
    kick: Option<EventFd>,
    call: Option<EventFd>,
    told: Told,
    pub(crate) switch: Switch,
    pub(crate) work: Work,
    state: State,
}

/// Why a ring cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokenRing {
    #[error("its addresses were never set")]
    NoAddresses,
    #[error("its size {0} is not a power of two from 1 to {SIZE_MAX}")]
    Size(u32),
    #[error("the VMM's address {0:#x} is not in guest memory")]
    Address(u64),
    #[error("a part of it is misaligned: {0}")]
    Misaligned(virtio_queue::Error),
    #[error("it does not lie in guest memory as a whole")]
    OutsideMemory,
    #[error(transparent)]
    Lost(#[from] LostMemory),
}

impl Vring {
    pub(crate) fn set_size(&mut self, size: u32) {
        self.size = size;
    }

    pub(crate) fn set_addresses(&mut self, addresses: VringAddr) {
        self.addresses = Some(addresses);
    }

    /// Where the VMM says that a ring that is started next begins; 16 bits of it count in a split
    /// ring. What the used ring says counts more, see [`Vring::rebind`].
    pub(crate) fn set_base(&mut self, base: u32) {
        self.next_available = base as u16;
    }

    /// Sets where interrupts go, and sends the one that could not be sent before: a VMM may let a
    /// ring run before it names the descriptor.
    pub(crate) fn set_call(&mut self, call: Option<EventFd>) -> std::io::Result<()> {
        self.call = call;
        if self.told == Told::NotYet { self.call() } else { Ok(()) }
    }

    /// Starts the ring. Kicks may have come before this program could see them, so it is looked at
    /// once in any case; without a descriptor that and SET_VRING_ENABLE are the only looks.
    pub(crate) fn start(
        &mut self,
        kick: Option<EventFd>,
        table: &MemoryTable,
        features: u64,
    ) -> Result<(), BrokenRing> {
        self.kick = kick;
        if let State::Stopped = self.state {
            self.state = State::Broken;
        }
        self.rebind(table, features)
    }

    /// Makes the queue anew if the ring is started: in the place where it was if it has one, else
    /// where the used ring in guest memory ends. Chains are answered in order and none is kept over
    /// a stop, so that place is right whatever became of the device that served the ring before. The
    /// VMM's base may not be: Cloud Hypervisor's, after a reconnect, skips all that was never
    /// answered.
    ///
    /// Where the place is the used ring's, its last answers may never have been told: whoever gave
    /// them died, or gave the ring up, before it interrupted the driver. Linux waits for that without
    /// end (`tell_host`), so it is interrupted once, as libvhost-user does with each call descriptor.
    /// A driver that has seen them all finds nothing, which is harmless (virtio 1.3, 2.7.10.2).
    pub(crate) fn rebind(&mut self, table: &MemoryTable, features: u64) -> Result<(), BrokenRing> {
        let place = match &self.state {
            State::Stopped => return Ok(()),
            State::Ready(queue) => {
                self.next_available = queue.next_avail();
                Some(queue.next_used())
            }
            State::Broken => None,
        };
        self.work = Work::Waiting;
        self.state = State::Broken;
        let mut queue = self.bind(table, features)?;
        let used = match place {
            Some(used) => used,
            None => {
                let read = queue.used_idx(&table.memory(), Ordering::Acquire);
                table.restore_lost()?;
                let used = read.map_err(|_| BrokenRing::OutsideMemory)?.0;
                self.next_available = used;
                used
            }
        };
        queue.set_next_avail(self.next_available);
        queue.set_next_used(used);
        self.state = State::Ready(queue);
        if place.is_none() {
            // One that cannot be written to is found out by the next answer.
            _ = self.call();
        }
        Ok(())
    }

    fn bind(&self, table: &MemoryTable, features: u64) -> Result<Queue, BrokenRing> {
        let size = u16::try_from(self.size).ok().filter(|s| s.is_power_of_two() && *s <= SIZE_MAX);
        let size = size.ok_or(BrokenRing::Size(self.size))?;
        let addresses = self.addresses.ok_or(BrokenRing::NoAddresses)?;
        let find = |user| {
            table.translate(user).map(|gpa| GuestAddress(gpa.0)).ok_or(BrokenRing::Address(user))
        };
        let mut queue = Queue::new(size).map_err(BrokenRing::Misaligned)?;
        queue
            .try_set_desc_table_address(find(addresses.descriptors)?)
            .map_err(BrokenRing::Misaligned)?;
        queue
            .try_set_avail_ring_address(find(addresses.available)?)
            .map_err(BrokenRing::Misaligned)?;
        queue.try_set_used_ring_address(find(addresses.used)?).map_err(BrokenRing::Misaligned)?;
        queue.set_event_idx(features & RING_EVENT_IDX != 0);
        queue.set_ready(true);
        if queue.is_valid(&table.memory()) { Ok(queue) } else { Err(BrokenRing::OutsideMemory) }
    }

    /// Stops the ring and says where it stands. Both descriptors are closed: a start brings new
    /// ones.
    pub(crate) fn stop(&mut self) -> u16 {
        if let State::Ready(queue) = &self.state {
            self.next_available = queue.next_avail();
        }
        self.state = State::Stopped;
        self.kick = None;
        self.call = None;
        self.told = Told::Yes;
        self.work = Work::None;
        self.next_available
    }

    /// Gives the ring up until it is set up anew, keeping its place.
    pub(crate) fn give_up(&mut self) {
        if let State::Ready(queue) = &self.state {
            self.next_available = queue.next_avail();
            self.state = State::Broken;
        }
        self.work = Work::None;
    }

    /// The queue, if the ring runs.
    pub(crate) fn running(&mut self) -> Option<&mut Queue> {
        match &mut self.state {
            State::Ready(queue) if self.switch == Switch::On => Some(queue),
            _ => None,
        }
    }

    /// The queue, if there is one, running or not.
    pub(crate) fn queue(&mut self) -> Option<&mut Queue> {
        match &mut self.state {
            State::Ready(queue) => Some(queue),
            State::Stopped | State::Broken => None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.switch == Switch::On && self.has_place()
    }

    /// True while the device knows its place in the ring better than the VMM.
    pub(crate) fn has_place(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// How many chains of it were answered, modulo 2^16, where that is known.
    pub(crate) fn place(&self) -> Option<u16> {
        match &self.state {
            State::Ready(queue) => Some(queue.next_used()),
            State::Stopped | State::Broken => None,
        }
    }

    /// Started, but not enabled: a VMM that stops its device disables one ring after the other.
    pub(crate) fn is_halted(&self) -> bool {
        self.switch == Switch::Off && !matches!(self.state, State::Stopped)
    }

    /// When there is something to do.
    pub(crate) fn work_due(&self, now: Instant) -> Option<Instant> {
        match self.work {
            Work::None => None,
            Work::Waiting => Some(now),
            Work::Later(when) => Some(when),
        }
    }

    /// Where kicks arrive.
    pub(crate) fn kick_fd(&self) -> Option<&EventFd> {
        self.kick.as_ref()
    }

    /// A kick has arrived. A descriptor that cannot be read is dropped.
    pub(crate) fn kicked(&mut self) -> std::io::Result<()> {
        self.work = Work::Waiting;
        let drained = self.kick.as_ref().map_or(Ok(()), EventFd::drain);
        if drained.is_err() {
            self.kick = None;
        }
        drained
    }

    /// Interrupts the driver, or remembers that it is to be.
    pub(crate) fn call(&mut self) -> std::io::Result<()> {
        self.told = if self.call.is_some() { Told::Yes } else { Told::NotYet };
        self.call.as_ref().map_or(Ok(()), EventFd::signal)
    }
}
