//! The device's state, as a VMM hands it over: from another host, or from a file that anybody wrote.
//!
//! A state that is not taken changes nothing; one that is comes out again as it went in; none makes
//! the device drop memory (it is given no host to drop it with), and none is larger than a hello.

use memtide_balloon::{Balloon, Rings, STATE_MAX, Settings, StateError};
use memtide_units::{ByteSize, Gpa, GpaRange, Instant};
use memtide_wire::block::RANGES_MAX;

use crate::meter;

/// The largest state, decoded and encoded again, is a map of 2048 ranges.
const MEMORY_MAX: usize = 512 << 10;

/// Bytes of a state's head: magic, version, six numbers of 32 bits, one of 64.
const HEAD_LEN: usize = 40;
/// The epoch of the hello that the device wants, in it.
const EPOCH: std::ops::Range<usize> = 24..28;
/// Moves with the epoch.
const GENERATION: std::ops::Range<usize> = 20..24;

/// Reads `data` as a state, and as what follows a head that is right.
pub fn run(data: &[u8]) {
    meter::within(MEMORY_MAX, || {
        load(data);
        load(&with_a_head(data));
    });
}

/// Spans, with a head that counts them.
fn with_a_head(data: &[u8]) -> Vec<u8> {
    let (numbers, spans) = data.split_at(data.len().min(HEAD_LEN - 12));
    let mut bytes = b"MTDS\x01\0\0\0".to_vec();
    bytes.extend(numbers);
    bytes.resize(HEAD_LEN, 0);
    let count = spans.len() / 16;
    bytes[28..32].copy_from_slice(&(count as u32).to_le_bytes());
    bytes.extend(&spans[..16 * count]);
    bytes
}

fn device() -> Balloon {
    let mut balloon = Balloon::new(Settings::default(), Instant::from_millis(0));
    let memory = GpaRange::new(Gpa(0), ByteSize::from_gib(4)).expect("a range");
    balloon.set_memory([memory], ByteSize::from_kib(4));
    balloon.set_features(balloon.offered_features());
    balloon
}

fn load(bytes: &[u8]) {
    let mut balloon = device();
    let before = balloon.save_state();
    if let Err(error) = balloon.load_state(bytes) {
        assert!(!error.to_string().is_empty());
        assert_eq!(balloon.save_state(), before, "refused, and yet changed: {error}");
        return;
    }
    let saved = balloon.save_state();
    assert!(bytes.len() <= STATE_MAX && saved.len() <= bytes.len(), "neighbours may have joined");
    assert!(balloon.stolen().len() <= RANGES_MAX);
    assert_eq!(same(&saved, HEAD_LEN), same(bytes, HEAD_LEN));
    again(&saved);
    balloon.set_rings(Rings::Standard);
    assert_eq!(balloon.load_state(bytes), Err(StateError::Running));
    _ = balloon.take_events();
}

/// What another device makes of a state that a device has saved.
fn again(saved: &[u8]) {
    let mut other = device();
    other.load_state(saved).expect("what a device saves, a device loads");
    let once_more = other.save_state();
    assert_eq!(once_more.len(), saved.len());
    assert_eq!(same(&once_more, saved.len()), same(saved, saved.len()));
}

/// The first `len` bytes, without those that each loading moves, and the number of ranges, which
/// falls where neighbours join.
fn same(state: &[u8], len: usize) -> Vec<u8> {
    let moved = |at: &usize| EPOCH.contains(at) || GENERATION.contains(at) || (28..32).contains(at);
    (0..len).filter(|at| !moved(at)).map(|at| state[at]).collect()
}
