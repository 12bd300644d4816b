//! `device = "start"`: the device is a process of its own, and lives longer than memtided.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use memtide_api::http::VmState;
use rustix::process::{Pid, Signal, getsid, kill_process, test_kill_process};

use super::daemon::{Daemon, Host, wait_for};
use super::fake_device::FakeDevice;

/// Not a test: it is the device program that the tests below have memtided start.
#[test]
#[ignore = "a device process for the other tests"]
fn device_program() {
    let Some(control) = std::env::var_os("FAKE_DEVICE_CONTROL").map(PathBuf::from) else { return };
    let _device = FakeDevice::start(&control, 16, 8);
    // Ends with its socket, should the test that wants it fail before it can end it.
    while control.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn program(host: &Host) -> PathBuf {
    let path = host.path("vhost-user-balloon");
    let test = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1 $3\" = '--socket-path --control-path' ] || exit 3\n\
         FAKE_DEVICE_CONTROL=\"$4\" exec '{}' --exact started::device_program --ignored\n",
        test.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn config(host: &Host) -> String {
    let socket = host.path("web1.sock");
    format!(
        "[[vm]]\nname = \"web1\"\nmin = \"128MiB\"\ndevice = \"start\"\nvhost_socket = {socket:?}\n"
    )
}

fn pid(daemon: &Daemon) -> Pid {
    let pid = wait_for("the device", || {
        let vm = daemon.vm("web1");
        (vm.state == VmState::Connected).then(|| vm.device.unwrap().pid)
    });
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

#[test]
fn a_started_device_outlives_memtided_and_is_adopted_again() {
    let host = Host::new();
    let program = program(&host);
    let arguments = ["--device-binary", program.to_str().unwrap()];
    let daemon = host.start(&config(&host), &arguments);
    let device = pid(&daemon);
    assert_eq!(getsid(Some(device)).unwrap(), device, "it has a session of its own");
    daemon.terminate();
    test_kill_process(device).expect("it lives on");

    let daemon = host.start(&config(&host), &arguments);
    assert_eq!(pid(&daemon), device, "the same process, not a second one");

    kill_process(device, Signal::KILL).unwrap();
    let next = wait_for("another device", || Some(pid(&daemon)).filter(|next| *next != device));
    assert!(host.path("state/device-web1.log").exists());
    kill_process(next, Signal::KILL).unwrap();
}

#[test]
fn a_device_that_cannot_be_started_says_so_and_does_not_spin() {
    let host = Host::new();
    let daemon = host.start(&config(&host), &["--device-binary", "/nowhere/device"]);
    let why = wait_for("the failure", || match daemon.vm("web1").state {
        VmState::Lost(why) => Some(why),
        _ => None,
    });
    assert!(why.contains("/nowhere/device cannot be started"), "{why}");
}
