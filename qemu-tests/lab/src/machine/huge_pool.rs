//! The host's pool of 2 MiB pages: enough of them for one guest, and as many as before afterwards.

use std::fs;

use crate::error::{Error, IoContext, Result};

const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Pages of 2 MiB that are free for a guest. What had to be added goes back when this is dropped.
#[derive(Debug)]
pub struct HugePool {
    before: u64,
    added: u64,
}

impl HugePool {
    /// Sees to it that so many MiB are free in the pool.
    ///
    /// # Errors
    /// If the pool would have to grow and we are not root, or the host's memory has not so many
    /// whole pieces of 2 MiB left.
    pub fn with(mib: u64) -> Result<Self> {
        let wanted = mib.div_ceil(2);
        let before = size()?;
        let mut pool = Self { before, added: 0 };
        let missing = wanted.saturating_sub(free()?);
        if missing > 0 {
            pool.resize(before + missing)?;
            pool.added = missing;
        }
        if free()? < wanted {
            return Err(Error::Unusable {
                what: format!("the host has no {mib} MiB in pieces of 2 MiB"),
                advice: "free some memory",
            });
        }
        Ok(pool)
    }

    fn resize(&self, pages: u64) -> Result<()> {
        fs::write(POOL, format!("{pages}\n")).on("resize (as root) the pool", POOL)
    }
}

impl Drop for HugePool {
    fn drop(&mut self) {
        if self.added > 0
            && let Err(error) = self.resize(self.before)
        {
            eprintln!("the host keeps {} huge pages too many: {error}", self.added);
        }
    }
}

fn size() -> Result<u64> {
    let text = fs::read_to_string(POOL).on("read", POOL)?;
    Ok(text.trim().parse().unwrap_or(0))
}

/// Free and not promised to somebody.
fn free() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").on("read", "/proc/meminfo")?;
    Ok(unpromised(&text))
}

fn unpromised(meminfo: &str) -> u64 {
    let number = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    number("HugePages_Free:").saturating_sub(number("HugePages_Rsvd:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promised_pages_are_not_free() {
        let meminfo =
            "HugePages_Total:     512\nHugePages_Free:      500\nHugePages_Rsvd:      100\n";
        assert_eq!(unpromised(meminfo), 400);
        assert_eq!(unpromised("MemTotal: 1 kB\n"), 0);
    }
}
