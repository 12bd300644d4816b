//! Numbers and layouts of the vhost-user protocol (QEMU, docs/interop/vhost-user.rst), as far as a
//! balloon needs them. All fields are in the host's own byte order, as the protocol has it.

use memtide_balloon::QUEUES;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a message's header: request, flags, size of the payload.
pub(crate) const HEADER_LEN: usize = 12;

/// The protocol's version, the two lowest bits of the flags.
pub(crate) const VERSION: u32 = 1;
pub(crate) const VERSION_MASK: u32 = 0b11;

/// Flag: this is a reply.
pub(crate) const REPLY: u32 = 1 << 2;

/// Flag: the sender waits for an answer, also where the request has none of its own.
pub(crate) const NEED_REPLY: u32 = 1 << 3;

/// Largest configuration that is read or written at once. QEMU's largest is 256 bytes; a Cloud
/// Hypervisor guest can make the VMM ask for up to the 4 KiB of its BAR.
pub(crate) const CONFIG_MAX: usize = 4096;

/// Largest payload: a configuration and its head. A table of [`FDS_MAX`] regions is 1 KiB.
pub(crate) const PAYLOAD_MAX: usize = CONFIG_MAX + size_of::<ConfigHead>();

/// Regions in one memory table, and so descriptors that come with one message. QEMU sends 8 at most
/// (`VHOST_MEMORY_BASELINE_NREGIONS`), the vhost crate, and with it Cloud Hypervisor, 32
/// (`MAX_ATTACHED_FD_ENTRIES`).
pub(crate) const FDS_MAX: usize = 32;

/// Regions that the device takes one by one. Each costs a mapping; 509 is what other back-ends
/// offer (KVM's slots less three), so a VM that works with them works with this one.
pub(crate) const MEMORY_SLOTS_MAX: usize = 509;

/// Queue number in the payload of the KICK, CALL and ERR messages, and the flag that no descriptor
/// comes with it.
pub(crate) const VRING_INDEX_MASK: u64 = 0xff;
pub(crate) const VRING_NO_FD: u64 = 1 << 8;

/// Protocol features.
pub(crate) mod feature {
    pub(crate) const MQ: u64 = 1 << 0;
    pub(crate) const REPLY_ACK: u64 = 1 << 3;
    pub(crate) const BACKEND_REQ: u64 = 1 << 5;
    pub(crate) const CONFIG: u64 = 1 << 9;
    pub(crate) const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub(crate) const DEVICE_STATE: u64 = 1 << 19;
}

/// What this device offers of them. No INFLIGHT_SHMFD: nothing is ever in flight. No RESET_DEVICE:
/// QEMU's generic device never sends it, and a stop of all rings says the same. No STATUS: QEMU
/// would send `DRIVER_OK` at a start and 0 at a stop, also where the VM is only paused, so that it
/// tells nothing that the rings do not, for two more round trips.
pub(crate) const PROTOCOL_FEATURES: u64 = feature::MQ
    | feature::REPLY_ACK
    | feature::BACKEND_REQ
    | feature::CONFIG
    | feature::CONFIGURE_MEM_SLOTS
    | feature::DEVICE_STATE;

/// `VHOST_TRANSFER_STATE_DIRECTION_SAVE`, `_LOAD`: the device's state goes to the VMM, or comes
/// from it.
pub(crate) const DIRECTION_SAVE: u32 = 0;
pub(crate) const DIRECTION_LOAD: u32 = 1;

/// `VHOST_TRANSFER_STATE_PHASE_STOPPED`, the only phase: no ring runs.
pub(crate) const PHASE_STOPPED: u32 = 0;

/// Number of the request that is answered later than others.
pub(crate) const CHECK_DEVICE_STATE: u32 = 43;

/// In the reply to SET_DEVICE_STATE_FD: no descriptor comes with it, the VMM's is used.
pub(crate) const STATE_NO_FD: u64 = 1 << 8;

/// Number of a request that the device sends to the VMM: the configuration has changed.
pub(crate) const BACKEND_CONFIG_CHANGE: u32 = 2;

/// Number of a request that no VMM knows, and that begins with the same byte: see `notice`.
pub(crate) const BACKEND_NOTHING: u32 = 0x102;

/// A request of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    GetFeatures,
    SetFeatures,
    SetOwner,
    ResetOwner,
    SetMemTable,
    SetVringNum,
    SetVringAddr,
    SetVringBase,
    GetVringBase,
    SetVringKick,
    SetVringCall,
    SetVringErr,
    GetProtocolFeatures,
    SetProtocolFeatures,
    GetQueueNum,
    SetVringEnable,
    SetBackendReqFd,
    GetConfig,
    SetConfig,
    GetMaxMemSlots,
    AddMemReg,
    RemMemReg,
    SetDeviceStateFd,
    CheckDeviceState,
}

impl Request {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::GetFeatures,
            2 => Self::SetFeatures,
            3 => Self::SetOwner,
            4 => Self::ResetOwner,
            5 => Self::SetMemTable,
            8 => Self::SetVringNum,
            9 => Self::SetVringAddr,
            10 => Self::SetVringBase,
            11 => Self::GetVringBase,
            12 => Self::SetVringKick,
            13 => Self::SetVringCall,
            14 => Self::SetVringErr,
            15 => Self::GetProtocolFeatures,
            16 => Self::SetProtocolFeatures,
            17 => Self::GetQueueNum,
            18 => Self::SetVringEnable,
            21 => Self::SetBackendReqFd,
            24 => Self::GetConfig,
            25 => Self::SetConfig,
            36 => Self::GetMaxMemSlots,
            37 => Self::AddMemReg,
            38 => Self::RemMemReg,
            42 => Self::SetDeviceStateFd,
            CHECK_DEVICE_STATE => Self::CheckDeviceState,
            _ => return None,
        })
    }

    /// False for what a VMM may say while its device runs and goes on running. Anything else may
    /// belong to a stop or a start.
    pub(crate) fn may_stop(self) -> bool {
        let harmless = matches!(
            self,
            Self::GetConfig
                | Self::SetConfig
                | Self::SetMemTable
                | Self::AddMemReg
                | Self::RemMemReg
        );
        !harmless
    }

    /// The payload of the reply where a request that always has one is not carried out. A VMM that
    /// asked waits for it, so even a request that makes no sense gets as many bytes: zeros, or what
    /// says that it failed where that can be said. A failed GET_CONFIG is answered with an empty
    /// payload, as the protocol has it.
    pub(crate) fn refusal(self) -> Option<Vec<u8>> {
        match self {
            Self::GetFeatures
            | Self::GetProtocolFeatures
            | Self::GetQueueNum
            | Self::GetMaxMemSlots => Some(vec![0; size_of::<u64>()]),
            Self::GetVringBase => Some(vec![0; size_of::<VringState>()]),
            Self::GetConfig => Some(vec![]),
            Self::SetDeviceStateFd => Some((STATE_NO_FD | 1).as_bytes().to_vec()),
            Self::CheckDeviceState => Some(1_u64.as_bytes().to_vec()),
            _ => None,
        }
    }
}

/// Parameters of a transfer of the device's state.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct TransferParameters {
    pub(crate) direction: u32,
    pub(crate) phase: u32,
}

/// Head of every message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) request: u32,
    pub(crate) flags: u32,
    pub(crate) size: u32,
}

/// A number about one queue.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct VringState {
    pub(crate) index: u32,
    pub(crate) num: u32,
}

/// Where a queue's parts lie, in addresses of the VMM.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct VringAddr {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) descriptors: u64,
    pub(crate) used: u64,
    pub(crate) available: u64,
    pub(crate) log: u64,
}

/// One region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MemoryRegion {
    pub(crate) guest_address: u64,
    pub(crate) size: u64,
    pub(crate) user_address: u64,
    pub(crate) mmap_offset: u64,
}

/// Head of a memory table; the regions follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MemoryHead {
    pub(crate) regions: u32,
    pub(crate) padding: u32,
}

/// One region that is added or removed.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SingleRegion {
    pub(crate) padding: u64,
    pub(crate) region: MemoryRegion,
}

/// Head of a configuration access; the bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ConfigHead {
    pub(crate) offset: u32,
    pub(crate) size: u32,
    pub(crate) flags: u32,
}

const _: () = assert!(size_of::<MemoryHead>() + FDS_MAX * size_of::<MemoryRegion>() <= PAYLOAD_MAX);
const _: () = assert!(QUEUES as u64 <= VRING_INDEX_MASK);
