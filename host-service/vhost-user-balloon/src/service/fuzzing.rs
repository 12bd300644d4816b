//! A device that goes on by single rounds: for fuzz targets, which neither wait nor have a clock.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use memtide_balloon::{Balloon, Settings};
use memtide_units::Instant;

use super::{Options, Service, StartError, Token, VmmSource};

/// A device process without its loop.
#[derive(Debug)]
pub struct Stepper(Service);

impl Stepper {
    /// A device that this VMM is connected to.
    ///
    /// # Errors
    /// [`StartError`] where the connection cannot be used.
    pub fn start(vmm: UnixStream, settings: Settings) -> Result<Self, StartError> {
        let options = Options { vmm: VmmSource::Connected(vmm), control: None, settings };
        Service::start(options).map(Self)
    }

    /// Lets a client in, as if it had connected to the control socket.
    pub fn admit(&mut self, client: UnixStream, now: Instant) {
        self.0.control.admit(client, now);
    }

    /// One round of the loop at this time. `ready` must be something that can be read, so that the
    /// round does not wait.
    ///
    /// # Errors
    /// Of `poll(2)`.
    pub fn round(&mut self, ready: &impl AsFd, now: Instant) -> io::Result<()> {
        let mut tokens = self.0.wait(ready.as_fd())?;
        tokens.retain(|token| *token != Token::Stop);
        self.0.serve(tokens, now);
        Ok(())
    }

    /// Is the VMM still connected?
    pub fn is_connected(&self) -> bool {
        self.0.session.is_some()
    }

    /// The device model.
    pub fn balloon(&self) -> &Balloon {
        &self.0.balloon
    }
}
