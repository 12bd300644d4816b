//! `grant` and `deny`: a person decides what no controller does.

use memtide_api::device::{Decision, DeviceStatus, PendingReturn, Request};
use serde::Serialize;

use crate::client::Client;
use crate::commands::{Form, show};
use crate::error::CtlError;

/// What a guest is told that is denied: it is this VM's share that does not allow it.
const DENIED: &str = "vm-limit";

/// What was decided, for programs.
#[derive(Serialize)]
struct Decided {
    ticket: u32,
    bytes: Option<u64>,
    decision: &'static str,
}

/// Grants a return.
pub(crate) fn grant(
    client: &mut Client,
    status: &DeviceStatus,
    ticket: Option<u32>,
    form: Form,
) -> Result<(), CtlError> {
    decide(client, status, ticket, ("granted", Decision::Grant), form)
}

/// Denies one.
pub(crate) fn deny(
    client: &mut Client,
    status: &DeviceStatus,
    ticket: Option<u32>,
    form: Form,
) -> Result<(), CtlError> {
    decide(client, status, ticket, ("denied", Decision::Deny(DENIED.into())), form)
}

fn decide(
    client: &mut Client,
    status: &DeviceStatus,
    ticket: Option<u32>,
    (word, decision): (&'static str, Decision),
    form: Form,
) -> Result<(), CtlError> {
    let waits = status.pending.as_ref();
    let ticket = match (ticket, waits) {
        (Some(ticket), _) => ticket,
        (None, Some(waits)) => waits.ticket,
        (None, None) => return Err(CtlError::NothingWaits),
    };
    let asked = waits.filter(|waits| waits.ticket == ticket);
    client.call(Request::Decide { ticket, decision })?;
    let bytes = asked.map(|asked| asked.bytes.bytes());
    show(form, &Decided { ticket, bytes, decision: word }, |_| said(word, ticket, asked))
}

fn said(word: &str, ticket: u32, asked: Option<&PendingReturn>) -> String {
    let what = asked.map_or_else(String::new, |asked| format!(": {}", asked.bytes));
    format!("Return {ticket} is {word}{what}. The guest learns it when it asks again, at once.\n")
}
