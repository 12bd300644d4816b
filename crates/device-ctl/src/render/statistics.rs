//! `stats`: the guest's own numbers.

use std::collections::BTreeMap;

use memtide_units::ByteSize;

use super::telemetry;
use crate::statistics::Statistics;
use crate::text::{line, printable, time};

/// The statistics that are bytes (virtio 1.3, 5.5.6.4), in the order in which people look for them.
/// All others are counts.
const SIZES: [&str; 6] =
    ["total_memory", "available_memory", "free_memory", "disk_caches", "swap_in", "swap_out"];

/// Width of the longest of the kernel's names, and two.
const NAME: usize = 21;

/// Statistics in full.
pub(crate) fn statistics(found: &Statistics) -> String {
    let age = time(found.age_ms());
    match found {
        Statistics::Agent { telemetry: guest, .. } => {
            format!("Told by the guest's agent {age} ago\n") + &telemetry(guest)
        }
        Statistics::Driver { stats, .. } => {
            format!("Told by the guest's driver {age} ago\n") + &driver(stats)
        }
    }
}

fn driver(stats: &BTreeMap<String, u64>) -> String {
    let row = |name: &str, value: &str| format!("  {:NAME$}{value:>12}\n", printable(name));
    let size = |name: &&str| stats.get(*name).map(|bytes| row(name, &bytes_as_text(*bytes)));
    let is_count = |name: &str| !SIZES.contains(&name);
    let counts = stats.iter().filter(|(name, _)| is_count(name));
    let counts = counts.map(|(name, count)| row(name, &count.to_string()));
    SIZES.iter().filter_map(size).chain(counts).collect()
}

fn bytes_as_text(bytes: u64) -> String {
    ByteSize::from_bytes(bytes).to_string()
}

/// The most important ones in a few lines.
pub(super) fn summary(stats: &BTreeMap<String, u64>, age_ms: u64) -> String {
    let said = |name: &str, word: &str| {
        stats.get(name).map(|bytes| format!("{} {word}", bytes_as_text(*bytes)))
    };
    let memory = [
        said("total_memory", "in all"),
        said("available_memory", "available"),
        said("free_memory", "free"),
        said("disk_caches", "cached"),
    ];
    let memory: Vec<String> = memory.into_iter().flatten().collect();
    let mut text = line("memory", &memory.join(", "));
    if let Some(kills) = stats.get("oom_kill").filter(|kills| **kills > 0) {
        text += &line("OOM kills", &kills.to_string());
    }
    text + &line("told", &format!("{} ago; all of it with \"stats\"", time(age_ms)))
}
