//! The wire to one runner: numbers requests, hands replies and lines to those who wait for them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::process::Event;
use super::protocol::{MAX_LINE_BYTES, Message, Op, Outcome, Request, read_line, to_line};

/// What a runner says when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// `uname -r`.
    pub kernel: String,
    /// Guest time since boot.
    pub uptime: Duration,
}

/// Why a request has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoOutcome {
    /// There is nobody who could answer, for this reason.
    Gone(&'static str),
    /// Time is up.
    Late,
}

/// A connection to a runner.
#[derive(Debug)]
pub(super) struct Connection {
    writer: Mutex<UnixStream>,
    state: Mutex<State>,
    hello_came: Condvar,
}

#[derive(Debug, Default)]
struct State {
    hello: Option<Hello>,
    hellos: u64,
    last_id: u64,
    waiting: HashMap<u64, Sender<Answer>>,
    streams: HashMap<String, Sender<Event>>,
    /// Why no more answers will come.
    closed: Option<&'static str>,
}

type Answer = Result<Outcome, &'static str>;

impl Connection {
    /// Starts to listen, in a thread that ends with the port.
    pub(super) fn open(name: &str, port: UnixStream) -> io::Result<Arc<Self>> {
        let reader = port.try_clone()?;
        let connection = Arc::new(Self {
            writer: Mutex::new(port),
            state: Mutex::default(),
            hello_came: Condvar::new(),
        });
        let listener = Arc::clone(&connection);
        thread::Builder::new()
            .name(format!("guest {name}"))
            .spawn(move || listener.listen(reader))?;
        Ok(connection)
    }

    /// The runner's hello, if it has come or comes before `until`.
    pub(super) fn wait_hello(&self, until: Instant) -> Option<Hello> {
        let left = until.saturating_duration_since(Instant::now());
        let missing = |state: &mut State| state.hello.is_none() && state.closed.is_none();
        let waited = self.hello_came.wait_timeout_while(self.state(), left, missing);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.hello.clone()
    }

    /// How many hellos have come.
    pub(super) fn hellos(&self) -> u64 {
        self.state().hellos
    }

    /// Sends a request and waits for what comes of it.
    pub(super) fn exchange(&self, op: Op, within: Duration) -> Result<Outcome, NoOutcome> {
        let (sender, answer) = mpsc::channel();
        let id = self.register(sender).map_err(NoOutcome::Gone)?;
        let line = to_line(&Request { id, op });
        let sent = self.writer().write_all(&line);
        let outcome = match sent {
            Ok(()) => await_answer(&answer, within),
            Err(_) => Err(NoOutcome::Gone("its port cannot be written to")),
        };
        self.state().waiting.remove(&id);
        outcome
    }

    /// The events of the program that will have this name, unless a running one has it.
    pub(super) fn claim(&self, name: &str) -> Option<Receiver<Event>> {
        match self.state().streams.entry(name.to_owned()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                let (sender, events) = mpsc::channel();
                free.insert(sender);
                Some(events)
            }
        }
    }

    /// Frees the name of a program that did not start.
    pub(super) fn release(&self, name: &str) {
        self.state().streams.remove(name);
    }

    /// Ends the conversation: everybody who waits is told so.
    pub(super) fn hang_up(&self) {
        // Already hung up is as good.
        let _ = self.writer().shutdown(Shutdown::Both);
    }

    fn register(&self, sender: Sender<Answer>) -> Result<u64, &'static str> {
        let mut state = self.state();
        if let Some(why) = state.closed {
            return Err(why);
        }
        state.last_id += 1;
        let id = state.last_id;
        state.waiting.insert(id, sender);
        Ok(id)
    }

    // A panic while a lock was held leaves nothing half-done here: each critical section is one
    // insertion or removal. So a poisoned lock is as good as another.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, UnixStream> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until the port closes. The one thread that does so.
    fn listen(&self, port: UnixStream) {
        let mut reader = BufReader::new(port);
        let why = loop {
            match read_line(&mut reader, MAX_LINE_BYTES) {
                Ok(Some(line)) => self.take(&line),
                Ok(None) => break "its port closed (QEMU ended)",
                Err(_) => break "its port failed",
            }
        };
        let mut state = self.state();
        state.closed = Some(why);
        state.fail_all(why);
        self.hello_came.notify_all();
    }

    /// A line that is no message is passed over: a machine that panics may send half of one.
    fn take(&self, line: &[u8]) {
        let Ok(message) = serde_json::from_slice::<Message>(line) else { return };
        let mut state = self.state();
        match message {
            Message::Hello { kernel, uptime_ms } => {
                state.fail_all("its runner was started anew");
                let uptime = Duration::from_millis(uptime_ms);
                state.hello = Some(Hello { kernel, uptime });
                state.hellos += 1;
                self.hello_came.notify_all();
            }
            Message::Reply { id, outcome } => {
                if let Some(sender) = state.waiting.remove(&id) {
                    // Nobody may be waiting any more.
                    let _ = sender.send(Ok(outcome));
                }
            }
            Message::Line { name, stream, line } => {
                state.tell(&name, Event::Line(stream, line));
            }
            Message::Exited { name, ending } => {
                state.tell(&name, Event::Exited(ending));
                state.streams.remove(&name);
            }
        }
    }
}

impl State {
    fn tell(&self, name: &str, event: Event) {
        if let Some(sender) = self.streams.get(name) {
            // Its handle may have been dropped: nobody listens to that program.
            let _ = sender.send(event);
        }
    }

    fn fail_all(&mut self, why: &'static str) {
        for (_, sender) in self.waiting.drain() {
            let _ = sender.send(Err(why));
        }
        // Dropping the senders ends the streams.
        self.streams.clear();
    }
}

fn await_answer(answer: &Receiver<Answer>, within: Duration) -> Result<Outcome, NoOutcome> {
    match answer.recv_timeout(within) {
        Ok(outcome) => outcome.map_err(NoOutcome::Gone),
        Err(RecvTimeoutError::Disconnected) => Err(NoOutcome::Gone("its port closed")),
        Err(RecvTimeoutError::Timeout) => Err(NoOutcome::Late),
    }
}
