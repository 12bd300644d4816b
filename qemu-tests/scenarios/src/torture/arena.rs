//! The guest and its device, and what every run asks of them.

use std::time::Duration;

use memtide_api::device::{DeviceStatus, Driver};
use memtide_lab::Lab;
use memtide_lab::cargo::Built;
use memtide_lab::machine::OnReset;
use memtide_lab::rundir::RunDir;
use memtide_units::ByteSize;

use super::Torture;
use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, GuestSide, Shape, Unit};
use crate::player::Player;
use crate::solo::{Device, Footprint};
use crate::wait::{self, Look};

/// The guest's memory.
pub(crate) const MEMORY: ByteSize = ByteSize::from_gib(2);

/// A guest whose device stands alone.
pub(crate) struct Arena {
    /// The guest; before the device, so that QEMU goes first.
    pub(crate) guest: GuestSide,
    /// The device.
    pub(crate) device: Device,
    _sockets: RunDir,
}

impl Arena {
    /// Boots one.
    ///
    /// # Errors
    /// Where the device or the guest does not come up.
    pub(crate) fn enter(torture: &Torture<'_>, agent: Unit) -> Result<Self, ScenarioError> {
        let options = GuestOptions {
            shape: Shape { on_reset: OnReset::Boots, ..Shape::default() },
            ..GuestOptions::new((torture.kernel, MEMORY), agent, torture.logs)
        };
        Self::start(torture.lab, torture.programs, &[], &options)
    }

    /// Boots this guest, on a device with these arguments.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub(crate) fn start(
        lab: &Lab,
        programs: &Built,
        arguments: &[&str],
        options: &GuestOptions,
    ) -> Result<Self, ScenarioError> {
        let sockets = RunDir::new()?;
        let logs = &options.artifacts;
        std::fs::create_dir_all(logs)
            .map_err(|source| ScenarioError::File { path: logs.clone(), source })?;
        let device = Device::start(programs, sockets.path(), logs, arguments)?;
        let guest = GuestSide::start(lab, programs, device.vhost_socket(), options)?;
        Ok(Self { guest, device, _sockets: sockets })
    }

    /// Waits until the device says so, while QEMU lives.
    ///
    /// # Errors
    /// [`ScenarioError::Deadline`], or how QEMU or the device ended.
    pub(crate) fn await_device(
        &self,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut(&DeviceStatus) -> bool,
    ) -> Result<DeviceStatus, ScenarioError> {
        wait::until(what, within, || {
            self.guest.alive(what)?;
            let status = self.device.status()?;
            Ok(match wanted(&status) {
                true => Look::Found(status),
                false => Look::NotYet(brief(&status)),
            })
        })
    }

    /// Waits until this driver drives.
    ///
    /// # Errors
    /// As [`await_device`](Self::await_device).
    pub(crate) fn await_driver(&self, driver: Driver) -> Result<(), ScenarioError> {
        let what = format!("the driver is {driver:?}");
        self.await_device(&what, Duration::from_secs(60), |now| now.driver == driver).map(drop)
    }

    /// Waits until the workload has said what is wanted.
    ///
    /// # Errors
    /// [`ScenarioError::Deadline`] with the phase that it is in, or how it ended.
    pub(crate) fn heard(
        &self,
        player: &mut Player,
        within: Duration,
        what: &str,
        wanted: impl Fn(&Player) -> bool,
    ) -> Result<(), ScenarioError> {
        wait::until(what, within, || {
            for line in self.guest.workload_lines()? {
                player.read(&line);
            }
            Ok(match wanted(player) {
                true => Look::Found(()),
                false => Look::NotYet(format!("it is in \"{}\"", player.phase)),
            })
        })
    }

    /// Gives the workload the word that it waits for.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub(crate) fn go(&self, player: &mut Player) -> Result<(), ScenarioError> {
        player.went();
        self.guest.workload_go()
    }

    /// The larger of each figure.
    ///
    /// # Errors
    /// Where the device has ended.
    pub(crate) fn note_footprint(&self, peak: &mut Footprint) -> Result<(), ScenarioError> {
        let now = self.device.footprint()?;
        peak.rss = peak.rss.max(now.rss);
        peak.descriptors = peak.descriptors.max(now.descriptors);
        peak.log = peak.log.max(now.log);
        Ok(())
    }
}

fn brief(status: &DeviceStatus) -> String {
    format!(
        "driver {:?}, target {}, actual {}, {} ranges stolen",
        status.driver,
        status.target,
        status.actual,
        status.stolen.len()
    )
}
