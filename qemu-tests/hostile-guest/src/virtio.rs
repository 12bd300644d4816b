//! A virtio PCI function, as far as one must know it to misuse it (virtio 1.3, 4.1.4.3 and 2.7).

use crate::layout::{BUFFERS, PAGE, RINGS};
use crate::machine::{barrier, read, ticks, write};
use crate::pci::{Function, Structures};

/// Device status bits.
pub(crate) const ACKNOWLEDGE: u8 = 1;
pub(crate) const DRIVER: u8 = 2;
pub(crate) const DRIVER_OK: u8 = 4;
pub(crate) const FEATURES_OK: u8 = 8;

pub(crate) const VERSION_1: u64 = 1 << 32;
/// The page number of a page; a request's size for a descriptor.
pub(crate) const PFN_BYTES: u32 = 4;

/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Entries of every queue that is set up in a sane way.
pub(crate) const SIZE: u16 = 128;
/// Queues of the device: five standard ones and the block queue.
pub(crate) const QUEUES: u16 = 6;

/// How long to wait for an answer that may never come: some milliseconds.
const PATIENCE: u64 = 4_000_000;
/// How long to wait for one that must come: seconds.
const TRUST: u64 = 20_000_000_000;

/// Offsets of the common configuration structure.
pub(crate) mod common {
    pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(crate) const DEVICE_FEATURE: u64 = 4;
    pub(crate) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(crate) const DRIVER_FEATURE: u64 = 12;
    pub(crate) const CONFIG_MSIX_VECTOR: u64 = 16;
    pub(crate) const STATUS: u64 = 20;
    pub(crate) const QUEUE_SELECT: u64 = 22;
    pub(crate) const QUEUE_SIZE: u64 = 24;
    pub(crate) const QUEUE_MSIX_VECTOR: u64 = 26;
    pub(crate) const QUEUE_ENABLE: u64 = 28;
    pub(crate) const QUEUE_NOTIFY_OFF: u64 = 30;
    pub(crate) const QUEUE_DESC: u64 = 32;
    pub(crate) const QUEUE_DRIVER: u64 = 40;
    pub(crate) const QUEUE_DEVICE: u64 = 48;
}

/// Where the three parts of a queue are said to be.
#[derive(Clone, Copy)]
pub(crate) struct Rings {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

impl Rings {
    /// A place for each queue's rings, away from the others'.
    pub(crate) fn of(queue: u16) -> Self {
        let base = RINGS + u64::from(queue) * 16 * PAGE;
        Self { descriptors: base, available: base + 4 * PAGE, used: base + 8 * PAGE }
    }

    /// Makes all three parts empty.
    pub(crate) fn clear(self) {
        for at in (self.descriptors..self.descriptors + 12 * PAGE).step_by(8) {
            write(at, 0_u64);
        }
    }

    /// Writes a descriptor.
    pub(crate) fn describe(self, index: u16, (address, length): (u64, u32), flags: u16, next: u16) {
        let at = self.descriptors + 16 * u64::from(index);
        write(at, address);
        write(at + 8, length);
        write(at + 12, flags);
        write(at + 14, next);
    }

    /// Makes a chain available, and says so.
    pub(crate) fn offer(self, head: u16) {
        let index: u16 = read(self.available + 2);
        write(self.available + 4 + 2 * u64::from(index % SIZE), head);
        barrier();
        write(self.available + 2, index.wrapping_add(1));
    }

    /// Says that so many more are available, whatever is in the ring.
    pub(crate) fn jump(self, by: u16) {
        let index: u16 = read(self.available + 2);
        barrier();
        write(self.available + 2, index.wrapping_add(by));
    }

    /// How many were used, as the device says.
    pub(crate) fn used(self) -> u16 {
        read(self.used + 2)
    }
}

/// The balloon.
#[derive(Clone, Copy)]
pub(crate) struct Balloon {
    pub(crate) function: Function,
    pub(crate) at: Structures,
}

impl Balloon {
    /// Finds it.
    pub(crate) fn find() -> Option<Self> {
        let function = Function::balloon()?;
        function.enable();
        let at = function.structures();
        (at.common.address != 0 && at.device.address != 0).then_some(Self { function, at })
    }

    pub(crate) fn common(&self, offset: u64) -> u64 {
        self.at.common.address + offset
    }

    pub(crate) fn status(&self) -> u8 {
        read(self.common(common::STATUS))
    }

    pub(crate) fn set_status(&self, status: u8) {
        write(self.common(common::STATUS), status);
    }

    /// Resets the device, and waits until it is; false where that never ends.
    pub(crate) fn reset(&self) -> bool {
        self.set_status(0);
        wait(TRUST, || self.status() == 0)
    }

    /// What the device offers.
    pub(crate) fn offered(&self) -> u64 {
        let half = |select: u32| {
            write(self.common(common::DEVICE_FEATURE_SELECT), select);
            u64::from(read::<u32>(self.common(common::DEVICE_FEATURE)))
        };
        (half(1) << 32) | half(0)
    }

    /// Wants these features, offered or not.
    pub(crate) fn want(&self, features: u64) {
        for (select, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            write(self.common(common::DRIVER_FEATURE_SELECT), select);
            write(self.common(common::DRIVER_FEATURE), half);
        }
    }

    /// From reset to FEATURES_OK with what is both offered and wanted.
    pub(crate) fn negotiate(&self, wanted: u64) -> bool {
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        self.want(self.offered() & wanted);
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    /// Names a queue's parts and its size, without enabling it.
    pub(crate) fn place(&self, queue: u16, rings: Rings, size: u16) {
        write(self.common(common::QUEUE_SELECT), queue);
        write(self.common(common::QUEUE_SIZE), size);
        let parts = [
            (common::QUEUE_DESC, rings.descriptors),
            (common::QUEUE_DRIVER, rings.available),
            (common::QUEUE_DEVICE, rings.used),
        ];
        for (offset, address) in parts {
            write(self.common(offset), address as u32);
            write(self.common(offset) + 4, (address >> 32) as u32);
        }
    }

    pub(crate) fn enable(&self, queue: u16) {
        write(self.common(common::QUEUE_SELECT), queue);
        write(self.common(common::QUEUE_ENABLE), 1_u16);
    }

    /// A queue as it should be.
    pub(crate) fn set_up(&self, queue: u16) -> Rings {
        let rings = Rings::of(queue);
        rings.clear();
        self.place(queue, rings, SIZE);
        self.enable(queue);
        rings
    }

    pub(crate) fn go(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Reset, negotiated, all queues as they should be, running.
    pub(crate) fn start(&self, wanted: u64) {
        self.reset();
        self.negotiate(wanted | VERSION_1);
        for queue in 0..QUEUES {
            self.set_up(queue);
        }
        self.go();
    }

    /// Tells the device to look at a queue.
    pub(crate) fn notify(&self, queue: u16) {
        write(self.common(common::QUEUE_SELECT), queue);
        let place: u16 = read(self.common(common::QUEUE_NOTIFY_OFF));
        let offset = u64::from(place) * self.at.notify_multiplier;
        barrier();
        write(self.at.notify.address + offset, queue);
    }

    /// Tells it, and gives it a little time to answer.
    pub(crate) fn poke(&self, queue: u16, rings: Rings) {
        let before = rings.used();
        self.notify(queue);
        wait(PATIENCE, || rings.used() != before);
    }
}

/// A request of page numbers, sent as it should be; false where it is never answered.
pub(crate) fn send_pages(balloon: &Balloon, queue: u16, first: u64, count: u32) -> bool {
    let rings = Rings::of(queue);
    for number in 0..count {
        let pfn = (first / PAGE) as u32 + number;
        write(BUFFERS + u64::from(PFN_BYTES * number), pfn);
    }
    rings.describe(0, (BUFFERS, PFN_BYTES * count), 0, 0);
    let before = rings.used();
    rings.offer(0);
    balloon.notify(queue);
    wait(TRUST, || rings.used() == before.wrapping_add(1))
}

/// Waits until `done`, for so many ticks at most.
pub(crate) fn wait(ticks_max: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = ticks();
    while !done() {
        if ticks().wrapping_sub(start) > ticks_max {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}
