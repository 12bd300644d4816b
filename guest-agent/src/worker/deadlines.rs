//! How long a block may take.

use std::time::Duration;

use memtide_units::BlockSize;

/// For a block of 128 MiB in `ZONE_MOVABLE`. A full one took up to 10.6 s under emulation, a tenth of
/// it on hardware.
pub const MOVABLE_DEADLINE: Duration = Duration::from_secs(20);
/// For a larger one at most: a page that never moves keeps the kernel busy at full speed so long. A
/// full one of 2 GiB, the largest there are, would take 170 s under emulation.
const MOVABLE_DEADLINE_MOST: Duration = Duration::from_secs(180);
/// For a block in a kernel zone: a page that will not move has the kernel try for ever at full
/// speed, and there is another block to try.
pub const KERNEL_DEADLINE: Duration = Duration::from_secs(3);
/// A conversion is a favour to the future and must not hold up the start, nor what comes after it.
pub(super) const CONVERT_DEADLINE: Duration = Duration::from_secs(2);

/// How long emptying a block of this size in `ZONE_MOVABLE` may take.
pub fn movable_deadline(size: BlockSize) -> Duration {
    let small_blocks = size.size().bytes().div_ceil(BlockSize::X86_SMALL.size().bytes());
    let small_blocks = u32::try_from(small_blocks).unwrap_or(u32::MAX);
    MOVABLE_DEADLINE.saturating_mul(small_blocks).min(MOVABLE_DEADLINE_MOST)
}
