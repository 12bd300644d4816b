//! What lies where in the guest's memory, which QEMU gives 256 MiB (the host's side knows these
//! numbers too: `torture/hostile.rs`).

/// Memory ends here. Nothing but holes follows up to the registers of PCI devices.
pub(crate) const END: u64 = 256 << 20;

/// Rings, buffers and tables of descriptors: ours, but no secret, and nothing of Rust's lies here.
pub(crate) const RINGS: u64 = 16 << 20;
/// Buffers of requests.
pub(crate) const BUFFERS: u64 = 24 << 20;

/// Nobody may touch these: they are filled at the start and looked at in the end.
pub(crate) const CANARIES: core::ops::Range<u64> = (64 << 20)..(96 << 20);

/// Everything from here to the end is worth nothing: what is wrong may name it.
pub(crate) const ARENA: core::ops::Range<u64> = (128 << 20)..END;

/// The well-behaved sequence inflates these pages.
pub(crate) const KNOWN: core::ops::Range<u64> = (160 << 20)..(192 << 20);

/// A page.
pub(crate) const PAGE: u64 = 4096;
