//! The program as a VMM's manager starts and stops it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Client, DEADLINE, Memory, Vm};
use memtide_balloon::BLOCK_QUEUE;
use memtide_balloon::fake::Buffer;
use memtide_units::ByteSize;
use memtide_wire::block::RESPONSE_LEN;
use rustix::process::{Pid, Signal};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vhost-user-balloon"))
}

fn start(socket: &Path) -> Child {
    let mut command = program();
    command.arg("--socket-path").arg(socket).arg("--log").arg("info").stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Tries until something listens there.
fn connect(path: &Path) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < DEADLINE, "{}: {error}", path.display()),
        }
        std::thread::yield_now();
    }
}

fn terminate(child: &Child) {
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
}

fn finish(mut child: Child) -> (bool, String) {
    let status = child.wait().unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    (status.success(), log)
}

#[test]
fn capabilities_are_printed_whatever_else_is_asked() {
    for words in [&["--print-capabilities"][..], &["--fd", "x", "--print-capabilities", "--huh"]] {
        let output = program().args(words).output().unwrap();
        assert!(output.status.success());
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json, serde_json::json!({"type": "balloon"}));
    }
}

#[test]
fn the_description_file_names_this_program() {
    // VhostUserBackend of QEMU's docs/interop/vhost-user.json: three members, a fourth if one likes,
    // and no other.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let text = std::fs::read(folder.join("50-vhost-user-balloon.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let members = json.as_object().unwrap();
    assert!(
        members.keys().all(|name| ["description", "type", "binary", "tags"].contains(&&**name))
    );
    assert_eq!(members["type"], "balloon");
    assert!(!members["description"].as_str().unwrap().is_empty());
    let binary = members["binary"].as_str().unwrap();
    assert!(Path::new(binary).is_absolute());
    let unit = std::fs::read_to_string(folder.join("vhost-user-balloon@.service")).unwrap();
    assert!(unit.contains(&format!("ExecStart={binary} ")), "one program, one place");
}

#[test]
fn it_serves_one_vmm_after_another_and_ends_on_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vm.sock");
    let control = directory.path().join("vm.sock.ctl");
    let child = start(&socket);
    for _ in 0..3 {
        let mut vm = Vm::start(connect(&socket), 0, &[0]);
        vm.pages(0, [0x2000, 0x2001]);
        assert_eq!(vm.memory.resident(), Memory::all_resident() - ByteSize::from_kib(8));
    }
    let mut client = Client::connect(&control);
    let status = client.status_when(|status| !status.vmm_connected);
    assert_eq!(status.counters.inflated, ByteSize::from_kib(24));
    assert_eq!((status.memory.len(), status.stolen.len()), (0, 0));
    let asked = Instant::now();
    terminate(&child);
    let (success, log) = finish(child);
    assert!(success && asked.elapsed() < Duration::from_secs(2), "{log}");
    assert!(!socket.exists() && !control.exists());
    assert_eq!(log.matches("a VMM has connected").count(), 3, "{log}");
}

#[test]
fn a_socket_left_behind_is_taken_over_and_one_in_use_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vm.sock");
    let mut first = start(&socket);
    drop(connect(&socket));
    let (success, log) = finish(start(&socket));
    assert!(!success && log.contains("in use"), "{log}");
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(socket.exists(), "a killed program leaves its socket");
    let second = start(&socket);
    drop(connect(&socket));
    terminate(&second);
    let (success, log) = finish(second);
    assert!(success && log.contains("left behind"), "{log}");
}

#[test]
fn a_descriptor_that_is_given_is_served_until_its_end() {
    // The child finds the socket as its standard input's duplicate under another number.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let script = r#"exec 7<&0 0</dev/null; exec "$0" --fd 7"#;
    let child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_vhost-user-balloon")])
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut vm = Vm::start(ours, 0, &[0]);
    vm.pages(0, [0x2000]);
    drop(vm);
    let (success, log) = finish(child);
    assert!(success && log.contains("the VMM has left"), "{log}");
}

#[test]
fn as_many_descriptors_as_a_vm_may_need_can_be_open() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vm.sock");
    let script = r#"ulimit -S -n 256; exec "$0" --socket-path "$1""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_vhost-user-balloon")]).arg(&socket);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    drop(connect(&socket));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    stop(child);
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().next(), Some("1024"), "{limits}");
}

#[test]
fn a_vmm_that_comes_and_goes_does_not_fill_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vm.sock");
    let child = start(&socket);
    for _ in 0..200 {
        let mut vmm = connect(&socket);
        // CHECK_DEVICE_STATE without a transfer, and a request that nobody knows.
        for request in [43_u32, 77] {
            let message = [request, 1, 0].map(u32::to_ne_bytes).concat();
            std::io::Write::write_all(&mut vmm, &message).unwrap();
        }
        // The answer to the first.
        vmm.read_exact(&mut [0; 20]).unwrap();
    }
    let mut client = Client::connect(&directory.path().join("vm.sock.ctl"));
    client.status_when(|status| !status.vmm_connected);
    terminate(&child);
    let (success, log) = finish(child);
    assert!(success && log.lines().count() < 40, "{} lines: {log}", log.lines().count());
}

/// A number of KiB from a process's status.
fn status_kib(child: &Child, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// What the device holds for itself: pages of its own, pages of the guest's that are in its page
/// tables, and these.
fn held_kib(child: &Child) -> u64 {
    status_kib(child, "VmRSS") + status_kib(child, "VmPTE")
}

/// A device with `gib` of memory above 4 GiB that nobody has touched, beside a guest's usual.
fn with_large(gib: u64, queues: &[usize]) -> (tempfile::TempDir, Child, Vm) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vm.sock");
    let child = start(&socket);
    let mut vm = Vm::negotiated(connect(&socket), INDIRECT);
    let large = rustix::fs::memfd_create("large", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&large, gib << 30).unwrap();
    let more = vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: LARGE,
        memory_size: gib << 30,
        userspace_addr: 0x6000_0000_0000,
        mmap_offset: 0,
        mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&large),
    };
    let mut regions = vm.memory.regions();
    regions.push(more);
    vhost::VhostBackend::set_mem_table(&vm.frontend, &regions).unwrap();
    vm.start_rings(queues);
    (directory, child, vm)
}

const LARGE: u64 = 4 << 30;
const INDIRECT: u64 = 1 << 28;

fn stop(child: Child) {
    terminate(&child);
    assert!(finish(child).0);
}

/// Inflates pages that are scattered over `gib` of memory, so that no two make one range, and says
/// how much the device holds then, in KiB.
fn held_with(gib: u64) -> u64 {
    let (_directory, child, mut vm) = with_large(gib, &[0, 1]);
    let apart = (gib << 18) / 8192;
    vm.pages(0, (0..8192).map(|n| 0x10_0000 + n * apart as u32));
    vm.pages(1, (0..8192).map(|n| 0x10_0000 + n * apart as u32));
    let held = held_kib(&child);
    let [anonymous, shared, tables] =
        ["RssAnon", "RssShmem", "VmPTE"].map(|field| status_kib(&child, field));
    eprintln!(
        "{gib} GiB: {held} KiB, {anonymous} its own, {shared} of the guest's, {tables} of tables"
    );
    stop(child);
    held
}

#[test]
fn memory_of_any_size_costs_the_device_little() {
    let (small, large) = (held_with(8), held_with(1024));
    assert!(small <= 6 << 10, "{small} KiB with 8 GiB");
    assert!(large <= 8 << 10, "{large} KiB with 1 TiB");
}

#[test]
fn a_guest_that_uses_all_of_its_memory_for_requests_does_not_make_the_device_grow() {
    const GIB: u64 = 8;
    let (_directory, child, mut vm) = with_large(GIB, &[0, 1, BLOCK_QUEUE]);
    let (mut most, indirect) = (0, 4);
    for (n, at) in (LARGE..LARGE + (GIB << 30)).step_by(8 << 20).enumerate() {
        // Page numbers in one hole, a table in another, and an answer into a third.
        let len = if n % 16 == 0 { 1 << 20 } else { 4096 };
        vm.submit(1, &[Buffer::Readable(at, len)]);
        let head = vm.drivers[1].add(&vm.memory.map, &[Buffer::Readable(at, 4)]);
        let table = (at + (1 << 20), 16, indirect, 0);
        vm.drivers[1].put_descriptor(&vm.memory.map, head, table);
        vm.kicks[1].write(1).unwrap();
        vm.await_used(1, head);
        let answer = Buffer::Writable(at + (3 << 19), RESPONSE_LEN as u32);
        assert_eq!(vm.submit(BLOCK_QUEUE, &[answer]), RESPONSE_LEN as u32);
        most = most.max(status_kib(&child, "VmPTE"));
    }
    most += status_kib(&child, "VmHWM");
    eprintln!("{most} KiB at most");
    stop(child);
    assert!(most <= 6 << 10, "{most} KiB with {GIB} GiB");
}
