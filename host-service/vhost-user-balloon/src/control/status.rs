//! The answer to "how are you?".

use memtide_api::device::{DeviceStatus, MemoryRegion};
use memtide_balloon::Balloon;
use memtide_hostmem::Regions;
use memtide_units::{ByteSize, Instant};
use memtide_wire::features;
use memtide_wire::stats::Stat;

use super::translate;

/// Everything that the device knows, with what is resident now. `regions` is the memory of the VMM
/// that is connected, if one is.
pub(super) fn status(balloon: &Balloon, regions: Option<&Regions>, now: Instant) -> DeviceStatus {
    DeviceStatus {
        pid: std::process::id(),
        vmm_connected: regions.is_some(),
        driver: translate::driver(balloon.driver()),
        features: balloon.features(),
        feature_names: features::names(balloon.features()),
        memory: regions.map(memory).unwrap_or_default(),
        resident: regions.map(resident).unwrap_or_default(),
        target: balloon.target(),
        actual: balloon.actual(),
        min: balloon.min(),
        decider: translate::decider(balloon.decider(now)),
        local_rule: translate::local_rule(balloon.local_rule()),
        stolen: balloon.stolen().iter().collect(),
        pluggable: balloon.pluggable().iter().collect(),
        hello: balloon.hello().map(translate::hello),
        pending: balloon.pending(now).map(translate::pending),
        telemetry: balloon.telemetry().map(translate::telemetry),
        telemetry_age_ms: balloon.telemetry_age(now).map(translate::millis),
        stats: balloon.statistics().iter().map(|stat| (name(*stat), stat.value)).collect(),
        stats_age_ms: balloon.statistics_age(now).map(translate::millis),
        stats_interval_ms: balloon.stats_interval().map_or(0, translate::millis),
        counters: translate::counters(balloon.counters()),
    }
}

fn memory(regions: &Regions) -> Vec<MemoryRegion> {
    let region = |region: &memtide_hostmem::Region| MemoryRegion {
        range: region.range(),
        file_offset: region.file_offset(),
        inode: region.backing().id().inode,
    };
    regions.iter().map(region).collect()
}

fn resident(regions: &Regions) -> ByteSize {
    regions.residency().unwrap_or_else(|error| {
        tracing::debug!("the kernel does not tell what is resident: {error}");
        ByteSize::ZERO
    })
}

fn name(stat: Stat) -> String {
    stat.name().map_or_else(|| format!("tag-{}", stat.tag), str::to_owned)
}
