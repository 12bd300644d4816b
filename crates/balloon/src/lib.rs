//! The balloon device model: virtqueues in, requests and events out.
//!
//! [`Balloon`] is one device. Whoever runs it (the vhost-user process, the simulator, a test) hands
//! it a ring that has work ([`Balloon::process`]), guest memory, the time, and a [`Reclaim`] that
//! can drop backing; it answers the ring and leaves behind [`Event`]s and the wish that the driver
//! look at its configuration again. Two drivers are served: any standard balloon driver, and
//! Memtide's agent, which says hello on the block queue and steals and returns whole blocks.
//!
//! What is not here: no socket, no system call, no clock, no thread. No guest memory is dropped
//! unless a request names it, before that request is answered, and never after.

mod block_queue;
mod chain;
mod counters;
mod device;
mod event;
#[cfg(feature = "fake")]
pub mod fake;
mod gate;
mod host_pages;
mod layout;
mod limiter;
mod memory;
mod notifier;
mod pace;
mod pages;
mod plugging;
mod range_set;
mod reclaim;
mod requests;
mod ring;
mod said;
mod state;
mod stats;
mod under_way;

pub use counters::Counters;
pub use device::{BLOCK_QUEUE, Balloon, FreePageReporting, OomDeflate, QUEUES, Rings, Settings};
pub use event::{Driver, Event, GrantedBy, PendingReturn};
pub use gate::{Decider, Decision, LocalRule, NoSuchTicket};
pub use layout::MemoryPart;
pub use limiter::LogLimiter;
pub use memory::RequestMemory;
pub use notifier::ConfigNotifier;
pub use range_set::RangeSet;
pub use reclaim::{FailKind, Reclaim, ReclaimFailed, Reclaimed};
pub use ring::{Interrupt, Left, Moment, Pass, Ring, RingError};
pub use state::{STATE_MAX, StateError};
