//! Device processes: reaching them, starting them, and what they say.

mod connection;
mod link;
mod process;
mod spawn;

pub(crate) use link::Link;
pub(crate) use process::Process;
pub(crate) use spawn::NoDeviceBinary;
pub(crate) use spawn::{DeviceLog, Launcher};

use memtide_api::device::{DeviceStatus, Event, Refusal, Request};

/// What a link tells the keeper about its device.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// Nobody answers yet; what is being done about it.
    Trying(String),
    /// Attached as controller: this is all that the device knows.
    Attached(Box<DeviceStatus>),
    /// How the device is, asked once a second.
    Status(Box<DeviceStatus>),
    /// Something happened.
    Event(Event),
    /// The device refused a request.
    Refused {
        /// What was asked.
        request: Request,
        /// Its answer.
        refusal: Refusal,
    },
    /// The connection failed or ended. The VM may live on.
    Lost(String),
    /// No process listens and none has left its socket behind: a device ends so when it is told
    /// to, after its VM. There is no VM.
    Gone(String),
}
