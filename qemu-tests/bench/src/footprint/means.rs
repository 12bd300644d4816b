//! What gives memory back, each in a guest of its own.

use std::path::Path;
use std::str::FromStr;

use memtide_units::ByteSize;

use crate::error::Result;
use crate::machines::Machines;
use crate::memtide::Device;
use crate::subject::Subject;

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// Nothing: what was touched once stays.
    None,
    /// QEMU's balloon with free page reporting.
    FreePageReporting,
    /// The same, with the kernel's own `DAMON_RECLAIM` and somewhere to page out to.
    DamonReclaim,
    /// The agent and the device, as they are shipped, beside QEMU's balloon with free page reporting.
    Memtide,
}

/// A guest, and the device's process that must outlive it.
pub(super) struct Guest {
    pub(super) subject: Subject,
    _device: Option<Device>,
}

/// `DAMON_RECLAIM` with its defaults (Documentation/admin-guide/mm/damon/reclaim.rst) but for two: a
/// region is cold after one minute instead of two, as for Memtide, and the quota follows the pressure
/// that Memtide has for its goal, 0.1 %. `damon_stat` leaves it the monitor. The swap is what Linux
/// distributions set up with zram-generator: half of memory, at most 4 GiB.
const DAMON_RECLAIM: &str = r#"
set -e
stat=/sys/module/damon_stat/parameters/enabled
[ ! -e $stat ] || echo N > $stat
zram=/sys/block/zram0
[ -e $zram ] || cat /sys/class/zram-control/hot_add
echo $(( $1 / 2 ))M > $zram/disksize
mkswap /dev/zram0 > /dev/null
swapon /dev/zram0
cd /sys/module/damon_reclaim/parameters
echo 60000000 > min_age
echo 1000 > quota_reset_interval_ms
[ ! -e quota_mem_pressure_us ] || echo 1000 > quota_mem_pressure_us
echo Y > enabled
for n in $(seq 50); do
  [ "$(cat kdamond_pid)" -gt 0 ] && exit 0
  sleep 0.1
done
echo "DAMON_RECLAIM does not run" >&2
exit 1
"#;

/// A text that names none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {0:?}: choose from none, free_page_reporting, damon_reclaim, memtide")]
pub struct NoSuchMeans(String);

impl FromStr for Means {
    type Err = NoSuchMeans;

    fn from_str(text: &str) -> std::result::Result<Self, NoSuchMeans> {
        let means = Self::ALL.into_iter().find(|means| means.name() == text);
        means.ok_or_else(|| NoSuchMeans(text.to_owned()))
    }
}

impl Means {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 4] =
        [Self::None, Self::FreePageReporting, Self::DamonReclaim, Self::Memtide];

    /// How it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FreePageReporting => "free_page_reporting",
            Self::DamonReclaim => "damon_reclaim",
            Self::Memtide => "memtide",
        }
    }

    /// Boots a guest of this name with it.
    pub(super) fn start(
        self,
        name: &'static str,
        machines: &Machines<'_>,
        sockets: &Path,
    ) -> Result<Guest> {
        let subject = match self {
            Self::None => machines.plain(name)?,
            Self::FreePageReporting => machines.with_reporting(name, &[])?,
            Self::DamonReclaim => {
                let subject = machines.with_reporting(name, &["zram"])?;
                subject.bash_with(DAMON_RECLAIM, &[mib(machines.memory)])?;
                subject
            }
            Self::Memtide => {
                let device = Device::of_guest(machines, name, sockets)?;
                let subject = machines.with_memtide_and_reporting(name, device.socket())?;
                return Ok(Guest { subject, _device: Some(device) });
            }
        };
        Ok(Guest { subject, _device: None })
    }
}

fn mib(size: ByteSize) -> String {
    size.mib().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_the_name_that_reports_have() {
        assert_eq!(Means::ALL.map(|means| means.name().parse()), Means::ALL.map(Ok));
        assert!("ksm".parse::<Means>().unwrap_err().to_string().contains("choose from none,"));
    }
}
