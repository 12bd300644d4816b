//! Who takes part, and one turn of those that are told how large the guest shall be.

use std::time::Duration;

use memtide_lab::machine::GuestMemory;
use memtide_units::ByteSize;

use crate::error::Result;
use crate::meter::{Round, Stopwatch, watch_back, watch_gone};
use crate::subject::Subject;

/// For one way; a hundred times what the slowest needs on an idle machine.
const WAY: Duration = Duration::from_secs(90);

/// Somebody who moves a guest's memory.
pub(crate) trait Contestant {
    /// Its guest.
    fn subject(&self) -> &Subject;

    /// The memfds behind its guest and the size of their pages, in bytes.
    fn backing(&self) -> (Vec<&GuestMemory>, usize);

    /// Takes one turn: memory that has been touched and is free goes to the host and comes back.
    fn turn(&mut self) -> Result<Round>;
}

/// A means that is told what size the guest shall have, and does the rest by itself.
pub(crate) trait Resizer {
    /// Its guest.
    fn subject(&self) -> &Subject;
    /// The processes whose processor time is its host's share.
    fn pids(&self) -> Vec<u32>;
    /// Bytes of backing that the host holds in the memory that it moves.
    fn resident(&self) -> Result<u64>;
    /// Waits until it is connected, where that takes time.
    fn wait_ready(&mut self) -> Result<()> {
        Ok(())
    }
    /// Has it begin to take so much from the guest, or, with nothing, to give all back.
    fn take(&mut self, size: ByteSize) -> Result<()>;
}

/// One turn of a resizer that moves `size`.
pub(crate) fn turn(resizer: &mut impl Resizer, size: ByteSize) -> Result<Round> {
    resizer.wait_ready()?;
    resizer.subject().wait_calm()?;
    let pids = resizer.pids();
    let total = resizer.subject().meminfo("MemTotal")?;
    let before = resizer.resident()?;

    let watch = Stopwatch::start(resizer.subject(), &pids)?;
    resizer.take(size)?;
    let who = resizer.subject().name();
    let gone = watch_gone(who, || resizer.resident(), (before, size.bytes()), WAY)?;
    let reclaim = watch.stop(resizer.subject(), &pids, gone)?;

    let watch = Stopwatch::start(resizer.subject(), &pids)?;
    resizer.take(ByteSize::ZERO)?;
    let at = watch_back(resizer.subject(), total, WAY)?;
    let give_back = watch.stop(resizer.subject(), &pids, (size.bytes(), at))?;
    Ok(Round { reclaim, give_back })
}
