//! `/proc/iomem`: which physical addresses are RAM.

use memtide_units::{ByteSize, Gpa, GpaRange};

use crate::{Error, Result, Root};

const FILE: &str = "proc/iomem";
const RAM: &str = "System RAM";

/// A range of RAM that the kernel manages, online or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ram {
    /// Its addresses.
    pub range: GpaRange,
    /// The driver that added it, such as `kmem` or `virtio_mem`; `None` for boot memory and DIMMs.
    pub driver: Option<String>,
}

/// The ranges of RAM, by ascending address. Memory that a driver added stands below the driver's
/// own range in the file, so every depth is looked at.
///
/// # Errors
/// [`Error::Missing`]; [`Error::Hidden`] for a process without CAP_SYS_ADMIN, to whom the kernel
/// shows every address as zero; [`Error::Garbage`] for a RAM line without addresses, or no RAM.
pub fn system_ram(root: &Root) -> Result<Vec<Ram>> {
    let text = root.read(FILE)?;
    let path = root.path(FILE);
    match parse(&text) {
        Ok(ram) if ram.is_empty() => Err(Error::garbage(path, "at least one range of RAM", &text)),
        Ok(ram) => Ok(ram),
        Err(line) if hidden(line) => Err(Error::Hidden { path }),
        Err(line) => Err(Error::garbage(path, "such as 00100000-3ffdefff : System RAM", line)),
    }
}

/// The ranges, or the first line of RAM that has none.
fn parse(text: &str) -> std::result::Result<Vec<Ram>, &str> {
    let mut ram = Vec::new();
    for line in text.lines() {
        let Some((addresses, name)) = line.split_once(" : ") else { continue };
        let Some(rest) = name.strip_prefix(RAM) else { continue };
        if hidden(line) {
            return Err(line);
        }
        let driver = rest.strip_prefix(" (").and_then(|rest| rest.strip_suffix(')'));
        let range = range(addresses.trim()).ok_or(line)?;
        ram.push(Ram { range, driver: driver.map(str::to_owned) });
    }
    ram.sort_by_key(|ram| ram.range.start());
    Ok(ram)
}

fn hidden(line: &str) -> bool {
    line.trim_start().starts_with("00000000-00000000 ")
}

/// `00100000-3ffdefff`: the last address is in it.
fn range(text: &str) -> Option<GpaRange> {
    let (first, last) = text.split_once('-')?;
    let first = u64::from_str_radix(first, 16).ok()?;
    let last = u64::from_str_radix(last, 16).ok()?;
    let len = last.checked_sub(first)?.checked_add(1)?;
    GpaRange::new(Gpa(first), ByteSize::from_bytes(len)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;
    use proptest::prelude::*;

    const GUEST: &str = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n\
        00100000-3ffdcfff : System RAM\n  01000000-02276507 : Kernel code\n\
        b0000000-bfffffff : PCI ECAM 0000 [bus 00-ff]\n\
        140000000-1607fffff : Persistent Memory\n  140000000-1607fffff : namespace0.0\n    \
        140000000-1607fffff : dax0.0\n      148000000-15fffffff : System RAM (kmem)\n";

    #[test]
    fn boot_memory_and_what_drivers_added_are_found() {
        let fake = FakeRoot::new();
        fake.put(FILE, GUEST);
        let ram = system_ram(&fake.root()).unwrap();
        assert_eq!(ram.len(), 3);
        assert_eq!(ram[0].range.end(), Gpa(0x9fc00));
        assert_eq!(ram[1].driver, None);
        assert_eq!(ram[2].driver.as_deref(), Some("kmem"));
        assert_eq!(ram[2].range.len(), ByteSize::from_mib(384));
    }

    #[test]
    fn hidden_addresses_are_not_taken_for_a_page_at_zero() {
        let fake = FakeRoot::new();
        fake.put(FILE, "00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n");
        assert!(matches!(system_ram(&fake.root()), Err(Error::Hidden { .. })));
    }

    #[test]
    fn absent_empty_and_garbled_files_are_errors() {
        let fake = FakeRoot::new();
        assert!(system_ram(&fake.root()).unwrap_err().is_missing());
        for text in ["", "0-1 : Reserved\n", "2-1 : System RAM\n", "x-y : System RAM\n"] {
            fake.put(FILE, text);
            assert!(matches!(system_ram(&fake.root()), Err(Error::Garbage { .. })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "([0-9a-f]{0,17}|-| : |System RAM|\\(|\\)|.|\n){0,24}") {
            let _ = parse(&text);
        }
    }
}
