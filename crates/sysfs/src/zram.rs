//! zram: block devices in compressed memory (Documentation/admin-guide/blockdev/zram.rst).

use memtide_units::ByteSize;

use crate::{Error, Result, Root};

const CONTROL: &str = "sys/class/zram-control";

/// Algorithms that are quick enough for memory that somebody waits for when it is touched again, the
/// one that costs least first. Which of them a kernel has differs: Debian's 7.3 has no lzo.
const QUICK: [&str; 4] = ["lzo-rle", "lz4", "lzo", "zstd"];

/// True where the driver is there, built in or loaded.
pub fn is_loaded(root: &Root) -> bool {
    root.exists(CONTROL)
}

/// One device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zram(pub u32);

impl Zram {
    /// Has the kernel make a new device, without memory of its own yet.
    ///
    /// # Errors
    /// [`Error::Missing`]: the driver is not there. [`Error::Io`]: reading the file is what makes the
    /// device, and only root may.
    pub fn add(root: &Root) -> Result<Self> {
        root.value(format!("{CONTROL}/hot_add"), "the number of the new device").map(Self)
    }

    /// The block device's file.
    pub fn device(self) -> String {
        format!("/dev/{}", self.name())
    }

    /// The device's name.
    pub fn name(self) -> String {
        format!("zram{}", self.0)
    }

    /// True where the kernel has such a device.
    pub fn exists(self, root: &Root) -> bool {
        root.exists(self.dir())
    }

    /// Gives it an algorithm, a size, and a bound on the memory that it takes; answers with the
    /// algorithm. The kernel's choice stands where it is a quick one.
    ///
    /// # Errors
    /// [`Error::Refused`]: EBUSY where it has a size already, ENOMEM where its table finds no memory.
    pub fn set_up(self, root: &Root, size: ByteSize, most_memory: ByteSize) -> Result<String> {
        let algorithm = self.choose_algorithm(root)?;
        root.write(self.file("disksize"), &size.bytes().to_string())?;
        root.write(self.file("mem_limit"), &most_memory.bytes().to_string())?;
        Ok(algorithm)
    }

    fn choose_algorithm(self, root: &Root) -> Result<String> {
        let file = self.file("comp_algorithm");
        let offered = root.read(&file)?;
        let brackets = offered.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        let current = brackets.map_or("", |(name, _)| name);
        if QUICK.contains(&current) {
            return Ok(current.into());
        }
        let is_offered = |name: &&&str| offered.split_ascii_whitespace().any(|o| o == **name);
        match QUICK.iter().find(is_offered) {
            Some(quick) => root.write(&file, quick).map(|()| (*quick).into()),
            None => Ok(current.into()),
        }
    }

    /// Its size; zero where it was never set up.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Garbage`].
    pub fn size(self, root: &Root) -> Result<ByteSize> {
        root.value(self.file("disksize"), "a number of bytes").map(ByteSize::from_bytes)
    }

    /// What is in it, and what that takes.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Garbage`].
    pub fn content(self, root: &Root) -> Result<Content> {
        let parse = |text: &str| {
            let mut columns = text.split_ascii_whitespace().map(|n| n.parse().ok());
            let mut next = || columns.next()?.map(ByteSize::from_bytes);
            let (stored, _compressed, memory) = (next()?, next()?, next()?);
            Some(Content { stored, memory })
        };
        root.parsed(self.file("mm_stat"), "at least three numbers", parse)
    }

    /// Takes the device away, with what is in it.
    ///
    /// # Errors
    /// [`Error::Refused`]: EBUSY while somebody has it open, ENODEV where there is none.
    pub fn remove(self, root: &Root) -> Result<()> {
        root.write(format!("{CONTROL}/hot_remove"), &self.0.to_string())
    }

    fn dir(self) -> String {
        format!("sys/block/{}", self.name())
    }

    fn file(self, name: &str) -> String {
        format!("{}/{name}", self.dir())
    }
}

/// What a device holds (`mm_stat`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Bytes that were written to it, pages full of one word not counted.
    pub stored: ByteSize,
    /// Bytes of memory that they take, the allocator's losses included.
    pub memory: ByteSize,
}

/// True for the answer of a device that somebody has open.
pub fn is_busy(error: &Error) -> bool {
    error.errno() == Some(rustix::io::Errno::BUSY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;

    fn algorithm(offered: &str) -> (String, String) {
        let fake = FakeRoot::new();
        fake.add_zram(offered);
        let zram = Zram::add(&fake.root()).unwrap();
        let mib = ByteSize::from_mib;
        let chosen = zram.set_up(&fake.root(), mib(512), mib(256)).unwrap();
        assert_eq!(zram.size(&fake.root()).unwrap(), mib(512));
        assert_eq!(fake.get("sys/block/zram0/mem_limit"), "268435456\n");
        (chosen, fake.get("sys/block/zram0/comp_algorithm"))
    }

    #[test]
    fn the_kernels_algorithm_stands_where_it_is_quick() {
        let debian = "[lz4] lz4hc zstd deflate\n";
        assert_eq!(algorithm(debian), ("lz4".into(), debian.into()));
        assert_eq!(algorithm("lzo-rle lzo [842] zstd\n").0, "lzo-rle");
        assert_eq!(algorithm("[842] deflate zstd\n"), ("zstd".into(), "zstd\n".into()));
        assert_eq!(algorithm("[842]\n").0, "842");
    }

    #[test]
    fn a_device_is_made_filled_and_taken_away() {
        let fake = FakeRoot::new();
        assert!(!is_loaded(&fake.root()));
        assert!(Zram::add(&fake.root()).unwrap_err().is_missing());
        fake.add_zram("[lz4]\n");
        assert!(is_loaded(&fake.root()));
        let zram = Zram::add(&fake.root()).unwrap();
        assert_eq!((zram.device().as_str(), zram.exists(&fake.root())), ("/dev/zram0", true));
        fake.put("sys/block/zram0/mm_stat", "  4096 74 12288 0 12288 0 0 0 0\n");
        let content = zram.content(&fake.root()).unwrap();
        assert_eq!((content.stored.bytes(), content.memory.bytes()), (4_096, 12_288));
        fake.put("sys/block/zram0/mm_stat", "4096 74\n");
        assert!(matches!(zram.content(&fake.root()), Err(Error::Garbage { .. })));
        zram.remove(&fake.root()).unwrap();
        assert!(!zram.exists(&fake.root()));
        assert!(!is_busy(&zram.remove(&fake.root()).unwrap_err()));
    }
}
