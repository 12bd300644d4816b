//! The guests' root file system: Debian 13 with systemd, as debootstrap makes it.
//!
//! debootstrap must be root (it runs the packages' own scripts in a chroot), so all that touches
//! the tree goes through root's programs; the finished image belongs to the user again. Guests
//! never write to it: QEMU keeps their changes in a temporary file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::command::{Log, Tool};
use crate::error::{IoContext, Result};
use crate::image::sparse;
use crate::setup::apt::{Apt, KEYRING, RELEASE};
use crate::setup::stamp::{Partial, Stamp};

/// Beyond debootstrap's minimum: an init, modules, and what scenarios look at a system with.
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,kmod,util-linux,procps,iproute2";

/// What a test guest never reads: 290 MB become 100.
const STRIPPED: [&str; 9] = [
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/info",
    "usr/share/i18n",
    "usr/share/zoneinfo",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/udev/hwdb.bin",
    "usr/lib/udev/hwdb.d",
];
/// Emptied but kept.
const EMPTIED: [&str; 4] = ["var/lib/apt/lists", "var/cache/apt", "var/cache/debconf", "var/log"];

/// Files that are ours. A fixed machine-id spares every boot systemd's first-boot work.
const FILES: [(&str, &str); 5] = [
    ("etc/hostname", "memtide-guest\n"),
    ("etc/hosts", "127.0.0.1 localhost memtide-guest\n"),
    ("etc/fstab", ""),
    ("etc/machine-id", "4d656d7469646500000000000000001a\n"),
    ("etc/systemd/journald.conf.d/memtide.conf", "[Journal]\nStorage=volatile\nRateLimitBurst=0\n"),
];
/// Mount points that the initramfs uses.
const DIRECTORIES: [&str; 2] = ["opt/memtide", "usr/lib/modules"];

/// Room for scenarios that write and read files; the image is sparse.
const IMAGE_BYTES: u64 = 1 << 30;
const IMAGE: &str = "root.ext4";
/// Work directories in the cache.
const TREE: &str = "guest-tree-";
const DOWNLOADS: &str = "debootstrap";

const ADVICE: &str = "debootstrap needs root (or sudo) and the right to mount /proc in a chroot: \
     an unprivileged container will not do";

/// Where the image is.
pub(crate) fn image(cache: &Cache) -> PathBuf {
    directory(cache).join(IMAGE)
}

fn directory(cache: &Cache) -> PathBuf {
    cache.join("guest")
}

fn recipe() -> String {
    format!(
        "{RELEASE}; {PACKAGES}; {STRIPPED:?} {EMPTIED:?} {FILES:?} {DIRECTORIES:?} {IMAGE_BYTES}"
    )
}

/// Whether the image is there and is the one that we would make.
pub(crate) fn is_current(cache: &Cache) -> bool {
    Stamp::of(&directory(cache), &recipe()).is_some()
}

/// Makes the image.
pub(crate) fn build(cache: &Cache, apt: &Apt) -> Result<()> {
    let log = cache.log();
    remove_trees(cache, &log)?;
    // Outside the partial directory, for only root can remove it. By our own number: a debootstrap
    // that outlived a killed set-up must not write into ours.
    let tree = cache.join(format!("{TREE}{}", std::process::id()));
    let partial = Partial::begin(&directory(cache))?;
    debootstrap(apt, &tree, &cache.join(DOWNLOADS), &log)?;
    strip(&tree, &log)?;
    overlay(&partial.path().join("overlay"), &tree, &log)?;
    root("chroot").arg(&tree).args(["passwd", "--delete", "root"]).run(&log)?;
    make_image(&tree, &partial.path().join(IMAGE), &log)?;
    partial.finish(&recipe(), BTreeMap::new(), &[(IMAGE, IMAGE_BYTES)])?;
    remove_trees(cache, &log)?;
    remove_tree(&cache.join(DOWNLOADS), &log)
}

fn root(program: &str) -> Tool {
    Tool::as_root(program, ADVICE)
}

/// Removes this and earlier runs' trees.
fn remove_trees(cache: &Cache, log: &Log) -> Result<()> {
    let directory = cache.root();
    for entry in fs::read_dir(directory).on("list", directory)? {
        let entry = entry.on("list", directory)?;
        if entry.file_name().to_string_lossy().starts_with(TREE) {
            remove_tree(&entry.path(), log)?;
        }
    }
    Ok(())
}

fn remove_tree(tree: &Path, log: &Log) -> Result<()> {
    if tree.symlink_metadata().is_err() {
        return Ok(());
    }
    // One file system: whatever somebody may have mounted there is not entered.
    root("rm").args(["-r", "-f", "--one-file-system"]).arg(tree).run(log)
}

/// Downloads stay in `downloads` until the image is made, so an interrupted run loses little.
fn debootstrap(apt: &Apt, tree: &Path, downloads: &Path, log: &Log) -> Result<()> {
    fs::create_dir_all(downloads).on("create", downloads)?;
    // In a mount namespace of its own: the /proc that it mounts goes when it does, however it ends.
    root("unshare")
        .args(["--mount", "debootstrap"])
        .args(["--variant=minbase", "--arch=amd64", "--merged-usr"])
        .arg(format!("--include={PACKAGES}"))
        .arg(format!("--keyring={KEYRING}"))
        .arg(format!("--cache-dir={}", downloads.display()))
        .arg(RELEASE)
        .arg(tree)
        .arg(apt.archive())
        .run(log)
}

fn strip(tree: &Path, log: &Log) -> Result<()> {
    root("rm").args(["-r", "-f"]).args(STRIPPED.map(|path| tree.join(path))).run(log)?;
    root("find")
        .args(EMPTIED.map(|path| tree.join(path)))
        .args(["-mindepth", "1", "(", "-type", "f", "-o", "-type", "l", ")", "-delete"])
        .run(log)
}

/// Lays our files over the tree. They are written by us and copied by root.
fn overlay(ours: &Path, tree: &Path, log: &Log) -> Result<()> {
    for (name, text) in FILES {
        let path = ours.join(name);
        let parent = path.parent().unwrap_or(ours);
        fs::create_dir_all(parent).on("create", parent)?;
        fs::write(&path, text).on("write", &path)?;
    }
    for name in DIRECTORIES {
        let path = ours.join(name);
        fs::create_dir_all(&path).on("create", &path)?;
    }
    root("cp")
        .args(["-r", "--preserve=mode", "--no-target-directory"])
        .args([ours, tree])
        .run(log)?;
    crate::setup::stamp::remove(ours)
}

fn make_image(tree: &Path, image: &Path, log: &Log) -> Result<()> {
    sparse(image, IMAGE_BYTES)?;
    // No reserved blocks, and tables written now: a guest's first mount should not do it lazily.
    root("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", "memtide-root"])
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"])
        .arg(tree)
        .arg(image)
        .run(log)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_32_hexadecimal_digits() {
        let id = FILES.iter().find(|(name, _)| *name == "etc/machine-id").unwrap().1.trim();
        assert!(id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()), "{id}");
    }

    #[test]
    fn nothing_outside_the_tree_is_ever_stripped() {
        let mut all = STRIPPED.iter().chain(&EMPTIED).chain(&DIRECTORIES);
        assert!(all.all(|path| Path::new(path).is_relative() && !path.contains("..")));
    }
}
