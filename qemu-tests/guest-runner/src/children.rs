//! Programs that run on while the host does other things.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use memtide_lab::guest::protocol::{Ending, Message, Stream};
use rustix::process::{Pid, Signal, kill_process};

use crate::output::{OUTPUT_GRACE, each_line};
use crate::port::Port;
use crate::run::start;
use crate::wait::ending;

/// The running ones by name. A name is here from before its program starts until its process has
/// been waited for, so a signal never reaches a stranger that got the same process id.
#[derive(Default)]
pub(crate) struct Children {
    running: Mutex<HashMap<String, Option<Pid>>>,
}

impl Children {
    /// Starts a program under a free name.
    pub(crate) fn spawn(&self, name: &str, argv: &[String]) -> Result<Child, String> {
        match self.running().entry(name.to_owned()) {
            Entry::Occupied(_) => return Err(format!("{name} is running already")),
            Entry::Vacant(free) => free.insert(None),
        };
        let started = start(argv, Stdio::null());
        match &started {
            Ok(child) => self.running().insert(name.to_owned(), Some(Pid::from_child(child))),
            Err(_) => self.running().remove(name),
        };
        started
    }

    /// Sends a signal to the program of this name.
    pub(crate) fn kill(&self, name: &str, signal: i32) -> Result<(), String> {
        let signal =
            Signal::from_named_raw(signal).ok_or_else(|| format!("there is no signal {signal}"))?;
        let running = self.running();
        let pid = running.get(name).copied().flatten();
        let pid = pid.ok_or_else(|| format!("no program called {name} is running"))?;
        kill_process(pid, signal).map_err(|error| format!("kill {name}: {error}"))
    }

    /// Sends on what the program prints, and its end after all of it.
    pub(crate) fn watch(&self, name: &str, mut child: Child, port: &Port) {
        let printed = [
            child.stdout.take().map(|pipe| pass_on(name, Stream::Stdout, pipe, port)),
            child.stderr.take().map(|pipe| pass_on(name, Stream::Stderr, pipe, port)),
        ];
        let ending = self.bury(name, &mut child);
        for all_sent in printed.into_iter().flatten() {
            // Children that it left behind may hold the pipes open; its own end is news by itself.
            let _ = all_sent.recv_timeout(OUTPUT_GRACE);
        }
        // The port fails only when the machine goes down.
        let _ = port.send(&Message::Exited { name: name.to_owned(), ending });
    }

    /// Waits for the end, and only then forgets the process id.
    fn bury(&self, name: &str, child: &mut Child) -> Ending {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        // Leaves the zombie in place, so that its process id stays its own while we take the lock.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let _ = waitid(WaitId::Pid(Pid::from_child(child)), options);
        let mut running = self.running();
        running.remove(name);
        child.wait().map_or(Ending::Signal(0), ending)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Option<Pid>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends each line of a pipe to the host from a thread of its own; the receiver hears of the end.
fn pass_on(
    name: &str,
    stream: Stream,
    pipe: impl Read + Send + 'static,
    port: &Port,
) -> Receiver<()> {
    let (name, port) = (name.to_owned(), port.clone());
    let (end, ended) = mpsc::channel();
    thread::spawn(move || {
        each_line(pipe, |line| {
            let _ = port.send(&Message::Line { name: name.clone(), stream, line });
        });
        // Nobody may be waiting any more.
        let _ = end.send(());
    });
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn a_name_is_taken_while_its_program_lives_and_free_again_after() {
        let children = Children::default();
        let mut child = children.spawn("load", &argv(&["sleep", "600"])).unwrap();
        let error = children.spawn("load", &argv(&["true"])).unwrap_err();
        assert!(error.contains("running already"), "{error}");
        children.kill("load", 9).unwrap();
        assert_eq!(children.bury("load", &mut child), Ending::Signal(9));
        assert!(children.kill("load", 9).is_err());
        let mut again = children.spawn("load", &argv(&["true"])).unwrap();
        assert_eq!(children.bury("load", &mut again), Ending::Code(0));
    }

    #[test]
    fn a_program_that_does_not_start_leaves_its_name_free() {
        let children = Children::default();
        assert!(children.spawn("load", &argv(&["no-such-program"])).is_err());
        assert!(children.kill("load", 9).unwrap_err().contains("no program called load"));
        assert!(children.kill("load", 99).unwrap_err().contains("no signal 99"));
    }
}
