//! One task per VM: keeps the connection to its device up and carries words to and fro.
//!
//! ```text
//!          +--> connect --ok--> attach --ok--> [talk: news in, requests out, status each second] --+
//!          |       | nobody answers                                            fails or ends       |
//!          |       v                                                                               |
//!          +-- wait, longer each time <-- start the process (device = "start") <-------------------+
//! ```

use std::io;
use std::time::Duration;

use memtide_api::device::Request;
use memtide_policy::host::VmId;
use tokio::sync::mpsc::{Sender, UnboundedReceiver};
use tokio::time::{Instant, interval, sleep};

use super::News;
use super::connection::{Connection, ConnectionError};
use super::process::{Process, Standing};
use crate::config::VmConfig;

/// Between two attempts: short at first, since a device that was just started listens soon.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A connection that held for so long was a good one: the next attempt comes soon.
const GOOD: Duration = Duration::from_secs(5);
/// How often a device is asked how it is.
const POLL: Duration = Duration::from_secs(1);

/// The keeper has ended: so must the link.
struct KeeperEnded;

/// A VM's link.
pub(crate) struct Link {
    id: VmId,
    vm: VmConfig,
    /// The process to start, where it is memtided's to start.
    process: Option<Process>,
    news: Sender<(VmId, News)>,
    /// Not bounded by itself: each request answers news, and news wait for the keeper.
    requests: UnboundedReceiver<Request>,
    retry: Duration,
}

impl Link {
    /// A link that has done nothing yet.
    pub(crate) fn new(
        id: VmId,
        vm: VmConfig,
        process: Option<Process>,
        news: Sender<(VmId, News)>,
        requests: UnboundedReceiver<Request>,
    ) -> Self {
        Self { id, vm, process, news, requests, retry: RETRY_FIRST }
    }

    /// Runs for as long as there is a keeper.
    pub(crate) async fn run(mut self) {
        while self.attempt().await.is_ok() {
            sleep(self.retry).await;
            self.retry = (self.retry * 2).min(RETRY_MAX);
        }
    }

    /// One attempt and, where it succeeds, the whole life of the connection.
    async fn attempt(&mut self) -> Result<(), KeeperEnded> {
        let mut connection = match Connection::open(&self.vm.control).await {
            Ok(connection) => connection,
            Err(error) => return self.nobody_answers(&error).await,
        };
        let error = match connection.attach().await {
            Ok(status) => {
                // What was meant for an earlier connection means nothing to this one.
                while self.requests.try_recv().is_ok() {}
                self.tell(News::Attached(status)).await?;
                self.talk(&mut connection).await?
            }
            Err(error) => error,
        };
        self.tell(News::Lost(error.to_string())).await
    }

    /// Carries words until the connection fails; returns why it did.
    async fn talk(&mut self, connection: &mut Connection) -> Result<ConnectionError, KeeperEnded> {
        let since = Instant::now();
        let mut poll = interval(POLL);
        let error = loop {
            let went = tokio::select! {
                news = connection.news() => match news {
                    Ok(news) => {
                        self.tell(news).await?;
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                request = self.requests.recv() => match request {
                    Some(request) => connection.call(request).await,
                    None => return Err(KeeperEnded),
                },
                _ = poll.tick() => connection.ask_status().await,
            };
            if let Err(error) = went {
                break error;
            }
        };
        if since.elapsed() > GOOD {
            self.retry = RETRY_FIRST;
        }
        Ok(error)
    }

    /// Starts the process where that is memtided's to do, and says what is the matter.
    async fn nobody_answers(&mut self, error: &io::Error) -> Result<(), KeeperEnded> {
        let control = self.vm.control.display();
        let why = match error.kind() {
            io::ErrorKind::NotFound => format!("there is no control socket {control}"),
            io::ErrorKind::ConnectionRefused => {
                format!("nobody listens on {control}: its device process died")
            }
            _ => format!("{control} cannot be connected to: {error}"),
        };
        let left_no_socket = error.kind() == io::ErrorKind::NotFound;
        let standing = self.process.as_mut().map(|process| process.ensure(&self.vm));
        let news = match standing {
            Some(Standing::Started(pid)) => {
                self.retry = RETRY_FIRST;
                News::Trying(format!("{why}; started its device as process {pid}"))
            }
            Some(Standing::Starting) => return Ok(()),
            Some(Standing::Failed(problem)) => News::Lost(format!("{why}; {problem}")),
            None if left_no_socket => News::Gone(why),
            None => News::Lost(why),
        };
        self.tell(news).await
    }

    async fn tell(&self, news: News) -> Result<(), KeeperEnded> {
        self.news.send((self.id, news)).await.map_err(|_| KeeperEnded)
    }
}
