//! A connection to a device process: calls out, answers and events in, blocking, each with an end.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memtide_api::device::{
    Answer, Call, DeviceStatus, Event, FromDevice, Outcome, Refusal, Request, Role, VERSION,
};
use memtide_api::line::{LineBuffer, LineError, to_line};

use crate::text::printable;

/// A device answers at once, or is stuck. Long enough for a host that swaps.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Events that are kept while an answer is awaited; older ones go first.
const EVENTS_KEPT: usize = 1024;

/// Why a device does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such socket.
    #[error(
        "there is no socket {}: is the device running? Its control socket is its VMM socket's path \
         with \".ctl\" behind it, unless --control-path says otherwise",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// Nobody listens.
    #[error(
        "nobody listens on {}: the device that made it has died, or it is no socket; start the \
         device again, a socket left behind is taken over",
        .0.display()
    )]
    NobodyListens(PathBuf),
    /// The socket is not for us.
    #[error(
        "you may not use the device's socket {}: become a member of the group that owns it, or root",
        .0.display()
    )]
    Forbidden(PathBuf),
    /// No socket can have this path.
    #[error("no socket can have the path {}: a path of 1 to 107 bytes is needed", .0.display())]
    BadPath(PathBuf),
    /// The socket fails.
    #[error("the connection to the device on {} failed: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended the connection.
    #[error(
        "{} closed the connection: the device has ended, or this is its VMM's socket; its control \
         socket is at that path with \".ctl\" behind it, unless --control-path says otherwise",
        .0.display()
    )]
    Closed(PathBuf),
    /// It does not answer.
    #[error(
        "{} has not answered for {} s: its process hangs or is stopped, or this is no device's \
         control socket",
        .0.display(),
        ANSWER_WITHIN.as_secs()
    )]
    Silent(PathBuf),
    /// It speaks something else.
    #[error(
        "what answers on {} is not understood: {source}; is it a device's control socket?",
        path.display()
    )]
    NoDevice {
        /// Where.
        path: PathBuf,
        /// What is wrong with its line.
        source: LineError,
    },
    /// It said no.
    #[error("the device refused: {0}{advice}", advice = advice(.0))]
    Refused(Refusal),
}

/// What to do about a refusal that does not say so itself.
fn advice(refusal: &Refusal) -> &'static str {
    match refusal.name.as_str() {
        "not-controller" => {
            "; where that is memtided, use \"memtide vm NAME set --target SIZE\", or stop it first"
        }
        "version-mismatch" => "; use the program that came with the device",
        "bad-request" => "; perhaps the device is older than this program: restart it with its VM",
        _ => "",
    }
}

/// A connection to a device, as an observer.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    input: LineBuffer,
    events: VecDeque<Event>,
    next_id: u64,
}

impl Client {
    /// Connects and attaches as observer, which shows at once whether a device of this protocol's
    /// version answers there.
    ///
    /// # Errors
    /// [`ClientError`] says what to do.
    pub fn connect(path: &Path) -> Result<(Self, Box<DeviceStatus>), ClientError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket(path.into()),
            io::ErrorKind::ConnectionRefused => ClientError::NobodyListens(path.into()),
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(path.into()),
            // sockaddr_un has no room for it (unix(7)).
            io::ErrorKind::InvalidInput => ClientError::BadPath(path.into()),
            _ => ClientError::Io { path: path.into(), source },
        };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
        let (input, events) = (LineBuffer::default(), VecDeque::new());
        let mut client = Self { path: path.into(), stream, input, events, next_id: 1 };
        let attach = Request::Attach { version: VERSION, role: Role::Observer };
        match client.call(attach)? {
            Answer::Status(status) => Ok((client, status)),
            Answer::Done => Err(ClientError::Closed(client.path)),
        }
    }

    /// How the device is.
    ///
    /// # Errors
    /// [`ClientError`] says what to do.
    pub fn status(&mut self) -> Result<Box<DeviceStatus>, ClientError> {
        match self.call(Request::Status)? {
            Answer::Status(status) => Ok(status),
            Answer::Done => Err(ClientError::Closed(self.path.clone())),
        }
    }

    /// Asks for something. Events that come before the answer are kept for [`Client::event`].
    ///
    /// # Errors
    /// [`ClientError`] says what to do.
    pub fn call(&mut self, request: Request) -> Result<Answer, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let line = to_line(&Call { id, call: request }).map_err(|e| self.io(e))?;
        match self.stream.write_all(&line) {
            // It has hung up, and may have said why before.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            sent => sent.map_err(|e| self.io(e))?,
        }
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            match self.message(Some(deadline))? {
                None => return Err(ClientError::Silent(self.path.clone())),
                // A line that it could not read as far as the id has the id zero.
                Some(FromDevice::Reply(reply)) if reply.id == id || reply.id == 0 => {
                    return match reply.result {
                        Outcome::Ok(answer) => Ok(answer),
                        Outcome::Error(refusal) => Err(ClientError::Refused(shown(refusal))),
                    };
                }
                Some(FromDevice::Reply(_)) => {}
                Some(FromDevice::Event { event }) => self.keep(event),
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The next event; `None` where none came until `deadline`. Without one it waits for ever.
    ///
    /// # Errors
    /// [`ClientError`] says what to do.
    pub fn event(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, ClientError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        loop {
            match self.message(deadline)? {
                None => return Ok(None),
                Some(FromDevice::Event { event }) => return Ok(Some(event)),
                Some(FromDevice::Reply(_)) => {}
            }
        }
    }

    fn message(&mut self, deadline: Option<Instant>) -> Result<Option<FromDevice>, ClientError> {
        loop {
            match self.input.next_message() {
                Ok(Some(message)) => return Ok(Some(message)),
                Ok(None) => {}
                // Once attached this is an event that only a newer program knows.
                Err(LineError::Json(_)) if self.next_id > 2 => continue,
                Err(source) => {
                    return Err(ClientError::NoDevice { path: self.path.clone(), source });
                }
            }
            if !self.read(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Reads what the device sent; false where that was nothing until `deadline`.
    fn read(&mut self, deadline: Option<Instant>) -> Result<bool, ClientError> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        self.stream.set_read_timeout(left).map_err(|e| self.io(e))?;
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(ClientError::Closed(self.path.clone())),
            Ok(count) => {
                self.input.extend(&chunk[..count]);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(e) => Err(self.io(e)),
        }
    }

    fn io(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ClientError::Closed(path),
            io::ErrorKind::WouldBlock => ClientError::Silent(path),
            _ => ClientError::Io { path, source },
        }
    }
}

/// A refusal as it may stand in a terminal, whoever wrote it.
fn shown(refusal: Refusal) -> Refusal {
    Refusal { name: printable(&refusal.name), message: printable(&refusal.message) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// What a client says of a server that sends this to whoever comes, and hangs up.
    fn says(sent: &'static [u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked).unwrap();
            stream.write_all(sent).unwrap();
        });
        let error = Client::connect(&path).unwrap_err().to_string();
        server.join().unwrap();
        error
    }

    #[test]
    fn whoever_is_no_device_is_not_taken_for_one() {
        assert!(says(b"").contains(".ctl"), "the VMM's socket hangs up");
        let said = says(b"{\"QMP\": {\"version\": {}}}\n");
        assert!(said.contains("is it a device's control socket?"), "{said}");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let said = says(
            b"{\"id\":1,\"error\":{\"name\":\"version-mismatch\",\"message\":\"it speaks version 2\"}}\n",
        );
        assert!(said.contains("version 2") && said.contains("came with the device"), "{said}");
        let refused = |name: &str| {
            let refusal = Refusal { name: name.into(), message: "no".into() };
            ClientError::Refused(refusal).to_string()
        };
        assert!(refused("not-controller").contains("memtide vm NAME set --target"));
        assert!(refused("no-such-ticket").ends_with("no"));
    }

    #[test]
    fn who_is_turned_away_at_the_door_learns_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.ctl");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream
                .write_all(
                    b"{\"id\":0,\"error\":{\"name\":\"too-many-clients\",\"message\":\"full\"}}\n",
                )
                .unwrap();
        });
        // Whether the call is written before or after the device has hung up.
        let error = Client::connect(&path).unwrap_err().to_string();
        server.join().unwrap();
        assert!(error.contains("too-many-clients: full"), "{error}");
    }

    #[test]
    fn a_socket_that_cannot_be_used_is_explained() {
        let said = |path: &str| Client::connect(Path::new(path)).unwrap_err().to_string();
        assert!(said(&format!("/{}", "x".repeat(108))).contains("107"));
        assert!(said("/nowhere/vm.sock.ctl").contains("is the device running?"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.sock.ctl");
        drop(UnixListener::bind(&path).unwrap());
        assert!(said(path.to_str().unwrap()).contains("nobody listens"));
    }

    #[test]
    fn events_before_an_answer_are_not_lost_and_waiting_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.ctl");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked).unwrap();
            let status = Answer::Status(Box::default());
            let event = |ticket| FromDevice::Event { event: Event::ReturnCancelled { ticket } };
            let reply = memtide_api::device::Reply { id: 1, result: Outcome::Ok(status) };
            for line in [event(1), FromDevice::Reply(reply), event(2)] {
                stream.write_all(&to_line(&line).unwrap()).unwrap();
            }
            stream
        });
        let (mut client, _) = Client::connect(&path).unwrap();
        let open = server.join().unwrap();
        let within = |ms| Some(Instant::now() + Duration::from_millis(ms));
        for ticket in [1, 2] {
            let event = client.event(within(5000)).unwrap();
            assert_eq!(event, Some(Event::ReturnCancelled { ticket }));
        }
        assert_eq!(client.event(within(20)).unwrap(), None);
        drop(open);
        assert!(matches!(client.event(None), Err(ClientError::Closed(_))));
    }
}
