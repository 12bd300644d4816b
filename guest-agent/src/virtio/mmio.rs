//! Registers: a mapped BAR, and accesses of exactly the width that was asked for.

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::rc::Rc;

use rustix::mm::{MapFlags, ProtFlags};

/// BARs longer than this are not mapped: QEMU's virtio BARs have 16 KiB, Cloud Hypervisor's
/// 512 KiB.
const BAR_MAX: u64 = 16 << 20;

/// Memory-mapped registers. Offsets are multiples of the width; an access outside is a bug of the
/// caller, since [`Window`] has checked its bounds before.
pub trait Registers {
    /// Bytes that can be addressed.
    fn size(&self) -> usize;
    /// One byte.
    fn read_u8(&self, at: usize) -> u8;
    /// Two bytes, little-endian.
    fn read_u16(&self, at: usize) -> u16;
    /// Four bytes, little-endian.
    fn read_u32(&self, at: usize) -> u32;
    /// One byte.
    fn write_u8(&self, at: usize, value: u8);
    /// Two bytes, little-endian.
    fn write_u16(&self, at: usize, value: u16);
    /// Four bytes, little-endian.
    fn write_u32(&self, at: usize, value: u32);
}

/// A BAR's file, mapped until it is dropped.
#[derive(Debug)]
pub struct MappedBar {
    base: *mut c_void,
    size: usize,
}

impl MappedBar {
    /// Maps all of `path`, a `resourceN` file in sysfs.
    ///
    /// # Errors
    /// What open(2) or mmap(2) says: EINVAL while a kernel driver is bound (`IO_STRICT_DEVMEM`),
    /// EPERM under kernel lockdown. InvalidData for a size that no virtio BAR has.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        if len == 0 || len > BAR_MAX {
            let text = format!("a BAR of {len} bytes is no virtio BAR");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let size = usize::try_from(len).map_err(io::Error::other)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address that the kernel chooses aliases nothing of ours.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), size, prot, MapFlags::SHARED, &file, 0)?
        };
        Ok(Self { base, size })
    }

    /// The address of a register.
    ///
    /// # Panics
    /// For one outside the BAR, or one that is not aligned.
    fn address<T>(&self, at: usize) -> *mut T {
        let inside = at.checked_add(size_of::<T>()).is_some_and(|end| end <= self.size);
        assert!(inside && at.is_multiple_of(size_of::<T>()), "no register at {at:#x}");
        self.base.cast::<u8>().wrapping_add(at).cast()
    }

    fn read<T>(&self, at: usize) -> T {
        // SAFETY: `address` has checked that the bytes lie in the mapping, which lives as long as
        // self, and are aligned; T is an integer here, for which every bit pattern is a value.
        unsafe { self.address::<T>(at).read_volatile() }
    }

    fn write<T>(&self, at: usize, value: T) {
        // SAFETY: as for `read`; no reference to the mapping exists, so nothing is invalidated.
        unsafe { self.address::<T>(at).write_volatile(value) }
    }
}

impl Drop for MappedBar {
    fn drop(&mut self) {
        // SAFETY: base and size are what mmap returned and was given, and nobody else unmaps them.
        // An error would leak a mapping, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.base, self.size) };
    }
}

impl Registers for MappedBar {
    fn size(&self) -> usize {
        self.size
    }
    fn read_u8(&self, at: usize) -> u8 {
        self.read(at)
    }
    fn read_u16(&self, at: usize) -> u16 {
        u16::from_le(self.read(at))
    }
    fn read_u32(&self, at: usize) -> u32 {
        u32::from_le(self.read(at))
    }
    fn write_u8(&self, at: usize, value: u8) {
        self.write(at, value);
    }
    fn write_u16(&self, at: usize, value: u16) {
        self.write(at, value.to_le());
    }
    fn write_u32(&self, at: usize, value: u32) {
        self.write(at, value.to_le());
    }
}

/// A part of a BAR that holds one structure.
#[derive(Clone)]
pub struct Window {
    registers: Rc<dyn Registers>,
    base: usize,
    size: usize,
}

impl Window {
    /// The `size` bytes from `base` on, or `None` where they are not all inside.
    pub fn new(registers: Rc<dyn Registers>, base: usize, size: usize) -> Option<Self> {
        let end = base.checked_add(size)?;
        (end <= registers.size()).then_some(Self { registers, base, size })
    }

    /// Bytes in it.
    pub fn size(&self) -> usize {
        self.size
    }

    fn at(&self, at: usize, width: usize) -> usize {
        assert!(at + width <= self.size, "no register at {at:#x} of {:#x}", self.size);
        self.base + at
    }

    /// One byte. Panics, as all the others, outside the window.
    pub fn read_u8(&self, at: usize) -> u8 {
        self.registers.read_u8(self.at(at, 1))
    }
    /// Two bytes.
    pub fn read_u16(&self, at: usize) -> u16 {
        self.registers.read_u16(self.at(at, 2))
    }
    /// Four bytes.
    pub fn read_u32(&self, at: usize) -> u32 {
        self.registers.read_u32(self.at(at, 4))
    }
    /// One byte.
    pub fn write_u8(&self, at: usize, value: u8) {
        self.registers.write_u8(self.at(at, 1), value);
    }
    /// Two bytes.
    pub fn write_u16(&self, at: usize, value: u16) {
        self.registers.write_u16(self.at(at, 2), value);
    }
    /// Four bytes.
    pub fn write_u32(&self, at: usize, value: u32) {
        self.registers.write_u32(self.at(at, 4), value);
    }
    /// Eight bytes, as two accesses of four, low half first (virtio 1.3, 4.1.3.1).
    pub fn write_u64(&self, at: usize, value: u64) {
        self.write_u32(at, value as u32);
        self.write_u32(at + 4, (value >> 32) as u32);
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Window({:#x}+{:#x})", self.base, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn bar(bytes: &[u8]) -> Rc<dyn Registers> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Rc::new(MappedBar::open(file.path()).unwrap())
    }

    #[test]
    fn a_window_reads_and_writes_at_its_own_place() {
        let bar = bar(&[0; 4096]);
        let window = Window::new(Rc::clone(&bar), 0x100, 0x20).unwrap();
        window.write_u64(8, 0x1122_3344_5566_7788);
        assert_eq!(bar.read_u32(0x108), 0x5566_7788);
        assert_eq!((window.read_u16(12), window.read_u8(15)), (0x3344, 0x11));
        assert!(Window::new(Rc::clone(&bar), 4090, 8).is_none());
        assert!(Window::new(bar, usize::MAX, 8).is_none());
    }

    #[test]
    fn an_empty_bar_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(MappedBar::open(file.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
