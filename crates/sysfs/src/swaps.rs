//! `/proc/swaps`: the swap areas that are in use.

use memtide_units::ByteSize;

use crate::{Error, Result, Root};

const FILE: &str = "proc/swaps";

/// One area (Documentation/filesystems/proc.rst; mm/swapfile.c, `swap_show`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapArea {
    /// Its file or device, such as `/dev/zram0`, as the kernel writes it.
    pub path: String,
    /// How much it holds.
    pub size: ByteSize,
    /// How much of that is in use.
    pub used: ByteSize,
    /// The highest is used first.
    pub priority: i32,
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
    Some(SwapArea { path, size, used, priority })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;

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
            size: ByteSize::from_kib(1_048_572),
            used: ByteSize::from_mib(2),
            priority: -2,
        };
        assert_eq!(areas[0], zram);
        assert_eq!((areas[1].path.as_str(), areas[1].priority), ("/swap\\040file", 5));
        fake.put(FILE, &format!("{head}/dev/sda2 partition many 0 -2\n"));
        assert!(matches!(read(&fake.root()), Err(Error::Garbage { .. })));
    }
}
