//! What the host says through the device's configuration, and when that is looked at.

use std::time::Duration;

use memtide_units::{ByteSize, Instant, Pfn};
use memtide_wire::block::{Request, Response, Verdict};
use memtide_wire::config::Plugging;

use super::Link;
use super::kind::{Coarseness, Grain};

/// While reports wait to be sent, the configuration is looked at this often at most. Until then a new
/// target or a wish for a new hello is not seen.
const LOOKS_APART: Duration = Duration::from_millis(250);

/// Offsets in the configuration space of what changes while the agent runs.
const NUM_PAGES: usize = 0;
const GENERATION: usize = 28;
const HELLO_EPOCH: usize = 32;
const RECLAIM_UNIT: usize = 36;
const PIECE: usize = 40;
const PLUGGING: usize = 44;

/// What the host said last through the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// What it wants in the balloon.
    pub balloon: ByteSize,
    /// Moves when there is something to look at.
    pub generation: u32,
    /// Moves when it wants a new hello.
    pub hello_epoch: u32,
    /// What comes of memory that the guest ejects.
    pub plugging: Plugging,
}

impl Link {
    /// The device has interrupted: there may be something to see in its configuration. It is looked
    /// at when no request is in flight, and while reports wait to be sent only now and then: each
    /// access is a question to the device's process that the VMM asks with its big lock held, and that
    /// process may be dropping memory for 50 ms.
    pub fn look_soon(&mut self) {
        self.owes_look = true;
    }

    /// Takes in what an answer says of the configuration: an interrupt that came with one whose
    /// generation is known brought nothing else. That spares the look, which would be the VM's end
    /// where the device has died since (`vhost_dev_get_config`), and an answer may lie in the ring for
    /// long before a busy guest reads it.
    ///
    /// What changes just after an answer may share the answer's interrupt. Then it is seen with the
    /// next answer, telemetry's within a second; after a return that is held, whose grant may follow
    /// any moment, the configuration is looked at in any case.
    pub(super) fn note_answer(&mut self, request: &Request, response: &Response) {
        if self.is_plain() {
            // What it says of itself is the carrier's word; but it has just lived.
            self.owes_look |= matches!(request, Request::Telemetry(_));
            return;
        }
        let is_known = response.generation != 0 && response.generation == self.config.generation;
        let is_followed = matches!(response.verdict, Verdict::Held(_));
        self.owes_look = !is_known || (self.owes_look && is_followed);
    }

    pub(super) fn look_if_due(&mut self, now: Instant) {
        if self.is_look_due(now) && self.is_up_and_idle() {
            self.owes_look = false;
            self.looked = now;
            self.look();
        }
    }

    pub(super) fn is_look_due(&self, now: Instant) -> bool {
        let is_hurried = self.outbox.is_at_a_report() && now.since(self.looked) < LOOKS_APART;
        self.owes_look && !is_hurried
    }

    /// Reads what may have changed in the configuration: one access, or four where something has,
    /// or where the device may be another than before. A new epoch asks for a new hello, which goes
    /// out before anything else. Call it only when the device has just shown that it lives.
    pub(super) fn look(&mut self) {
        let before = self.config;
        let field = |offset| self.transport.config_u32(offset).unwrap_or(0);
        let balloon = || Pfn::SIZE.times(field(NUM_PAGES).into());
        if self.is_plain() {
            // All that such a host ever says is its target.
            let balloon = balloon();
            let moved = u32::from(balloon != before.balloon);
            let generation = before.generation.wrapping_add(moved);
            let plugging = Plugging::Nobody;
            self.config = HostConfig { balloon, generation, hello_epoch: 0, plugging };
            return;
        }
        // First: what changes while the rest is read moves it once more, and is seen the next time.
        let generation = field(GENERATION);
        if generation == before.generation && !self.needs_hello() {
            return;
        }
        let (balloon, hello_epoch) = (balloon(), field(HELLO_EPOCH));
        let plugging = Plugging::from_code(field(PLUGGING));
        self.config = HostConfig { balloon, generation, hello_epoch, plugging };
        if self.config.hello_epoch != before.hello_epoch {
            self.greet_again();
        }
    }

    /// What the device takes, where that is not what it took before: it may be another one.
    pub(super) fn other_grain(&mut self) -> Option<Grain> {
        let now = if self.is_plain() {
            Grain::Block(Coarseness::Plain)
        } else {
            let field = |offset| self.transport.config_u32(offset);
            Grain::of(field(PIECE)?, field(RECLAIM_UNIT)?)
        };
        let before = std::mem::replace(&mut self.grain, now);
        (now != before).then_some(now)
    }

    /// The least that the device lets a request name, as of the last hello.
    pub fn grain(&self) -> Grain {
        self.grain
    }
}
