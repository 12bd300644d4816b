//! memtide-lab-guest: runs commands in a lab guest for the host, over a virtio-serial port.
//!
//! The host's side and the words that both speak are in `memtide_lab::guest`. This side is made to
//! live through what the tests do to a guest: each request has a thread of its own, a program that
//! hangs is killed with its children, and nothing that a program prints can fill our memory.

mod children;
mod files;
mod output;
mod port;
mod run;
mod wait;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use memtide_lab::guest::protocol::{Message, Op, Outcome, PORT_NAME, Request};

use children::Children;
use port::Port;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memtide-lab-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers requests for as long as the machine lives.
fn serve() -> io::Result<()> {
    let (port, mut requests) = Port::open(&port::device(PORT_NAME)?)?;
    let children = Arc::new(Children::default());
    port.send(&hello()?)?;
    while let Some(request) = requests.next_request()? {
        let id = request.id;
        let (ours, children) = (port.clone(), Arc::clone(&children));
        let started = thread::Builder::new().spawn(move || answer(&ours, &children, request));
        if let Err(error) = started {
            // A guest at the edge of its memory: this request fails, the next may not.
            reply(&port, id, Err(format!("no thread for it: {error}")));
        }
    }
    Ok(())
}

fn hello() -> io::Result<Message> {
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    // "12.34 20.00": seconds with two digits, so without the dot it is in hundredths.
    let hundredths = uptime.split_whitespace().next().unwrap_or("0").replace('.', "");
    let uptime_ms = hundredths.parse::<u64>().unwrap_or(0) * 10;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    Ok(Message::Hello { kernel, uptime_ms })
}

fn answer(port: &Port, children: &Arc<Children>, request: Request) {
    let outcome = match request.op {
        Op::Run { argv, timeout_ms, stdin } => run::run(&argv, timeout_ms, stdin),
        Op::Spawn { name, argv } => return spawn(port, children, request.id, &name, &argv),
        Op::Kill { name, signal } => children.kill(&name, signal).map(|()| Outcome::Done),
        Op::Read { path, max } => files::read(&path, max),
        Op::Write { path, base64, mode } => files::write(&path, &base64, mode),
    };
    reply(port, request.id, outcome);
}

/// A spawned program is confirmed before its first line is sent on.
fn spawn(port: &Port, children: &Arc<Children>, id: u64, name: &str, argv: &[String]) {
    match children.spawn(name, argv) {
        Ok(child) => {
            reply(port, id, Ok(Outcome::Done));
            children.watch(name, child, port);
        }
        Err(error) => reply(port, id, Err(error)),
    }
}

fn reply(port: &Port, id: u64, outcome: Result<Outcome, String>) {
    let outcome = outcome.unwrap_or_else(|error| Outcome::Failed { error });
    // The port fails only when the machine goes down.
    let _ = port.send(&Message::Reply { id, outcome });
}
