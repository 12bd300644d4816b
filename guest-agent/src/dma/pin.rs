//! Pinning: a registration with io_uring, the only pin that user space can have for tmpfs memory.
//!
//! Measured on 6.12 and 7.3: `mlock`, tmpfs and hugetlb are no pins, the kernel moves such pages
//! when their block goes offline. Pages registered with io_uring are moved *out* of `ZONE_MOVABLE`
//! while they are registered, and stay where they then are. The ring itself is never used.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io_uring::{
    IoringRegisterOp, io_uring_params, io_uring_register, io_uring_setup, iovec,
};

use super::pages::Pages;

/// A registered buffer is no larger (io_uring/rsrc.c, `io_buffer_validate`).
const BUFFER_MAX: usize = 1 << 30;

/// Keeps pages where they are until it is dropped.
#[derive(Debug)]
pub struct Pin {
    _ring: OwnedFd,
    _pages: Pages,
}

impl Pin {
    /// Whether memory can be pinned here: pins a page for a moment.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn probe() -> io::Result<()> {
        Self::new(&Pages::anonymous(1)?).map(drop)
    }

    /// Pins all of `pages`.
    ///
    /// # Errors
    /// ENOSYS: the kernel was built without io_uring. EPERM: the sysctl `kernel.io_uring_disabled`
    /// forbids it. ENOMEM: the limit of locked memory.
    pub fn new(pages: &Pages) -> io::Result<Self> {
        let mut params = io_uring_params::default();
        // SAFETY: default parameters ask for nothing special: no ATTACH_WQ, so no descriptor of ours
        // is used, and no memory either.
        let ring = unsafe { io_uring_setup(1, &mut params)? };
        let part = |start: usize| iovec {
            iov_base: pages.address(start) as *mut _,
            iov_len: BUFFER_MAX.min(pages.len() - start),
        };
        let buffers: Vec<iovec> = (0..pages.len()).step_by(BUFFER_MAX).map(part).collect();
        let count = u32::try_from(buffers.len()).map_err(io::Error::other)?;
        // SAFETY: the array lives through the call, which copies it; it names `pages.len()` bytes of
        // a live mapping, which `_pages` keeps alive as long as the registration. No operation is
        // ever submitted, so the kernel reads and writes nothing through it.
        unsafe {
            io_uring_register(
                &ring,
                IoringRegisterOp::RegisterBuffers,
                buffers.as_ptr().cast(),
                count,
            )?;
        }
        Ok(Self { _ring: ring, _pages: pages.clone() })
    }
}
