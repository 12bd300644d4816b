//! Huge pages of the host, reserved for as long as they are needed.

use std::fs;
use std::path::{Path, PathBuf};

use memtide_units::ByteSize;

use crate::error::{BenchError, Result};

/// The pool of huge pages of the default size (Documentation/admin-guide/mm/hugetlbpage.rst).
pub(crate) const POOL: &str = "/proc/sys/vm/nr_hugepages";
/// That size on x86.
pub(crate) const HUGE_PAGE: ByteSize = ByteSize::from_mib(2);

/// Huge pages on top of those that there were. The pool gets its old size back when this is dropped.
#[derive(Debug)]
pub(crate) struct HugePages {
    pool: PathBuf,
    before: u64,
}

impl HugePages {
    /// Reserves as many as `size` takes.
    pub(crate) fn reserve(pool: &Path, size: ByteSize) -> Result<Self> {
        let wanted = size.bytes() / HUGE_PAGE.bytes();
        let reserved = Self { pool: pool.to_owned(), before: read(pool)? };
        // From here on an error puts the old size back, too.
        write(pool, reserved.before + wanted)?;
        let got = read(pool)?.saturating_sub(reserved.before);
        if got < wanted {
            return Err(BenchError::HugePages { wanted, got });
        }
        Ok(reserved)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = write(&self.pool, self.before) {
            eprintln!("{error}; write {} there yourself", self.before);
        }
    }
}

fn read(pool: &Path) -> Result<u64> {
    let text = fs::read_to_string(pool);
    text.and_then(|text| text.trim().parse().map_err(std::io::Error::other))
        .map_err(|source| BenchError::File { doing: "read", path: pool.into(), source })
}

fn write(pool: &Path, pages: u64) -> Result<()> {
    fs::write(pool, pages.to_string()).map_err(|source| BenchError::File {
        doing: "write",
        path: pool.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_grows_and_gets_its_old_size_back() {
        let pool = tempfile::NamedTempFile::new().unwrap();
        fs::write(&pool, "7\n").unwrap();
        let reserved = HugePages::reserve(pool.path(), ByteSize::from_gib(1)).unwrap();
        assert_eq!(fs::read_to_string(&pool).unwrap(), "519");
        drop(reserved);
        assert_eq!(fs::read_to_string(&pool).unwrap(), "7");
    }

    #[test]
    fn a_pool_that_is_not_what_it_should_be_is_left_alone() {
        let pool = tempfile::NamedTempFile::new().unwrap();
        fs::write(&pool, "none\n").unwrap();
        let error = HugePages::reserve(pool.path(), ByteSize::from_gib(1)).unwrap_err();
        assert!(error.to_string().starts_with("cannot read"), "{error}");
        assert_eq!(fs::read_to_string(&pool).unwrap(), "none\n");
    }
}
