//! The vhost-user side: one VMM, its messages, its memory and its rings.

mod eventfd;
mod lost;
mod mapping;
mod memory;
mod message;
mod notice;
mod protocol;
mod requests;
mod session;
mod transfer;
mod view;
mod vring;

pub(crate) use message::StreamError;
pub(crate) use session::{Connection, Session};
