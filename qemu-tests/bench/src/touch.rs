//! Touching guest memory in the guest's place.
//!
//! What returns from the host has no backing until the guest writes to it, and a guest under
//! emulation takes half a minute to write to a few GiB. So while its processors are stopped, a byte
//! of each page is read from QEMU's memory and written back (process_vm_writev(2)): afterwards the
//! page is there, and mapped into QEMU writable and dirty, just as after the guest's own write.
//!
//! Each processor touches its share, as the guest's would: a page costs more to drop on a processor
//! that has not touched it, and nobody's figure shall depend on where the scheduler had put whom.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use memtide_lab::machine::GuestMemory;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use crate::error::{BenchError, Result};
use crate::processors;

/// Pages in one call; the kernel takes 1024 (`IOV_MAX`).
const AT_ONCE: usize = 512;

/// Touches all of `memory` in the process that has it mapped, which must not run meanwhile. `page` is
/// the size of its pages, in bytes.
pub(crate) fn touch(pid: u32, memory: &GuestMemory, page: usize) -> Result<()> {
    let failed = BenchError::call("the guest's memfd cannot be looked at");
    let inode = memory.reopen().and_then(|file| file.metadata()).map_err(failed)?.ino();
    let path = PathBuf::from(format!("/proc/{pid}/maps"));
    let maps = fs::read_to_string(&path).map_err(|source| BenchError::File {
        doing: "read",
        path,
        source,
    })?;
    let pid = Pid::from_raw(pid.cast_signed());
    let ranges = mapped(&maps, inode);
    let processors = processors::allowed();
    std::thread::scope(|scope| {
        let share = |(turn, cpu): (usize, &usize)| {
            let (ranges, cpu, of) = (&ranges, *cpu, processors.len());
            scope.spawn(move || {
                processors::run_on(None, cpu)?;
                rewrite_share(pid, ranges, page, (turn, of))
            })
        };
        let threads: Vec<_> = processors.iter().enumerate().map(share).collect();
        let panicked = |_| Err(BenchError::Device("memory could not be touched".into()));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(panicked))
    })
}

/// Every `of`th chunk of pages, from number `turn` on.
fn rewrite_share(
    pid: Pid,
    ranges: &[Range<usize>],
    page: usize,
    (turn, of): (usize, usize),
) -> Result<()> {
    for range in ranges {
        let pages: Vec<usize> = range.clone().step_by(page).collect();
        for pages in pages.chunks(AT_ONCE).skip(turn).step_by(of) {
            rewrite(pid, pages)?;
        }
    }
    Ok(())
}

fn rewrite(pid: Pid, addresses: &[usize]) -> Result<()> {
    let failed = BenchError::call("QEMU's memory cannot be touched");
    let remote: Vec<RemoteIoVec> =
        addresses.iter().map(|base| RemoteIoVec { base: *base, len: 1 }).collect();
    let mut bytes = [0; AT_ONCE];
    let bytes = &mut bytes[..addresses.len()];
    let read = process_vm_readv(pid, &mut [IoSliceMut::new(bytes)], &remote).map_err(&failed)?;
    let written = process_vm_writev(pid, &[IoSlice::new(bytes)], &remote).map_err(&failed)?;
    if (read, written) != (addresses.len(), addresses.len()) {
        return Err(failed(nix::errno::Errno::EFAULT));
    }
    Ok(())
}

/// Where a process has the file with this inode mapped, by its `/proc/PID/maps` (proc(5)).
fn mapped(maps: &str, inode: u64) -> Vec<Range<usize>> {
    let range = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let hex = |text| usize::from_str_radix(text, 16).ok();
        let is_it = words.nth(3)?.parse() == Ok(inode) && words.next()?.starts_with("/memfd:");
        Some(hex(from)?..hex(to)?).filter(|_| is_it)
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mappings_of_a_memfd_are_found() {
        let maps = "\
            7f00a0000000-7f01a0000000 rw-s 00000000 00:01 1042 /memfd:memory-backend-memfd (deleted)\n\
            7f01a0000000-7f01a0001000 rw-s 00000000 00:01 1043 /memfd:other (deleted)\n\
            7f01b0000000-7f01b0001000 rw-p 00000000 00:00 0 \n\
            7f01c0000000-7f01c0001000 r-xp 00000000 08:01 1042 /usr/lib/x\n";
        let [found] = &mapped(maps, 1042)[..] else { panic!("one of them is it") };
        assert_eq!(*found, 0x7f00_a000_0000..0x7f01_a000_0000);
        assert_eq!(mapped("", 1), []);
    }
}
