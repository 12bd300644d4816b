//! A driver that keeps to the rules, after all that did not: the device must still serve it.

use crate::layout::{CANARIES, KNOWN, PAGE};
use crate::machine::{read, write};
use crate::virtio::{Balloon, VERSION_1, send_pages};

/// Page numbers in one request, as Linux has it (VIRTIO_BALLOON_ARRAY_PFNS_MAX).
const PER_REQUEST: u32 = 256;

/// Fills a range with what can be recognised.
pub(crate) fn fill(range: core::ops::Range<u64>) {
    for at in range.step_by(8) {
        write(at, pattern(at));
    }
}

/// How many words of a range are not what `fill` wrote.
pub(crate) fn spoilt(range: core::ops::Range<u64>) -> u64 {
    range.step_by(8).map(|at| u64::from(read::<u64>(at) != pattern(at))).sum()
}

fn pattern(at: u64) -> u64 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// Inflates all known pages, takes the lower half back and uses it. What went wrong, or nothing.
pub(crate) fn behave(balloon: &Balloon) -> Result<(), &'static str> {
    fill(KNOWN);
    if !balloon.reset() {
        return Err("the device is never reset");
    }
    if !balloon.negotiate(VERSION_1) {
        return Err("the device refuses what it offers");
    }
    balloon.set_up(0);
    balloon.set_up(1);
    balloon.go();
    let middle = KNOWN.start + (KNOWN.end - KNOWN.start) / 2;
    send(balloon, 0, KNOWN, "an inflation is never answered")?;
    send(balloon, 1, KNOWN.start..middle, "a deflation is never answered")?;
    fill(KNOWN.start..middle);
    if spoilt(KNOWN.start..middle) != 0 {
        return Err("a page that came back does not hold what is written");
    }
    if spoilt(CANARIES) != 0 {
        return Err("a page that nobody named is not what it was");
    }
    Ok(())
}

fn send(
    balloon: &Balloon,
    queue: u16,
    range: core::ops::Range<u64>,
    otherwise: &'static str,
) -> Result<(), &'static str> {
    let step = u64::from(PER_REQUEST) * PAGE;
    for first in range.step_by(step as usize) {
        if !send_pages(balloon, queue, first, PER_REQUEST) {
            return Err(otherwise);
        }
    }
    Ok(())
}
