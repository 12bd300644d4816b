//! `memtide vm NAME`.

use memtide_api::device::Driver;
use memtide_api::http::{GateCounters, VmState, VmStatus};
use memtide_device_ctl::output::{Colour, Tone};
use memtide_device_ctl::telemetry;
use memtide_device_ctl::text::{line, time, wrapped};

use super::{held, limit, state};

/// One VM, from what it holds to how its guest is.
pub(crate) fn vm(vm: &VmStatus, colour: Colour) -> String {
    let mut text = heading(vm, colour);
    text += &line("memory", &format!("{} given by the VMM", vm.memory));
    text += &line("holds", &format!("{} that it may use without asking", vm.committed));
    text += &line("stolen", &stolen(vm));
    text += &line("resident", &format!("{} on the host", vm.resident));
    text += &line("min", &format!("{} guaranteed", vm.min));
    text += &line("max", &limit(vm.max));
    if !vm.target.is_zero() {
        text += &line("target", &format!("{} wanted in the balloon", vm.target));
    }
    text += &line("returns", &counters(&vm.gate));
    if let Some(guest) = vm.device.as_ref().and_then(|device| device.telemetry.as_ref()) {
        text += &format!("\n{}\n", colour.paint(Tone::Heading, "Its guest"));
        text += &telemetry(guest);
    }
    if let Some(waits) = &vm.held {
        text.push('\n');
        text += &held(&vm.name, waits, colour);
    }
    if let Some(why) = &vm.plugging {
        let head = format!("{}: what its guest ejects cannot be plugged in again", vm.name);
        text += &format!("\n{}\n{}", colour.paint(Tone::Attention, &head), wrapped(why, 2));
    }
    text
}

fn stolen(vm: &VmStatus) -> String {
    if vm.ejected.is_zero() {
        return vm.stolen.to_string();
    }
    format!("{}, {} of it ejected by its guest", vm.stolen, vm.ejected)
}

fn heading(vm: &VmStatus, colour: Colour) -> String {
    let (state, tone) = state(&vm.state);
    let driven = match vm.driver {
        Driver::Agent => ", driven by its agent",
        Driver::Stock => ", driven by a standard balloon driver",
        Driver::None => ", no driver in the guest",
    };
    let name = colour.paint(Tone::Heading, &vm.name);
    match &vm.state {
        VmState::Connected => format!("{name}: {}{driven}\n", colour.paint(tone, state)),
        VmState::Starting => format!("{name}: {}\n", colour.paint(tone, state)),
        VmState::Lost(why) => {
            format!("{name}: {}\n{}", colour.paint(tone, state), wrapped(why, 2))
        }
    }
}

fn counters(gate: &GateCounters) -> String {
    let mut text = format!("{} asked, {} granted, {} held", gate.asked, gate.granted, gate.held);
    if gate.held > 0 {
        text += &format!(" (up to {})", time(gate.held_ms_max));
    }
    if gate.denied > 0 {
        text += &format!(", {} denied", gate.denied);
    }
    text + &format!(", {} taken unasked", gate.taken)
}
