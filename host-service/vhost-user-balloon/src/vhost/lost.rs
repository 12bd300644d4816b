//! Survives guest memory that is not there.
//!
//! A file can be truncated after it was mapped, and a huge page that was punched cannot come back
//! while the host's pool is empty. Touching such a page raises SIGBUS, which would take the device
//! down, and the VM with it: a VMM that loses its device ends. So the handler puts an empty page
//! over the one that is not there and writes down where. Whoever touched it finds zeros, learns that
//! they mean nothing before it acts on them ([`Watched::lost`]), and has the file mapped again in
//! place of the empty page.
//!
//! Only mappings that are watched are treated so. Any other SIGBUS ends the process, as it should.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use nix::libc::{self, c_int, c_void, siginfo_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use rustix::mm::{MapFlags, ProtFlags};

/// Mappings that can be watched at a time: those of one VM with all its memory slots, several times
/// over, since tests run many devices in a process.
const SLOTS: usize = 4096;

/// What the handler knows about one mapping. It is only ever entered for an address inside a mapping
/// of its own thread, whose slot does not change meanwhile.
struct Slot {
    taken: AtomicBool,
    /// First address; zero while the other fields are not valid.
    start: AtomicUsize,
    end: AtomicUsize,
    /// Bytes that can be mapped over at once.
    unit: AtomicUsize,
    /// The units from here on ...
    lost_from: AtomicUsize,
    /// ... up to here may be empty pages; zero for none.
    lost_to: AtomicUsize,
}

impl Slot {
    const fn free() -> Self {
        Self {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            unit: AtomicUsize::new(0),
            lost_from: AtomicUsize::new(usize::MAX),
            lost_to: AtomicUsize::new(0),
        }
    }

    fn contains(&self, address: usize) -> bool {
        let start = self.start.load(Ordering::Acquire);
        let end = self.end.load(Ordering::Acquire);
        let unchanged = self.start.load(Ordering::Acquire) == start;
        start != 0 && unchanged && (start..end).contains(&address)
    }
}

static TABLE: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];

/// Slots from here on were never used.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Pages that were not there, in this process.
static LOSSES: AtomicU64 = AtomicU64::new(0);

static INSTALL: Once = Once::new();
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// A number that moves whenever a page was not there.
pub(crate) fn losses() -> u64 {
    LOSSES.load(Ordering::Acquire)
}

/// A mapping that is watched until this is dropped.
#[derive(Debug)]
pub(crate) struct Watched(usize);

impl Watched {
    /// Watches the `len` bytes of a mapping from `start` on, which is made of units of `unit` bytes.
    ///
    /// # Errors
    /// Where too many are watched, or the handler cannot be installed.
    pub(crate) fn new(start: usize, len: usize, unit: usize) -> io::Result<Self> {
        install()?;
        let free = TABLE.iter().position(|slot| !slot.taken.swap(true, Ordering::AcqRel));
        let index = free.ok_or_else(|| io::Error::other("too many mappings are watched"))?;
        USED.fetch_max(index + 1, Ordering::AcqRel);
        let slot = &TABLE[index];
        slot.end.store(start + len, Ordering::Release);
        slot.unit.store(unit, Ordering::Release);
        slot.start.store(start, Ordering::Release);
        Ok(Self(index))
    }

    /// The part of the mapping in which pages were not there, in bytes from its start.
    pub(crate) fn lost(&self) -> Option<std::ops::Range<usize>> {
        let slot = &TABLE[self.0];
        let to = slot.lost_to.load(Ordering::Acquire);
        let start = slot.start.load(Ordering::Acquire);
        (to != 0).then(|| slot.lost_from.load(Ordering::Acquire) - start..to - start)
    }

    /// The file is mapped everywhere again.
    pub(crate) fn restored(&self) {
        let slot = &TABLE[self.0];
        slot.lost_to.store(0, Ordering::Release);
        slot.lost_from.store(usize::MAX, Ordering::Release);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.restored();
        let slot = &TABLE[self.0];
        slot.start.store(0, Ordering::Release);
        slot.taken.store(false, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    INSTALL.call_once(|| {
        let handler = SigHandler::SigAction(on_sigbus);
        let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler only reads and writes atomics and makes system calls that signal(7)
        // allows it or that take no lock in user space (mmap); it allocates nothing and cannot
        // panic: no index, no arithmetic that overflows.
        let installed = unsafe { nix::sys::signal::sigaction(Signal::SIGBUS, &action) };
        INSTALLED.store(installed.is_ok(), Ordering::Release);
    });
    if INSTALLED.load(Ordering::Acquire) {
        return Ok(());
    }
    Err(io::Error::other("no handler could be installed for SIGBUS"))
}

extern "C" fn on_sigbus(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel hands over a siginfo that is valid while the handler runs.
    let info = unsafe { &*info };
    // SAFETY: the union's address field is the one that is set for the two codes that are let
    // through; for others it is read, as plain bytes, and not used.
    let address = unsafe { info.si_addr() } as usize;
    // A page went bad that is only mapped here (vm.memory_failure_early_kill): nobody has read it.
    if info.si_code == libc::BUS_MCEERR_AO {
        return;
    }
    let is_fault = matches!(info.si_code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR);
    if !(is_fault && cover(address)) {
        die();
    }
}

/// Puts an empty page over the unit at `address`, if that is in a mapping that is watched.
fn cover(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire).min(SLOTS);
    let Some(slot) = TABLE.iter().take(used).find(|slot| slot.contains(address)) else {
        return false;
    };
    let start = slot.start.load(Ordering::Acquire);
    let unit = slot.unit.load(Ordering::Acquire).max(1);
    let first = address - address.wrapping_sub(start) % unit;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the unit lies in a mapping that its owner has registered and not yet given up (it is
    // this thread, and it is busy touching it), so nothing else is replaced. Views on it stay
    // valid: they read and write the new page.
    let mapped = unsafe { rustix::mm::mmap_anonymous(first as *mut c_void, unit, prot, flags) };
    slot.lost_from.fetch_min(first, Ordering::AcqRel);
    slot.lost_to.fetch_max(first.saturating_add(unit), Ordering::AcqRel);
    LOSSES.fetch_add(1, Ordering::AcqRel);
    mapped.is_ok()
}

/// Ends the process as if there were no handler.
fn die() {
    // SAFETY: the default action is no code of ours.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGBUS, SigHandler::SigDfl) };
    // It is blocked while the handler runs, so it comes when that has returned.
    let _ = nix::sys::signal::raise(Signal::SIGBUS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_page_that_nobody_touches_is_no_reason_to_die() {
        install().unwrap();
        // SAFETY: a siginfo is plain numbers, of which all zeros is one.
        let mut info: siginfo_t = unsafe { std::mem::zeroed() };
        (info.si_signo, info.si_code) = (libc::SIGBUS, libc::BUS_MCEERR_AO);
        let (process, thread) = (std::process::id(), nix::unistd::gettid().as_raw());
        // SAFETY: the kernel reads one siginfo, and a process may send any to itself
        // (kernel/signal.c, do_rt_tgsigqueueinfo).
        let sent = unsafe {
            let call = libc::SYS_rt_tgsigqueueinfo;
            libc::syscall(call, process, thread, libc::SIGBUS, &raw const info)
        };
        assert_eq!(sent, 0, "and the process is still there");
    }
}
