//! The few programs that the host itself must have; apt installs those that are missing.

use crate::command::{Log, Tool, find_program};
use crate::error::{Error, Result};

/// Programs with the Debian packages that bring them.
const NEEDED: [(&str, &str); 6] = [
    ("apt-get", "apt"),
    ("dpkg", "dpkg"),
    ("debootstrap", "debootstrap"),
    ("mke2fs", "e2fsprogs"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
];

const ADVICE: &str = "install the named packages yourself (as root: `apt-get install ...`), or run \
     set-up as a user who may use sudo";

/// The packages whose programs the lab needs and that are missing here.
pub(crate) fn missing() -> Vec<&'static str> {
    missing_of(&NEEDED)
}

/// The packages of `needed`, programs with the packages that bring them, that are missing here.
pub(crate) fn missing_of<'a>(needed: &[(&'a str, &'a str)]) -> Vec<&'a str> {
    let absent = needed.iter().filter(|(program, _)| find_program(program).is_none());
    absent.map(|(_, package)| *package).collect()
}

/// Installs packages with the host's apt; fetches its package lists only if it does not know them.
pub(crate) fn install(packages: &[&str], log: &Log) -> Result<()> {
    if packages.contains(&"apt") {
        return Err(Error::Unusable {
            what: "this host has no apt-get".to_owned(),
            advice: "the lab needs a Debian 12 or 13 host",
        });
    }
    if install_once(packages, log).is_ok() {
        return Ok(());
    }
    apt().arg("update").run(log)?;
    install_once(packages, log)
}

fn install_once(packages: &[&str], log: &Log) -> Result<()> {
    apt().args(["install", "--yes", "--no-install-recommends"]).args(packages).run(log)
}

fn apt() -> Tool {
    Tool::as_root("env", ADVICE).arg("DEBIAN_FRONTEND=noninteractive").args(["apt-get", "--quiet"])
}
