//! The virtio-serial port: requests come in, messages go out, each a line.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use memtide_lab::guest::protocol::{MAX_LINE_BYTES, Message, Request, read_line, to_line};

/// How long to wait for a host that has gone: a port without one reads as empty at once.
const HOST_AWAY: Duration = Duration::from_millis(100);

/// The device of the port with this name. Its number depends on what else the machine has, and the
/// links by name are udev's, which lab guests do without.
pub(crate) fn device(name: &str) -> io::Result<PathBuf> {
    device_in(Path::new("/sys/class/virtio-ports"), name)
}

fn device_in(class: &Path, name: &str) -> io::Result<PathBuf> {
    for entry in std::fs::read_dir(class)? {
        let port = entry?;
        let its_name = std::fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if its_name.trim_end() == name {
            return Ok(Path::new("/dev").join(port.file_name()));
        }
    }
    let text = format!("this machine has no virtio-serial port called {name}");
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

/// The sending half; threads take turns, line by line.
#[derive(Clone)]
pub(crate) struct Port {
    file: Arc<Mutex<File>>,
}

/// The receiving half.
pub(crate) struct Requests {
    reader: BufReader<File>,
}

impl Port {
    /// Opens the port. The kernel lets one process do so at a time.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Requests)> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let reader = BufReader::new(file.try_clone()?);
        Ok((Self { file: Arc::new(Mutex::new(file)) }, Requests { reader }))
    }

    /// Sends a message; blocks while the host does not read.
    pub(crate) fn send(&self, message: &Message) -> io::Result<()> {
        let line = to_line(message);
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }
}

impl Requests {
    /// The next request. What cannot be understood is reported to the journal and passed over.
    pub(crate) fn next_request(&mut self) -> io::Result<Option<Request>> {
        loop {
            let Some(line) = read_line(&mut self.reader, MAX_LINE_BYTES)? else {
                thread::sleep(HOST_AWAY);
                continue;
            };
            match serde_json::from_slice(&line) {
                Ok(request) => return Ok(Some(request)),
                Err(error) => eprintln!("memtide-lab-guest: not a request: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let class = std::env::temp_dir().join(format!("memtide-ports-{}", std::process::id()));
        for (port, name) in [("vport1p0", "other\n"), ("vport3p1", "org.memtide.lab\n")] {
            std::fs::create_dir_all(class.join(port)).unwrap();
            std::fs::write(class.join(port).join("name"), name).unwrap();
        }
        let device = device_in(&class, "org.memtide.lab").unwrap();
        assert_eq!(device, Path::new("/dev/vport3p1"));
        let error = device_in(&class, "absent").unwrap_err().to_string();
        assert!(error.contains("no virtio-serial port called absent"), "{error}");
        std::fs::remove_dir_all(&class).unwrap();
    }
}
