//! The control socket: who is connected, and who decides.

mod calls;
mod client;
mod status;
mod translate;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use memtide_api::device::{Event, FromDevice, Reply, Role};

use crate::sockets::BoundSocket;
use client::Client;
pub(crate) use client::Gone;
pub(crate) use translate::{brief, event, wanted_rule};

/// Clients at once: a controller, a few that watch, a person.
const CLIENTS_MAX: usize = 8;

/// A client's number; never used twice.
pub(crate) type ClientId = u64;

/// The control socket and its clients.
#[derive(Debug, Default)]
pub(crate) struct Control {
    listener: Option<BoundSocket>,
    clients: BTreeMap<ClientId, Client>,
    next: ClientId,
}

impl Control {
    /// Listens on `listener`, if there is one.
    pub(crate) fn new(listener: Option<BoundSocket>) -> Self {
        Self { listener, ..Self::default() }
    }

    /// Where clients knock.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// The clients: number, descriptor, and whether something waits to be written.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (ClientId, BorrowedFd<'_>, bool)> {
        self.clients.iter().map(|(id, client)| (*id, client.as_fd(), client.has_output()))
    }

    /// Lets in who knocks, as long as there is room.
    pub(crate) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        match listener.accept() {
            Ok(Some(stream)) => self.admit(stream),
            Ok(None) => {}
            Err(error) => tracing::warn!("a client could not be accepted: {error}"),
        }
    }

    /// Takes a connection as a client, as long as there is room.
    pub(crate) fn admit(&mut self, stream: UnixStream) {
        if self.clients.len() >= CLIENTS_MAX {
            tracing::warn!("a client is turned away: {CLIENTS_MAX} are connected already");
            return;
        }
        match Client::new(stream) {
            Ok(client) => {
                self.clients.insert(self.next, client);
                self.next += 1;
            }
            Err(error) => tracing::warn!("a client cannot be served: {error}"),
        }
    }

    pub(crate) fn client(&mut self, id: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(&id)
    }

    /// Lets a client go, and says what it was.
    pub(crate) fn remove(&mut self, id: ClientId, why: &Gone) -> Option<Role> {
        let client = self.clients.remove(&id)?;
        match why {
            Gone::Closed => tracing::debug!(client = id, "a client is gone: {why}"),
            _ => tracing::warn!(client = id, "a client is dropped: {why}"),
        }
        client.role
    }

    /// Who decides.
    pub(crate) fn controller(&self) -> Option<ClientId> {
        let is_controller = |client: &Client| client.role == Some(Role::Controller);
        self.clients.iter().find(|(_, client)| is_controller(client)).map(|(id, _)| *id)
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
