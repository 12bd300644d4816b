//! What an operator may change while the agent runs, and limits that follow what is plugged in.

use memtide_policy::guest::{Limits, PagingBounds};
use memtide_units::Instant;

use super::Agent;
use crate::config::{Config, ConfigError};
use crate::status::Reloads;

impl Agent {
    /// Goes by these settings from now on, as far as that can be done without a new start
    /// ([`crate::reload`] names the others). What it has learned of the guest stays.
    ///
    /// # Errors
    /// They contradict this machine: nothing has changed then.
    pub fn take_settings(&mut self, config: &Config) -> Result<(), ConfigError> {
        config.limits(self.parts.blocks.present())?;
        self.parts.wish = config.wish;
        self.parts.controller.set_scale_by(config.scale_by);
        self.parts.controller.set_gate_deadline(config.gate_deadline);
        self.see_to_limits();
        self.rest.end();
        Ok(())
    }

    /// What came of settings that were read anew. Whoever had them read finds it in the status at once.
    pub fn note_reload(&mut self, refused: Option<String>, at_next_start: Vec<String>) {
        let times = self.reloads.times + 1;
        self.reloads = Reloads { times, refused, at_next_start };
        self.due.report = Instant::default();
        self.rest.end();
    }

    /// Limits that follow from how much memory there is follow what is plugged in and unplugged; the
    /// host hears of them in a hello.
    pub(super) fn see_to_limits(&mut self) {
        let before = self.parts.controller.settings().limits;
        match Limits::new(self.parts.blocks.present(), self.parts.wish) {
            Ok(limits) if limits != before => {
                let (min, max, goal) = (limits.min(), limits.max(), limits.psi_goal());
                tracing::info!("limits are {min} to {max}, pressure goal {goal}, from now on");
                self.parts.controller.set_limits(limits);
                if limits.psi_goal() != before.psi_goal() {
                    self.aim_at(limits);
                }
                self.parts.link.greet_again();
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("the limits stay as they were: {error}"),
        }
    }

    /// Who pages out is to make tasks stall as much as the user accepts, too.
    fn aim_at(&self, limits: Limits) {
        let PagingBounds { stall_us, .. } = PagingBounds::of(&limits, self.parts.blocks.present());
        if let Some(damon) = self.parts.watching.damon() {
            damon.aim_at(stall_us);
        }
    }
}
