//! A real memtided process on sockets of its own, and a client for it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use memtide_api::http::{HostStatus, Refusal, VmAccess, VmStatus};
use serde::de::DeserializeOwned;

/// Longer than anything here takes on a busy machine with two cores.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `probe` finds something.
pub(crate) fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder with sockets, state and a host's memory.
pub(crate) struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap() };
        host.set_available(60);
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A host of 64 GiB of which so many GiB are available.
    pub(crate) fn set_available(&self, gib: u64) {
        let text = format!("MemTotal: {} kB\nMemAvailable: {} kB\n", 64 << 20, gib << 20);
        let (new, path) = (self.path("meminfo.new"), self.path("meminfo"));
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    pub(crate) fn command(&self, config: &str, arguments: &[&str]) -> Command {
        fs::write(self.path("memtided.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_memtided"));
        let socket = self.path("memtided.sock");
        for (option, path) in [
            ("--config", self.path("memtided.toml")),
            ("--socket", socket),
            ("--state-dir", self.path("state")),
            ("--meminfo", self.path("meminfo")),
        ] {
            command.arg(option).arg(path);
        }
        command.args(arguments).stdin(Stdio::null()).env_remove("NOTIFY_SOCKET");
        command
    }

    /// Starts memtided and waits until its API answers.
    pub(crate) fn start(&self, config: &str, arguments: &[&str]) -> Daemon {
        let child = self.command(config, arguments).spawn().unwrap();
        let daemon = Daemon { child, socket: self.path("memtided.sock") };
        wait_for("the API", || UnixStream::connect(&daemon.socket).ok());
        daemon
    }

    /// Runs a memtided that must not start, and returns what it said.
    pub(crate) fn fails(&self, config: &str, arguments: &[&str]) -> String {
        let output = self.command(config, arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }
}

/// A running memtided; killed when dropped, as if it crashed.
pub(crate) struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    pub(crate) fn host(&self) -> HostStatus {
        self.ok("GET", "/v1/host", "")
    }

    pub(crate) fn vm(&self, name: &str) -> VmStatus {
        self.ok("GET", &format!("/v1/vms/{name}"), "")
    }

    /// What was touched in a VM, if its agent has told.
    pub(crate) fn access(&self, name: &str) -> Option<VmAccess> {
        let path = format!("/v1/vms/{name}/access");
        let (status, text) = request(&self.socket, "GET", &path, "");
        (status == 200).then(|| serde_json::from_str(&text).unwrap())
    }

    pub(crate) fn put<T: DeserializeOwned>(&self, path: &str, body: &str) -> T {
        self.ok("PUT", path, body)
    }

    /// A request that must be refused; the status and the refusal.
    pub(crate) fn refused(&self, method: &str, path: &str, body: &str) -> (u16, Refusal) {
        let (status, text) = request(&self.socket, method, path, body);
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    }

    /// Ends it as systemd does, and waits for it.
    pub(crate) fn terminate(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        assert!(!self.socket.exists(), "the socket stays behind");
    }

    fn ok<T: DeserializeOwned>(&self, method: &str, path: &str, body: &str) -> T {
        let (status, text) = request(&self.socket, method, path, body);
        assert_eq!(status, 200, "{method} {path}: {text}");
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: memtided\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that refuses a large body may close before it has read all of it.
    let _ = stream.write_all(body.as_bytes());
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
}
