//! What systemd is told, by a datagram socket in its place.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::daemon::Host;

#[test]
fn systemd_learns_that_it_is_ready_alive_and_stopping() {
    let host = Host::new();
    let systemd = UnixDatagram::bind(host.path("notify")).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut command = host.command("", &["--budget", "4GiB"]);
    command.env("NOTIFY_SOCKET", host.path("notify")).env("WATCHDOG_USEC", "400000");
    let mut child = command.spawn().unwrap();
    let hears = |wanted: &str| {
        let mut buffer = [0; 1024];
        loop {
            let count = systemd.recv(&mut buffer).expect(wanted);
            if String::from_utf8_lossy(&buffer[..count]).contains(wanted) {
                return;
            }
        }
    };
    hears("READY=1");
    hears("WATCHDOG=1");
    hears("STATUS=0 of 0 VMs connected, 0 B of 4 GiB held by them");
    hears("WATCHDOG=1");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    hears("STOPPING=1");
    assert!(child.wait().unwrap().success());
}
