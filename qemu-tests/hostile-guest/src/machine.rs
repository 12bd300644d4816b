//! The machine's memory, ports and serial line: all of the unsafe code but the boot's.

use core::arch::asm;
use core::fmt;

/// QEMU's first serial port.
const COM1: u16 = 0x3f8;
/// Line status register: the transmitter takes another byte.
const THR_EMPTY: u8 = 1 << 5;

/// A size that one access may have.
pub(crate) trait Access: Copy {}
impl Access for u8 {}
impl Access for u16 {}
impl Access for u32 {}
impl Access for u64 {}

/// Reads a register or memory that the device also writes.
pub(crate) fn read<T: Access>(address: u64) -> T {
    // SAFETY: the first 512 GiB are mapped as they are and every caller's address lies there, so
    // this faults nowhere; the types are plain integers, any bits are a value; x86 reads unaligned.
    // Reading what the device writes at the same time gives old or new bytes, which callers expect.
    // (A misaligned pointer is no valid pointer for `read_volatile`, hence the instruction.)
    unsafe { (address as *const Unaligned<T>).read_volatile().0 }
}

/// Writes a register or memory that the device also reads.
pub(crate) fn write<T: Access>(address: u64, value: T) {
    // SAFETY: as for `read`; and callers write to device registers or to the memory above
    // `layout::RINGS`, where nothing of Rust's lies: no code, stack or static is touched.
    unsafe { (address as *mut Unaligned<T>).write_volatile(Unaligned(value)) }
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T>(T);

/// Everything written before is visible to the device before what comes after.
pub(crate) fn barrier() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Time in ticks of unknown but steady length, about a nanosecond under QEMU.
pub(crate) fn ticks() -> u64 {
    // SAFETY: RDTSC has no operands and exists on every x86-64 processor.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Writes a byte to an I/O port.
fn out8(port: u16, value: u8) {
    // SAFETY: callers name the serial port, whose writes print and touch no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, nomem)) }
}

fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as for `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, nomem)) }
    value
}

/// Writes 32 bits to an I/O port: of the PCI configuration mechanism.
pub(crate) fn out32(port: u16, value: u32) {
    // SAFETY: callers name ports 0xcf8 and 0xcfc. What they configure is the balloon's function:
    // where its registers are, never where memory is.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, nomem)) }
}

/// Reads 32 bits from an I/O port of the PCI configuration mechanism.
pub(crate) fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as for `out32`; reading changes nothing.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, nomem)) }
    value
}

/// Nothing more to do.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off since the boot, so this waits for ever and changes nothing.
        unsafe { asm!("cli", "hlt", options(nostack, nomem)) }
    }
}

/// The serial line, which the host reads as a file.
pub(crate) struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while in8(COM1 + 5) & THR_EMPTY == 0 {}
            out8(COM1, byte);
        }
        Ok(())
    }
}

/// Prints a line.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // The serial line takes everything.
        let _ = writeln!($crate::machine::Serial, $($argument)*);
    }};
}
