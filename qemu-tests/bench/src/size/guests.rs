//! What the parts share: the guests, and the processor that each runs on.

use std::time::Duration;

use memtide_units::ByteSize;

use crate::error::Result;
use crate::machines::Machines;
use crate::subject::Subject;

/// The guest that lives through several parts, stopped but for its turns, and whoever listens.
pub(super) struct Bench<'a> {
    pub(super) machines: Machines<'a>,
    /// Nothing shrinks it.
    pub(super) plain: Subject,
    /// Its `MemTotal`.
    pub(super) whole: ByteSize,
    pub(super) say: &'a mut dyn FnMut(&str),
}

/// Does something while this guest runs and then stops it.
pub(super) fn awake<T>(subject: &Subject, work: impl FnOnce() -> Result<T>) -> Result<T> {
    subject.thaw()?;
    let done = work()?;
    subject.freeze()?;
    Ok(done)
}

/// What this guest's kernel has of memory, and how much of it could be had.
pub(super) fn total_and_available(subject: &Subject) -> Result<(ByteSize, ByteSize)> {
    Ok((subject.meminfo("MemTotal")?, subject.meminfo("MemAvailable")?))
}

/// Waits a moment, unless somebody has pressed Ctrl-C.
pub(super) fn pause(time: Duration) -> Result<()> {
    memtide_scenarios::interrupt::check()?;
    std::thread::sleep(time);
    Ok(())
}

/// The middle one, or the mean of the two in the middle; zero of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => 0.0,
        (half, 0) => f64::midpoint(sorted[half - 1], sorted[half]),
        (half, _) => sorted[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
    }
}
