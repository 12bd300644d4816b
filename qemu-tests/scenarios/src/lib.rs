//! Whole-system scenarios on the lab: the demo, its report and picture, and the end-to-end tests.
//!
//! Nothing here is simulated: a stock QEMU runs a stock kernel and systemd, our programs run as a user
//! would start them, and every figure is read from the guest, the memfd behind it, or `memtide`.

pub mod chart;
pub mod checks;
pub mod contents;
pub mod demo;
pub mod device_death;
mod dimm;
pub mod dimms;
pub mod ejection;
pub mod end_to_end;
pub mod error;
mod guest_options;
pub mod guest_side;
pub mod host_side;
pub mod huge_pages;
pub mod interrupt;
pub mod lockdown;
mod lone_guest;
pub mod pieces;
pub mod plain_balloon;
pub mod player;
pub mod reclaim;
pub mod removal;
pub mod report;
pub mod run;
pub mod sample;
pub mod screen;
pub mod solo;
pub mod stock_driver;
pub mod torture;
pub mod truth;
pub mod two_balloons;
pub mod wait;

/// The packages whose programs scenarios run, for `memtide_lab::cargo::build`.
pub const PACKAGES: [&str; 6] = [
    "memtide",
    "memtide-agent",
    "memtide-lab-guest",
    "memtide-workload",
    "memtided",
    "vhost-user-balloon",
];
