//! The result, as it is written to a file.

use serde::Serialize;

use crate::figures::{Figures, Spread};

/// What was measured, and where.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The circumstances.
    pub setting: Setting,
    /// Memtide on ordinary pages.
    pub memtide: Figures,
    /// Memtide on huge pages of 2 MiB, unless that was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memtide_hugetlb: Option<Figures>,
    /// QEMU's virtio-balloon.
    pub qemu_virtio_balloon: Figures,
    /// QEMU's virtio-mem.
    pub qemu_virtio_mem: Figures,
    /// The raw limits, on ordinary pages.
    pub raw: RawFigures,
    /// The device by itself, driven by a fake driver.
    pub device_alone: Rate,
    /// Holes of 128 MiB punched into the same kind of memory, by nobody else's order.
    pub raw_punch: Rate,
    /// How Memtide compares.
    pub ratios: Vec<Ratio>,
}

/// Where and how it was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Setting {
    /// The guests' kernel, as `uname -r` says.
    pub kernel: String,
    /// QEMU's version.
    pub qemu: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Processors of the host.
    pub processors: usize,
    /// Memory of each guest.
    pub guest_memory_mib: u64,
    /// How much of it was moved in each turn.
    pub moved_mib: u64,
    /// Turns of each.
    pub rounds: usize,
    /// Of Memtide on ordinary pages, and of the raw limit, in turns.
    pub close_turns: usize,
    /// How long all of it took.
    pub seconds: u64,
}

/// The raw limits.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct RawFigures {
    /// Reclaim is the slower of offlining and punching.
    #[serde(flatten)]
    pub figures: Figures,
    /// Blocks taken offline by a loop in the guest.
    pub offline_gib_s: f64,
    /// Holes of 128 MiB punched into the guest's memfd.
    pub punch_gib_s: f64,
    /// How far the turns lie apart.
    pub offline_spread: Spread,
    /// How far the turns lie apart.
    pub punch_spread: Spread,
}

/// A single rate.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Rate {
    /// The median.
    pub reclaim_gib_s: f64,
    /// How far the turns lie apart.
    pub spread: Spread,
}

impl From<Spread> for Rate {
    fn from(spread: Spread) -> Self {
        Self { reclaim_gib_s: spread.median, spread }
    }
}

/// One figure as a multiple of another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Whose figure, in words.
    pub of: &'static str,
    /// As a multiple of whose.
    pub to: &'static str,
    /// The multiple.
    pub value: f64,
    /// What it has to be at least, where something was promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<f64>,
}

impl Ratio {
    /// False where a promise is not kept.
    pub fn is_kept(&self) -> bool {
        self.wanted.is_none_or(|wanted| self.value >= wanted)
    }
}

/// What Memtide's reclaim has to be, as a multiple: of the balloon, of virtio-mem, of the slower raw
/// limit; and the device by itself as a multiple of the raw punch.
const BALLOON: f64 = 12.0;
const VIRTIO_MEM: f64 = 5.0;
const RAW: f64 = 0.85;
const DEVICE: f64 = 0.95;

impl Report {
    /// Works out the ratios.
    pub(crate) fn compare(&mut self) {
        let ratio = |of, to, (value, by): (f64, f64), wanted| {
            let value = if by > 0.0 { value / by } else { 0.0 };
            Ratio { of, to, value, wanted }
        };
        let (memtide, balloon) = (&self.memtide, &self.qemu_virtio_balloon);
        let (virtio_mem, raw) = (&self.qemu_virtio_mem, &self.raw.figures);
        let reclaim = |by: &Figures| (memtide.reclaim_gib_s, by.reclaim_gib_s);
        let give_back = |by: &Figures| (memtide.return_gib_s, by.return_gib_s);
        let mut ratios = vec![
            ratio("memtide reclaim", "virtio-balloon", reclaim(balloon), Some(BALLOON)),
            ratio("memtide reclaim", "virtio-mem", reclaim(virtio_mem), Some(VIRTIO_MEM)),
            ratio("memtide reclaim", "raw", reclaim(raw), Some(RAW)),
            ratio("memtide return", "virtio-balloon", give_back(balloon), None),
            ratio("memtide return", "virtio-mem", give_back(virtio_mem), None),
            ratio("memtide return", "raw", give_back(raw), None),
        ];
        if let Some(huge) = &self.memtide_hugetlb {
            let reclaim = |by: &Figures| (huge.reclaim_gib_s, by.reclaim_gib_s);
            ratios.extend([
                ratio("memtide on huge pages, reclaim", "virtio-balloon", reclaim(balloon), None),
                ratio("memtide on huge pages, reclaim", "virtio-mem", reclaim(virtio_mem), None),
                ratio(
                    "memtide on huge pages, reclaim",
                    "raw offline",
                    (huge.reclaim_gib_s, self.raw.offline_gib_s),
                    None,
                ),
            ]);
        }
        let alone = (self.device_alone.reclaim_gib_s, self.raw_punch.reclaim_gib_s);
        ratios.push(ratio("device alone, reclaim", "raw punch", alone, Some(DEVICE)));
        self.ratios = ratios;
    }

    /// Promises that were not kept.
    pub fn broken(&self) -> impl Iterator<Item = &Ratio> {
        self.ratios.iter().filter(|ratio| !ratio.is_kept())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn report() -> Report {
        let figures = |reclaim_gib_s, return_gib_s| Figures {
            reclaim_gib_s,
            return_gib_s,
            host_cpu_s_per_gib: 0.5,
            guest_cpu_s_per_gib: 0.25,
            ..Figures::default()
        };
        let mut report = Report {
            memtide: figures(4.0, 9.0),
            memtide_hugetlb: Some(figures(10.0, 9.0)),
            qemu_virtio_balloon: figures(0.25, 1.5),
            qemu_virtio_mem: figures(0.5, 18.0),
            raw: RawFigures {
                figures: figures(5.0, 20.0),
                offline_gib_s: 16.0,
                ..RawFigures::default()
            },
            device_alone: Spread::of([4.0]).into(),
            raw_punch: Spread::of([4.0]).into(),
            ..Report::default()
        };
        report.compare();
        report
    }

    #[test]
    fn ratios_are_compared_with_what_was_promised() {
        let report = report();
        let values: Vec<f64> = report.ratios.iter().map(|ratio| ratio.value).collect();
        assert_eq!(values, [16.0, 8.0, 0.8, 6.0, 0.5, 0.45, 40.0, 20.0, 0.625, 1.0]);
        let broken: Vec<_> = report.broken().map(|ratio| ratio.to).collect();
        assert_eq!(broken, ["raw"]);
    }

    #[test]
    fn the_file_has_the_keys_that_others_read() {
        let json = serde_json::to_value(report()).unwrap();
        for who in ["memtide", "memtide_hugetlb", "qemu_virtio_balloon", "qemu_virtio_mem", "raw"] {
            for key in
                ["reclaim_gib_s", "return_gib_s", "host_cpu_s_per_gib", "guest_cpu_s_per_gib"]
            {
                assert!(json[who][key].is_number(), "{who} {key}");
            }
        }
        assert!(json["raw"]["offline_gib_s"].is_number() && json["raw"]["punch_gib_s"].is_number());
        for who in ["device_alone", "raw_punch"] {
            assert!(json[who]["reclaim_gib_s"].is_number(), "{who}");
        }
    }

    #[test]
    fn what_was_left_out_is_not_in_the_file() {
        let mut report = Report { memtide_hugetlb: None, ..report() };
        report.compare();
        assert!(serde_json::to_value(&report).unwrap().get("memtide_hugetlb").is_none());
        assert_eq!(report.ratios.len(), 7);
    }
}
