//! PCI functions that change drivers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::symlink;

use rustix::io::Errno;

use super::{FakeRoot, Files};
use crate::pci::Address;

pub(super) const BUS: &str = "sys/bus/pci";
const UIO_DRIVER: &str = "uio_pci_generic";

#[derive(Default)]
pub(super) struct Pci {
    /// Drivers that are loaded.
    drivers: BTreeSet<String>,
    /// The driver that knows each function's IDs.
    native: BTreeMap<String, String>,
}

impl FakeRoot {
    /// Adds a function with its vendor, device, subsystem vendor and subsystem device ID, bound to
    /// `driver`, which also takes it back whenever no other one is wished for.
    pub fn add_pci(&self, address: Address, ids: [u16; 4], driver: Option<&str>) {
        let dir = format!("{BUS}/devices/{address}");
        let names = ["vendor", "device", "subsystem_vendor", "subsystem_device"];
        for (name, id) in names.into_iter().zip(ids) {
            self.put(&format!("{dir}/{name}"), &format!("{id:#06x}\n"));
        }
        self.put(&format!("{dir}/driver_override"), "(null)\n");
        self.put(&format!("{BUS}/drivers_probe"), "");
        let Some(driver) = driver else { return };
        self.add_pci_driver(driver);
        let mut state = self.kernel.state();
        state.pci.native.insert(address.to_string(), driver.into());
        bind(&self.kernel.files, &address.to_string(), driver)
            .expect("the fake's files can be written");
    }

    /// Loads a driver, `uio_pci_generic` for example.
    pub fn add_pci_driver(&self, name: &str) {
        self.put(&format!("{BUS}/drivers/{name}/unbind"), "");
        self.kernel.state().pci.drivers.insert(name.into());
    }
}

pub(super) fn write(files: &Files, pci: &mut Pci, path: &str, text: &str) -> io::Result<()> {
    let known = files.exists(&format!("{BUS}/devices/{text}/vendor"));
    match path.rsplit('/').next() {
        Some("drivers_probe" | "unbind") if !known => Err(Errno::NODEV.into()),
        Some("drivers_probe") => probe(files, pci, text),
        Some("unbind") => unbind(files, text),
        Some("driver_override") => {
            files.put_line(path, if text.is_empty() { "(null)" } else { text })
        }
        _ => files.put_line(path, text),
    }
}

/// Binds the driver that is wished for, or else the one that knows the function; none is no error.
fn probe(files: &Files, pci: &Pci, address: &str) -> io::Result<()> {
    let dir = format!("{BUS}/devices/{address}");
    let wished = files.get(&format!("{dir}/driver_override"))?;
    let wished = Some(wished.trim()).filter(|name| *name != "(null)");
    match wished.or(pci.native.get(address).map(String::as_str)) {
        Some(driver) if pci.drivers.contains(driver) && !files.exists(&format!("{dir}/driver")) => {
            bind(files, address, driver)
        }
        _ => Ok(()),
    }
}

fn bind(files: &Files, address: &str, driver: &str) -> io::Result<()> {
    let dir = format!("{BUS}/devices/{address}");
    symlink(format!("../../drivers/{driver}"), files.at(&format!("{dir}/driver")))?;
    if driver == UIO_DRIVER {
        let number = (0..).find(|number| !files.exists(&format!("dev/uio{number}"))).unwrap_or(0);
        files.put(&format!("dev/uio{number}"), b"")?;
        files.put_line(&format!("{dir}/uio/uio{number}/name"), UIO_DRIVER)?;
    }
    Ok(())
}

fn unbind(files: &Files, address: &str) -> io::Result<()> {
    let dir = format!("{BUS}/devices/{address}");
    if let Ok(entries) = std::fs::read_dir(files.at(&format!("{dir}/uio"))) {
        for entry in entries {
            files.remove(&format!("dev/{}", entry?.file_name().to_string_lossy()))?;
        }
    }
    files.remove(&format!("{dir}/uio"))?;
    files.remove(&format!("{dir}/driver"))
}
