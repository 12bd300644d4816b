//! Sockets that whoever started this process left open for it: by number (`--fd`), or as systemd
//! hands them over (sd_listen_fds(3)).

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{AddressFamily, SocketType, sockopt};

/// What an inherited descriptor turned out to be.
#[derive(Debug)]
pub enum Inherited {
    /// It listens.
    Listening(UnixListener),
    /// It is connected to its peer.
    Connected(UnixStream),
}

/// Why sockets that were handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// The environment makes no sense.
    #[error("systemd's LISTEN_FDS cannot be read: {0}")]
    Environment(#[from] io::Error),
    /// More sockets than this program has uses for, or two for one.
    #[error(
        "the socket {0:?} that systemd hands over is one too many: name one \"vhost\" and one \
         \"control\" with FileDescriptorName="
    )]
    TooMany(String),
    /// No use for what it is.
    #[error(
        "the socket {name:?} that systemd hands over cannot be used: {source}; it must be made with \
         ListenStream= and a path"
    )]
    BadSocket {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// Sockets by their use.
#[derive(Debug, Default)]
pub struct Activated {
    /// Where the VMM comes from.
    pub vmm: Option<Inherited>,
    /// Where clients of the control socket come from.
    pub control: Option<UnixListener>,
}

impl Activated {
    /// Takes what systemd handed over to this process; nothing where it handed over nothing. To be
    /// called once, before other descriptors are opened.
    ///
    /// # Errors
    /// [`ActivationError`] names the socket.
    pub fn from_environment() -> Result<Self, ActivationError> {
        let uses = uses(sd_notify::listen_fds_with_names()?)?;
        let bad = |name: String| move |source| ActivationError::BadSocket { name, source };
        let vmm = uses.vmm.map(|(fd, name)| adopt(fd).map_err(bad(name))).transpose()?;
        let control =
            uses.control.map(|(fd, name)| match adopt(fd).map_err(bad(name.clone()))? {
                Inherited::Listening(listener) => Ok(listener),
                Inherited::Connected(_) => Err(bad(name)(invalid("it does not listen"))),
            });
        Ok(Self { vmm, control: control.transpose()? })
    }
}

/// A descriptor and its name.
type Named = (RawFd, String);

#[derive(Debug, Default, PartialEq, Eq)]
struct Uses {
    vmm: Option<Named>,
    control: Option<Named>,
}

/// Which socket is for what. Names win; of those that have none of ours (systemd's default is the
/// name of the socket unit) the first is the VMM's and the next the control socket, in the order of
/// the unit's ListenStream= lines.
fn uses(sockets: impl Iterator<Item = Named>) -> Result<Uses, ActivationError> {
    let mut uses = Uses::default();
    let mut unnamed = Vec::new();
    for socket in sockets {
        let slot = match socket.1.as_str() {
            "vhost" => &mut uses.vmm,
            "control" => &mut uses.control,
            _ => {
                unnamed.push(socket);
                continue;
            }
        };
        if slot.is_some() {
            return Err(ActivationError::TooMany(socket.1));
        }
        *slot = Some(socket);
    }
    for socket in unnamed {
        let slot = if uses.vmm.is_none() { &mut uses.vmm } else { &mut uses.control };
        if slot.is_some() {
            return Err(ActivationError::TooMany(socket.1));
        }
        *slot = Some(socket);
    }
    Ok(uses)
}

/// Takes over a descriptor that was left open for this process.
///
/// # Errors
/// Where it is not open, or no stream socket of the unix family.
pub fn adopt(fd: RawFd) -> io::Result<Inherited> {
    if fd < 3 {
        return Err(invalid("the first three descriptors are the standard streams"));
    }
    // SAFETY: called before this process has opened anything that could have this number except by
    // inheritance (it is above the standard streams), and once for each number; the caller of the
    // program gave it away by naming it. A number that is not open fails the check below before it
    // is used, and is forgotten then.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    match is_listening(&socket) {
        Ok(true) => Ok(Inherited::Listening(socket.into())),
        Ok(false) => Ok(Inherited::Connected(socket.into())),
        Err(error) => {
            // Not ours, or not there: leave it as it is.
            std::mem::forget(socket);
            Err(error)
        }
    }
}

fn is_listening(socket: &impl AsFd) -> io::Result<bool> {
    if sockopt::socket_domain(socket)? != AddressFamily::UNIX {
        return Err(invalid("it is no unix socket"));
    }
    if sockopt::socket_type(socket)? != SocketType::STREAM {
        return Err(invalid("it is no stream socket"));
    }
    Ok(sockopt::socket_acceptconn(socket)?)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(names: &[&str]) -> Result<(Option<RawFd>, Option<RawFd>), String> {
        let sockets = (3..).zip(names.iter().map(|name| (*name).to_owned()));
        let uses = uses(sockets).map_err(|error| error.to_string())?;
        Ok((uses.vmm.map(|(fd, _)| fd), uses.control.map(|(fd, _)| fd)))
    }

    #[test]
    fn names_say_what_a_socket_is_for_and_order_where_there_are_none() {
        assert_eq!(used(&[]), Ok((None, None)));
        assert_eq!(used(&["control", "vhost"]), Ok((Some(4), Some(3))));
        assert_eq!(used(&["control"]), Ok((None, Some(3))));
        assert_eq!(used(&["balloon@vm1.socket"]), Ok((Some(3), None)));
        assert_eq!(used(&["unknown", "unknown"]), Ok((Some(3), Some(4))));
        assert_eq!(used(&["control", "unknown"]), Ok((Some(4), Some(3))));
        assert!(used(&["vhost", "vhost"]).unwrap_err().contains("FileDescriptorName="));
        assert!(used(&["a", "b", "c"]).unwrap_err().contains("\"c\""));
        assert!(used(&["a", "vhost", "control"]).is_err());
    }
}
