//! What the guests play. Sizes are shares of the memory that a guest has at first, and times go by it.

use std::time::Duration;

use memtide_units::ByteSize;

/// Kept hot; with the system's own about two fifths of the guest are in use, and three fifths are cold or
/// free.
const HOT: u64 = 5;
/// Touched once, and never again.
const COLD: u64 = 7;
/// Wanted at once.
const SURGE: u64 = 4;

/// The usual size: times are as they suit guests of this one.
const USUAL: ByteSize = ByteSize::from_gib(2);
/// What is cold has been so for long: an emulated processor pages out 1.5 MiB a second while the guest
/// rests, and 0.3 while it works.
const REST: Duration = Duration::from_secs(600);
/// Longer than all that is measured meanwhile.
const WORK: Duration = Duration::from_secs(120 * 60);

/// A time for guests of this size, of one that suits those of 2 GiB: filling, paging out and stealing go by
/// the page.
pub(super) fn stretched(memory: ByteSize, time: Duration) -> Duration {
    time.mul_f64(memory.bytes() as f64 / USUAL.bytes() as f64)
}

fn share(memory: ByteSize, sixteenths: u64) -> ByteSize {
    ByteSize::from_mib(memory.mib() * sixteenths / 16)
}

/// What a guest is of a sixteenth's multiple.
pub(super) fn sixteenths(memory: ByteSize, count: u64) -> ByteSize {
    share(memory, count)
}

/// Plays until it is told to end.
pub(super) fn steady(memory: ByteSize) -> String {
    let (cold, rest) = without_rest(memory);
    format!("{cold}; idle {}s; {rest}", stretched(memory, REST).as_secs())
}

/// The same, for a guest whose kernel pages out what it must.
pub(super) fn steady_at_once(memory: ByteSize) -> String {
    let (cold, rest) = without_rest(memory);
    format!("{cold}; {rest}")
}

fn without_rest(memory: ByteSize) -> (String, String) {
    let (hot, cold) = (share(memory, HOT).mib(), share(memory, COLD).mib());
    let minutes = stretched(memory, WORK).as_secs() / 60;
    (
        format!("alloc cold {cold}MiB"),
        format!("alloc heap {hot}MiB; hot heap {hot}MiB {minutes}min"),
    )
}

/// How much a surge wants.
pub(super) fn surge_size(memory: ByteSize) -> ByteSize {
    share(memory, SURGE)
}

/// Wants it at once.
pub(super) fn surge(memory: ByteSize) -> String {
    format!("alloc surge {}MiB", surge_size(memory).mib())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_room_for_it() {
        let memory = ByteSize::from_gib(2);
        let script = "alloc cold 896MiB; alloc heap 640MiB; hot heap 640MiB 120min";
        assert_eq!(steady_at_once(memory), script);
        assert_eq!(steady(memory), script.replacen(';', "; idle 600s;", 1));
        assert_eq!(surge(memory), "alloc surge 512MiB");
    }

    #[test]
    fn a_larger_guest_has_longer_for_it() {
        let script = "alloc cold 1792MiB; idle 1200s; alloc heap 1280MiB; hot heap 1280MiB 240min";
        assert_eq!(steady(ByteSize::from_gib(4)), script);
        let settle = |gib| stretched(ByteSize::from_gib(gib), Duration::from_secs(45)).as_secs();
        assert_eq!([2, 3, 4, 32].map(settle), [45, 67, 90, 720]);
    }
}
