//! The program as systemd starts it: with sockets that listen already, and somebody to be told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Client, DEADLINE, Memory, Vm};
use memtide_units::ByteSize;
use rustix::process::{Pid, Signal};

/// A program that has found these sockets as descriptors 3 and 4, under these names, and tells how it
/// is on a socket of its own.
struct Started {
    child: Child,
    folder: tempfile::TempDir,
    notify: UnixDatagram,
}

impl Started {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What systemd is told next.
    fn told(&self) -> String {
        let mut text = [0; 4096];
        loop {
            // A wait with a timeout is not gone on with after a signal.
            match self.notify.recv(&mut text) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                len => return String::from_utf8(text[..len.unwrap()].to_vec()).unwrap(),
            }
        }
    }

    fn await_told(&self, wanted: &str) {
        while !self.told().contains(wanted) {}
    }

    fn finish(&mut self) -> (bool, String) {
        let status = self.child.wait().unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.success(), log)
    }
}

impl Drop for Started {
    /// A test that fails leaves no program behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Standard input and output become the descriptors 3 and 4: a shell can do that, and knows the
/// process id that the program will have.
fn start(names: &str, words: &[&str], sockets: [OwnedFd; 2], folder: tempfile::TempDir) -> Started {
    let script = r#"exec 3<&0 4<&1 0</dev/null 1>/dev/null
        export LISTEN_PID=$$; exec "$0" "$@""#;
    let notify = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(DEADLINE)).unwrap();
    let [first, second] = sockets;
    let child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_vhost-user-balloon")])
        .args(words)
        .env("LISTEN_FDS", names.split(':').count().to_string())
        .env("LISTEN_FDNAMES", names)
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .stdin(first)
        .stdout(second)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Started { child, folder, notify }
}

fn listen(folder: &Path, name: &str) -> OwnedFd {
    UnixListener::bind(folder.join(name)).unwrap().into()
}

fn terminate(child: &Child) {
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
}

#[test]
fn sockets_with_names_are_served_reported_and_left_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    // The control socket first: the names say which is which.
    let sockets = ["vm.ctl", "vm.sock"].map(|name| listen(folder.path(), name));
    let mut started = start("control:vhost", &[], sockets, folder);
    assert_eq!(started.told(), "READY=1\n");
    started.await_told("STATUS=waits for a VMM");
    let mut vm = Vm::start(UnixStream::connect(started.path("vm.sock")).unwrap(), 0, &[0]);
    started.await_told("STATUS=serves a guest's stock driver");
    vm.pages(0, [0x2000]);
    assert_eq!(vm.memory.resident(), Memory::all_resident() - ByteSize::from_kib(4));
    let mut client = Client::connect(&started.path("vm.ctl"));
    assert!(client.status().vmm_connected);
    terminate(&started.child);
    started.await_told("STOPPING=1");
    let (success, log) = started.finish();
    assert!(success, "{log}");
    assert!(started.path("vm.sock").exists() && started.path("vm.ctl").exists());
}

#[test]
fn a_single_socket_is_the_vmms_whatever_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let sockets =
        [listen(folder.path(), "vm.sock"), std::fs::File::open("/dev/null").unwrap().into()];
    let control = folder.path().join("own.ctl");
    let words = ["--control-path", control.to_str().unwrap()];
    let mut started = start("vhost-user-balloon@vm1.socket", &words, sockets, folder);
    started.await_told("READY=1");
    let vm = Vm::start(UnixStream::connect(started.path("vm.sock")).unwrap(), 0, &[0]);
    assert!(Client::connect(&control).status().vmm_connected);
    drop(vm);
    terminate(&started.child);
    assert!(started.finish().0);
    assert!(started.path("vm.sock").exists() && !control.exists());
}

#[test]
fn what_cannot_be_served_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let sockets = [listen(folder.path(), "vm.sock"), file];
    let (success, log) = start("vhost:control", &[], sockets, folder).finish();
    assert!(!success && log.contains("\"control\"") && log.contains("ListenStream="), "{log}");
    let folder = tempfile::tempdir().unwrap();
    let sockets = ["a", "b"].map(|name| listen(folder.path(), name));
    let words = ["--socket-path", "/nowhere/vm.sock"];
    let (success, log) = start("vhost:control", &words, sockets, folder).finish();
    assert!(!success && log.contains("--socket-path names another"), "{log}");
}

#[test]
fn sockets_of_another_process_are_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vhost-user-balloon"))
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", "1")
        .current_dir(folder.path())
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && log.contains("no VMM to serve"), "{log}");
}
