//! The package's maintainer scripts, run as dpkg runs them, with stand-ins for what they call.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Stand-ins that write down how they were called, and fail if told to.
struct Stage(tempfile::TempDir);

impl Stage {
    fn new(outcome: i32) -> Self {
        let dir = tempfile::tempdir().expect("a test needs a directory");
        for name in ["memtide-agent", "systemctl"] {
            let path = dir.path().join(name);
            let log = dir.path().join("calls");
            let text =
                format!("#!/bin/sh\necho {name} \"$@\" >> {}\nexit {outcome}\n", log.display());
            fs::write(&path, text).expect("it can be written to");
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&path, mode).expect("it is our own");
        }
        Self(dir)
    }

    /// Runs a script; answers with whether it succeeded, and with the agent's calls.
    fn run(&self, script: &str, argument: &str) -> (bool, Vec<String>) {
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "packaging", script].iter().collect();
        let search = format!("{}:/usr/bin:/bin", self.0.path().display());
        let status = Command::new("/bin/sh").arg(path).arg(argument).env("PATH", search).status();
        let calls = fs::read_to_string(self.0.path().join("calls")).unwrap_or_default();
        let agent = calls.lines().filter(|line| line.starts_with("memtide-agent"));
        (status.expect("there is a shell").success(), agent.map(str::to_owned).collect())
    }
}

#[test]
fn a_removal_brings_everything_back_and_an_upgrade_nothing() {
    let (done, calls) = Stage::new(0).run("prerm", "remove");
    assert!(done);
    assert_eq!(calls, ["memtide-agent hand-back --return-blocks --within 30s"]);
    for (script, argument) in
        [("prerm", "upgrade"), ("postinst", "configure"), ("postrm", "remove"), ("postrm", "purge")]
    {
        let (done, calls) = Stage::new(0).run(script, argument);
        assert!(done && calls.is_empty(), "{script} {argument}: {calls:?}");
    }
}

#[test]
fn a_guest_that_cannot_do_it_all_still_loses_the_package() {
    let (done, calls) = Stage::new(3).run("prerm", "remove");
    assert!(done);
    assert_eq!(calls.len(), 1);
}

#[test]
fn what_the_scripts_say_is_what_the_program_understands() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prerm");
    let text = fs::read_to_string(script).unwrap();
    let line = text.lines().find(|line| line.trim().starts_with("memtide-agent ")).unwrap();
    let options = line.split_whitespace().skip(2).filter(|word| word.starts_with("--"));
    let help =
        Command::new(env!("CARGO_BIN_EXE_memtide-agent")).args(["hand-back", "--help"]).output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    for option in options {
        assert!(help.contains(option), "{option} is not in\n{help}");
    }
}
