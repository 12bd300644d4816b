//! Talks to a device process over its control socket, without memtided.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memtide_api::device::{
    Answer, Call, DeviceStatus, Event, FromDevice, Outcome, Refusal, Request, Role, VERSION,
};
use memtide_api::line::{LineBuffer, LineError, to_line};

/// A device answers at once, or is stuck.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a device does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// Nobody listens.
    #[error(
        "no device process listens on {}: is it running? Its control socket is its VMM socket's \
         path with \".ctl\" behind it, unless --control-path says otherwise",
        .0.display()
    )]
    NotRunning(PathBuf),
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
    Io { path: PathBuf, source: io::Error },
    /// It ended the connection.
    #[error(
        "{} closed the connection: the device has ended, or this is its VMM's socket; its control \
         socket is at that path with \".ctl\" behind it, unless --control-path says otherwise",
        .0.display()
    )]
    Closed(PathBuf),
    /// It speaks something else.
    #[error(
        "what answers on {} is not understood: {source}; is it a device's control socket?",
        path.display()
    )]
    Line { path: PathBuf, source: LineError },
    /// It said no.
    #[error("the device refused: {0}{advice}", advice = advice(.0))]
    Refused(Refusal),
}

/// What to do about a refusal that does not say so itself.
fn advice(refusal: &Refusal) -> &'static str {
    match refusal.name.as_str() {
        "not-controller" => "; where that is memtided, use \"memtide vm NAME set --target SIZE\"",
        _ => "",
    }
}

/// A connection to a device.
pub(crate) struct Device {
    path: PathBuf,
    stream: UnixStream,
    input: LineBuffer,
    next_id: u64,
}

impl Device {
    pub(crate) fn connect(path: &Path) -> Result<Self, DeviceError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                DeviceError::NotRunning(path.into())
            }
            io::ErrorKind::PermissionDenied => DeviceError::Forbidden(path.into()),
            // sockaddr_un has no room for it (unix(7)).
            io::ErrorKind::InvalidInput => DeviceError::BadPath(path.into()),
            _ => DeviceError::Io { path: path.into(), source },
        };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(failed)?;
        Ok(Self { path: path.into(), stream, input: LineBuffer::default(), next_id: 1 })
    }

    /// How the device is.
    pub(crate) fn status(&mut self) -> Result<Box<DeviceStatus>, DeviceError> {
        match self.call(Request::Status)? {
            Answer::Status(status) => Ok(status),
            Answer::Done => Err(DeviceError::Closed(self.path.clone())),
        }
    }

    /// Asks for something; events that come before the answer are dropped.
    pub(crate) fn call(&mut self, request: Request) -> Result<Answer, DeviceError> {
        let id = self.next_id;
        self.next_id += 1;
        let line = to_line(&Call { id, call: request }).map_err(|e| self.io(e))?;
        self.stream.write_all(&line).map_err(|e| self.io(e))?;
        loop {
            match self.message()? {
                FromDevice::Reply(reply) if reply.id == id || reply.id == 0 => {
                    return match reply.result {
                        Outcome::Ok(answer) => Ok(answer),
                        Outcome::Error(refusal) => Err(DeviceError::Refused(refusal)),
                    };
                }
                FromDevice::Reply(_) | FromDevice::Event { .. } => {}
            }
        }
    }

    /// Watches: events from now on, however long nothing happens.
    pub(crate) fn attach(&mut self) -> Result<(), DeviceError> {
        self.call(Request::Attach { version: VERSION, role: Role::Observer })?;
        self.stream.set_read_timeout(None).map_err(|e| self.io(e))
    }

    /// The next event.
    pub(crate) fn event(&mut self) -> Result<Event, DeviceError> {
        loop {
            if let FromDevice::Event { event } = self.message()? {
                return Ok(event);
            }
        }
    }

    fn message(&mut self) -> Result<FromDevice, DeviceError> {
        let mut chunk = [0; 16 << 10];
        loop {
            let next = self.input.next_message();
            if let Some(message) =
                next.map_err(|source| DeviceError::Line { path: self.path.clone(), source })?
            {
                return Ok(message);
            }
            match self.stream.read(&mut chunk).map_err(|e| self.io(e))? {
                0 => return Err(DeviceError::Closed(self.path.clone())),
                count => self.input.extend(&chunk[..count]),
            }
        }
    }

    fn io(&self, source: io::Error) -> DeviceError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => DeviceError::Closed(path),
            _ => DeviceError::Io { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_path_that_no_socket_can_have_is_explained() {
        let path = format!("/{}", "x".repeat(108));
        let error = Device::connect(Path::new(&path)).err().unwrap();
        assert!(error.to_string().contains("107"), "{error}");
    }

    #[test]
    fn the_vmms_socket_is_not_taken_for_a_silent_device() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut device = Device::connect(&path).unwrap();
        drop(listener.accept().unwrap());
        let error = device.status().unwrap_err();
        assert!(matches!(error, DeviceError::Closed(_)), "{error}");
        assert!(error.to_string().contains(".ctl"), "{error}");
    }

    #[test]
    fn who_is_refused_beside_memtided_learns_what_to_use_instead() {
        let refused = |name: &str| {
            let refusal = Refusal { name: name.into(), message: "no".into() };
            DeviceError::Refused(refusal).to_string()
        };
        assert!(refused("not-controller").contains("memtide vm NAME set --target"));
        assert!(refused("bad-request").ends_with("no"));
    }
}
