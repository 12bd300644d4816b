//! The virtio PCI transport: status, features, queue set-up, device configuration.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use memtide_wire::config::CONFIG_LEN;
use memtide_wire::features;

use super::caps::{Layout, Place};
use super::mmio::{Registers, Window};

/// Offsets in the common configuration structure (virtio 1.3, 4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0;
    pub(super) const DEVICE_FEATURE: usize = 4;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 8;
    pub(super) const DRIVER_FEATURE: usize = 12;
    pub(super) const NUM_QUEUES: usize = 18;
    pub(super) const DEVICE_STATUS: usize = 20;
    pub(super) const CONFIG_GENERATION: usize = 21;
    pub(super) const QUEUE_SELECT: usize = 22;
    pub(super) const QUEUE_SIZE: usize = 24;
    pub(super) const QUEUE_ENABLE: usize = 28;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 30;
    pub(super) const QUEUE_DESC: usize = 32;
    pub(super) const QUEUE_DRIVER: usize = 40;
    pub(super) const QUEUE_DEVICE: usize = 48;
    pub(super) const LEN: usize = 56;
}

/// Device status bits (virtio 1.3, 2.1).
mod status {
    pub(super) const ACKNOWLEDGE: u8 = 1;
    pub(super) const DRIVER: u8 = 2;
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
    pub(super) const NEEDS_RESET: u8 = 0x40;
    pub(super) const FAILED: u8 = 0x80;
}

/// A reset that takes longer has failed: a running device was measured at 0.3 to 2.4 ms, and one
/// whose back end finishes a long request first at 774 ms.
pub const RESET_DEADLINE: Duration = Duration::from_secs(5);
/// How long to sleep between two looks at the status during a reset.
const RESET_PAUSE: Duration = Duration::from_micros(200);
/// A configuration that changes under ten readings in a row is not going to hold still.
const CONFIG_ATTEMPTS: u32 = 10;

/// Why the device cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A structure lies outside its BAR, is shorter than its fields, or lies so that they would be
    /// off their boundaries.
    #[error("the device's {what} structure ({place:?}) does not lie in its BAR as it must")]
    Place {
        /// Which structure.
        what: &'static str,
        /// Where it is said to lie.
        place: Place,
    },
    /// A BAR cannot be mapped.
    #[error("BAR {bar} of the balloon cannot be mapped: {source}")]
    Map {
        /// Which.
        bar: u8,
        /// What the kernel said.
        source: io::Error,
    },
    /// The status did not read back 0.
    #[error("the device did not finish a reset in time (its status stayed {0:#04x})")]
    ResetStuck(u8),
    /// The device is not of virtio 1.0 or later.
    #[error(
        "the device offers no VIRTIO_F_VERSION_1 (features {0:#x}): legacy devices cannot be driven"
    )]
    NotModern(u64),
    /// It accepted less than this driver needs.
    #[error("the device refused the features {0:#x}: does it insist on an IOMMU (iommu_platform)?")]
    FeaturesRefused(u64),
    /// The block queue's index is beyond the device's queues.
    #[error(
        "the device has {queues} virtqueues and the block queue is number {index}: give the device more (QEMU: num_vqs=6)"
    )]
    NoQueue {
        /// The block queue's index.
        index: u16,
        /// How many queues the device has.
        queues: u16,
    },
    /// The block queue has too few entries.
    #[error(
        "queue {index} has {size} entries, and the block queue needs {needed}: give the device longer queues (QEMU: vq_size=128)"
    )]
    QueueShort {
        /// The block queue's index.
        index: u16,
        /// Its entries.
        size: u16,
        /// Entries of the longest chain, rounded up.
        needed: u16,
    },
    /// The configuration kept changing.
    #[error(
        "the device's configuration changed while it was read, {CONFIG_ATTEMPTS} times in a row"
    )]
    Unsteady,
}

/// Where a queue's three parts lie, as guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring ("driver area").
    pub avail: u64,
    /// Used ring ("device area").
    pub used: u64,
}

/// A queue that is set up; names the place to notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    queue: u16,
    at: usize,
}

/// The device's registers.
#[derive(Debug)]
pub struct Transport {
    common: Window,
    notify: Window,
    notify_multiplier: u32,
    isr: Window,
    device: Window,
}

impl Transport {
    /// Maps the BARs of `layout` with `map`, each once.
    ///
    /// # Errors
    /// [`TransportError::Map`], [`TransportError::Place`].
    pub fn open(
        layout: &Layout,
        map: impl Fn(u8) -> io::Result<Rc<dyn Registers>>,
    ) -> Result<Self, TransportError> {
        let mut bars: BTreeMap<u8, Rc<dyn Registers>> = BTreeMap::new();
        // `least` bytes, on a multiple of `boundary` (virtio 1.3, 4.1.4.3 to 4.1.4.6).
        let mut window = |what, place: Place, least: usize, boundary: u32| {
            let registers = match bars.get(&place.bar) {
                Some(registers) => Rc::clone(registers),
                None => {
                    let bar = place.bar;
                    let mapped = map(bar).map_err(|source| TransportError::Map { bar, source })?;
                    bars.insert(bar, Rc::clone(&mapped));
                    mapped
                }
            };
            let wrong = TransportError::Place { what, place };
            let (Ok(offset), Ok(len)) = (place.offset.try_into(), place.length.try_into()) else {
                return Err(wrong);
            };
            let window = Window::new(registers, offset, len);
            let is_usable =
                |window: &Window| window.size() >= least && place.offset.is_multiple_of(boundary);
            window.filter(is_usable).ok_or(wrong)
        };
        Ok(Self {
            common: window("common configuration", layout.common, common::LEN, 4)?,
            notify: window("notification", layout.notify, 2, 2)?,
            notify_multiplier: layout.notify_multiplier,
            isr: window("interrupt status", layout.isr, 1, 1)?,
            device: window("device configuration", layout.device, 4, 4)?,
        })
    }

    /// Stops the device, and waits up to `deadline` ([`RESET_DEADLINE`] outside tests) until it has stopped: once this returns it reads and writes no
    /// memory of ours any more, and carries out no request that it was given.
    ///
    /// # Errors
    /// [`TransportError::ResetStuck`]: then nothing is known, and memory must not be reused.
    pub fn reset(&self, deadline: Duration) -> Result<(), TransportError> {
        self.common.write_u8(common::DEVICE_STATUS, 0);
        let started = Instant::now();
        loop {
            match self.status() {
                0 => return Ok(()),
                status if started.elapsed() > deadline => {
                    return Err(TransportError::ResetStuck(status));
                }
                _ => std::thread::sleep(RESET_PAUSE),
            }
        }
    }

    fn status(&self) -> u8 {
        self.common.read_u8(common::DEVICE_STATUS)
    }

    fn add_status(&self, bits: u8) {
        self.common.write_u8(common::DEVICE_STATUS, self.status() | bits);
    }

    /// True where the device says that it has failed, or has been reset behind our back (bus
    /// mastering cleared by somebody who closed the uio device too).
    pub fn is_broken(&self) -> bool {
        let status = self.status();
        status & status::NEEDS_RESET != 0 || status & status::DRIVER_OK == 0
    }

    /// After a reset: says that a driver is there, and takes VERSION_1 and what the device offers of
    /// `wanted`. Answers with what was taken.
    ///
    /// # Errors
    /// [`TransportError::NotModern`], [`TransportError::FeaturesRefused`].
    pub fn negotiate(&self, wanted: u64) -> Result<u64, TransportError> {
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        let offered = self.device_features();
        if offered & features::VERSION_1 == 0 {
            self.add_status(status::FAILED);
            return Err(TransportError::NotModern(offered));
        }
        let taken = offered & (wanted | features::VERSION_1);
        for half in 0..2_u32 {
            self.common.write_u32(common::DRIVER_FEATURE_SELECT, half);
            self.common.write_u32(common::DRIVER_FEATURE, (taken >> (32 * half)) as u32);
        }
        self.add_status(status::FEATURES_OK);
        if self.status() & status::FEATURES_OK == 0 {
            self.add_status(status::FAILED);
            return Err(TransportError::FeaturesRefused(taken));
        }
        Ok(taken)
    }

    fn device_features(&self) -> u64 {
        let half = |select: u32| {
            self.common.write_u32(common::DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.read_u32(common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// How many entries queue `index` may have.
    ///
    /// # Errors
    /// [`TransportError::NoQueue`].
    pub fn queue_size_max(&self, index: u16) -> Result<u16, TransportError> {
        let queues = self.common.read_u16(common::NUM_QUEUES);
        let missing = TransportError::NoQueue { index, queues };
        if index >= queues {
            return Err(missing);
        }
        self.common.write_u16(common::QUEUE_SELECT, index);
        match self.common.read_u16(common::QUEUE_SIZE) {
            0 => Err(missing),
            size => Ok(size),
        }
    }

    /// Sets queue `index` up and enables it.
    ///
    /// # Errors
    /// [`TransportError::Place`] where its doorbell lies outside the notification structure, or off
    /// its boundary.
    pub fn enable_queue(
        &self,
        index: u16,
        size: u16,
        addresses: QueueAddresses,
    ) -> Result<Doorbell, TransportError> {
        self.common.write_u16(common::QUEUE_SELECT, index);
        self.common.write_u16(common::QUEUE_SIZE, size);
        self.common.write_u64(common::QUEUE_DESC, addresses.desc);
        self.common.write_u64(common::QUEUE_DRIVER, addresses.avail);
        self.common.write_u64(common::QUEUE_DEVICE, addresses.used);
        let offset = u32::from(self.common.read_u16(common::QUEUE_NOTIFY_OFF));
        let at = offset.saturating_mul(self.notify_multiplier) as usize;
        if at.saturating_add(2) > self.notify.size() || !at.is_multiple_of(2) {
            let place = Place { bar: 0, offset, length: self.notify_multiplier };
            return Err(TransportError::Place { what: "queue notification", place });
        }
        self.common.write_u16(common::QUEUE_ENABLE, 1);
        Ok(Doorbell { queue: index, at })
    }

    /// Everything is set up: the device may start.
    pub fn driver_ok(&self) {
        self.add_status(status::DRIVER_OK);
    }

    /// Tells the device that the queue has something for it.
    pub fn ring(&self, doorbell: Doorbell) {
        self.notify.write_u16(doorbell.at, doorbell.queue);
    }

    /// Reads the interrupt status, which clears it and lowers the line. What it says is no proof of
    /// anything: after any interrupt, look at the ring and at the configuration.
    pub fn acknowledge_interrupt(&self) -> u8 {
        self.isr.read_u8(0)
    }

    /// One 32-bit field of the device's configuration, or `None` where it has no such bytes.
    /// A single aligned field needs no look at the generation.
    pub fn config_u32(&self, offset: usize) -> Option<u32> {
        (offset + 4 <= self.device.size()).then(|| self.device.read_u32(offset))
    }

    /// Writes one 32-bit field of the device's configuration, where it has such bytes.
    pub fn set_config_u32(&self, offset: usize, value: u32) {
        if offset + 4 <= self.device.size() {
            self.device.write_u32(offset, value);
        }
    }

    /// The device's whole configuration, as much of [`CONFIG_LEN`] as there is, at one point in
    /// time. Under vhost-user each access is a question to the back end (44-54 us): use it once,
    /// and [`Self::config_u32`] after.
    ///
    /// # Errors
    /// [`TransportError::Unsteady`].
    pub fn config(&self) -> Result<Vec<u8>, TransportError> {
        let generation = || self.common.read_u8(common::CONFIG_GENERATION);
        for _ in 0..CONFIG_ATTEMPTS {
            let before = generation();
            let words = self.device.size().min(CONFIG_LEN) / 4;
            let bytes = (0..words).flat_map(|word| self.word(4 * word)).collect();
            if generation() == before {
                return Ok(bytes);
            }
        }
        Err(TransportError::Unsteady)
    }

    /// Four bytes of configuration, by accesses as wide as the fields: `version` and `block_queue`
    /// of the extension have 16 bits, all others 32.
    fn word(&self, offset: usize) -> [u8; 4] {
        if offset == VERSION_OFFSET {
            let low = u32::from(self.device.read_u16(offset));
            let high = u32::from(self.device.read_u16(offset + 2));
            return (low | high << 16).to_le_bytes();
        }
        self.device.read_u32(offset).to_le_bytes()
    }
}

/// Where the extension's two 16-bit fields stand.
const VERSION_OFFSET: usize = 20;

#[cfg(test)]
mod tests {
    use super::super::fake::FakeDevice;
    use super::*;
    use memtide_wire::config::Extension;

    #[test]
    fn a_device_is_started_step_by_step() {
        let fake = FakeDevice::new();
        let transport = fake.transport();
        transport.reset(RESET_DEADLINE).unwrap();
        assert_eq!(transport.negotiate(features::MUST_TELL_HOST).unwrap(), features::VERSION_1);
        assert_eq!(transport.queue_size_max(5).unwrap(), 128);
        let addresses = QueueAddresses { desc: 0x1_0000_1000, avail: 0x1800, used: 0x1a00 };
        transport.enable_queue(5, 128, addresses).unwrap();
        transport.driver_ok();
        assert_eq!(fake.status(), 0x0f);
        assert_eq!(fake.driver_features(), features::VERSION_1);
        assert_eq!(fake.queue(5), Some((128, addresses)));
        assert!(!transport.is_broken());
    }

    #[test]
    fn the_configuration_holds_the_extension() {
        let fake = FakeDevice::new();
        let config = fake.transport().config().unwrap();
        assert_eq!(config.len(), CONFIG_LEN);
        assert_eq!(Extension::find(&config).unwrap().block_queue.get(), 5);
    }

    #[test]
    fn what_the_device_lacks_is_named() {
        let fake = FakeDevice::new();
        let transport = fake.transport();
        let queues = transport.queue_size_max(6).unwrap_err().to_string();
        assert!(queues.contains("num_vqs=6"), "{queues}");
        fake.offer(features::STATS_VQ);
        assert!(matches!(transport.negotiate(0), Err(TransportError::NotModern(_))));
        fake.offer(features::VERSION_1);
        fake.refuse_features();
        transport.reset(RESET_DEADLINE).unwrap();
        assert!(matches!(transport.negotiate(0), Err(TransportError::FeaturesRefused(_))));
    }

    #[test]
    fn a_structure_outside_its_bar_is_refused() {
        let fake = FakeDevice::new();
        let mut layout = fake.layout();
        layout.notify.offset = 0x3fff;
        let opened = Transport::open(&layout, |_| Ok(fake.registers()));
        assert!(matches!(opened, Err(TransportError::Place { what: "notification", .. })));
        layout = fake.layout();
        layout.common.length = 20;
        assert!(Transport::open(&layout, |_| Ok(fake.registers())).is_err());
    }

    #[test]
    fn a_structure_off_its_boundary_is_refused() {
        let fake = FakeDevice::new();
        let good = fake.layout();
        let moved = |place: Place| Place { offset: place.offset + 1, length: 0x100, ..place };
        for layout in [
            Layout { common: moved(good.common), ..good },
            Layout { notify: moved(good.notify), ..good },
            Layout { device: moved(good.device), ..good },
        ] {
            let opened = Transport::open(&layout, |_| Ok(fake.registers()));
            assert!(matches!(opened, Err(TransportError::Place { .. })), "{layout:?}");
        }
        let odd = Layout { notify_multiplier: 3, ..good };
        let transport = Transport::open(&odd, |_| Ok(fake.registers())).unwrap();
        let addresses = QueueAddresses { desc: 0x1000, avail: 0x1800, used: 0x1a00 };
        assert!(transport.enable_queue(5, 128, addresses).is_err());
    }
}
