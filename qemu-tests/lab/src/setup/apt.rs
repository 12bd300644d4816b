//! A private apt: its own lists, cache and (empty) package database in our cache directory.
//!
//! It resolves and downloads packages of Debian 12, 13 and its backports on any Debian host, checks
//! signatures and hashes as apt does, touches nothing of the host's and needs no root. An empty
//! package database makes apt resolve a package down to libc, which is just what a QEMU that runs
//! in a root of its own needs. `apt-get -c` reads our settings after the host's, so proxies and
//! certificates are inherited while everything that names a place or a trigger is ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cache::Cache;
use crate::command::{Log, Tool};
use crate::error::{Error, IoContext, Result};
use crate::setup::apt_sources;

/// The release before, for its long-term kernel. Named by its code name, as the others: that stays
/// when the next release makes it older still.
pub(crate) const OLD_RELEASE: &str = "bookworm";
/// The release that the guests run, and QEMU's root.
pub(crate) const RELEASE: &str = "trixie";
/// Where newer kernels and QEMU for it are.
pub(crate) const BACKPORTS: &str = "trixie-backports";
/// The archive's keys, from the host's package debian-archive-keyring.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Package lists older than this are fetched again before anything is downloaded with them: the
/// archive drops old versions when new ones come.
const LISTS_LIVE: Duration = Duration::from_secs(12 * 3600);

const UPDATE_ADVICE: &str = "check that `apt-get update` works on this host; if a signature could \
     not be checked, upgrade the package debian-archive-keyring";
const INSTALL_ADVICE: &str = "check the network and run set-up again: it goes on where it stopped";

/// The private apt of a cache.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    archive: String,
    log: Log,
}

impl Apt {
    /// The private apt for this cache; writes its configuration, fetches nothing yet.
    pub(crate) fn new(cache: &Cache) -> Result<Self> {
        let archive = apt_sources::archive(Path::new("/"))?;
        let apt = Self { dir: cache.join("apt"), archive, log: cache.log() };
        apt.configure()?;
        Ok(apt)
    }

    /// The Debian archive's address.
    pub(crate) fn archive(&self) -> &str {
        &self.archive
    }

    fn configure(&self) -> Result<()> {
        for sub in ["state/lists/partial", "cache/archives/partial", "empty"] {
            let path = self.dir.join(sub);
            fs::create_dir_all(&path).on("create", &path)?;
        }
        self.write("state/status", "")?;
        self.write("debian.sources", &sources(&self.archive))?;
        self.write("apt.conf", &configuration(&self.dir))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).on("write", path)
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("lists-of")
    }

    /// Whether the package lists are there, recent, and of the suites and the archive that are wanted
    /// now.
    pub(crate) fn is_fresh(&self) -> bool {
        let age = || -> Option<Duration> {
            let written = fs::metadata(self.stamp()).ok()?.modified().ok()?;
            SystemTime::now().duration_since(written).ok()
        };
        let same = fs::read_to_string(self.stamp()).is_ok_and(|of| of == sources(&self.archive));
        same && age().is_some_and(|age| age < LISTS_LIVE)
    }

    /// Fetches the package lists; half-done downloads of older lists are thrown away.
    pub(crate) fn update(&self) -> Result<()> {
        self.get(UPDATE_ADVICE).arg("update").run(&self.log)?;
        self.clean()?;
        fs::write(self.stamp(), sources(&self.archive)).on("write", self.stamp())
    }

    /// Throws downloaded packages away.
    pub(crate) fn clean(&self) -> Result<()> {
        self.get(INSTALL_ADVICE).arg("clean").run(&self.log)
    }

    /// What installing `package` from `suite` on an empty machine would install.
    pub(crate) fn resolve(&self, suite: &str, package: &str) -> Result<Vec<Package>> {
        let install = ["install", "--simulate", "--no-install-recommends"];
        let answer = self
            .get(INSTALL_ADVICE)
            .args(install)
            .args(["-t", suite, package])
            .output(&self.log)?;
        let packages: Vec<Package> = answer.lines().filter_map(simulated).collect();
        if packages.iter().any(|found| found.name == package) {
            return Ok(packages);
        }
        Err(Error::Unusable {
            what: format!("apt found no way to install {package} from {suite}"),
            advice: "look at setup.log in the cache",
        })
    }

    /// Downloads packages and unpacks them under `root`. Downloads survive an interruption.
    pub(crate) fn unpack(&self, packages: &[Package], root: &Path) -> Result<()> {
        let downloads = self.dir.join("cache/archives");
        let exact = packages.iter().map(|package| format!("{}={}", package.name, package.version));
        // `download` takes what is named, without the dependencies that the caller sorted out.
        self.get(INSTALL_ADVICE)
            .arg("download")
            .args(exact)
            .in_directory(&downloads)
            .run(&self.log)?;
        for package in packages {
            Tool::new("dpkg", "is the disk full?")
                .arg("--extract")
                .arg(downloads.join(package.file_name()))
                .arg(root)
                .run(&self.log)?;
        }
        Ok(())
    }

    fn get(&self, advice: &'static str) -> Tool {
        Tool::new("apt-get", advice).arg("-c").arg(self.dir.join("apt.conf")).arg("--quiet=2")
    }
}

/// A package in one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    architecture: String,
}

impl Package {
    /// The name of its file, in which an epoch's colon is escaped.
    fn file_name(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.name, self.architecture)
    }
}

/// A line of `apt-get --simulate`: `Inst NAME (VERSION ORIGIN, ORIGIN [ARCHITECTURE])`.
fn simulated(line: &str) -> Option<Package> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let inside = rest.split_once('(')?.1;
    let version = inside.split_whitespace().next()?;
    let architecture = inside.split_once('[')?.1.split_once(']')?.0;
    Some(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: architecture.to_owned(),
    })
}

fn sources(archive: &str) -> String {
    // Without the updates and security suites: a lab wants the release that everybody has, and
    // not every mirror carries them.
    format!(
        "Types: deb\nURIs: {archive}\nSuites: {OLD_RELEASE} {RELEASE} {BACKPORTS}\nComponents: main\n\
         Signed-By: {KEYRING}\n"
    )
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"Dir::State "{dir}/state";
Dir::State::status "{dir}/state/status";
Dir::Cache "{dir}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "{dir}/debian.sources";
Dir::Etc::sourceparts "{dir}/empty";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{dir}/empty";
APT::Architecture "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_installation_is_read() {
        let line = "Inst qemu-system-x86 (1:11.1.3+ds-1~bpo13+1 Debian Backports:stable-backports [amd64])";
        let package = simulated(line).unwrap();
        assert_eq!(package.name, "qemu-system-x86");
        assert_eq!(package.file_name(), "qemu-system-x86_1%3a11.1.3+ds-1~bpo13+1_amd64.deb");
        assert_eq!(simulated("Conf linux-base (4.12.1 Debian:13.8/stable [all])"), None);
        assert_eq!(
            simulated("Inst linux-base (4.12.1 Debian:13.8/stable [all])").unwrap().architecture,
            "all"
        );
    }

    #[test]
    fn the_sources_are_the_hosts_archive_with_our_suites() {
        let text = sources("http://mirror.example/debian");
        assert!(text.contains("URIs: http://mirror.example/debian\n"), "{text}");
        assert!(text.contains("Suites: bookworm trixie trixie-backports\n"), "{text}");
    }
}
