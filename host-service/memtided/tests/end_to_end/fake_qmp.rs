//! A VMM's monitor, as far as DIMMs go: it speaks QMP over a real socket, from a thread of the test,
//! with one client at a time as QEMU does.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use memtide_units::GpaRange;
use serde_json::{Value, json};

#[derive(Default)]
struct State {
    dimms: Vec<Value>,
    /// Sizes by name.
    backends: BTreeMap<String, u64>,
    refuse: Option<String>,
    heard: Vec<Value>,
    ended: bool,
}

/// A VMM with a monitor.
pub(crate) struct FakeQmp {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

impl FakeQmp {
    /// A VM without DIMMs.
    pub(crate) fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.lock().unwrap().ended {
                    return;
                }
                // A client that goes away in the middle is nothing to QEMU.
                let _ = serve(stream.unwrap(), &shared);
            }
        });
        Self { path: path.into(), state }
    }

    /// Plugs a DIMM in, as an operator does: `dimmN` from the backend `memN` into slot N.
    pub(crate) fn plug(&self, n: u64, range: GpaRange) {
        let mut state = self.state();
        let (memdev, size) = (format!("mem{n}"), range.len().bytes());
        state.dimms.push(entry(&json!(format!("dimm{n}")), &memdev, range.start().0, size, n));
        state.backends.insert(memdev, size);
    }

    /// The DIMM is gone, its backend stays: the guest has ejected it, or an operator unplugged it.
    pub(crate) fn eject(&self, memdev: &str) {
        let path = format!("/objects/{memdev}");
        self.state().dimms.retain(|dimm| dimm["data"]["memdev"] != path.as_str());
    }

    pub(crate) fn remove_backend(&self, memdev: &str) {
        self.state().backends.remove(memdev);
    }

    /// Every `device_add` fails from now on.
    pub(crate) fn refuse_plugs(&self, why: &str) {
        self.state().refuse = Some(why.into());
    }

    /// The commands that it was given, in order.
    pub(crate) fn heard(&self) -> Vec<Value> {
        self.state().heard.clone()
    }

    /// The arguments of each `device_add`.
    pub(crate) fn device_adds(&self) -> Vec<Value> {
        let mut heard = self.heard();
        heard.retain(|command| command["execute"] == "device_add");
        heard.into_iter().map(|command| command["arguments"].clone()).collect()
    }

    /// The VM's process ends.
    pub(crate) fn stop(&self) {
        if std::mem::replace(&mut self.state().ended, true) {
            return;
        }
        // Wakes the thread that accepts, so that it closes the listener.
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for FakeQmp {
    fn drop(&mut self) {
        self.stop();
    }
}

fn entry(id: &Value, memdev: &str, addr: u64, size: u64, slot: u64) -> Value {
    json!({"type": "dimm", "data": {
        "memdev": format!("/objects/{memdev}"), "hotplugged": true, "addr": addr,
        "hotpluggable": true, "size": size, "slot": slot, "node": 0, "id": id,
    }})
}

fn serve(mut stream: UnixStream, shared: &Mutex<State>) -> std::io::Result<()> {
    let greeting = json!({"QMP": {"version": {"qemu": {"major": 11}}, "capabilities": ["oob"]}});
    write!(stream, "{greeting}\r\n")?;
    let mut negotiated = false;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let command: Value = serde_json::from_str(&line?).unwrap();
        let mut state = shared.lock().unwrap();
        if state.ended {
            return Ok(());
        }
        state.heard.push(command.clone());
        negotiated |= command["execute"] == "qmp_capabilities";
        let mut reply = if negotiated {
            state.carry_out(&command)
        } else {
            error("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
        };
        drop(state);
        reply["id"] = command["id"].clone();
        let event = json!({"event": "ACPI_DEVICE_OST", "data": {}, "timestamp": {"seconds": 1}});
        write!(stream, "{event}\r\n{reply}\r\n{event}\r\n")?;
    }
    Ok(())
}

fn error(class: &str, desc: &str) -> Value {
    json!({"error": {"class": class, "desc": desc}})
}

impl State {
    fn carry_out(&mut self, command: &Value) -> Value {
        match command["execute"].as_str() {
            Some("qmp_capabilities") => json!({"return": {}}),
            Some("query-memory-devices") => json!({"return": self.dimms}),
            Some("qom-list") => {
                let objects: Vec<Value> =
                    self.backends.keys().map(|name| json!({"name": name})).collect();
                json!({"return": objects})
            }
            Some("device_add") => self.device_add(&command["arguments"]),
            _ => error("CommandNotFound", "The command has not been found"),
        }
    }

    fn device_add(&mut self, arguments: &Value) -> Value {
        assert_eq!(arguments["driver"], "pc-dimm");
        let memdev = arguments["memdev"].as_str().unwrap();
        let Some(size) = self.backends.get(memdev).copied() else {
            return error("DeviceNotFound", &format!("Device '{memdev}' not found"));
        };
        if let Some(why) = &self.refuse {
            return error("GenericError", why);
        }
        let (addr, slot) =
            (arguments["addr"].as_u64().unwrap(), arguments["slot"].as_u64().unwrap());
        self.dimms.push(entry(&arguments["id"], memdev, addr, size, slot));
        json!({"return": {}})
    }
}
