//! How much memory a piece of code takes at its highest, and how much of the processor's time.
//!
//! A limit on what a guest can make the host allocate is only a limit if somebody counts. The
//! allocator of every program that links this crate does, per thread, in two cells. The same goes
//! for time; that of the thread is counted and not the clock's, so that a machine that is busy with
//! something else does not look like work without end.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use rustix::time::ClockId;

/// Processor time that one input may take, hundreds of times what the slowest do: more is work that
/// grows faster than the input.
const TIME_MAX: Duration = Duration::from_secs(10);

/// The system's allocator, with a count.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Bytes allocated less bytes freed by this thread: below zero where it frees what others made.
    static NOW: Cell<isize> = const { Cell::new(0) };
    static HIGHEST: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // While a thread ends its cells are gone: nobody measures then.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + change);
        let _ = HIGHEST.try_with(|highest| highest.set(highest.get().max(now.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator as it came; counting neither allocates
// (the cells are const and need no destructor) nor touches the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `alloc`, which is this one's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the pointer came from the system's allocator under this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: as above; the caller vouches for the new size.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs `work`.
///
/// # Panics
/// Where it had more than `limit` bytes allocated at any time, over what was there before, or took
/// more than ten seconds of the processor's time.
pub fn within<T>(limit: usize, work: impl FnOnce() -> T) -> T {
    let before = NOW.get();
    HIGHEST.set(before);
    let result = soon(TIME_MAX, work);
    let taken = HIGHEST.get() - before;
    assert!(taken <= limit.cast_signed(), "{taken} bytes were allocated, {limit} are the limit");
    result
}

/// Runs `work`.
///
/// # Panics
/// Where it took more than `limit` of the processor's time.
pub fn soon<T>(limit: Duration, work: impl FnOnce() -> T) -> T {
    let start = processor_time();
    let result = work();
    let took = processor_time() - start;
    assert!(took <= limit, "{took:?} of the processor's time were taken, {limit:?} are the limit");
    result
}

/// What this thread has had so far.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_again_counts_at_its_highest() {
        within(5000, || drop(vec![1_u8; 4096]));
        let panics = std::panic::catch_unwind(|| within(4000, || drop(vec![1_u8; 4096])));
        assert!(panics.is_err());
    }

    #[test]
    fn work_that_takes_too_long_is_noticed() {
        let busy = || {
            let end = processor_time() + Duration::from_millis(5);
            while processor_time() < end {
                std::hint::spin_loop();
            }
        };
        soon(Duration::from_secs(1), busy);
        assert!(std::panic::catch_unwind(|| soon(Duration::from_millis(4), busy)).is_err());
    }
}
