//! A signal ends a write to a kernel file: what puts a deadline on an offline request that the
//! kernel would pursue for ever.

use std::os::unix::thread::JoinHandleExt;
use std::thread;
use std::time::{Duration, Instant};

use memtide_sysfs::Root;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

extern "C" fn do_nothing(_signal: i32) {}

#[test]
fn a_blocked_write_ends_with_eintr_and_is_not_repeated() {
    // No SA_RESTART: the kernel must not repeat the write either.
    let action = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is async-signal-safe, and nothing else in this test
    // program handles SIGUSR1.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let pipe = rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap();
    while rustix::io::write(&pipe, &[0; 4096]).is_ok() {}

    let root = Root::new(dir.path());
    let writer = thread::spawn(move || root.write("state", "offline"));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !writer.is_finished() {
        assert!(Instant::now() < deadline, "the write outlived its signals");
        pthread_kill(writer.as_pthread_t(), Signal::SIGUSR1).unwrap();
        thread::yield_now();
    }
    assert_eq!(writer.join().unwrap().unwrap_err().errno(), Some(Errno::INTR));
}
