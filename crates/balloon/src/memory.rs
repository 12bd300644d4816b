//! How requests are read out of guest memory.

use vm_memory::bitmap::NewBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap};

/// Guest memory that rings lie in and requests are copied out of.
///
/// Rings stay where they are, while a guest may use any page for any request. Whoever maps guest
/// memory may want to copy requests by another way, as reading a hole through a mapping of a file
/// brings a page in, and keeps it in the page tables of whoever reads.
pub trait RequestMemory: GuestMemory {
    /// Copies what lies at `at` into `into`. The range was checked to be memory.
    ///
    /// # Errors
    /// [`GuestMemoryError`] where it is not there. `into` is worth nothing then.
    fn copy_out(&self, at: GuestAddress, into: &mut [u8]) -> Result<(), GuestMemoryError> {
        self.read_slice(into, at)
    }
}

/// Memory that is this program's own, as in tests: through the mapping.
impl<B: NewBitmap> RequestMemory for GuestMemoryMmap<B> {}
