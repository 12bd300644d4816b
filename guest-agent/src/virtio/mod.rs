//! A virtio driver in user space, as small as one request at a time allows.
//!
//! The PCI function is bound to `uio_pci_generic`; its registers are mapped from the BARs' files in
//! sysfs, its configuration space is a file, and its interrupt is a readable `/dev/uioN`
//! (virtio 1.3, section 4.1; measured facts about UIO stand at each place that rests on them).
//!
//! * [`mmio`]: a mapped BAR and width-correct accesses to it; the only unsafe code here.
//! * [`caps`]: where in which BAR the four structures lie, from the capability list.
//! * [`pci`]: the configuration space's command register, and the interrupt.
//! * [`transport`]: status, features, queue set-up, device configuration.
//! * [`ring`]: a split virtqueue that fits one page.
//! * [`block_queue`]: requests and responses of Memtide's block queue on that ring.
//! * [`balloon_queues`]: the standard queues of any other balloon.
//!
//! A fake device that answers on the same registers and the same memory stands beside it for tests.

pub mod balloon_queues;
pub mod block_queue;
pub mod caps;
#[cfg(test)]
pub(crate) mod fake;
pub mod mmio;
pub mod pci;
pub mod ring;
pub mod transport;
