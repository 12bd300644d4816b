//! What each command does.

use std::io;
use std::thread;
use std::time::Duration;

use memtide_api::http::{HostChange, HostStatus, VmAccess, VmChange, VmStatus};
use memtide_device_ctl::output::{Colour, next_picture, print};
use memtide_device_ctl::{CtlError, Form};
use serde::de::DeserializeOwned;

use crate::access::{self, AccessError};
use crate::args::{Args, Command, HostAction, Keep, VmAction, VmSet};
use crate::client::{Client, ClientError, path_segment};
use crate::render;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Device(#[from] CtlError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("memtided's answer is not understood, perhaps it has another version: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
}

impl CommandError {
    /// The program's exit status: for `device` as `vhost-user-balloon ctl` has them.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Device(error) => error.exit_status(),
            Self::Client(_) | Self::Access(_) | Self::Answer(_) | Self::Output(_) => 1,
        }
    }
}

type Done = Result<(), CommandError>;

/// Runs the command.
pub(crate) fn run(args: &Args) -> Done {
    let client = Client::new(args.socket());
    let show = Show { form: if args.json { Form::Json } else { Form::Human } };
    match &args.command {
        Command::Status { watch: None } => show.answer(&client.get("/v1/host")?, render::host),
        Command::Status { watch: Some(seconds) } => {
            watch(&client, &show, Duration::from_secs(*seconds))
        }
        Command::Vm { name, action: None } => show.answer(&client.get(&vm_path(name))?, render::vm),
        Command::Vm { name, action: Some(VmAction::Set(set)) } => {
            let change = vm_change(&client, name, set)?;
            show.answer(&client.put(&vm_path(name), &change)?, render::vm)
        }
        Command::Wss { name, window } => {
            Ok(print(&access::wss(&vm_access(&client, name)?, show.form, window)?)?)
        }
        Command::Heat { name, drawing, window } => {
            let told = (name.as_str(), vm_access(&client, name)?);
            Ok(print(&access::heat(&told, show.form, drawing, window)?)?)
        }
        Command::Host { action: HostAction::Set { budget } } => {
            let change = HostChange { budget: Some(*budget) };
            show.answer(&client.put("/v1/host", &change)?, render::host)
        }
        Command::Device { socket, action } => {
            Ok(memtide_device_ctl::run(socket, action, show.form)?)
        }
    }
}

fn vm_path(name: &str) -> String {
    format!("/v1/vms/{}", path_segment(name))
}

fn vm_access(client: &Client, name: &str) -> Result<VmAccess, CommandError> {
    Ok(serde_json::from_str(&client.get(&format!("{}/access", vm_path(name)))?)?)
}

/// "All" is a number that only memtided knows.
fn vm_change(client: &Client, name: &str, set: &VmSet) -> Result<VmChange, CommandError> {
    let target = match set.target {
        None => None,
        Some(Keep::Bytes(bytes)) => Some(bytes),
        Some(Keep::All) => {
            let vm: VmStatus = serde_json::from_str(&client.get(&vm_path(name))?)?;
            Some(vm.memory)
        }
    };
    Ok(VmChange { min: set.min, max: set.max, target })
}

fn watch(client: &Client, show: &Show, pause: Duration) -> Done {
    loop {
        let answer = client.get("/v1/host")?;
        match show.form {
            Form::Json => {
                let value: serde_json::Value = serde_json::from_str(&answer)?;
                print(&format!("{value}\n"))?;
            }
            Form::Human => {
                let status: HostStatus = serde_json::from_str(&answer)?;
                let colour = Colour::for_stdout();
                print(&(next_picture(colour).to_owned() + &render::host(&status, colour)))?;
            }
        }
        thread::sleep(pause);
    }
}

/// Shows answers in the form that the user wants.
struct Show {
    form: Form,
}

impl Show {
    /// JSON text passes as it came: what this program does not know yet is shown too.
    fn answer<T: DeserializeOwned>(&self, json: &str, human: fn(&T, Colour) -> String) -> Done {
        let text = match self.form {
            Form::Json => {
                let value: serde_json::Value = serde_json::from_str(json)?;
                serde_json::to_string_pretty(&value)? + "\n"
            }
            Form::Human => human(&serde_json::from_str(json)?, Colour::for_stdout()),
        };
        Ok(print(&text)?)
    }
}
