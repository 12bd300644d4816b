//! The host's memory, from `/proc/meminfo` (Documentation/filesystems/proc.rst).

use std::io;
use std::path::{Path, PathBuf};

use memtide_policy::host::HostMemory;
use memtide_units::ByteSize;

/// Why the host's memory is not known.
#[derive(Debug, thiserror::Error)]
pub enum MeminfoError {
    /// The file cannot be read.
    #[error("the host's memory cannot be read from {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is missing or no number.
    #[error("{} has no line \"{field}: N kB\": is this a Linux host?", path.display())]
    Field {
        /// Which file.
        path: PathBuf,
        /// The line's name.
        field: &'static str,
    },
}

/// Reads it now.
pub(crate) fn read(path: &Path) -> Result<HostMemory, MeminfoError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| MeminfoError::Read { path: path.into(), source })?;
    let field =
        |name| field(&text, name).ok_or(MeminfoError::Field { path: path.into(), field: name });
    Ok(HostMemory { total: field("MemTotal")?, available: field("MemAvailable")? })
}

fn field(text: &str, name: &str) -> Option<ByteSize> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib = rest.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(ByteSize::from_kib(kib))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meminfo");
        let text = "MemTotal:       16384 kB\nMemFree:   1 kB\nMemAvailable:    8192 kB\n";
        std::fs::write(&path, text).unwrap();
        let memory = read(&path).unwrap();
        assert_eq!((memory.total.mib(), memory.available.mib()), (16, 8));
    }

    #[test]
    fn says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meminfo");
        assert!(read(&path).unwrap_err().to_string().contains("cannot be read"));
        std::fs::write(&path, "MemTotal: 5 kB\nMemAvailable: lots\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("MemAvailable"));
    }
}
