//! Responses: from the device to the guest's agent.

use core::fmt;

use memtide_units::ByteSize;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::RESPONSE_LEN;

/// Why the gate does not grant a return yet, or at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HoldReason {
    /// The host's service has been asked and has not answered yet.
    Asking,
    /// Granting it would pass the host's memory budget.
    HostBudget,
    /// Granting it would pass the limit that the host set for this VM.
    VmLimit,
    /// The host itself is short of memory.
    HostPressure,
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefuseReason {
    /// Its kind is unknown.
    UnknownRequest,
    /// Its bytes make no sense.
    Malformed,
    /// It names more ranges than the device takes in one request.
    TooManyRanges,
    /// A range lies, or reaches, outside the guest's memory.
    OutsideMemory,
    /// A range is not made of whole memory blocks, nor of pieces of them ([`PIECE`](super::PIECE)).
    Misaligned,
    /// A range is named twice or overlaps another.
    Overlap,
    /// A range that is to be returned was never stolen.
    NotStolen,
    /// The agent has not said hello, or not yet for the present epoch.
    NoHello,
    /// The host's kernel failed to drop the backing; nothing of it counts as stolen.
    ReclaimFailed,
    /// Nobody on the host would plug the memory in again.
    NotPluggable,
}

/// Numbers and texts of both enums, in one place each.
macro_rules! codes {
    ($type:ident { $($variant:ident = $code:literal, $name:literal, $text:literal;)* }) => {
        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number on the wire.
            pub const fn code(self) -> u16 {
                match self { $(Self::$variant => $code),* }
            }

            /// The reason behind a number.
            pub const fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// Its name in logs, APIs and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text),* })
            }
        }
    };
}

codes!(HoldReason {
    Asking = 1, "asking", "the host's service is being asked";
    HostBudget = 2, "host-budget", "it would pass the host's memory budget";
    VmLimit = 3, "vm-limit", "it would pass the limit that the host set for this VM";
    HostPressure = 4, "host-pressure", "the host itself is short of memory";
});

codes!(RefuseReason {
    UnknownRequest = 1, "unknown-request", "the request's kind is unknown";
    Malformed = 2, "malformed", "the request's bytes make no sense";
    TooManyRanges = 3, "too-many-ranges", "the request names too many ranges";
    OutsideMemory = 4, "outside-memory", "a range lies outside the guest's memory";
    Misaligned = 5, "misaligned", "a range is not made of whole memory blocks, nor of pieces of 2 MiB";
    Overlap = 6, "overlap", "a range overlaps another";
    NotStolen = 7, "not-stolen", "a range was never stolen";
    NoHello = 8, "no-hello", "the agent has not said hello for this epoch";
    ReclaimFailed = 9, "reclaim-failed", "the host could not drop the backing";
    NotPluggable = 10, "not-pluggable", "nobody on the host would plug it in again";
});

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done. A return is granted.
    Ok,
    /// A return is held: ask again.
    Held(HoldReason),
    /// A return is denied: the ticket is gone.
    Denied(HoldReason),
    /// Not carried out, nothing changed.
    Refused(RefuseReason),
}

/// The answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request's sequence number.
    pub sequence: u32,
    /// What became of it.
    pub verdict: Verdict,
    /// Bytes that were reclaimed or granted.
    pub bytes: ByteSize,
    /// When to ask again for a held return, in milliseconds, if `generation` does not move before.
    pub retry_ms: u32,
    /// What the host guarantees this guest: below it returns are granted always and at once.
    pub min: ByteSize,
    /// The configuration's `generation` as it was then: where the driver knows that one, it need not
    /// look. 0 from a device that does not say.
    pub generation: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    sequence: U32,
    verdict: U16,
    reason: U16,
    bytes: U64,
    retry_ms: U32,
    generation: U32,
    min: U64,
}

impl Response {
    /// The bytes of this response.
    pub fn encode(&self) -> [u8; RESPONSE_LEN] {
        let (verdict, reason) = match self.verdict {
            Verdict::Ok => (0, 0),
            Verdict::Held(reason) => (1, reason.code()),
            Verdict::Denied(reason) => (2, reason.code()),
            Verdict::Refused(reason) => (3, reason.code()),
        };
        let wire = Wire {
            sequence: U32::new(self.sequence),
            verdict: U16::new(verdict),
            reason: U16::new(reason),
            bytes: U64::new(self.bytes.bytes()),
            retry_ms: U32::new(self.retry_ms),
            generation: U32::new(self.generation),
            min: U64::new(self.min.bytes()),
        };
        zerocopy::transmute!(wire)
    }

    /// Reads a response; `None` for bytes that no device of this version writes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (wire, _) = Wire::read_from_prefix(bytes).ok()?;
        let reason = wire.reason.get();
        let verdict = match wire.verdict.get() {
            0 => Verdict::Ok,
            1 => Verdict::Held(HoldReason::from_code(reason)?),
            2 => Verdict::Denied(HoldReason::from_code(reason)?),
            3 => Verdict::Refused(RefuseReason::from_code(reason)?),
            _ => return None,
        };
        Some(Self {
            sequence: wire.sequence.get(),
            verdict,
            bytes: ByteSize::from_bytes(wire.bytes.get()),
            retry_ms: wire.retry_ms.get(),
            min: ByteSize::from_bytes(wire.min.get()),
            generation: wire.generation.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_verdict_survives_the_wire() {
        let held = HoldReason::ALL.iter().flat_map(|r| [Verdict::Held(*r), Verdict::Denied(*r)]);
        let refused = RefuseReason::ALL.iter().map(|r| Verdict::Refused(*r));
        for verdict in held.chain(refused).chain([Verdict::Ok]) {
            let response = Response {
                sequence: 9,
                verdict,
                bytes: ByteSize::from_mib(128),
                retry_ms: 250,
                min: ByteSize::from_gib(1),
                generation: 7,
            };
            assert_eq!(Response::decode(&response.encode()), Some(response));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Response::decode(&bytes);
        }
    }
}
