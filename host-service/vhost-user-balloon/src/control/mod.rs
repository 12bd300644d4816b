//! The control socket: who is connected, and who decides.

mod calls;
mod client;
mod size_news;
mod status;
mod translate;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use memtide_api::device::{Event, FromDevice, Outcome, Refusal, Reply, Role};
use memtide_balloon::LogLimiter;
use memtide_units::Instant;

use crate::sockets::BoundSocket;
use client::Client;
pub(crate) use client::Gone;
pub(crate) use size_news::SizeNews;
pub(crate) use translate::{brief, event, wanted_rule};

/// Clients at once.
const CLIENTS_MAX: usize = 12;

/// Those of them that may watch: a controller and whoever asks something in passing find a place.
const OBSERVERS_MAX: usize = 8;

/// A client that has not attached and says nothing for so long makes room for another.
const IDLE: Duration = Duration::from_secs(5);

/// A client's number; never used twice.
pub(crate) type ClientId = u64;

/// The control socket and its clients.
#[derive(Debug)]
pub(crate) struct Control {
    listener: Option<BoundSocket>,
    clients: BTreeMap<ClientId, Client>,
    next: ClientId,
    limiter: LogLimiter,
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waits {
    /// It may say something.
    pub(crate) input: bool,
    /// Something is to be written as soon as it reads.
    pub(crate) output: bool,
}

impl Control {
    /// Listens on `listener`, if there is one.
    pub(crate) fn new(listener: Option<BoundSocket>, now: Instant) -> Self {
        Self { listener, clients: BTreeMap::new(), next: 0, limiter: LogLimiter::new(now) }
    }

    /// Where clients knock.
    pub(crate) fn listener(&self) -> Option<&BoundSocket> {
        self.listener.as_ref()
    }

    /// The clients: number, descriptor, and what they wait for.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (ClientId, BorrowedFd<'_>, Waits)> {
        self.clients.iter().map(|(id, client)| {
            let waits = Waits { input: client.wants_input(), output: client.has_output() };
            (*id, client.as_fd(), waits)
        })
    }

    /// Has somebody asked something that is not answered yet, and could be?
    pub(crate) fn has_calls(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_some_and(Client::has_calls)
    }

    /// The same of anybody.
    pub(crate) fn has_any_calls(&self) -> bool {
        self.clients.values().any(Client::has_calls)
    }

    /// Lets in who knocks, as long as there is room or somebody idle.
    pub(crate) fn accept(&mut self, now: Instant) {
        let Some(listener) = &mut self.listener else { return };
        match listener.accept(now) {
            Ok(Some(stream)) => self.admit(stream, now),
            Ok(None) => {}
            Err(error) => self.warn(now, || format!("a client could not be accepted: {error}")),
        }
    }

    /// Takes a connection as a client, as long as there is room.
    pub(crate) fn admit(&mut self, stream: UnixStream, now: Instant) {
        let mut newcomer = match Client::new(stream, now) {
            Ok(client) => client,
            Err(error) => {
                return self.warn(now, || format!("a client cannot be served: {error}"));
            }
        };
        if self.clients.len() >= CLIENTS_MAX {
            match self.idle(now) {
                Some(idle) => _ = self.remove(idle, &Gone::Idle, now),
                None => {
                    let text = format!(
                        "{CLIENTS_MAX} clients are connected, which is the most: end one of them"
                    );
                    self.warn(now, || format!("a client is turned away: {text}"));
                    let error = Refusal { name: "too-many-clients".into(), message: text };
                    let reply = Reply { id: 0, result: Outcome::Error(error) };
                    // It has a line to read, or has gone already.
                    _ = newcomer.send(&FromDevice::Reply(reply));
                    return;
                }
            }
        }
        self.clients.insert(self.next, newcomer);
        self.next += 1;
    }

    /// The client that has been silent for longest, if that is long enough and it does not wait for
    /// events.
    fn idle(&self, now: Instant) -> Option<ClientId> {
        let idle = self.clients.iter().filter(|(_, client)| client.role.is_none());
        let (id, client) = idle.min_by_key(|(_, client)| client.heard())?;
        (now.since(client.heard()) >= IDLE).then_some(*id)
    }

    pub(crate) fn client(&mut self, id: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(&id)
    }

    /// Lets a client go, and says what it was.
    pub(crate) fn remove(&mut self, id: ClientId, why: &Gone, now: Instant) -> Option<Role> {
        let client = self.clients.remove(&id)?;
        match why {
            Gone::Closed => tracing::debug!(client = id, "a client is gone: {why}"),
            _ => self.warn(now, || format!("the client {id} is dropped: {why}")),
        }
        client.role
    }

    /// What clients do is logged at a limited rate, as what guests do.
    fn warn(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if let Some(suppressed) = self.limiter.admit(now) {
            tracing::warn!(suppressed, "{}", text());
        }
    }

    /// Who decides.
    pub(crate) fn controller(&self) -> Option<ClientId> {
        let is_controller = |client: &Client| client.role == Some(Role::Controller);
        self.clients.iter().find(|(_, client)| is_controller(client)).map(|(id, _)| *id)
    }

    /// May one more watch, beside those that do?
    pub(crate) fn has_room_to_watch(&self, newcomer: ClientId) -> bool {
        let watches = |(id, client): &(&ClientId, &Client)| {
            **id != newcomer && client.role == Some(Role::Observer)
        };
        self.clients.iter().filter(watches).count() < OBSERVERS_MAX
    }

    /// Answers a call.
    pub(crate) fn reply(&mut self, id: ClientId, reply: Reply) -> Result<(), Gone> {
        self.client(id).map_or(Ok(()), |client| client.send(&FromDevice::Reply(reply)))
    }

    /// Tells all who attached; returns those who are gone by it.
    pub(crate) fn tell(&mut self, event: Event) -> Vec<(ClientId, Gone)> {
        let line = FromDevice::Event { event };
        let attached = self.clients.iter_mut().filter(|(_, client)| client.role.is_some());
        attached.filter_map(|(id, client)| Some((*id, client.send(&line).err()?))).collect()
    }
}
