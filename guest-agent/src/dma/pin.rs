//! Pinning: a registration with io_uring, the only pin that user space can have for tmpfs memory.
//!
//! Measured on 6.12 and 7.3: `mlock`, tmpfs and hugetlb are no pins, the kernel moves such pages
//! when their block goes offline. Pages registered with io_uring are moved *out* of `ZONE_MOVABLE`
//! while they are registered, and stay where they then are. The ring itself is never used.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io_uring::{
    IoringRegisterOp, IoringRsrcFlags, io_uring_params, io_uring_ptr, io_uring_register,
    io_uring_rsrc_register, io_uring_rsrc_update2, io_uring_setup, iovec,
};

use super::pages::Pages;

/// A registered buffer is no larger (io_uring/rsrc.c, `io_buffer_validate`).
const BUFFER_MAX: usize = 1 << 30;

/// Keeps pages where they are until it is dropped.
#[derive(Debug)]
pub struct Pin {
    ring: OwnedFd,
    pages: Vec<Pages>,
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
        let ring = ring()?;
        let part = |start: usize| iovec {
            iov_base: pages.address(start) as *mut _,
            iov_len: BUFFER_MAX.min(pages.len() - start),
        };
        let buffers: Vec<iovec> = (0..pages.len()).step_by(BUFFER_MAX).map(part).collect();
        let count = u32::try_from(buffers.len()).map_err(io::Error::other)?;
        // SAFETY: the array lives through the call, which copies it; it names `pages.len()` bytes of
        // a live mapping, which `pages` keeps alive as long as the registration. No operation is
        // ever submitted, so the kernel reads and writes nothing through it.
        unsafe {
            io_uring_register(
                &ring,
                IoringRegisterOp::RegisterBuffers,
                buffers.as_ptr().cast(),
                count,
            )?;
        }
        Ok(Self { ring, pages: vec![pages.clone()] })
    }

    /// Pins nothing yet. Up to `most` times, 16384 at most (io_uring/rsrc.h, `IORING_MAX_REG_BUFFERS`),
    /// there can be more: a registration of much takes long, and nothing interrupts it.
    ///
    /// # Errors
    /// As [`Self::new`]; EINVAL before Linux 5.19.
    pub fn in_parts(most: u32) -> io::Result<Self> {
        let ring = ring()?;
        let mut room = io_uring_rsrc_register::default();
        (room.nr, room.flags) = (most, IoringRsrcFlags::REGISTER_SPARSE);
        // SAFETY: it names no memory: all buffers are empty (`REGISTER_SPARSE`).
        unsafe { register(&ring, IoringRegisterOp::RegisterBuffers2, &room)? };
        Ok(Self { ring, pages: Vec::new() })
    }

    /// Pins `pages`, 1 GiB at most, as well.
    ///
    /// # Errors
    /// As [`Self::new`]; EINVAL where there is no room for more.
    pub fn add(&mut self, pages: Pages) -> io::Result<()> {
        let buffer = iovec { iov_base: pages.address(0) as *mut _, iov_len: pages.len() };
        let mut more = io_uring_rsrc_update2::default();
        more.offset = u32::try_from(self.pages.len()).map_err(io::Error::other)?;
        (more.nr, more.data) = (1, io_uring_ptr::new((&raw const buffer).cast_mut().cast()));
        // SAFETY: the buffer lives through the call, which copies it; it names `pages.len()` bytes of a
        // live mapping, which is kept from here on as long as the registration. As in `new`, nothing
        // is ever submitted.
        unsafe { register(&self.ring, IoringRegisterOp::RegisterBuffersUpdate, &more)? };
        self.pages.push(pages);
        Ok(())
    }
}

fn ring() -> io::Result<OwnedFd> {
    let mut params = io_uring_params::default();
    // SAFETY: default parameters ask for nothing special: no ATTACH_WQ, so no descriptor of ours is
    // used, and no memory either.
    Ok(unsafe { io_uring_setup(1, &mut params)? })
}

/// A registration whose argument is a structure, which says its size in place of a count.
///
/// # Safety
/// What `argument` names is as `operation` wants it.
unsafe fn register<T>(ring: &OwnedFd, operation: IoringRegisterOp, argument: &T) -> io::Result<()> {
    let size = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the structure lives through the call; for the rest the caller sees to it.
    unsafe { io_uring_register(ring, operation, (&raw const *argument).cast(), size)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn parts_are_pinned_one_after_the_other_as_long_as_there_is_room() {
        // In a container io_uring may be forbidden.
        let Ok(mut pin) = Pin::in_parts(2) else { return };
        let pages = Pages::anonymous(3).unwrap();
        pin.add(pages.part(0, 2)).unwrap();
        pin.add(pages.part(2, 1)).unwrap();
        let error = pin.add(pages.part(0, 1)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    }
}
