//! The block queue: request and response pairs about memory blocks, whole or in pieces.
//!
//! A descriptor chain carries one request in its readable part and takes one [`Response`] in its
//! writable part. Every request is answered before the next is looked at, and no chain is ever
//! parked: a return that the gate holds is answered [`Verdict::Held`] at once, and the driver asks
//! again with the same ticket when the configuration's `generation` has moved or `retry_ms` have
//! passed. So nothing is in flight when a queue stops, whoever stops it.
//!
//! ```text
//! request:  kind u16 | zero u16 | sequence u32 | length u32 (of the body) | zero u32 | body
//! response: sequence u32 | verdict u16 | reason u16 | bytes u64 | retry_ms u32 | zero u32 | min u64
//! ```

mod heat;
mod request;
mod response;
mod telemetry;

use memtide_units::ByteSize;

pub use heat::{HEAT_CELLS_MAX, HEAT_SPANS_MAX, Heat};
pub use request::{DecodeError, Hello, Request, ReturnRequest, Urgency};
pub use response::{HoldReason, RefuseReason, Response, Verdict};
pub use telemetry::{NOTE_MAX, Telemetry};

/// Ranges in one request at most. A map of stolen blocks with every second block stolen names one
/// range per two blocks: 2048 of them cover 512 GiB of 128 MiB blocks, and larger guests have
/// larger blocks.
pub const RANGES_MAX: usize = 2048;

/// What ranges are made of at least: a huge page of the guest's (2 MiB). Where a block cannot be
/// emptied the agent holds as much memory in such pieces from elsewhere.
pub const PIECE: ByteSize = ByteSize::from_mib(2);

/// Bytes of the request's header.
pub const HEADER_LEN: usize = 16;

/// Largest request, in bytes, header included: a hello with [`RANGES_MAX`] ranges, rounded up.
pub const REQUEST_MAX: usize = 36 << 10;

/// Bytes of a response.
pub const RESPONSE_LEN: usize = 32;
