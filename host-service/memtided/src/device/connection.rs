//! One connection to a device: calls out, replies and events in.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use memtide_api::device::{
    Answer, Call, DeviceStatus, FromDevice, Outcome, Refusal, Reply, Request, Role, VERSION,
};
use memtide_api::line::{LineBuffer, LineError, to_line};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

use super::News;

/// A device answers at once or is stuck. Long enough for a host that swaps.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls without an answer at most: a device that answers none gets no more.
const UNANSWERED_MAX: usize = 256;
/// Bytes read at a time.
const CHUNK: usize = 16 << 10;

/// Why a connection is of no use (any more).
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// The device ended it.
    #[error("the device closed the connection")]
    Closed,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The device does not speak the protocol.
    #[error("the device does not speak its protocol: {0}")]
    Line(#[from] LineError),
    /// It does not read, or does not answer.
    #[error("the device has not answered for {} s: is its process stopped?", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// It did not let us attach.
    #[error("the device refused to be controlled: {0}")]
    Refused(Refusal),
}

pub(super) struct Connection {
    stream: UnixStream,
    input: LineBuffer,
    chunk: Box<[u8]>,
    next_id: u64,
    unanswered: BTreeMap<u64, (Request, Instant)>,
}

impl Connection {
    /// Connects; the error's kind tells why nobody answers.
    pub(super) async fn open(path: &Path) -> std::io::Result<Self> {
        let stream = timeout(ANSWER_TIMEOUT, UnixStream::connect(path))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        Ok(Self {
            stream,
            input: LineBuffer::default(),
            chunk: vec![0; CHUNK].into_boxed_slice(),
            next_id: 1,
            unanswered: BTreeMap::new(),
        })
    }

    /// Becomes the device's controller; answered with all that the device knows.
    pub(super) async fn attach(&mut self) -> Result<Box<DeviceStatus>, ConnectionError> {
        self.call(Request::Attach { version: VERSION, role: Role::Controller }).await?;
        loop {
            let message = timeout(ANSWER_TIMEOUT, self.message()).await;
            match message.map_err(|_| ConnectionError::Silent)?? {
                FromDevice::Reply(Reply {
                    result: Outcome::Ok(Answer::Status(status)), ..
                }) => {
                    self.unanswered.clear();
                    return Ok(status);
                }
                FromDevice::Reply(Reply { result: Outcome::Error(refusal), .. }) => {
                    return Err(ConnectionError::Refused(refusal));
                }
                // The status that follows includes it.
                FromDevice::Reply(_) | FromDevice::Event { .. } => {}
            }
        }
    }

    /// Sends a call.
    pub(super) async fn call(&mut self, request: Request) -> Result<(), ConnectionError> {
        if self.unanswered.len() >= UNANSWERED_MAX {
            return Err(ConnectionError::Silent);
        }
        let line = to_line(&Call { id: self.next_id, call: request.clone() })?;
        timeout(ANSWER_TIMEOUT, self.stream.write_all(&line))
            .await
            .map_err(|_| ConnectionError::Silent)??;
        self.unanswered.insert(self.next_id, (request, Instant::now()));
        self.next_id += 1;
        Ok(())
    }

    /// Asks how the device is; fails where the oldest call has waited for too long.
    pub(super) async fn ask_status(&mut self) -> Result<(), ConnectionError> {
        let oldest = self.unanswered.values().next().map(|(_, since)| since.elapsed());
        if oldest.is_some_and(|age| age > ANSWER_TIMEOUT) {
            return Err(ConnectionError::Silent);
        }
        self.call(Request::Status).await
    }

    /// The next thing that is news. May be dropped at any await without losing a byte.
    pub(super) async fn news(&mut self) -> Result<News, ConnectionError> {
        loop {
            let message = self.message().await?;
            if let Some(news) = self.read(message) {
                return Ok(news);
            }
        }
    }

    fn read(&mut self, message: FromDevice) -> Option<News> {
        let reply = match message {
            FromDevice::Event { event } => return Some(News::Event(event)),
            FromDevice::Reply(reply) => reply,
        };
        // A device that cannot read a call, an older one perhaps, does not know its id either. It
        // answers in order.
        let call = match reply.id {
            0 => self.unanswered.pop_first().map(|(_, call)| call),
            id => self.unanswered.remove(&id),
        };
        match reply.result {
            Outcome::Ok(Answer::Status(status)) => Some(News::Status(status)),
            Outcome::Ok(Answer::Done) => None,
            Outcome::Error(refusal) => {
                let (request, _) = call?;
                Some(News::Refused { request, refusal })
            }
        }
    }

    async fn message(&mut self) -> Result<FromDevice, ConnectionError> {
        loop {
            match self.input.next_message() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                // An event of a newer device, perhaps: the lines after it are as good as before.
                Err(error @ LineError::Json(_)) => {
                    tracing::debug!("{error}");
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            let count = self.stream.read(&mut self.chunk).await?;
            if count == 0 {
                return Err(ConnectionError::Closed);
            }
            self.input.extend(&self.chunk[..count]);
        }
    }
}
