//! QEMU: the host's if it is new enough, else Debian's backport "in a root of its own".
//!
//! The generic vhost-user device that carries our balloon is user-creatable since QEMU 10.1. Where
//! the host's is older, the backport for Debian 13 is unpacked with every library down to libc into
//! the cache, and started through its own dynamic loader. That needs no chroot, no mount, no root,
//! and leaves the host's packages alone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::Cache;
use crate::error::{Error, IoContext, Result};
use crate::setup::apt::{Apt, BACKPORTS};
use crate::setup::stamp::{Partial, Stamp, remove};

/// The first version whose generic vhost-user device a user may create.
const LEAST_VERSION: (u32, u32) = (10, 1);
/// That device.
pub(crate) const VHOST_USER_DEVICE: &str = "vhost-user-test-device-pci";
const PACKAGE: &str = "qemu-system-x86";
const BINARY: &str = "usr/bin/qemu-system-x86_64";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const RECIPE: &str = "qemu-system-x86 of trixie-backports, pruned, 1";

/// A QEMU that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    version: String,
    /// The unpacked root, or nothing for the host's own.
    root: Option<PathBuf>,
}

impl Qemu {
    /// The host's QEMU, if it can do what the lab needs.
    pub(crate) fn of_host() -> Option<Self> {
        let host = Self { version: String::new(), root: None };
        host.probed().ok()
    }

    /// The unpacked QEMU in the cache, if set-up made it.
    pub(crate) fn of_cache(cache: &Cache) -> Option<Self> {
        let root = directory(cache);
        let stamp = Stamp::of(&root, RECIPE)?;
        let version = stamp.fact("version").ok()?.to_owned();
        Some(Self { version, root: Some(root) })
    }

    /// Downloads, unpacks and tries it.
    pub(crate) fn install(cache: &Cache, apt: &Apt) -> Result<Self> {
        let target = directory(cache);
        let partial = Partial::begin(&target)?;
        let packages = apt.resolve(BACKPORTS, PACKAGE)?;
        apt.unpack(&packages, partial.path())?;
        prune(partial.path())?;
        let unpacked = Self { version: String::new(), root: Some(partial.path().to_owned()) };
        let tried = unpacked.probed()?;
        let facts = BTreeMap::from([("version".to_owned(), tried.version.clone())]);
        partial.finish(RECIPE, facts, &[(BINARY, 5 << 20)])?;
        apt.clean()?;
        Ok(Self { root: Some(target), ..tried })
    }

    /// Its version, as in `11.1.3`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The program and the words before QEMU's own arguments.
    pub fn argv(&self) -> Vec<OsString> {
        let Some(root) = &self.root else {
            return vec!["qemu-system-x86_64".into()];
        };
        let mut argv: Vec<OsString> = vec![
            root.join("usr/lib64/ld-linux-x86-64.so.2").into(),
            "--library-path".into(),
            root.join(LIBRARIES).into(),
            "--argv0".into(),
            "qemu-system-x86_64".into(),
            root.join(BINARY).into(),
        ];
        // QEMU looks for its firmware beside its executable, which is the loader here.
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            argv.push("-L".into());
            argv.push(root.join(firmware).into());
        }
        argv
    }

    /// What must be in its environment.
    pub fn env(&self) -> Vec<(OsString, OsString)> {
        let modules = self.root.iter().map(|root| root.join(LIBRARIES).join("qemu"));
        modules.map(|path| ("QEMU_MODULE_DIR".into(), path.into())).collect()
    }

    /// Itself with its version, if it starts and has the device.
    fn probed(&self) -> Result<Self> {
        let version = self.ask(&["--version"])?;
        let number = version_of(&version);
        let devices = self.ask(&["-machine", "none", "-device", "help"])?;
        match number {
            Some((text, number)) if number >= LEAST_VERSION && has_device(&devices) => {
                Ok(Self { version: text, ..self.clone() })
            }
            _ => Err(Error::Unusable {
                what: format!("this QEMU is too old for {VHOST_USER_DEVICE}: {version}"),
                advice: "the lab needs QEMU 10.1 or later",
            }),
        }
    }

    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let argv = self.argv();
        let output = Command::new(&argv[0])
            .args(&argv[1..])
            .args(arguments)
            .envs(self.env())
            .stdin(Stdio::null())
            .output()
            .on("start", &argv[0])?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn directory(cache: &Cache) -> PathBuf {
    cache.join("qemu")
}

/// `QEMU emulator version 11.1.3 (Debian ...)`: the version as text and its first two numbers.
fn version_of(text: &str) -> Option<(String, (u32, u32))> {
    let version = text.split("version ").nth(1)?.split_whitespace().next()?;
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    let number = (numbers.next()??, numbers.next()??);
    Some((version.to_owned(), number))
}

fn has_device(help: &str) -> bool {
    help.contains(&format!("\"{VHOST_USER_DEVICE}\""))
}

/// Keeps QEMU, its libraries and its firmware of the many packages that apt's resolution brings.
fn prune(root: &Path) -> Result<()> {
    keep_only(root, &["usr"])?;
    keep_only(&root.join("usr"), &["bin", "lib", "lib64", "share"])?;
    keep_only(&root.join("usr/bin"), &["qemu-system-x86_64"])?;
    keep_only(&root.join("usr/lib"), &["x86_64-linux-gnu"])?;
    keep_only(&root.join("usr/share"), &["qemu", "seabios"])
}

fn keep_only(directory: &Path, names: &[&str]) -> Result<()> {
    for entry in fs::read_dir(directory).on("list", directory)? {
        let entry = entry.on("list", directory)?;
        if names.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let path = entry.path();
        if entry.file_type().on("look at", &path)?.is_dir() {
            remove(&path)?;
        } else {
            fs::remove_file(&path).on("remove", &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_debian_and_upstream_print_them() {
        let debian = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright";
        assert_eq!(version_of(debian), Some(("11.1.3".to_owned(), (11, 1))));
        assert_eq!(version_of("QEMU emulator version 7.2.19").unwrap().1, (7, 2));
        assert_eq!(version_of("qemu: not found"), None);
    }

    #[test]
    fn the_device_is_not_taken_for_its_bare_relative() {
        assert!(has_device("name \"vhost-user-test-device-pci\", bus PCI"));
        assert!(!has_device("name \"vhost-user-test-device\", bus virtio-bus"));
    }

    #[test]
    fn the_unpacked_qemu_runs_through_its_own_loader() {
        let qemu = Qemu { version: "11.1.3".to_owned(), root: Some("/cache/qemu".into()) };
        let line = crate::text::shell_line(&qemu.argv());
        assert_eq!(
            line,
            "/cache/qemu/usr/lib64/ld-linux-x86-64.so.2 --library-path \
             /cache/qemu/usr/lib/x86_64-linux-gnu --argv0 qemu-system-x86_64 \
             /cache/qemu/usr/bin/qemu-system-x86_64 -L /cache/qemu/usr/share/qemu \
             -L /cache/qemu/usr/share/seabios"
        );
        let host = Qemu { root: None, ..qemu };
        assert_eq!(host.argv(), ["qemu-system-x86_64"]);
        assert!(host.env().is_empty());
    }

    #[test]
    fn pruning_keeps_what_runs() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["usr/bin", "usr/share/doc/x", "usr/share/qemu", "usr/lib/locale", "var/lib"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        fs::write(dir.path().join("usr/bin/perl"), "").unwrap();
        fs::write(dir.path().join(BINARY), "").unwrap();
        prune(dir.path()).unwrap();
        assert!(dir.path().join(BINARY).exists() && dir.path().join("usr/share/qemu").exists());
        for gone in ["var", "usr/bin/perl", "usr/share/doc", "usr/lib/locale"] {
            assert!(!dir.path().join(gone).exists(), "{gone}");
        }
    }
}
