//! Where guests page out to, and what went there.

use std::path::Path;
use std::str::FromStr;

use memtide_units::ByteSize;
use serde::Serialize;

use crate::error::Result;
use crate::machines::Machines;
use crate::setting::Swap;
use crate::subject::Subject;
use crate::swap_disk::SwapDisk;

/// What guests are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SwapKind {
    /// Nothing, so that Memtide's agent sets zram up. Others that have to page out get the same.
    #[default]
    Zram,
    /// A disk for each.
    Disk,
}

/// A text that names none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {0:?}: choose from zram, disk")]
pub struct NoSuchSwap(String);

impl FromStr for SwapKind {
    type Err = NoSuchSwap;

    fn from_str(text: &str) -> std::result::Result<Self, NoSuchSwap> {
        match text {
            "zram" => Ok(Self::Zram),
            "disk" => Ok(Self::Disk),
            _ => Err(NoSuchSwap(text.to_owned())),
        }
    }
}

impl SwapKind {
    /// The disks that guests get, as large as their memory, of files in `directory`.
    pub(super) fn disk(self, directory: &Path, memory: ByteSize) -> Result<Option<SwapDisk>> {
        match self {
            Self::Zram => Ok(None),
            Self::Disk => SwapDisk::new(directory, memory).map(Some),
        }
    }
}

/// How it is told in the report.
pub(super) fn setting(machines: &Machines<'_>) -> Swap {
    machines.swap_disk.as_ref().map_or(Swap::Zram, SwapDisk::setting)
}

/// A device of so many MiB.
const ZRAM: &str = r#"
set -e
zram=/sys/block/zram0
[ -e $zram ] || cat /sys/class/zram-control/hot_add
echo $1M > $zram/disksize
mkswap /dev/zram0 > /dev/null
swapon /dev/zram0
"#;

/// Gives a guest without Memtide somewhere to page out to, as Memtide's have it: where it has no disk,
/// what the agent sets up in a guest of the whole size, half of that.
pub(super) fn give(machines: &Machines<'_>, subject: &Subject) -> Result<()> {
    if machines.swap_disk.is_none() {
        subject.bash_with(ZRAM, &[(machines.memory.mib() / 2).to_string()])?;
    }
    Ok(())
}

/// Of each swap area its device, how much of it is in use in KiB, and what a device of zram takes of the
/// guest's memory for that, in bytes (`mem_used_total` of `mm_stat`).
const AREAS: &str = r#"
{
  read -r _
  while read -r file _ _ used _; do
    name=${file##*/}
    takes=0
    [[ $name != zram* ]] || read -r _ _ takes _ < /sys/block/$name/mm_stat
    echo "$name $used $takes"
  done
} < /proc/swaps
"#;

/// What was paged out, and where it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PagedOut {
    /// To disks, in MiB.
    pub disk_mib: u64,
    /// To compressed memory, in MiB before it was compressed.
    pub zram_mib: u64,
    /// What that takes of the guest's memory, in MiB.
    pub zram_takes_mib: u64,
}

impl PagedOut {
    /// As it is now.
    pub(super) fn of(subject: &Subject) -> Result<Self> {
        let text = subject.bash_with(AREAS, &[])?;
        Self::parse(&text).ok_or_else(|| subject.unexpected("the look at /proc/swaps", text))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut sum = Self::default();
        for line in text.lines() {
            let (name, numbers) = line.split_once(' ')?;
            let (used, takes) = numbers.split_once(' ')?;
            let used = ByteSize::from_kib(used.parse().ok()?).mib();
            if name.starts_with("zram") {
                sum.zram_mib += used;
                sum.zram_takes_mib += ByteSize::from_bytes(takes.parse().ok()?).mib();
            } else {
                sum.disk_mib += used;
            }
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_name() {
        assert_eq!(["zram", "disk"].map(str::parse), [Ok(SwapKind::Zram), Ok(SwapKind::Disk)]);
        let error = "file".parse::<SwapKind>().unwrap_err();
        assert_eq!(error.to_string(), "there is no \"file\": choose from zram, disk");
    }

    #[test]
    fn what_is_in_memory_still_is_told_from_what_is_on_a_disk() {
        let parse = |text| PagedOut::parse(text).unwrap();
        assert_eq!(parse(""), PagedOut::default(), "no swap at all");
        assert_eq!(parse("vdd 836608 0\n"), PagedOut { disk_mib: 817, ..PagedOut::default() });
        assert_eq!(
            parse("vdd 2048 0\nzram0 836608 209715200\n"),
            PagedOut { disk_mib: 2, zram_mib: 817, zram_takes_mib: 200 }
        );
        assert_eq!(PagedOut::parse("bash: no such file"), None);
    }
}
