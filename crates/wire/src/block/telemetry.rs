//! How the guest is, as its agent sees it. For people and for the host's books; no decision that
//! could harm another VM rests on it, since the guest may write anything here.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use memtide_units::{ByteSize, PpMillion, may_be_shown};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::heat::{self, Heat};
use super::request::DecodeError;

/// Bytes of the note at most: one sentence.
pub const NOTE_MAX: usize = 200;

/// The guest's own view of its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// `MemTotal`: what is online, less the kernel's reserve.
    pub total: ByteSize,
    /// `MemFree`.
    pub free: ByteSize,
    /// `MemAvailable`.
    pub available: ByteSize,
    /// `Cached`.
    pub cached: ByteSize,
    /// Memory that was touched lately, by DAMON; zero where nobody watches.
    pub working_set: ByteSize,
    /// Used memory that was not touched lately, by DAMON; zero where nobody watches.
    pub cold: ByteSize,
    /// Stall of some task for memory since boot, in microseconds (`/proc/pressure/memory`, some).
    pub psi_some_us: u64,
    /// Stall of all tasks for memory since boot, in microseconds (full).
    pub psi_full_us: u64,
    /// Share of the last ten seconds in which some task stalled for memory.
    pub psi_some_avg10: PpMillion,
    /// Tasks that the guest's OOM killer has ended since boot.
    pub oom_kills: u32,
    /// Memory blocks the guest has.
    pub blocks_total: u32,
    /// Blocks in `ZONE_MOVABLE`, stolen ones included.
    pub blocks_movable: u32,
    /// Blocks that are stolen now.
    pub blocks_stolen: u32,
    /// Attempts at stealing that failed since the agent started.
    pub steals_failed: u32,
    /// Resident memory of the agent itself.
    pub agent_rss: ByteSize,
    /// What the agent decided last and why, at most [`NOTE_MAX`] bytes.
    pub note: String,
    /// What was touched where, where somebody watches and the agent tells.
    pub heat: Option<Box<Heat>>,
}

/// What stands behind the note: a kind, a length, and so many bytes; then the next. Kinds that are not
/// known are skipped, so that an agent may say more than its host understands.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Part {
    kind: U16,
    reserved: U16,
    len: U32,
}

/// The part that is a [`Heat`].
const HEAT: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    total: U64,
    free: U64,
    available: U64,
    cached: U64,
    working_set: U64,
    cold: U64,
    psi_some_us: U64,
    psi_full_us: U64,
    agent_rss: U64,
    psi_some_avg10: U32,
    oom_kills: U32,
    blocks_total: U32,
    blocks_movable: U32,
    blocks_stolen: U32,
    steals_failed: U32,
    note_len: U32,
}

pub(super) fn encode(telemetry: &Telemetry) -> Vec<u8> {
    let size = |size: ByteSize| U64::new(size.bytes());
    let note = &telemetry.note[..telemetry.note.floor_char_boundary(NOTE_MAX)];
    let wire = Wire {
        total: size(telemetry.total),
        free: size(telemetry.free),
        available: size(telemetry.available),
        cached: size(telemetry.cached),
        working_set: size(telemetry.working_set),
        cold: size(telemetry.cold),
        psi_some_us: U64::new(telemetry.psi_some_us),
        psi_full_us: U64::new(telemetry.psi_full_us),
        agent_rss: size(telemetry.agent_rss),
        psi_some_avg10: U32::new(telemetry.psi_some_avg10.0),
        oom_kills: U32::new(telemetry.oom_kills),
        blocks_total: U32::new(telemetry.blocks_total),
        blocks_movable: U32::new(telemetry.blocks_movable),
        blocks_stolen: U32::new(telemetry.blocks_stolen),
        steals_failed: U32::new(telemetry.steals_failed),
        note_len: U32::new(note.len() as u32),
    };
    let mut bytes = wire.as_bytes().to_vec();
    bytes.extend_from_slice(note.as_bytes());
    if let Some(heat) = &telemetry.heat {
        let mut body = Vec::new();
        heat::encode(heat, &mut body);
        let len = U32::new(body.len() as u32);
        let part = Part { kind: U16::new(HEAT), reserved: U16::ZERO, len };
        bytes.extend_from_slice(part.as_bytes());
        bytes.extend_from_slice(&body);
    }
    bytes
}

/// Reads what stands behind the note. Of several parts of a kind the last counts; fewer bytes than a
/// part begins with are none.
fn decode_parts(mut rest: &[u8]) -> Result<Option<Box<Heat>>, DecodeError> {
    let mut heat = None;
    while let Ok((part, behind)) = Part::read_from_prefix(rest) {
        let len = part.len.get() as usize;
        let body = behind.get(..len).ok_or(DecodeError::Short(rest.len()))?;
        if part.kind.get() == HEAT {
            heat = Some(Box::new(heat::decode(body)?));
        }
        rest = &behind[len..];
    }
    Ok(heat)
}

pub(super) fn decode(body: &[u8]) -> Result<Telemetry, DecodeError> {
    let (wire, rest) = Wire::read_from_prefix(body).map_err(|_| DecodeError::Short(body.len()))?;
    let note_len = wire.note_len.get() as usize;
    if note_len > NOTE_MAX {
        return Err(DecodeError::Field("note"));
    }
    let (note, parts) = rest.split_at_checked(note_len).ok_or(DecodeError::Short(body.len()))?;
    let heat = decode_parts(parts)?;
    let note = core::str::from_utf8(note).map_err(|_| DecodeError::Field("note"))?;
    let size = |field: U64| ByteSize::from_bytes(field.get());
    Ok(Telemetry {
        total: size(wire.total),
        free: size(wire.free),
        available: size(wire.available),
        cached: size(wire.cached),
        working_set: size(wire.working_set),
        cold: size(wire.cold),
        psi_some_us: wire.psi_some_us.get(),
        psi_full_us: wire.psi_full_us.get(),
        psi_some_avg10: PpMillion(wire.psi_some_avg10.get()),
        oom_kills: wire.oom_kills.get(),
        blocks_total: wire.blocks_total.get(),
        blocks_movable: wire.blocks_movable.get(),
        blocks_stolen: wire.blocks_stolen.get(),
        steals_failed: wire.steals_failed.get(),
        agent_rss: size(wire.agent_rss),
        // What a guest says is shown to an operator.
        note: note.chars().filter(|c| may_be_shown(*c)).collect(),
        heat,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_note_is_cut_at_a_character_and_stripped_of_escapes() {
        let telemetry = Telemetry { note: "é".repeat(NOTE_MAX), ..Telemetry::default() };
        let read = decode(&encode(&telemetry)).unwrap();
        assert_eq!(read.note, "é".repeat(NOTE_MAX / 2));
        let telemetry = Telemetry { note: "\u{1b}[31mred".into(), ..Telemetry::default() };
        assert_eq!(decode(&encode(&telemetry)).unwrap().note, "[31mred");
    }

    fn part(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = U32::new(body.len() as u32);
        let part = Part { kind: U16::new(kind), reserved: U16::ZERO, len };
        [part.as_bytes(), body].concat()
    }

    #[test]
    fn what_is_not_known_behind_the_note_is_skipped() {
        let telemetry = Telemetry {
            note: "steady".into(),
            heat: Some(Box::new(heat::tests::heat())),
            ..Telemetry::default()
        };
        let told = encode(&telemetry);
        let plain = encode(&Telemetry { heat: None, ..telemetry.clone() });
        let (later, more) = (part(77, b"of a later version"), part(HEAT + 1, b""));
        let text = [&plain, &later[..], &told[plain.len()..], &more, &[1, 2, 3]].concat();
        assert_eq!(decode(&text), Ok(telemetry));
        let torn = &text[..plain.len() + later.len() - 1];
        assert!(matches!(decode(torn), Err(DecodeError::Short(_))));
        assert!(decode(&[&plain[..], &part(HEAT, b"too short")].concat()).is_err());
    }

    /// What an agent of version 0.1 sends ends with its note.
    #[test]
    fn an_agent_that_tells_nothing_more_is_understood() {
        let telemetry = Telemetry { note: "steady".into(), ..Telemetry::default() };
        let bytes = encode(&telemetry);
        assert!(bytes.ends_with(b"steady"));
        assert_eq!(decode(&bytes), Ok(telemetry));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn numbers_survive(total: u64, psi: u64, kills: u32) {
            let telemetry = Telemetry {
                total: ByteSize::from_bytes(total),
                psi_some_us: psi,
                oom_kills: kills,
                note: "steady".into(),
                ..Telemetry::default()
            };
            prop_assert_eq!(decode(&encode(&telemetry)), Ok(telemetry));
        }
    }
}
