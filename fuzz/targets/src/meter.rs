//! How much memory a piece of code takes at its highest, and what it keeps.
//!
//! A limit on what a guest can make the host allocate is only a limit if somebody counts. The
//! allocator of every program that links this crate does, per thread, in two cells.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

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
/// Where it had more than `limit` bytes allocated at any time, over what was there before.
pub fn within<T>(limit: usize, work: impl FnOnce() -> T) -> T {
    let before = NOW.get();
    HIGHEST.set(before);
    let result = work();
    let taken = HIGHEST.get() - before;
    assert!(taken <= limit.cast_signed(), "{taken} bytes were allocated, {limit} are the limit");
    result
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
}
