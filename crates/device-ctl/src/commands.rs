//! What each command does.

use std::path::Path;

use memtide_api::device::Request;
use serde::Serialize;

use crate::args::Action;
use crate::client::Client;
use crate::error::CtlError;
use crate::output::{Colour, print};
use crate::{decide, render, statistics, target, watch};

/// The form that the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Human,
    /// JSON lines; sizes are bytes.
    Json,
}

/// Carries an action out on the device whose control socket is at `socket`.
///
/// # Errors
/// [`CtlError`] says what to do, and with which status to end.
pub fn run(socket: &Path, action: &Action, form: Form) -> Result<(), CtlError> {
    let (mut client, status) = Client::connect(socket)?;
    match action {
        Action::Status => {
            show(form, &*status, |status| render::status(status, Colour::for_stdout()))
        }
        Action::Target(wanted) => target::run(&mut client, &status, wanted, form),
        Action::Stats { wait } => statistics::run(&mut client, *status, *wait, form),
        Action::Watch => watch::run(&mut client, &status, form),
        Action::Min { size } => set(&mut client, Request::SetMin { min: *size }, form),
        Action::Rule { rule } => {
            set(&mut client, Request::SetLocalRule { rule: (*rule).into() }, form)
        }
        Action::Grant { ticket } => decide::grant(&mut client, &status, *ticket, form),
        Action::Deny { ticket } => decide::deny(&mut client, &status, *ticket, form),
    }
}

/// Sets something, and shows what is the case then.
fn set(client: &mut Client, request: Request, form: Form) -> Result<(), CtlError> {
    client.call(request)?;
    let status = client.status()?;
    show(form, &*status, render::guarantees)
}

/// Prints a value in the form that is wanted.
pub(crate) fn show<T: Serialize>(
    form: Form,
    value: &T,
    human: impl Fn(&T) -> String,
) -> Result<(), CtlError> {
    let text = match form {
        Form::Json => json_line(value)?,
        Form::Human => human(value),
    };
    Ok(print(&text)?)
}

/// A value as one line of JSON.
pub(crate) fn json_line<T: Serialize>(value: &T) -> std::io::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}
