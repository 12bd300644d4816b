//! Who plugs in again what the guest has ejected, and what the guest is told of that.

use memtide_wire::config::Plugging;
use zerocopy::little_endian::U32;

use crate::device::Balloon;
use crate::range_set::RangeSet;

impl Balloon {
    /// What the controller plugs in again when the guest has ejected it, instead of what it said before.
    /// An agent that may have ejected some of it, which nobody knew till now, introduces itself anew.
    pub fn set_pluggable(&mut self, pluggable: RangeSet) {
        let is_first = self.pluggable.is_empty() && !pluggable.is_empty();
        self.pluggable = pluggable;
        self.note_plugging();
        if is_first {
            self.ask_hello();
        }
    }

    /// What the controller plugs in again when the guest has ejected it.
    pub fn pluggable(&self) -> &RangeSet {
        &self.pluggable
    }

    /// Tells the guest whether it may eject memory.
    pub(crate) fn note_plugging(&mut self) {
        let plugging = match (self.pluggable.is_empty(), self.gate.has_controller()) {
            (true, _) => Plugging::Nobody,
            (false, false) => Plugging::Known,
            (false, true) => Plugging::Ready,
        };
        if plugging.code() != self.config.extension.plugging.get() {
            self.config.extension.plugging = U32::new(plugging.code());
            self.ask_to_look_again();
        }
    }
}
