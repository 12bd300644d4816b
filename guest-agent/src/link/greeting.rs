//! Whether the host knows this guest.

use memtide_wire::block::RefuseReason;

use super::{Link, State};

impl Link {
    pub(super) fn needs_hello(&self) -> bool {
        matches!(self.state, State::Up { is_greeted: false, .. })
    }

    /// Has the next request be a hello: what the host believes must be put right.
    pub fn greet_again(&mut self) {
        if let State::Up { is_greeted, .. } = &mut self.state {
            *is_greeted = false;
        }
    }

    /// Why the last hello was refused, if it was; not the next time.
    pub fn take_refused_hello(&mut self) -> Option<RefuseReason> {
        self.refused_hello.take()
    }
}
