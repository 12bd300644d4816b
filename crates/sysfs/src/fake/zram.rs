//! The driver of zram, with room for one device.

use std::io;

use rustix::io::Errno;

use super::{FakeRoot, Files};

pub(super) const CONTROL: &str = "sys/class/zram-control";
const DEVICE: &str = "sys/block/zram0";

impl FakeRoot {
    /// Gives the kernel the driver, with what a device says of its algorithms. Its first device is
    /// there already, without a size, since a fake cannot make one when a file is read.
    pub fn add_zram(&self, algorithms: &str) {
        self.put(&format!("{CONTROL}/hot_add"), "0\n");
        self.put(&format!("{CONTROL}/hot_remove"), "");
        self.put(&format!("{DEVICE}/comp_algorithm"), algorithms);
        self.put(&format!("{DEVICE}/disksize"), "0\n");
        self.put(&format!("{DEVICE}/mem_limit"), "0\n");
        self.put(&format!("{DEVICE}/mm_stat"), "0 0 0 0 0 0 0 0 0\n");
    }
}

pub(super) fn remove(files: &Files, number: &str) -> io::Result<()> {
    if number != "0" || !files.exists(DEVICE) {
        return Err(Errno::NODEV.into());
    }
    files.remove(DEVICE)
}
