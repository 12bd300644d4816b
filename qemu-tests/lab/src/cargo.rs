//! Builds this workspace's programs for a guest.
//!
//! Guests run the same glibc as Debian 13 or a newer one than the host's, so what the host builds
//! for itself runs in them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::{Error, IoContext, Result};

/// Which of cargo's profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// `dev`: quick to build.
    Dev,
    /// `release`: what a benchmark needs.
    Release,
}

/// A line of `cargo build --message-format=json`.
#[derive(Debug, Deserialize)]
struct CargoMessage {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// Programs that were built, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Built {
    programs: Vec<(String, PathBuf)>,
}

impl Built {
    /// Where a program is.
    ///
    /// # Errors
    /// If none of the packages has a program of this name.
    pub fn program(&self, name: &str) -> Result<&PathBuf> {
        let found = self.programs.iter().find(|(program, _)| program == name);
        found.map(|(_, path)| path).ok_or_else(|| Error::Unusable {
            what: format!("cargo built no program called {name}"),
            advice: "name the package that has it",
        })
    }
}

/// Builds the programs of these packages. Errors and warnings go to the terminal as ever.
///
/// # Errors
/// If cargo cannot be started or the build fails.
pub fn build(packages: &[&str], profile: Profile) -> Result<Built> {
    let packages: Vec<&str> = packages.iter().flat_map(|name| ["--package", name]).collect();
    build_in(WORKSPACE, &packages, profile)
}

/// Builds the programs of a workspace of its own, in this directory below ours.
///
/// # Errors
/// As [`build`].
pub fn build_apart(directory: &str, profile: Profile) -> Result<Built> {
    // A target directory of its own as well, for cargo lets nobody else into one while it builds.
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => PathBuf::from(target),
        None => Path::new(WORKSPACE).join("target"),
    };
    let target = target.join(directory).to_string_lossy().into_owned();
    let workspace = format!("{WORKSPACE}/{directory}");
    build_in(&workspace, &["--target-dir", &target], profile)
}

/// Where we were built from: callers may stand in any directory.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn build_in(workspace: &str, arguments: &[&str], profile: Profile) -> Result<Built> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(["build", "--quiet", "--bins", "--message-format=json-render-diagnostics"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    command.args(arguments).arg("--manifest-path").arg(format!("{workspace}/Cargo.toml"));
    let output = command.stderr(Stdio::inherit()).output().on("start", &cargo)?;
    if !output.status.success() {
        return Err(Error::Unusable {
            what: format!("cargo could not build {}", arguments.join(" ")),
            advice: "its messages are above",
        });
    }
    Ok(programs(&String::from_utf8_lossy(&output.stdout)))
}

fn programs(messages: &str) -> Built {
    let messages = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    let program = |message: CargoMessage| Some((message.target?.name, message.executable?));
    Built { programs: messages.filter_map(program).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let built = programs(
            r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"load","kind":["bin"]},"executable":"/t/load"}
{"reason":"build-finished","success":true}
"#,
        );
        assert_eq!(built.program("load").unwrap(), &PathBuf::from("/t/load"));
        let error = built.program("serde").unwrap_err().to_string();
        assert!(error.contains("no program called serde"), "{error}");
    }
}
