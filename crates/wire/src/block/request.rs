//! Requests: from the guest's agent to the device.

use alloc::vec::Vec;

use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::response::RefuseReason;
use super::telemetry::{self, Telemetry};
use super::{HEADER_LEN, RANGES_MAX, REQUEST_MAX};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    kind: U16,
    reserved: U16,
    sequence: U32,
    length: U32,
    reserved2: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HelloHead {
    epoch: U32,
    /// So many of the ranges, the last ones, were ejected.
    ejected: U32,
    block_size: U64,
    present: U64,
    online: U64,
    min: U64,
    max: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ReturnHead {
    ticket: U32,
    urgency: U16,
    reserved: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireRange {
    start: U64,
    len: U64,
}

const HELLO: u16 = 1;
const STEAL: u16 = 2;
const RETURN: u16 = 3;
const CANCEL: u16 = 4;
const TAKEN: u16 = 5;
const TELEMETRY: u16 = 6;
const GOODBYE: u16 = 7;
const EJECT: u16 = 8;
const PLUG: u16 = 9;

/// The agent introduces itself: with it the host rebuilds all that it knows of this guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The configuration's `hello_epoch` that this hello answers.
    pub epoch: u32,
    /// Size of the guest's memory blocks.
    pub block_size: BlockSize,
    /// All memory the guest has, online or not.
    pub present: ByteSize,
    /// Memory that is online now.
    pub online: ByteSize,
    /// The agent steals no further than this.
    pub min: ByteSize,
    /// The agent takes back no more than this.
    pub max: ByteSize,
    /// What it holds offline, in address order.
    pub stolen: Vec<GpaRange>,
    /// What was ejected, and is stolen for that: it is not there, and nothing of it is to be dropped, also if
    /// the VMM has it in the VM again by now.
    pub ejected: Vec<GpaRange>,
}

/// How badly a return is wanted. The host grants the more urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// Room for growth that nobody waits for.
    Comfort,
    /// Free memory is falling or pressure is over the goal.
    Pressure,
    /// The guest is about to run out of memory.
    Emergency,
}

impl Urgency {
    fn from_wire(raw: u16) -> Option<Self> {
        [Self::Comfort, Self::Pressure, Self::Emergency].get(usize::from(raw)).copied()
    }
}

/// A request for blocks, asked again under the same ticket until it is granted or cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnRequest {
    /// Chosen by the driver. A device holds one ticket per guest; a new one replaces the old.
    pub ticket: u32,
    /// How badly.
    pub urgency: Urgency,
    /// Which blocks: all are granted or none.
    pub ranges: Vec<GpaRange>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// First of all, and again when `hello_epoch` changes.
    Hello(Hello),
    /// These ranges are offline and their content is worth nothing.
    Steal(Vec<GpaRange>),
    /// The guest wants these back and does not touch them before the answer is `Ok`.
    Return(ReturnRequest),
    /// The ticket is not wanted any more.
    Cancel {
        /// Which.
        ticket: u32,
    },
    /// The gate did not answer in time and the guest has put these online unasked.
    Taken(Vec<GpaRange>),
    /// How the guest is.
    Telemetry(Telemetry),
    /// The agent stops and gives the device back to the stock driver.
    Goodbye,
    /// These, all of them stolen, are about to be ejected: the guest's kernel lets the memory go, and the
    /// VMM takes it out of the VM. Not before the answer is `Ok`.
    Eject(Vec<GpaRange>),
    /// These were ejected, and some of them are granted now: the guest waits for them to be plugged in.
    Plug(Vec<GpaRange>),
}

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than the header or than the header says.
    #[error("the request has {0} bytes, fewer than its header tells")]
    Short(usize),
    /// Longer than [`REQUEST_MAX`].
    #[error("the request has {0} bytes, more than {REQUEST_MAX}")]
    Long(usize),
    /// A kind that this version does not know.
    #[error("the request kind {0} is unknown")]
    UnknownKind(u16),
    /// A field has a value that it cannot have.
    #[error("the request's {0} is out of its range")]
    Field(&'static str),
    /// More ranges than [`RANGES_MAX`].
    #[error("the request names {0} ranges, more than {RANGES_MAX}")]
    TooManyRanges(usize),
}

impl DecodeError {
    /// The reason to refuse with.
    pub fn reason(self) -> RefuseReason {
        match self {
            Self::UnknownKind(_) => RefuseReason::UnknownRequest,
            Self::TooManyRanges(_) => RefuseReason::TooManyRanges,
            Self::Short(_) | Self::Long(_) | Self::Field(_) => RefuseReason::Malformed,
        }
    }
}

impl Request {
    /// Reads one request and its sequence number. Bytes behind the stated length are not looked at.
    ///
    /// # Errors
    /// [`DecodeError`], with the sequence number where at least a header was there to read it from,
    /// so that the refusal can be matched to its request.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), (u32, DecodeError)> {
        let (header, rest) =
            Header::read_from_prefix(bytes).map_err(|_| (0, DecodeError::Short(bytes.len())))?;
        let sequence = header.sequence.get();
        let length = header.length.get() as usize;
        if bytes.len() > REQUEST_MAX {
            return Err((sequence, DecodeError::Long(bytes.len())));
        }
        let body = rest.get(..length).ok_or((sequence, DecodeError::Short(bytes.len())))?;
        let request = Self::decode_body(header.kind.get(), body).map_err(|e| (sequence, e))?;
        Ok((sequence, request))
    }

    fn decode_body(kind: u16, body: &[u8]) -> Result<Self, DecodeError> {
        match kind {
            HELLO => decode_hello(body).map(Self::Hello),
            STEAL => decode_ranges(body).map(Self::Steal),
            RETURN => decode_return(body).map(Self::Return),
            CANCEL => {
                let (ticket, _) =
                    U32::read_from_prefix(body).map_err(|_| DecodeError::Short(body.len()))?;
                Ok(Self::Cancel { ticket: ticket.get() })
            }
            TAKEN => decode_ranges(body).map(Self::Taken),
            TELEMETRY => telemetry::decode(body).map(Self::Telemetry),
            GOODBYE => Ok(Self::Goodbye),
            EJECT => decode_ranges(body).map(Self::Eject),
            PLUG => decode_ranges(body).map(Self::Plug),
            unknown => Err(DecodeError::UnknownKind(unknown)),
        }
    }

    /// The bytes of this request under `sequence`.
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let (kind, body) = self.encode_body();
        let header = Header {
            kind: U16::new(kind),
            reserved: U16::ZERO,
            sequence: U32::new(sequence),
            length: U32::new(u32::try_from(body.len()).unwrap_or(u32::MAX)),
            reserved2: U32::ZERO,
        };
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    fn encode_body(&self) -> (u16, Vec<u8>) {
        match self {
            Self::Hello(hello) => (HELLO, encode_hello(hello)),
            Self::Steal(ranges) => (STEAL, encode_ranges(Vec::new(), ranges)),
            Self::Return(wanted) => (RETURN, encode_return(wanted)),
            Self::Cancel { ticket } => (CANCEL, ticket.to_le_bytes().to_vec()),
            Self::Taken(ranges) => (TAKEN, encode_ranges(Vec::new(), ranges)),
            Self::Telemetry(telemetry) => (TELEMETRY, telemetry::encode(telemetry)),
            Self::Goodbye => (GOODBYE, Vec::new()),
            Self::Eject(ranges) => (EJECT, encode_ranges(Vec::new(), ranges)),
            Self::Plug(ranges) => (PLUG, encode_ranges(Vec::new(), ranges)),
        }
    }
}

fn decode_ranges(bytes: &[u8]) -> Result<Vec<GpaRange>, DecodeError> {
    const LEN: usize = size_of::<WireRange>();
    let count = bytes.len() / LEN;
    if count > RANGES_MAX {
        return Err(DecodeError::TooManyRanges(count));
    }
    let range = |chunk: &[u8]| {
        let raw = WireRange::read_from_bytes(chunk).map_err(|_| DecodeError::Field("range"))?;
        GpaRange::new(Gpa(raw.start.get()), ByteSize::from_bytes(raw.len.get()))
            .map_err(|_| DecodeError::Field("range"))
    };
    bytes.chunks_exact(LEN).map(range).collect()
}

fn encode_ranges(mut bytes: Vec<u8>, ranges: &[GpaRange]) -> Vec<u8> {
    for range in ranges {
        let wire =
            WireRange { start: U64::new(range.start().0), len: U64::new(range.len().bytes()) };
        bytes.extend_from_slice(wire.as_bytes());
    }
    bytes
}

fn decode_hello(body: &[u8]) -> Result<Hello, DecodeError> {
    let (head, rest) =
        HelloHead::read_from_prefix(body).map_err(|_| DecodeError::Short(body.len()))?;
    let size = |field: U64| ByteSize::from_bytes(field.get());
    let mut stolen = decode_ranges(rest)?;
    let there = stolen.len().checked_sub(head.ejected.get() as usize);
    let ejected = stolen.split_off(there.ok_or(DecodeError::Field("number of ejected ranges"))?);
    let block_size =
        BlockSize::new(size(head.block_size)).map_err(|_| DecodeError::Field("block size"))?;
    Ok(Hello {
        epoch: head.epoch.get(),
        block_size,
        present: size(head.present),
        online: size(head.online),
        min: size(head.min),
        max: size(head.max),
        stolen,
        ejected,
    })
}

fn encode_hello(hello: &Hello) -> Vec<u8> {
    let field = |size: ByteSize| U64::new(size.bytes());
    let head = HelloHead {
        epoch: U32::new(hello.epoch),
        ejected: U32::new(u32::try_from(hello.ejected.len()).unwrap_or(u32::MAX)),
        block_size: field(hello.block_size.size()),
        present: field(hello.present),
        online: field(hello.online),
        min: field(hello.min),
        max: field(hello.max),
    };
    encode_ranges(encode_ranges(head.as_bytes().to_vec(), &hello.stolen), &hello.ejected)
}

fn decode_return(body: &[u8]) -> Result<ReturnRequest, DecodeError> {
    let (head, rest) =
        ReturnHead::read_from_prefix(body).map_err(|_| DecodeError::Short(body.len()))?;
    let urgency = Urgency::from_wire(head.urgency.get()).ok_or(DecodeError::Field("urgency"))?;
    Ok(ReturnRequest { ticket: head.ticket.get(), urgency, ranges: decode_ranges(rest)? })
}

fn encode_return(wanted: &ReturnRequest) -> Vec<u8> {
    let head = ReturnHead {
        ticket: U32::new(wanted.ticket),
        urgency: U16::new(wanted.urgency as u16),
        reserved: U16::ZERO,
    };
    encode_ranges(head.as_bytes().to_vec(), &wanted.ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<GpaRange>> {
        let range = (0_u64..1 << 44, 1_u64..1 << 40)
            .prop_map(|(s, l)| GpaRange::new(Gpa(s), ByteSize::from_bytes(l)).unwrap());
        prop::collection::vec(range, 0..40)
    }

    fn requests() -> impl Strategy<Value = Request> {
        prop_oneof![
            (any::<u32>(), 21_u32..40, ranges(), ranges()).prop_map(
                |(epoch, shift, stolen, ejected)| {
                    Request::Hello(Hello {
                        ejected,
                        epoch,
                        block_size: BlockSize::new(ByteSize::from_bytes(1 << shift)).unwrap(),
                        present: ByteSize::from_gib(4),
                        online: ByteSize::from_gib(3),
                        min: ByteSize::from_gib(1),
                        max: ByteSize::from_gib(4),
                        stolen,
                    })
                }
            ),
            ranges().prop_map(Request::Steal),
            ranges().prop_map(Request::Taken),
            ranges().prop_map(Request::Eject),
            ranges().prop_map(Request::Plug),
            (any::<u32>(), ranges()).prop_map(|(ticket, ranges)| {
                Request::Return(ReturnRequest { ticket, urgency: Urgency::Pressure, ranges })
            }),
            any::<u32>().prop_map(|ticket| Request::Cancel { ticket }),
            Just(Request::Goodbye),
        ]
    }

    #[test]
    fn refusals_name_their_request() {
        let mut bytes = Request::Goodbye.encode(77);
        bytes[0] = 200;
        assert_eq!(Request::decode(&bytes), Err((77, DecodeError::UnknownKind(200))));
        let mut bytes = Request::Steal(vec![]).encode(78);
        bytes[8] = 16;
        assert_eq!(Request::decode(&bytes), Err((78, DecodeError::Short(16))));
        assert_eq!(Request::decode(&[1, 2, 3]), Err((0, DecodeError::Short(3))));
    }

    #[test]
    fn an_empty_or_wrapping_range_is_refused() {
        let mut bytes = Request::Steal(vec![GpaRange::of_pfn(memtide_units::Pfn(1))]).encode(1);
        bytes[HEADER_LEN + 8..].fill(0);
        assert_eq!(Request::decode(&bytes), Err((1, DecodeError::Field("range"))));
        bytes[HEADER_LEN..].fill(0xff);
        assert_eq!(Request::decode(&bytes), Err((1, DecodeError::Field("range"))));
    }

    #[test]
    fn the_largest_hello_fits_a_request() {
        let block = BlockSize::X86_SMALL;
        let stolen = (0..RANGES_MAX as u64)
            .map(|n| block.range(memtide_units::BlockId(2 * n)).unwrap())
            .collect();
        let hello = Request::Hello(Hello {
            ejected: Vec::new(),
            epoch: 1,
            block_size: block,
            present: ByteSize::from_gib(512),
            online: ByteSize::from_gib(256),
            min: ByteSize::ZERO,
            max: ByteSize::MAX,
            stolen,
        });
        let bytes = hello.encode(1);
        assert!(bytes.len() <= REQUEST_MAX);
        assert_eq!(Request::decode(&bytes), Ok((1, hello)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(request in requests(), sequence: u32) {
            prop_assert_eq!(Request::decode(&request.encode(sequence)), Ok((sequence, request)));
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Request::decode(&bytes);
        }

        #[test]
        fn any_body_of_a_known_kind_is_answered(kind in 0_u16..11, body in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Request::decode_body(kind, &body);
        }
    }
}
