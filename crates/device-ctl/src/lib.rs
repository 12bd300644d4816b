//! Shows and steers one device process over its control socket: what `vhost-user-balloon ctl` and
//! `memtide device` have in common, which is everything.
//!
//! [`Action`] is the command line, [`run`] carries it out, [`Client`] speaks the protocol of
//! `memtide_api::device`: blocking, with a deadline on every answer. [`output`] and [`text`] are how
//! people are shown things; `memtide` uses them for its own tables too.
//!
//! What is not here: no policy, no thread, no knowledge of who started the device.

mod args;
mod client;
mod commands;
mod decide;
mod error;
pub mod output;
mod render;
mod statistics;
mod target;
pub mod text;
mod watch;

pub use args::{Action, Balloon, Rule};
pub use client::{Client, ClientError};
pub use commands::{Form, run};
pub use error::CtlError;
pub use render::telemetry;
