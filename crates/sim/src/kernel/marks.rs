//! Watermarks: how much the kernel keeps back.

use super::block::PAGE;

/// What a zonelist keeps back, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Below, whoever allocates has to reclaim first.
    pub min: u64,
    /// Below, kswapd wakes up.
    pub low: u64,
    /// Up to here kswapd works.
    pub high: u64,
    /// Of the kernel's zone, kept from those who could use `ZONE_MOVABLE` instead.
    pub reserve: u64,
}

/// Most that huge pages have the kernel keep free: 11 page blocks in each of 3 zones (mm/khugepaged.c,
/// `set_recommended_min_free_kbytes`), 66 MiB.
const FOR_HUGE_PAGES: u64 = 3 * 11 * 512;

impl Marks {
    /// The marks of a guest with so many managed pages in its kernel zone and in `ZONE_MOVABLE`.
    ///
    /// `min` is 4 times the root of the kernel zone's KiB (mm/page_alloc.c,
    /// `calculate_min_free_kbytes`), or what huge pages want, capped at 5 % of the kernel zone. All of
    /// it is kept in the kernel's zone, since `ZONE_MOVABLE` has next to no minimum
    /// (`__setup_per_zone_wmarks`). The reserve is `sysctl_lowmem_reserve_ratio`, 1/256 of what lies
    /// above for `ZONE_DMA32`.
    pub fn of(kernel: u64, movable: u64) -> Self {
        let root_kib = (kernel * PAGE.kib() * 16).isqrt();
        let min = (root_kib / PAGE.kib()).max(FOR_HUGE_PAGES.min(kernel / 20));
        let step = (min / 4).max((kernel + movable) / 1000);
        Self { min, low: min + step, high: min + 2 * step, reserve: movable / 256 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_two_gib_guest_keeps_some_twenty_mib() {
        let pages = |mib: u64| mib * 256;
        let marks = Marks::of(pages(512), pages(1536));
        assert_eq!((marks.min / 256, marks.reserve / 256), (25, 6));
        assert!(marks.min < marks.low && marks.low < marks.high);
        assert_eq!(Marks::of(pages(16 << 10), 0).min, FOR_HUGE_PAGES);
    }
}
