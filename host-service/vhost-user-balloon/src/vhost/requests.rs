//! What each message of the VMM does.

use std::os::fd::OwnedFd;

use memtide_balloon::{Balloon, MemoryPart, QUEUES, Rings, StateError};
use memtide_units::Instant;
use memtide_wire::features::PROTOCOL_FEATURES as PROTOCOL_FEATURES_BIT;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::eventfd::EventFd;
use super::memory::{MemoryError, MemoryTable};
use super::message::{Defect, Message};
use super::notice::NoticeChannel;
use super::protocol::{
    CONFIG_MAX, ConfigHead, DIRECTION_LOAD, DIRECTION_SAVE, MEMORY_SLOTS_MAX, MemoryHead,
    MemoryRegion, PHASE_STOPPED, PROTOCOL_FEATURES, Request, STATE_NO_FD, SingleRegion,
    TransferParameters, VRING_INDEX_MASK, VRING_NO_FD, VringAddr, VringState,
};
use super::session::{Session, note_bound};
use super::transfer::{Transfer, TransferError};
use super::vring::{Switch, Work};

/// Why a message of the VMM is not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Rejected {
    #[error(transparent)]
    Defect(#[from] Defect),
    #[error("the request {0} is not one that this device knows")]
    Unsupported(u32),
    #[error("its payload has {0} bytes, not {1}")]
    Size(usize, usize),
    #[error("{0} file descriptors came with it, not {1}")]
    Fds(usize, usize),
    #[error("there is no queue {0}: the device has {QUEUES}")]
    NoSuchQueue(u64),
    #[error("the queue {0} runs: its size and place are set while it is stopped")]
    Running(usize),
    #[error("the memory is not accepted: {0}")]
    Memory(#[from] MemoryError),
    #[error("the device's state is not transferred: {0}")]
    Transfer(#[from] TransferError),
    #[error("there is no transfer of direction {0} in phase {1}")]
    NoSuchTransfer(u32, u32),
    #[error("a descriptor is not usable: {0}")]
    Descriptor(#[from] std::io::Error),
}

/// The payload of a reply, for requests that have one.
type Reply = Result<Option<Vec<u8>>, Rejected>;

impl Session {
    pub(super) fn handle(
        &mut self,
        request: Request,
        message: Message,
        balloon: &mut Balloon,
        now: Instant,
    ) -> Reply {
        if let Some(defect) = message.defect {
            if request == Request::SetMemTable {
                self.forget_memory(balloon, now);
            }
            return Err(defect.into());
        }
        match request {
            Request::GetFeatures => reply(balloon.offered_features() | PROTOCOL_FEATURES_BIT),
            Request::GetProtocolFeatures => reply(PROTOCOL_FEATURES),
            Request::GetQueueNum => reply(QUEUES as u64),
            Request::GetMaxMemSlots => reply(MEMORY_SLOTS_MAX as u64),
            // Ownership means nothing here, and RESET_OWNER is no longer sent by anybody.
            Request::SetOwner | Request::ResetOwner => Ok(None),
            Request::SetFeatures => self.set_features(&message, balloon),
            Request::SetProtocolFeatures => {
                self.protocol_features = number(&message)? & PROTOCOL_FEATURES;
                Ok(None)
            }
            Request::SetBackendReqFd => {
                self.notices = Some(NoticeChannel::new(one_fd(message)?));
                Ok(None)
            }
            Request::GetConfig => get_config(&message, balloon),
            Request::SetConfig => set_config(&message, balloon),
            Request::SetMemTable => {
                let table =
                    whole_table(message).inspect_err(|_| self.forget_memory(balloon, now))?;
                self.table = table;
                self.memory_changed(balloon, now);
                Ok(None)
            }
            Request::AddMemReg | Request::RemMemReg => {
                self.change_memory(request, message)?;
                self.memory_changed(balloon, now);
                Ok(None)
            }
            Request::SetDeviceStateFd => self.begin_transfer(message, balloon, now),
            _ => self.handle_ring(request, message, balloon, now),
        }
    }

    /// Begins to hand the device's state over, or to take it. One that had begun is given up.
    fn begin_transfer(&mut self, message: Message, balloon: &mut Balloon, now: Instant) -> Reply {
        self.transfer = None;
        let wanted: TransferParameters = payload(&message)?;
        let channel = one_fd(message)?;
        if balloon.rings() != Rings::Stopped {
            return Err(TransferError::from(StateError::Running).into());
        }
        let transfer = match (wanted.direction, wanted.phase) {
            (DIRECTION_SAVE, PHASE_STOPPED) => Transfer::save(channel, balloon.save_state(), now)?,
            (DIRECTION_LOAD, PHASE_STOPPED) => Transfer::load(channel, now)?,
            (direction, phase) => return Err(Rejected::NoSuchTransfer(direction, phase)),
        };
        self.transfer = Some(transfer);
        reply(STATE_NO_FD)
    }

    fn set_features(&mut self, message: &Message, balloon: &mut Balloon) -> Reply {
        let acked = number(message)?;
        // Queues may change their roles with the features.
        (0..QUEUES).for_each(|index| self.untake(index, balloon));
        balloon.set_features(acked & balloon.offered_features());
        if acked & PROTOCOL_FEATURES_BIT == 0 {
            // Without protocol features there is no SET_VRING_ENABLE: rings run once started.
            self.rings.iter_mut().for_each(|ring| ring.switch = Switch::On);
        }
        Ok(None)
    }

    fn change_memory(&mut self, request: Request, message: Message) -> Result<(), Rejected> {
        match request {
            Request::AddMemReg => {
                let single: SingleRegion = payload(&message)?;
                self.table.add(single.region, one_fd(message)?)?;
            }
            // A descriptor may come with it (older QEMUs send one) and is closed.
            _ => self.table.remove(payload::<SingleRegion>(&message)?.region)?,
        }
        Ok(())
    }

    /// A new table was refused. The old one is not the VMM's map of its guest any more, and QEMU goes
    /// on with its own: what was dropped by the old one might be another page. Rings wait for memory
    /// until a good table comes.
    fn forget_memory(&mut self, balloon: &mut Balloon, now: Instant) {
        self.table = MemoryTable::default();
        self.memory_changed(balloon, now);
    }

    fn memory_changed(&mut self, balloon: &mut Balloon, now: Instant) {
        balloon.set_memory_parts(self.table.regions().iter().map(|region| MemoryPart {
            range: region.range(),
            unit: region.backing().unit(),
            file_offset: region.file_offset(),
        }));
        for index in 0..QUEUES {
            self.rebind(index, balloon, now);
        }
    }

    fn handle_ring(
        &mut self,
        request: Request,
        message: Message,
        balloon: &mut Balloon,
        now: Instant,
    ) -> Reply {
        match request {
            Request::SetVringKick | Request::SetVringCall | Request::SetVringErr => {
                self.set_descriptor(request, message, balloon, now)
            }
            Request::SetVringAddr => {
                no_fds(&message)?;
                let addresses: VringAddr = payload(&message)?;
                let index = index(u64::from(addresses.index))?;
                self.rings[index].set_addresses(addresses);
                self.rebind(index, balloon, now);
                Ok(None)
            }
            _ => {
                no_fds(&message)?;
                let state: VringState = payload(&message)?;
                self.set_ring_state(request, state, balloon)
            }
        }
    }

    fn set_ring_state(
        &mut self,
        request: Request,
        state: VringState,
        balloon: &mut Balloon,
    ) -> Reply {
        let index = index(u64::from(state.index))?;
        match request {
            Request::SetVringNum | Request::SetVringBase if self.rings[index].has_place() => {
                return Err(Rejected::Running(index));
            }
            Request::SetVringNum => self.rings[index].set_size(state.num),
            Request::SetVringBase => self.rings[index].set_base(state.num),
            Request::SetVringEnable if state.num == 0 => {
                self.untake(index, balloon);
                self.rings[index].switch = Switch::Off;
            }
            Request::SetVringEnable => {
                self.rings[index].switch = Switch::On;
                self.rings[index].work = Work::Waiting;
            }
            // GET_VRING_BASE. Nothing is in flight after this: see the documentation of the session.
            _ => {
                self.untake(index, balloon);
                let num = u32::from(self.rings[index].stop());
                return Ok(Some(VringState { num, ..state }.as_bytes().to_vec()));
            }
        }
        Ok(None)
    }

    fn set_descriptor(
        &mut self,
        request: Request,
        message: Message,
        balloon: &mut Balloon,
        now: Instant,
    ) -> Reply {
        let word = number(&message)?;
        let index = index(word & VRING_INDEX_MASK)?;
        let fd = if word & VRING_NO_FD == 0 {
            Some(EventFd::new(one_fd(message)?)?)
        } else {
            no_fds(&message)?;
            None
        };
        match request {
            Request::SetVringKick => {
                self.untake(index, balloon);
                let bound = self.rings[index].start(fd, &self.table, balloon.features());
                note_bound(bound, index, balloon, now);
            }
            Request::SetVringCall => self.rings[index].set_call(fd)?,
            // Errors are told in the log. The descriptor is closed.
            _ => {}
        }
        Ok(None)
    }
}

fn reply(value: u64) -> Reply {
    Ok(Some(value.as_bytes().to_vec()))
}

/// The payload as one structure, which it must be exactly.
fn payload<T: FromBytes + Immutable + KnownLayout>(message: &Message) -> Result<T, Rejected> {
    T::read_from_bytes(&message.payload)
        .map_err(|_| Rejected::Size(message.payload.len(), size_of::<T>()))
}

fn number(message: &Message) -> Result<u64, Rejected> {
    payload(message)
}

fn index(number: u64) -> Result<usize, Rejected> {
    usize::try_from(number)
        .ok()
        .filter(|index| *index < QUEUES)
        .ok_or(Rejected::NoSuchQueue(number))
}

fn one_fd(message: Message) -> Result<OwnedFd, Rejected> {
    let [fd] = <[OwnedFd; 1]>::try_from(message.fds).map_err(|fds| Rejected::Fds(fds.len(), 1))?;
    Ok(fd)
}

fn no_fds(message: &Message) -> Result<(), Rejected> {
    if message.fds.is_empty() { Ok(()) } else { Err(Rejected::Fds(message.fds.len(), 0)) }
}

/// A memory table: its head, its regions, and one descriptor for each.
fn whole_table(message: Message) -> Result<MemoryTable, Rejected> {
    let len = message.payload.len();
    let (head, rest) = MemoryHead::read_from_prefix(&message.payload)
        .map_err(|_| Rejected::Size(len, size_of::<MemoryHead>()))?;
    let count = head.regions as usize;
    let wanted = size_of::<MemoryRegion>().saturating_mul(count);
    if rest.len() != wanted {
        return Err(Rejected::Size(len, wanted.saturating_add(size_of::<MemoryHead>())));
    }
    if message.fds.len() != count {
        return Err(Rejected::Fds(message.fds.len(), count));
    }
    let regions = rest
        .chunks_exact(size_of::<MemoryRegion>())
        .filter_map(|chunk| MemoryRegion::read_from_bytes(chunk).ok());
    Ok(MemoryTable::new(regions.zip(message.fds))?)
}

/// Answers with exactly the bytes that were asked for: a short answer, or none, stops a Cloud
/// Hypervisor VM, and its guest chooses offset and length. The bytes behind the head are room for
/// the answer; a VMM that leaves them out is answered all the same.
fn get_config(message: &Message, balloon: &Balloon) -> Reply {
    let (head, room) = ConfigHead::read_from_prefix(&message.payload)
        .map_err(|_| Rejected::Size(message.payload.len(), size_of::<ConfigHead>()))?;
    let size = head.size as usize;
    if size > CONFIG_MAX {
        return Err(Rejected::Size(room.len(), size));
    }
    let mut answer = head.as_bytes().to_vec();
    let start = answer.len();
    answer.resize(start + size, 0);
    balloon.read_config(head.offset as usize, &mut answer[start..]);
    Ok(Some(answer))
}

/// Takes what may be written and ignores the rest: no error for whatever a guest can cause.
fn set_config(message: &Message, balloon: &mut Balloon) -> Reply {
    let (head, bytes) = ConfigHead::read_from_prefix(&message.payload)
        .map_err(|_| Rejected::Size(message.payload.len(), size_of::<ConfigHead>()))?;
    let stated = bytes.len().min(head.size as usize);
    balloon.write_config(head.offset as usize, &bytes[..stated]);
    Ok(None)
}
