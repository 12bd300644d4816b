//! `stats`: how the guest is, by its driver's or its agent's own words, fresh.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use memtide_api::device::{DeviceStatus, Driver, GuestTelemetry};
use serde::Serialize;

use crate::client::Client;
use crate::commands::{Form, show};
use crate::error::CtlError;
use crate::render;
use crate::text::time;

/// How often it is looked whether fresh ones have come. Statistics are no events: nobody but a reader
/// wants them.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a guest says of itself, for programs.
#[derive(Debug, Serialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub(crate) enum Statistics {
    /// A stock driver.
    Driver { age_ms: u64, stats: BTreeMap<String, u64> },
    /// memtide-agent.
    Agent { age_ms: u64, telemetry: GuestTelemetry },
}

impl Statistics {
    /// What there is, from whoever drives the device.
    fn of(status: DeviceStatus) -> Option<Self> {
        match status.driver {
            Driver::None => None,
            Driver::Agent => {
                let age_ms = status.telemetry_age_ms?;
                Some(Self::Agent { age_ms, telemetry: status.telemetry? })
            }
            Driver::Stock => {
                Some(Self::Driver { age_ms: status.stats_age_ms?, stats: status.stats })
            }
        }
    }

    pub(crate) fn age_ms(&self) -> u64 {
        let (Self::Driver { age_ms, .. } | Self::Agent { age_ms, .. }) = self;
        *age_ms
    }
}

/// Waits until statistics have come that are younger than the question, and shows them. Old ones
/// are shown too, but not as a success.
pub(crate) fn run(
    client: &mut Client,
    first: DeviceStatus,
    wait: u64,
    form: Form,
) -> Result<(), CtlError> {
    let start = Instant::now();
    let deadline = start + Duration::from_secs(wait);
    let mut status = first;
    loop {
        if !status.vmm_connected {
            return Err(CtlError::NoVmm);
        }
        if status.driver == Driver::None && wait == 0 {
            return Err(CtlError::NoDriver);
        }
        let (driver, interval_ms) = (status.driver, status.stats_interval_ms);
        let found = Statistics::of(status);
        let asked_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        match found {
            Some(found) if wait == 0 || found.age_ms() < asked_ms => {
                return show(form, &found, render::statistics);
            }
            found if Instant::now() >= deadline => {
                if let Some(found) = &found {
                    show(form, found, render::statistics)?;
                }
                return Err(too_late(driver, found.as_ref(), interval_ms, wait));
            }
            _ => {}
        }
        // Events are not wanted here; one that comes only makes the next look come sooner.
        client.event(Some(deadline.min(Instant::now() + LOOK_EVERY)))?;
        status = *client.status()?;
    }
}

fn too_late(
    driver: Driver,
    found: Option<&Statistics>,
    interval_ms: u64,
    waited_s: u64,
) -> CtlError {
    let why = match driver {
        Driver::None => return CtlError::NoDriver,
        Driver::Stock if interval_ms == 0 => {
            "the device was started with --stats-interval 0 and never asks for them"
        }
        Driver::Stock => "the guest hangs, is paused, or its driver has no statistics",
        Driver::Agent => "the guest hangs or is paused, or its agent has stopped",
    };
    let age = found.map_or_else(
        || "there are none".into(),
        |old| format!("the last are {} old", time(old.age_ms())),
    );
    CtlError::Deadline(format!("no fresh statistics in {waited_s} s, {age}: {why}"))
}
