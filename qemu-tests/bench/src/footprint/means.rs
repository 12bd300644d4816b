//! What gives memory back, each in a guest of its own.

use std::path::Path;

use memtide_units::ByteSize;

use crate::error::Result;
use crate::machines::Machines;
use crate::memtide::Device;
use crate::subject::Subject;

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// Nothing: what was touched once stays.
    None,
    /// QEMU's balloon with free page reporting.
    FreePageReporting,
    /// The same, with the kernel's own `DAMON_RECLAIM` and somewhere to page out to.
    DamonReclaim,
    /// The agent and the device, as they are shipped.
    Memtide,
}

/// A guest, and the device's process that must outlive it.
pub(super) struct Guest {
    pub(super) subject: Subject,
    _device: Option<Device>,
}

/// `DAMON_RECLAIM` with its defaults (Documentation/admin-guide/mm/damon/reclaim.rst) but for two: a
/// region is cold after ten seconds instead of two minutes, since the whole run takes no longer than
/// that, and the quota follows the pressure that Memtide has for its goal, 0.1 %. `damon_stat`
/// leaves it the monitor. The swap is what Linux distributions set up with zram-generator: half of memory, at most 4 GiB.
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
echo 10000000 > min_age
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

impl Means {
    pub(super) const ALL: [Self; 4] =
        [Self::None, Self::FreePageReporting, Self::DamonReclaim, Self::Memtide];

    /// How it is called in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FreePageReporting => "free_page_reporting",
            Self::DamonReclaim => "damon_reclaim",
            Self::Memtide => "memtide",
        }
    }

    /// Boots a guest with it.
    pub(super) fn start(self, machines: &Machines<'_>, sockets: &Path) -> Result<Guest> {
        let name = self.name();
        let subject = match self {
            Self::None => machines.plain(name)?,
            Self::FreePageReporting => machines.with_reporting(name, &[])?,
            Self::DamonReclaim => {
                let subject = machines.with_reporting(name, &["zram"])?;
                subject.bash_with(DAMON_RECLAIM, &[mib(machines.memory)])?;
                subject
            }
            Self::Memtide => {
                let log = machines.artifacts.join("memtide-device.log");
                let device = Device::start(machines.programs, &sockets.join(name), &log)?;
                let backing = memtide_lab::machine::Backing::Memfd;
                let subject = machines.with_memtide(name, device.socket(), backing)?;
                return Ok(Guest { subject, _device: Some(device) });
            }
        };
        Ok(Guest { subject, _device: None })
    }
}

fn mib(size: ByteSize) -> String {
    size.mib().to_string()
}
