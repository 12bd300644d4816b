//! Commands into a guest and files in and out of it, without a network.

mod client;
mod connection;
mod error;
mod process;
pub mod protocol;

pub use client::{Guest, Output};
pub use connection::Hello;
pub use error::GuestError;
pub use process::{Event, Process};
