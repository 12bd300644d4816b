//! The tools disk: what a caller brings into a guest.
//!
//! A directory becomes a read-only disk that the guest has at `/opt/memtide`, made anew for each
//! machine, so no image ever holds an old binary. By convention:
//!
//! - `bin/` holds programs; `bin/memtide-lab-guest` must be there, it is what answers the host.
//! - `units/` holds systemd units and drop-in directories. Before systemd starts, the initramfs
//!   copies all of it to `/run/systemd/system`, where it outranks the image's units.
//! - `units/enabled` names units, one to a line, that multi-user.target shall want; a name without
//!   a file in `units/` means one of the image's. `#` begins a comment line. A name that exists
//!   nowhere ends the boot with a message, for a test without its service would test nothing.
//! - anything else is at the same place under `/opt/memtide`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::Log;
use crate::error::{Error, IoContext, Result};
use crate::image::read_only_ext4;
use crate::rundir::RunDir;

/// Where the guest has the tools.
pub const GUEST_PATH: &str = "/opt/memtide";

/// The program that must be there.
pub const RUNNER: &str = "memtide-lab-guest";

/// Puts a tools directory together: a temporary one, removed with this.
#[derive(Debug)]
pub struct Tools {
    tools: PathBuf,
    enabled: String,
    _directory: RunDir,
}

impl Tools {
    /// A directory with the guest runner in it.
    ///
    /// # Errors
    /// If the directory cannot be made or `runner` cannot be copied.
    pub fn new(runner: &Path) -> Result<Self> {
        let directory = RunDir::new()?;
        let tools = directory.join("tools");
        let mut tools = Self { tools, enabled: String::new(), _directory: directory };
        tools.program(RUNNER, runner)?;
        Ok(tools)
    }

    /// The directory, for [`MachineSpec::tools_dir`](crate::machine::MachineSpec::tools_dir).
    pub fn path(&self) -> &Path {
        &self.tools
    }

    /// Adds a program as `bin/NAME` and returns where the guest has it.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn program(&mut self, name: &str, from: &Path) -> Result<String> {
        let to = self.place("bin", name)?;
        fs::copy(from, &to).on("copy", from)?;
        Ok(format!("{GUEST_PATH}/bin/{name}"))
    }

    /// Adds a file with this text, at this path under `/opt/memtide`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn file(&mut self, path: &str, text: &str) -> Result<()> {
        let to = self.place(".", path)?;
        fs::write(&to, text).on("write", to)
    }

    /// Adds a systemd unit.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn unit(&mut self, name: &str, text: &str, start: Start) -> Result<()> {
        self.file(&format!("units/{name}"), text)?;
        match start {
            Start::AtBoot => self.enable(name),
            Start::OnDemand => Ok(()),
        }
    }

    /// Has multi-user.target want a unit: one that was added, or one of the image's.
    ///
    /// # Errors
    /// If the list cannot be written.
    pub fn enable(&mut self, name: &str) -> Result<()> {
        self.enabled += name;
        self.enabled.push('\n');
        let list = self.enabled.clone();
        self.file("units/enabled", &list)
    }

    fn place(&self, directory: &str, name: &str) -> Result<PathBuf> {
        let path = self.path().join(directory).join(name);
        let parent = path.parent().unwrap_or(self.path());
        fs::create_dir_all(parent).on("create", parent)?;
        Ok(path)
    }
}

/// When a unit starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With multi-user.target.
    AtBoot,
    /// When something asks for it.
    OnDemand,
}

/// Makes the disk out of a tools directory.
pub(crate) fn make_disk(tools: &Path, image: &Path, log: &Log) -> Result<()> {
    let runner = tools.join("bin").join(RUNNER);
    if !runner.is_file() {
        return Err(Error::Unusable {
            what: format!("{} is missing", runner.display()),
            advice: "the guest could not answer: build memtide-lab-guest and put it there",
        });
    }
    read_only_ext4(tools, "memtide-tools", image, log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tools_directory_has_its_conventional_places() {
        let own = std::env::current_exe().unwrap();
        let mut tools = Tools::new(&own).unwrap();
        assert_eq!(tools.program("load", &own).unwrap(), "/opt/memtide/bin/load");
        tools.unit("a.service", "[Service]\n", Start::AtBoot).unwrap();
        tools.unit("b.service", "[Service]\n", Start::OnDemand).unwrap();
        tools.unit("b.service.d/memory.conf", "[Service]\n", Start::OnDemand).unwrap();
        tools.enable("fstrim.timer").unwrap();
        let enabled = fs::read_to_string(tools.path().join("units/enabled")).unwrap();
        assert_eq!(enabled, "a.service\nfstrim.timer\n");
        assert!(tools.path().join("units/b.service.d/memory.conf").is_file());
        assert!(tools.path().join("bin/memtide-lab-guest").is_file());
    }

    #[test]
    fn a_disk_without_the_runner_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path().join("log"));
        let error = make_disk(dir.path(), &dir.path().join("x"), &log).unwrap_err();
        assert!(error.to_string().contains("memtide-lab-guest"), "{error}");
    }
}
