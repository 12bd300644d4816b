//! Virtio devices above their functions.

use std::os::unix::fs::symlink;

use super::FakeRoot;
use crate::pci::Address;

const BUS: &str = "sys/bus/virtio";

impl FakeRoot {
    /// Adds a virtio device of a type, such as `0x0005` for a balloon, with the features that its driver
    /// has agreed to, the lowest bit first.
    pub fn add_virtio(&self, name: &str, kind: &str, features: &str) {
        self.put(&format!("{BUS}/devices/{name}/device"), &format!("{kind}\n"));
        self.put(&format!("{BUS}/devices/{name}/features"), &format!("{features}\n"));
    }

    /// Binds it to a driver.
    pub fn bind_virtio(&self, name: &str, driver: &str) {
        let driver = self.path().join(BUS).join("drivers").join(driver);
        std::fs::create_dir_all(&driver).expect("the fake's directories can be made");
        let link = self.path().join(BUS).join("devices").join(name).join("driver");
        symlink(driver, link).expect("a device is bound once");
    }

    /// Says which function of PCI it is.
    pub fn put_virtio_on_pci(&self, name: &str, address: Address) {
        self.put(&format!("sys/bus/pci/devices/{address}/{name}/vendor"), "0x1af4\n");
    }
}
