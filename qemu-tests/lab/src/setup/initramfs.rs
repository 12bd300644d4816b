//! The initramfs of a lab guest: busybox, the drivers of its disks, `files/init.sh` and the lab's units.
//!
//! It is what joins the three disks of a guest (Debian's root, the kernel's modules, the caller's
//! tools) into one system, so none of the images has to know the others. What the lab wants of
//! systemd goes to /run/systemd/system at each boot, where it outranks the image and vanishes
//! with the machine: our two services, masks for what a machine without network, keyboard or
//! hot-plugged hardware need not wait for, and the caller's own units (see [`crate::tools`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::error::{IoContext, Result};
use crate::setup::cpio::Archive;
use crate::setup::kernel::{BOOT_MODULES, BUSYBOX, Kernel};
use crate::setup::stamp::{Partial, Stamp};

const INIT: &str = include_str!("files/init.sh");
const MASKED: &str = include_str!("files/masked");
/// Wanted by multi-user.target in every guest; the shell checks the kernel command line itself.
const UNITS: [(&str, &str); 2] = [
    ("memtide-lab-guest.service", include_str!("files/memtide-lab-guest.service")),
    ("memtide-lab-shell.service", include_str!("files/memtide-lab-shell.service")),
];

/// What the initramfs prints when the kernel was booted with `memtide.probe=1`.
pub(crate) const PROBE_MARKER: &str = "memtide-lab: this machine runs a stock kernel";

const IMAGE: &str = "initramfs.cpio";

/// Where the initramfs of a kernel is in the cache.
pub(crate) fn image(cache: &Cache, kernel: Kernel) -> PathBuf {
    directory(cache, kernel).join(IMAGE)
}

fn directory(cache: &Cache, kernel: Kernel) -> PathBuf {
    cache.join(format!("initramfs-{}", kernel.name().replace('.', "-")))
}

/// The recipe holds all our files, and which kernel and release the drivers are of.
fn recipe(kernel: Kernel, release: &str) -> String {
    let units: Vec<&str> = UNITS.iter().map(|(_, text)| *text).collect();
    [&kernel.recipe(), release, INIT, MASKED, &units.concat()].join("\n")
}

/// Whether the initramfs for this release is there and is the one that we would make.
pub(crate) fn is_current(cache: &Cache, kernel: Kernel, release: &str) -> bool {
    Stamp::of(&directory(cache, kernel), &recipe(kernel, release)).is_some()
}

/// Makes it from what the kernel step left.
pub(crate) fn build(cache: &Cache, kernel: Kernel, release: &str) -> Result<()> {
    let kernel_dir = kernel.directory(cache);
    let partial = Partial::begin(&directory(cache, kernel))?;
    let busybox = read(&kernel_dir.join(BUSYBOX))?;
    let archive = archive(&busybox, &boot_modules(&kernel_dir.join(BOOT_MODULES))?);
    let path = partial.path().join(IMAGE);
    fs::write(&path, archive).on("write", &path)?;
    partial.finish(&recipe(kernel, release), BTreeMap::new(), &[(IMAGE, 500_000)])?;
    Ok(())
}

/// The modules, in the order in which they must be loaded: that of their names.
fn boot_modules(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut modules = Vec::new();
    for entry in fs::read_dir(directory).on("list", directory)? {
        let path = entry.on("list", directory)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        modules.push((name, read(&path)?));
    }
    modules.sort();
    Ok(modules)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).on("read", path)
}

fn archive(busybox: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["bin", "modules", "units"] {
        archive.directory(directory);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("bin/busybox", 0o755, busybox);
    for (name, content) in modules {
        archive.file(&format!("modules/{name}"), 0o644, content);
    }
    for (name, text) in UNITS {
        archive.file(&format!("units/{name}"), 0o644, text.as_bytes());
    }
    let enabled: String = UNITS.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.file("units/enabled", 0o644, enabled.as_bytes());
    archive.file("units/masked", 0o644, MASKED.as_bytes());
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_prints_the_marker_that_the_probe_waits_for() {
        assert!(INIT.contains(PROBE_MARKER));
    }

    #[test]
    fn a_changed_release_or_script_makes_a_new_initramfs() {
        let kernel = Kernel::V6_12;
        assert_ne!(recipe(kernel, "6.12.1"), recipe(kernel, "6.12.2"));
        assert!(recipe(kernel, "x").contains(INIT));
    }

    #[test]
    fn everything_that_init_needs_is_in_the_archive() {
        let archive = archive(b"BUSYBOX", &[("00-virtio_blk.ko".to_owned(), b"MODULE".to_vec())]);
        let text = String::from_utf8_lossy(&archive);
        for name in ["bin/busybox\0", "modules/00-virtio_blk.ko\0", "units/masked\0"] {
            assert!(text.contains(name), "{name}");
        }
        assert!(text.contains("memtide-lab-guest.service\nmemtide-lab-shell.service\n"));
    }

    #[test]
    fn the_masks_are_units_and_sorted() {
        let masks: Vec<&str> = MASKED.lines().collect();
        assert!(masks.is_sorted());
        assert!(
            masks.iter().all(|unit| unit.rsplit('.').next().is_some_and(|kind| kind.len() > 4))
        );
    }
}
