//! `watch`: what happens in a device, as it happens.

use std::io::{self, IsTerminal};
use std::time::{SystemTime, UNIX_EPOCH};

use memtide_api::device::{DeviceStatus, Event};
use serde::Serialize;

use crate::client::Client;
use crate::commands::{Form, json_line};
use crate::error::CtlError;
use crate::output::print;
use crate::render;
use crate::text::printable;

/// A line for programs: how the device was at first, then what changed.
#[derive(Serialize)]
struct Line<T: Serialize> {
    /// Milliseconds since 1970, UTC.
    unix_ms: u64,
    #[serde(flatten)]
    what: T,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum What<'a> {
    Status(&'a DeviceStatus),
    Event(&'a Event),
}

/// Prints until somebody interrupts it, or the device ends. Where no terminal takes the output it is
/// for programs.
pub(crate) fn run(client: &mut Client, first: &DeviceStatus, form: Form) -> Result<(), CtlError> {
    let form = if io::stdout().is_terminal() { form } else { Form::Json };
    tell(&What::Status(first), form)?;
    loop {
        // Without a deadline there is always one.
        if let Some(event) = client.event(None)? {
            tell(&What::Event(&event), form)?;
        }
    }
}

fn tell(what: &What<'_>, form: Form) -> Result<(), CtlError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = match (form, what) {
        (Form::Json, _) => {
            let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            json_line(&Line { unix_ms, what })?
        }
        (Form::Human, What::Status(status)) => stamped(now.as_secs(), &render::brief(status)),
        (Form::Human, What::Event(event)) => stamped(now.as_secs(), &render::event(event)),
    };
    Ok(print(&text)?)
}

/// The time of day, in UTC: a program without a time zone database has no other.
fn stamped(unix_s: u64, text: &str) -> String {
    let of_day = unix_s % 86_400;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{hour:02}:{minute:02}:{second:02}Z  {}\n", printable(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_carry_their_time() {
        assert_eq!(stamped(86_399 + 86_400, "a\nb"), "23:59:59Z  a\u{fffd}b\n");
        let event = Event::ReturnCancelled { ticket: 7 };
        let line = json_line(&Line { unix_ms: 5, what: What::Event(&event) }).unwrap();
        assert_eq!(line, "{\"unix_ms\":5,\"event\":{\"return_cancelled\":{\"ticket\":7}}}\n");
    }
}
