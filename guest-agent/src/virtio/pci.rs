//! The function's command register, and its interrupt.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::caps::Place;

/// Offset of the command register.
const COMMAND: u64 = 4;
/// Answer accesses to the BARs.
const MEMORY_SPACE: u16 = 1 << 1;
/// May read and write guest memory. `uio_pci_generic` leaves it off, and every close of the uio
/// device clears it.
const BUS_MASTER: u16 = 1 << 2;
/// INTx is masked. `uio_pci_generic` sets it with each interrupt.
const INTX_DISABLE: u16 = 1 << 10;

/// Fields of the capability `VIRTIO_PCI_CAP_PCI_CFG` (virtio 1.3, 4.1.4.9).
const WINDOW_BAR: u64 = 4;
const WINDOW_OFFSET: u64 = 8;
const WINDOW_LENGTH: u64 = 12;
const WINDOW_DATA: u64 = 16;

/// The `config` file of a function in sysfs.
#[derive(Debug)]
pub struct ConfigFile(File);

impl ConfigFile {
    /// Opens it for reading and writing.
    ///
    /// # Errors
    /// What open(2) says; EPERM under kernel lockdown.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }

    /// Its first 256 bytes, or as many as this process may read.
    ///
    /// # Errors
    /// What pread(2) says.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 256];
        let len = self.0.read_at(&mut bytes, 0)?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Lets the device reach memory, and answer on its BARs.
    ///
    /// # Errors
    /// EPERM under kernel lockdown.
    pub fn enable(&self) -> io::Result<()> {
        self.change_command(|command| command | MEMORY_SPACE | BUS_MASTER)
    }

    /// Lets the next interrupt through.
    ///
    /// # Errors
    /// EPERM under kernel lockdown.
    pub fn unmask_interrupt(&self) -> io::Result<()> {
        self.change_command(|command| command & !INTX_DISABLE)
    }

    /// Four bytes of a structure in a BAR, read through `window` (see
    /// [`access_window`](super::caps::access_window)): no mapping is needed, which the kernel does not
    /// give while a driver of its own has the function. Nobody else uses the window: Linux's drivers
    /// map the BARs. Afterwards it is shut again: while it has a length, whoever reads all of the
    /// configuration space (`lspci -v`) asks the device as well, and that may have died since.
    ///
    /// # Errors
    /// EPERM under kernel lockdown.
    pub fn read_through(&self, window: usize, place: Place, at: u32) -> io::Result<u32> {
        let window = window as u64;
        let read = self.open_and_read(window, place, at);
        self.0.write_all_at(&0_u32.to_le_bytes(), window + WINDOW_LENGTH)?;
        read
    }

    fn open_and_read(&self, window: u64, place: Place, at: u32) -> io::Result<u32> {
        self.0.write_all_at(&[place.bar], window + WINDOW_BAR)?;
        self.0
            .write_all_at(&place.offset.wrapping_add(at).to_le_bytes(), window + WINDOW_OFFSET)?;
        self.0.write_all_at(&4_u32.to_le_bytes(), window + WINDOW_LENGTH)?;
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, window + WINDOW_DATA)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn change_command(&self, change: impl Fn(u16) -> u16) -> io::Result<()> {
        let mut bytes = [0; 2];
        self.0.read_exact_at(&mut bytes, COMMAND)?;
        let command = u16::from_le_bytes(bytes);
        let wanted = change(command);
        if wanted != command {
            self.0.write_all_at(&wanted.to_le_bytes(), COMMAND)?;
        }
        Ok(())
    }
}

/// An open `/dev/uioN`. While it is open the device may be a bus master; closing it ends that.
#[derive(Debug)]
pub struct Uio(File);

impl Uio {
    /// Opens it without blocking reads.
    ///
    /// # Errors
    /// What open(2) says: ENOENT until udev has made the file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map(Self)
    }

    /// Takes the interrupts that have come, and says whether there were any. The line stays masked
    /// until [`ConfigFile::unmask_interrupt`].
    ///
    /// # Errors
    /// EIO where the function has no interrupt.
    pub fn take(&mut self) -> io::Result<bool> {
        // The count is cumulative across opens: what matters is that it changed.
        let mut count = [0; 4];
        match self.0.read(&mut count) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Uio {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_shut_after_a_look_through_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = [0; 256];
        bytes[0x60..0x64].copy_from_slice(b"MTDE");
        std::fs::write(file.path(), bytes).unwrap();
        let config = ConfigFile::open(file.path()).unwrap();
        let place = Place { bar: 4, offset: 0x2000, length: 0x1000 };
        let read = config.read_through(0x50, place, 16).unwrap();
        assert_eq!(read.to_le_bytes(), *b"MTDE");
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!((bytes[0x54], &bytes[0x58..0x5c]), (4, &0x2010_u32.to_le_bytes()[..]));
        assert_eq!(bytes[0x5c..0x60], [0; 4], "the length");
    }

    #[test]
    fn the_command_register_is_changed_by_its_bits_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = [0xaa; 64];
        bytes[4..6].copy_from_slice(&0x0501_u16.to_le_bytes());
        std::fs::write(file.path(), bytes).unwrap();
        let config = ConfigFile::open(file.path()).unwrap();
        config.enable().unwrap();
        assert_eq!(config.bytes().unwrap()[4..7], [0x07, 0x05, 0xaa]);
        config.unmask_interrupt().unwrap();
        assert_eq!(config.bytes().unwrap()[3..7], [0xaa, 0x07, 0x01, 0xaa]);
    }
}
