//! What comes before the end: goodbye to the host, and room for the driver that comes next.

use memtide_units::Instant;
use memtide_wire::block::Request;

use super::{Agent, Parts};
use crate::blocks::Hold;
use crate::remove::Plugger;

impl Agent {
    /// Ends what is under way. What is stolen stays stolen.
    pub fn begin_farewell(&mut self) {
        self.say_what_is_unsaid();
        self.parts.hands.abort();
        self.ejection.plugs.leave();
        self.parts.link.forget_backlog();
        self.is_leaving = true;
    }

    /// Takes in what still ends, then says goodbye; true once the host has answered that.
    pub fn end_farewell(&mut self, now: Instant) -> bool {
        self.take_ended_jobs(now);
        self.exchange(now);
        let settled = !self.parts.hands.is_busy() && self.parts.link.is_idle();
        if settled && self.is_leaving {
            self.is_leaving = false;
            // What others did since the last look, so that the next agent does not take it for this one's.
            if let Err(error) = self.refresh() {
                tracing::warn!("the last look at memory blocks failed: {error}");
            }
            self.parts.link.post(Request::Goodbye);
            return false;
        }
        settled
    }

    /// Puts blocks online that the stock driver of a plain balloon is about to take out of the rest:
    /// it knows nothing of stolen blocks and inflates the host's whole target anew, which on top of
    /// what is stolen could leave the guest with nothing. The device must have been stopped, which
    /// has emptied the balloon as far as the standard is concerned.
    pub fn make_room_for_stock_driver(&mut self) {
        let blocks = &self.parts.blocks;
        let (size, target) = (blocks.size(), self.parts.link.config().balloon);
        let count = usize::try_from(target.bytes().div_ceil(size.size().bytes()));
        let stolen = blocks.offline_by_us();
        let Parts { root, removers, policy, .. } = &self.parts;
        let plugger = Plugger::new(root, removers.clone(), policy.clone())
            .with_pieces(self.parts.pieces.clone());
        for block in stolen.into_iter().take(count.unwrap_or(usize::MAX)) {
            let put = plugger.put_online(block, self.parts.how_online);
            match put {
                Ok(()) => self.parts.blocks.set(&self.parts.root, block, Hold::Online),
                Err(error) => tracing::warn!("{block} stays offline: {error}"),
            }
        }
    }
}
