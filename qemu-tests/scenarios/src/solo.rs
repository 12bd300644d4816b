//! The device by itself: `vhost-user-balloon` without memtided, steered over its control socket.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use memtide_api::device::{Answer, Call, DeviceStatus, FromDevice, Outcome, Request};
use memtide_lab::cargo::Built;
use memtide_lab::machine::rss_kib;
use memtide_units::ByteSize;

use crate::error::ScenarioError;
use crate::wait::{self, Look};

/// The device answers at once; a second is a machine that is busy elsewhere, half a minute is none.
const ANSWER: Duration = Duration::from_secs(30);

/// A device process. Killed when it is dropped.
#[derive(Debug)]
pub struct Device {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Device {
    /// Starts one that listens in `dir` (short: unix sockets live there) and waits until it does.
    /// Its log is `device.log` in `logs`.
    ///
    /// # Errors
    /// Where it does not start, or does not listen in time.
    pub fn start(
        programs: &Built,
        dir: &Path,
        logs: &Path,
        arguments: &[&str],
    ) -> Result<Self, ScenarioError> {
        let (socket, log) = (dir.join("solo.sock"), logs.join("device.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|source| ScenarioError::File { path: log.clone(), source })?;
        let program = programs.program("vhost-user-balloon")?.clone();
        let child = Command::new(&program)
            .arg("--socket-path")
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|source| ScenarioError::Start { program, source })?;
        let device = Self { child, socket, log };
        wait::until("the device listens", ANSWER, || {
            Ok(match device.control() {
                Ok(_) if device.socket.exists() => Look::Found(()),
                Ok(_) => Look::NotYet("its control socket alone".into()),
                Err(error) => Look::NotYet(error.to_string()),
            })
        })?;
        Ok(device)
    }

    /// The socket that QEMU's chardev connects to.
    pub fn vhost_socket(&self) -> &Path {
        &self.socket
    }

    /// Its control socket.
    pub fn control_socket(&self) -> PathBuf {
        let mut name = self.socket.clone().into_os_string();
        name.push(".ctl");
        name.into()
    }

    /// A new connection to its control socket.
    ///
    /// # Errors
    /// Where it does not listen.
    pub fn control(&self) -> Result<Control, ScenarioError> {
        Control::connect(&self.control_socket())
    }

    /// How it is.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn status(&self) -> Result<DeviceStatus, ScenarioError> {
        self.control()?.status()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9`, and until it is gone.
    pub fn kill(&mut self) {
        // Both fail only for one that has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What it costs the host now.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn footprint(&self) -> Result<Footprint, ScenarioError> {
        let directory = PathBuf::from(format!("/proc/{}/fd", self.pid()));
        let entries = std::fs::read_dir(&directory)
            .map_err(|source| ScenarioError::Read { path: directory, source })?;
        let log = std::fs::metadata(&self.log).map_or(0, |data| data.len());
        Ok(Footprint {
            rss: ByteSize::from_kib(rss_kib(self.pid())?),
            descriptors: entries.count(),
            log: ByteSize::from_bytes(log),
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a device process costs the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Resident memory.
    pub rss: ByteSize,
    /// Open descriptors.
    pub descriptors: usize,
    /// Its log.
    pub log: ByteSize,
}

/// A connection to a device's control socket.
#[derive(Debug)]
pub struct Control {
    reader: BufReader<UnixStream>,
    last_id: u64,
}

impl Control {
    fn connect(path: &Path) -> Result<Self, ScenarioError> {
        let failed = |source| ScenarioError::Start { program: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWER)).map_err(failed)?;
        Ok(Self { reader: BufReader::new(stream), last_id: 0 })
    }

    /// How the device is.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn status(&mut self) -> Result<DeviceStatus, ScenarioError> {
        match self.call(Request::Status)? {
            Answer::Status(status) => Ok(*status),
            Answer::Done => Err(unexpected("a status was asked for and \"done\" came")),
        }
    }

    /// How large the balloon shall be.
    ///
    /// # Errors
    /// Where the device does not answer, or refuses.
    pub fn set_balloon(&mut self, balloon: ByteSize) -> Result<(), ScenarioError> {
        self.call(Request::SetTarget { balloon }).map(drop)
    }

    fn call(&mut self, call: Request) -> Result<Answer, ScenarioError> {
        self.last_id += 1;
        let line = serde_json::to_string(&Call { id: self.last_id, call }).map_err(json)?;
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes()).map_err(silent)?;
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).map_err(silent)? == 0 {
                return Err(unexpected("it hung up"));
            }
            match serde_json::from_str(&line).map_err(json)? {
                FromDevice::Reply(reply) if reply.id == self.last_id => {
                    return match reply.result {
                        Outcome::Ok(answer) => Ok(answer),
                        Outcome::Error(refusal) => Err(unexpected(&refusal.to_string())),
                    };
                }
                FromDevice::Reply(_) | FromDevice::Event { .. } => {}
            }
        }
    }
}

fn json(source: serde_json::Error) -> ScenarioError {
    ScenarioError::Json { what: "the device's control socket".into(), source }
}

fn silent(error: std::io::Error) -> ScenarioError {
    unexpected(&error.to_string())
}

fn unexpected(said: &str) -> ScenarioError {
    ScenarioError::Program { what: "a call of the device".into(), said: said.into() }
}
