//! A guest that drives its balloon wrongly on purpose, in many ways from a seeded list.
//!
//! It boots by PVH, finds the balloon, prints a line for each step on the serial line, and in the
//! end behaves: `survived N steps` is its last line if the device still serves. What the host must
//! look at is in `torture/hostile.rs` of the scenarios. The kernel's command line has `seed=N
//! steps=N`, and `only=NAME` to have one way of being wrong alone.

#![no_std]
#![no_main]

mod boot;
mod chance;
mod good;
mod layout;
mod machine;
mod mem;
mod pci;
mod virtio;
mod wrong;

use chance::Chance;
use layout::CANARIES;
use machine::read;
use virtio::Balloon;

/// Where the start information has the command line's address (Xen's hvm/start_info.h).
const COMMAND_LINE: u64 = 24;
/// Longest command line looked at.
const COMMAND_LINE_MAX: usize = 256;

/// Called by the boot with the address of the start information.
#[unsafe(no_mangle)]
extern "C" fn start(information: u64) -> ! {
    let mut words = [0; COMMAND_LINE_MAX];
    let words = command_line(read(information + COMMAND_LINE), &mut words);
    let number = |name, otherwise| {
        value(words, name).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let (seed, steps) = (number("seed=", 1), number("steps=", 200));
    let Some(balloon) = Balloon::find() else {
        say!("there is no balloon");
        machine::halt();
    };
    say!("a balloon that offers {:#x}, seed {seed}", balloon.offered());
    good::fill(CANARIES);
    misbehave(&balloon, seed, steps, value(words, "only="));
    match good::behave(&balloon) {
        Ok(()) => say!("survived {steps} steps"),
        Err(what) => say!("FAILED after {steps} steps: {what}"),
    }
    machine::halt();
}

/// Does so many wrong things.
fn misbehave(balloon: &Balloon, seed: u64, steps: u64, only: Option<&str>) {
    let mut chance = Chance::of(seed);
    for step in 1..=steps {
        let wrong = loop {
            let wrong = chance.of_these(&wrong::LIST);
            if only.is_none_or(|only| only == wrong.name || !wrong::is_known(only)) {
                break wrong;
            }
        };
        say!("step {step}: {}", wrong.name);
        (wrong.act)(balloon, &mut chance);
        // What was done to the function's own registers is put right, or nothing would be seen.
        balloon.function.enable();
        if chance.below(3) > 0 && !balloon.reset() {
            say!("FAILED: the device is never reset");
            machine::halt();
        }
    }
}

/// The command line, as text.
fn command_line(address: u64, buffer: &mut [u8; COMMAND_LINE_MAX]) -> &str {
    let mut length = 0;
    for (place, byte) in (address..).zip(buffer.iter_mut()) {
        *byte = read(place);
        if address == 0 || *byte == 0 {
            break;
        }
        length += 1;
    }
    core::str::from_utf8(&buffer[..length]).unwrap_or_default()
}

/// What follows `name` on the command line.
fn value<'a>(words: &'a str, name: &str) -> Option<&'a str> {
    words.split_ascii_whitespace().find_map(|word| word.strip_prefix(name))
}

#[panic_handler]
fn panic(information: &core::panic::PanicInfo<'_>) -> ! {
    say!("FAILED: {information}");
    machine::halt();
}
