//! What each command does.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use memtide_api::device::{FromDevice, Request};
use memtide_api::http::{HostChange, HostStatus, VmChange, VmStatus};
use memtide_api::line::to_line;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::{Args, Command, DeviceAction, HostAction, Keep, VmAction, VmSet};
use crate::client::{Client, ClientError, path_segment};
use crate::device::{Device, DeviceError};
use crate::output::{Colour, next_picture, print};
use crate::render;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("memtided's answer is not understood, perhaps it has another version: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
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
        Command::Host { action: HostAction::Set { budget } } => {
            let change = HostChange { budget: Some(*budget) };
            show.answer(&client.put("/v1/host", &change)?, render::host)
        }
        Command::Device { socket, action } => device(socket, action, &show),
    }
}

fn vm_path(name: &str) -> String {
    format!("/v1/vms/{}", path_segment(name))
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

fn device(socket: &Path, action: &DeviceAction, show: &Show) -> Done {
    let mut device = Device::connect(socket)?;
    match action {
        DeviceAction::Status => show.value(&*device.status()?, render::device),
        DeviceAction::Target { size } => {
            device.call(Request::SetTarget { balloon: *size })?;
            show.value(&*device.status()?, render::device)
        }
        DeviceAction::Watch => {
            device.attach()?;
            let start = Instant::now();
            loop {
                let event = device.event()?;
                let text = match show.form {
                    Form::Json => {
                        let line = to_line(&FromDevice::Event { event })?;
                        String::from_utf8_lossy(&line).into_owned()
                    }
                    Form::Human => {
                        let seconds = start.elapsed().as_millis();
                        let text = render::event(&event);
                        format!("{:>5}.{} s  {text}\n", seconds / 1000, seconds % 1000 / 100)
                    }
                };
                print(&text)?;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Human,
    Json,
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

    fn value<T: Serialize>(&self, value: &T, human: fn(&T, Colour) -> String) -> Done {
        let text = match self.form {
            Form::Json => serde_json::to_string_pretty(value)? + "\n",
            Form::Human => human(value, Colour::for_stdout()),
        };
        Ok(print(&text)?)
    }
}
