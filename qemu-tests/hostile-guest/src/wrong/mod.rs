//! The ways of being wrong.
//!
//! Whatever a way says about memory names the arena, or what is no memory: a guest that has its own
//! code or the canaries dropped harms itself, which shows nothing about the device.

mod chains;
mod places;
mod registers;
mod requests;
mod rings;

use crate::chance::Chance;
use crate::virtio::Balloon;

/// One way of being wrong.
#[derive(Clone, Copy)]
pub(crate) struct Wrong {
    /// As the serial line names it.
    pub(crate) name: &'static str,
    /// Does it; each begins with the device in whatever state the last one left it.
    pub(crate) act: fn(&Balloon, &mut Chance),
}

const fn wrong(name: &'static str, act: fn(&Balloon, &mut Chance)) -> Wrong {
    Wrong { name, act }
}

/// All of them.
pub(crate) const LIST: [Wrong; 29] = [
    wrong("rings-anywhere", rings::anywhere),
    wrong("rings-unaligned", rings::unaligned),
    wrong("rings-across-the-end", rings::across_the_end),
    wrong("rings-on-each-other", rings::on_each_other),
    wrong("rings-moved-while-running", rings::moved_while_running),
    wrong("ring-sizes", rings::sizes),
    wrong("rings-enabled-twice", rings::enabled_twice),
    wrong("rings-taken-away", rings::taken_away),
    wrong("running-without-rings", rings::none),
    wrong("available-jumps", rings::available_jumps),
    wrong("heads-out-of-the-table", chains::heads),
    wrong("chains-that-loop", chains::loops),
    wrong("chains-out-of-the-table", chains::out_of_the_table),
    wrong("chains-of-nothing", chains::of_nothing),
    wrong("chains-too-long", chains::too_long),
    wrong("indirect-tables", chains::indirect),
    wrong("buffers-anywhere", chains::anywhere),
    wrong("wrong-direction", requests::wrong_direction),
    wrong("page-numbers", requests::page_numbers),
    wrong("deflated-before-inflated", requests::deflated_first),
    wrong("reports", requests::reports),
    wrong("statistics", requests::statistics),
    wrong("block-requests", requests::block_requests),
    wrong("reset-in-flight", requests::reset_in_flight),
    wrong("bus-master-off-in-flight", registers::bus_master_off),
    wrong("configuration", registers::configuration),
    wrong("features-and-status", registers::features_and_status),
    wrong("notifications", registers::notifications),
    wrong("vectors-and-windows", registers::vectors_and_windows),
];

/// Whether there is a way of this name.
pub(crate) fn is_known(name: &str) -> bool {
    LIST.iter().any(|wrong| wrong.name == name)
}
