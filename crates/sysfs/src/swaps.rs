//! `/proc/swaps`: the swap areas that are in use.

use memtide_units::ByteSize;

use crate::zram::Zram;
use crate::{Error, Result, Root};

const FILE: &str = "proc/swaps";

/// One area (Documentation/filesystems/proc.rst; mm/swapfile.c, `swap_show`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapArea {
    /// Its file or device, as the kernel writes it: `/dev/zram0`, or `/zram0` where a process with
    /// mounts of its own has switched it on, such as a service of systemd's.
    pub path: String,
    /// What it is.
    pub kind: SwapKind,
    /// How much it holds.
    pub size: ByteSize,
    /// How much of that is in use.
    pub used: ByteSize,
    /// The highest is used first.
    pub priority: i32,
}

/// What holds an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapKind {
    /// A whole block device, or a partition of one.
    Device,
    /// A file in a file system.
    File,
}

impl SwapArea {
    /// True where it is the block device of this name, such as `zram0`.
    pub fn is_device(&self, name: &str) -> bool {
        self.kind == SwapKind::Device && self.path.rsplit('/').next() == Some(name)
    }

    /// The zram device that it is, where it is one.
    pub fn zram(&self) -> Option<Zram> {
        let name = self.path.rsplit('/').next().filter(|_| self.kind == SwapKind::Device)?;
        name.strip_prefix("zram")?.parse().ok().map(Zram)
    }

    /// True where it keeps its content in memory.
    pub fn is_in_memory(&self) -> bool {
        self.zram().is_some()
    }
}

/// Where the next page goes: of the areas that have room, the one with the highest priority; a disk where
/// several have that, since they take turns then (swapon(2)).
pub fn next(areas: &[SwapArea]) -> Option<&SwapArea> {
    let with_room = areas.iter().filter(|area| area.used < area.size);
    with_room.max_by_key(|area| (area.priority, !area.is_in_memory()))
}

/// All areas; none where there is no swap.
///
/// # Errors
/// [`Error::Missing`]: the kernel has no swap (`CONFIG_SWAP`). [`Error::Garbage`].
pub fn read(root: &Root) -> Result<Vec<SwapArea>> {
    let text = root.read(FILE)?;
    let expected = "a headline, and lines of five fields";
    let areas = text
        .lines()
        .skip(1)
        .map(|line| parse(line).ok_or_else(|| Error::garbage(root.path(FILE), expected, line)));
    areas.collect()
}

/// A path may have blanks in it, escaped, so the numbers are counted from the end.
fn parse(line: &str) -> Option<SwapArea> {
    let mut fields = line.split_ascii_whitespace();
    let path = fields.next()?.to_string();
    let mut numbers = fields.rev();
    let priority = numbers.next()?.parse().ok()?;
    let mut kib = || Some(ByteSize::from_kib(numbers.next()?.parse().ok()?));
    let (used, size) = (kib()?, kib()?);
    let kind = match numbers.next()? {
        "partition" => SwapKind::Device,
        _ => SwapKind::File,
    };
    Some(SwapArea { path, kind, size, used, priority })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;

    #[test]
    fn the_next_page_goes_where_there_is_room_and_a_disk_is_told_from_memory() {
        let area = |path: &str, used, priority| SwapArea {
            path: path.into(),
            kind: SwapKind::Device,
            size: ByteSize::from_mib(64),
            used: ByteSize::from_mib(used),
            priority,
        };
        let of =
            |areas: &[SwapArea]| next(areas).map(|area| (area.path.clone(), area.is_in_memory()));
        let (zram, disk) = (("/zram0".to_string(), true), ("/dev/vdb".to_string(), false));
        assert_eq!(of(&[area("/dev/vdb", 0, -2), area("/zram0", 1, 100)]), Some(zram));
        assert_eq!(of(&[area("/dev/vdb", 0, -2), area("/zram0", 64, 100)]), Some(disk.clone()));
        assert_eq!(of(&[area("/dev/vdb", 0, 5), area("/zram0", 0, 5)]), Some(disk));
        assert_eq!(of(&[area("/dev/vdb", 64, 5)]), None);
        assert!(!area("/dev/zram", 0, 0).is_in_memory());
    }

    #[test]
    fn areas_are_read() {
        let fake = FakeRoot::new();
        assert!(read(&fake.root()).unwrap_err().is_missing());
        let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        fake.put(FILE, head);
        assert_eq!(read(&fake.root()).unwrap(), []);
        let lines = "/dev/zram0      partition\t1048572\t\t2048\t\t-2\n\
                     /swap\\040file (deleted) file 4096 0 5\n";
        fake.put(FILE, &format!("{head}{lines}"));
        let areas = read(&fake.root()).unwrap();
        let zram = SwapArea {
            path: "/dev/zram0".into(),
            kind: SwapKind::Device,
            size: ByteSize::from_kib(1_048_572),
            used: ByteSize::from_mib(2),
            priority: -2,
        };
        assert_eq!(areas[0], zram);
        assert_eq!((areas[1].path.as_str(), areas[1].priority), ("/swap\\040file", 5));
        assert!(areas[0].is_device("zram0") && !areas[0].is_device("zram"));
        fake.put(FILE, &format!("{head}/zram0 partition 4 0 -2\n/zram0 file 4 0 -3\n"));
        let areas = read(&fake.root()).unwrap();
        assert_eq!([0, 1].map(|n| areas[n].is_device("zram0")), [true, false]);
        fake.put(FILE, &format!("{head}/dev/sda2 partition many 0 -2\n"));
        assert!(matches!(read(&fake.root()), Err(Error::Garbage { .. })));
    }
}
