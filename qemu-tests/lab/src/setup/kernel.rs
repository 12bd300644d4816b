//! The guests' kernels: Debian's own packages, unpacked, never installed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::command::{Log, Tool};
use crate::error::{Error, IoContext, Result};
use crate::image::read_only_ext4;
use crate::setup::apt::{Apt, BACKPORTS, OLD_RELEASE, Package, RELEASE};
use crate::setup::module_order::load_order;
use crate::setup::stamp::{Partial, Stamp, remove};

/// The package that depends on the newest kernel of a suite.
const PACKAGE: &str = "linux-image-cloud-amd64";
const VMLINUZ: &str = "vmlinuz";
const MODULES: &str = "modules.ext4";
/// Modules for the initramfs, unpacked, named in loading order.
pub(crate) const BOOT_MODULES: &str = "boot-modules";
/// A static busybox for the initramfs.
pub(crate) const BUSYBOX: &str = "busybox";

const ADVICE: &str = "look at setup.log in the cache";

/// A kernel that guests can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// Linux 6.1, the long-term kernel of Debian 12: no DAMON, and memory that is added stays offline
    /// until somebody puts it online.
    V6_1,
    /// Linux 6.12, the long-term kernel of Debian 13: DAMON without its newer goals.
    V6_12,
    /// Linux 7.3 (or whatever newer one Debian's backports have): all of DAMON.
    V7_3,
}

impl Kernel {
    /// Every kernel of the lab.
    pub const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::V7_3];

    /// Its name on command lines and in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_3 => "7.3",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => OLD_RELEASE,
            Self::V6_12 => RELEASE,
            Self::V7_3 => BACKPORTS,
        }
    }

    /// Where its files are.
    pub(crate) fn directory(self, cache: &Cache) -> PathBuf {
        // A dash, because a dot would make half of the name an extension.
        cache.join(format!("kernel-{}", self.name().replace('.', "-")))
    }

    /// What the initramfs must load before it sees a disk and the runner its port; ext4, and in
    /// newer kernels virtio itself, are built in.
    fn boot_drivers(self) -> &'static [&'static str] {
        match self {
            Self::V6_1 => &["virtio_pci", "virtio_blk", "virtio_console"],
            Self::V6_12 | Self::V7_3 => &["virtio_blk"],
        }
    }

    pub(crate) fn recipe(self) -> String {
        let drivers = self.boot_drivers().join(" ");
        format!("{PACKAGE} of {}, {drivers}, busybox-static, 1", self.suite())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Kernel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kernel| kernel.name() == text);
        found.ok_or_else(|| format!("the lab has the kernels 6.1, 6.12 and 7.3, not {text}"))
    }
}

/// A kernel's files in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFiles {
    /// The bootable image.
    pub vmlinuz: PathBuf,
    /// An ext4 image for the guest's /usr/lib/modules.
    pub modules: PathBuf,
    /// As `uname -r` says it.
    pub release: String,
}

impl KernelFiles {
    /// The files of a kernel, if set-up made them.
    pub(crate) fn of_cache(cache: &Cache, kernel: Kernel) -> Option<Self> {
        let directory = kernel.directory(cache);
        let stamp = Stamp::of(&directory, &kernel.recipe())?;
        Self::of_stamp(&directory, &stamp).ok()
    }

    fn of_stamp(directory: &Path, stamp: &Stamp) -> Result<Self> {
        let release = stamp.fact("release")?.to_owned();
        Ok(Self { vmlinuz: directory.join(VMLINUZ), modules: directory.join(MODULES), release })
    }
}

/// Downloads a kernel and makes its modules image.
pub(crate) fn install(cache: &Cache, apt: &Apt, kernel: Kernel) -> Result<KernelFiles> {
    let log = cache.log();
    let partial = Partial::begin(&kernel.directory(cache))?;
    let root = partial.path().join("root");
    let packages = packages(apt, kernel)?;
    apt.unpack(&packages, &root)?;
    merge_usr(&root)?;

    let modules = root.join("usr/lib/modules");
    let release = release_of(&modules)?;
    let image = vmlinuz(&root, &release)?;
    move_file(&image, &partial.path().join(VMLINUZ))?;
    move_file(&root.join("usr/bin/busybox"), &partial.path().join(BUSYBOX))?;
    depmod(&root, &release, &log)?;
    let order = boot_order(&modules.join(&release), kernel)?;
    let target = partial.path().join(BOOT_MODULES);
    unpack_boot_modules(&modules.join(&release), &order, &target, &log)?;
    modules_image(&modules, &release, &partial.path().join(MODULES), &log)?;
    remove(&root)?;

    let facts = facts(&packages, release);
    let least = [(VMLINUZ, 4 << 20), (MODULES, 8 << 20), (BUSYBOX, 500_000)];
    let stamp = partial.finish(&kernel.recipe(), facts, &least)?;
    apt.clean()?;
    KernelFiles::of_stamp(&kernel.directory(cache), &stamp)
}

/// The kernel's own packages out of all that its metapackage pulls in (initramfs-tools, ...), and
/// busybox. Newer kernels come in several.
fn packages(apt: &Apt, kernel: Kernel) -> Result<Vec<Package>> {
    let mut packages = apt.resolve(kernel.suite(), PACKAGE)?;
    packages.retain(|package| package.name.starts_with("linux-"));
    let busybox = apt.resolve(RELEASE, "busybox-static")?;
    packages.extend(busybox.into_iter().filter(|package| package.name == "busybox-static"));
    Ok(packages)
}

fn facts(packages: &[Package], release: String) -> BTreeMap<String, String> {
    let versions = packages.iter().map(|package| (package.name.clone(), package.version.clone()));
    versions.chain([("release".to_owned(), release)]).collect()
}

fn release_of(modules: &Path) -> Result<String> {
    let entries = fs::read_dir(modules).on("list", modules)?;
    let mut names = entries.flatten().map(|entry| entry.file_name());
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name.to_string_lossy().into_owned()),
        _ => Err(Error::Unusable {
            what: format!("{} does not hold exactly one kernel", modules.display()),
            advice: ADVICE,
        }),
    }
}

fn vmlinuz(root: &Path, release: &str) -> Result<PathBuf> {
    let beside_modules = root.join("usr/lib/modules").join(release).join("vmlinuz");
    let in_boot = root.join("boot").join(format!("vmlinuz-{release}"));
    [beside_modules, in_boot].into_iter().find(|path| path.is_file()).ok_or_else(|| {
        Error::Unusable { what: format!("the package of {release} has no vmlinuz"), advice: ADVICE }
    })
}

/// Packages of Debian 12 and older have their modules in /lib, which is usr/lib on every machine.
fn merge_usr(root: &Path) -> Result<()> {
    let (old, new) = (root.join("lib/modules"), root.join("usr/lib/modules"));
    if !old.is_dir() || new.exists() {
        return Ok(());
    }
    let parent = root.join("usr/lib");
    fs::create_dir_all(&parent).on("create", &parent)?;
    move_file(&old, &new)?;
    remove(&root.join("lib"))
}

fn move_file(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).on("move", from)
}

/// Older depmods look in lib/modules below the root, newer ones in usr/lib/modules.
fn depmod(root: &Path, release: &str, log: &Log) -> Result<()> {
    let lib = root.join("lib");
    if !lib.exists() {
        std::os::unix::fs::symlink("usr/lib", &lib).on("link", &lib)?;
    }
    Tool::new("depmod", ADVICE).arg("-b").arg(root).arg(release).run(log)
}

/// The drivers of a boot and what they need, in the order in which they must be loaded.
fn boot_order(modules: &Path, kernel: Kernel) -> Result<Vec<String>> {
    let index = modules.join("modules.dep");
    let dependencies = fs::read_to_string(&index).on("read", &index)?;
    let mut order = Vec::new();
    for driver in kernel.boot_drivers() {
        // One that is built in is not listed and needs no loading.
        for path in load_order(&dependencies, driver).unwrap_or_default() {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

/// Unpacks modules as `00-first.ko`, `01-second.ko`, ...
fn unpack_boot_modules(modules: &Path, order: &[String], target: &Path, log: &Log) -> Result<()> {
    fs::create_dir_all(target).on("create", target)?;
    for (number, path) in order.iter().enumerate() {
        let file = path.rsplit('/').next().unwrap_or(path);
        let name = file.trim_end_matches(".xz");
        let unpacked = target.join(format!("{number:02}-{name}"));
        let packed = modules.join(path);
        if file == name {
            fs::copy(&packed, &unpacked).on("copy", &packed)?;
        } else {
            Tool::new("xz", ADVICE).arg("-dc").arg(&packed).output_to(&unpacked, log)?;
        }
    }
    Ok(())
}

/// An image whose root is the guest's /usr/lib/modules, without what only builders need.
fn modules_image(modules: &Path, release: &str, image: &Path, log: &Log) -> Result<()> {
    for unneeded in ["System.map", "vmlinuz", "build", "source"] {
        let path = modules.join(release).join(unneeded);
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).on("remove", &path)?;
        }
    }
    read_only_ext4(modules, "modules", image, log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_as_on_the_command_line() {
        assert_eq!("6.12".parse(), Ok(Kernel::V6_12));
        assert_eq!("7.3".parse::<Kernel>().unwrap().to_string(), "7.3");
        assert_eq!("6.1".parse(), Ok(Kernel::V6_1));
        assert!("6".parse::<Kernel>().unwrap_err().contains("6.1, 6.12 and 7.3"));
    }

    #[test]
    fn image_and_modules_are_found_wherever_packages_put_them() {
        let places = [
            ("boot/vmlinuz-1.2", "lib/modules/1.2"),
            ("boot/vmlinuz-1.2", "usr/lib/modules/1.2"),
            ("usr/lib/modules/1.2/vmlinuz", "usr/lib/modules/1.2"),
        ];
        for (image, modules) in places {
            let root = tempfile::tempdir().unwrap();
            let root = root.path();
            fs::create_dir_all(root.join(modules)).unwrap();
            fs::create_dir_all(root.join("boot")).unwrap();
            fs::write(root.join(image), "").unwrap();
            merge_usr(root).unwrap();
            let release = release_of(&root.join("usr/lib/modules")).unwrap();
            assert_eq!(vmlinuz(root, &release).unwrap(), root.join(image));
        }
    }

    #[test]
    fn drivers_of_a_boot_share_what_they_need() {
        let root = tempfile::tempdir().unwrap();
        let dep =
            "k/virtio_pci.ko: k/ring.ko k/virtio.ko\nk/virtio_blk.ko: k/ring.ko k/virtio.ko\n";
        fs::write(root.path().join("modules.dep"), dep).unwrap();
        let order = boot_order(root.path(), Kernel::V6_1).unwrap();
        assert_eq!(order, ["k/virtio.ko", "k/ring.ko", "k/virtio_pci.ko", "k/virtio_blk.ko"]);
        let order = boot_order(root.path(), Kernel::V7_3).unwrap();
        assert_eq!(order, ["k/virtio.ko", "k/ring.ko", "k/virtio_blk.ko"]);
    }
}
