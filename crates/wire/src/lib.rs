//! Every byte that passes between guest and host.
//!
//! The standard balloon (virtio 1.3, section 5.5): feature bits, configuration, PFN arrays,
//! statistics. Behind the 16 standard configuration bytes stands Memtide's *extension*, and the
//! last virtqueue is the *block queue* ([`block`]), whose requests steal and return whole memory
//! blocks. docs/protocol.md tells the same in prose.
//!
//! Bytes are checked once, here; what comes out is made of [`memtide_units`] types. Nothing in this
//! crate knows a virtqueue, a socket or a policy.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod block;
pub mod config;
pub mod features;
pub mod pfn;
pub mod stats;
