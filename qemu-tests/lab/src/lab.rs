//! A set-up lab: the handle that machines are started from.

use std::path::PathBuf;

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::setup::{Kernel, KernelFiles, Qemu, guest_image, initramfs};

/// QEMU, kernels and a guest image, ready to be used.
#[derive(Debug, Clone)]
pub struct Lab {
    cache: Cache,
    qemu: Qemu,
}

impl Lab {
    pub(crate) fn new(cache: Cache, qemu: Qemu) -> Self {
        Self { cache, qemu }
    }

    /// The cache that it lives in.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Its QEMU.
    pub fn qemu(&self) -> &Qemu {
        &self.qemu
    }

    /// The files of one of its kernels.
    ///
    /// # Errors
    /// If set-up was not run for this kernel.
    pub fn kernel(&self, kernel: Kernel) -> Result<KernelFiles> {
        KernelFiles::of_cache(&self.cache, kernel).ok_or_else(|| Error::Unusable {
            what: format!("the lab has no kernel {kernel}"),
            advice: "run `cargo xtask lab setup --kernel all`",
        })
    }

    /// The initramfs that goes with a kernel.
    pub(crate) fn initramfs(&self, kernel: Kernel) -> PathBuf {
        initramfs::image(&self.cache, kernel)
    }

    /// The guests' root file system; never written to.
    pub(crate) fn root_image(&self) -> PathBuf {
        guest_image::image(&self.cache)
    }
}
