//! Pieces, and devices that do not take them, or administrators who want them.

use memtide_policy::guest::{Outcome, StealFailure};
use memtide_units::{BlockId, Instant};

use super::Agent;
use crate::blocks::ByPieces;
use crate::link::{Coarseness, Grain};
use crate::pieces::{Pieces, Unfit};
use crate::status::{Lack, say_lack};

impl Agent {
    /// The device is another than the agent thought, or has been replaced, or the memory under this guest
    /// has. Nothing is in flight, and a hello comes next, which replaces all that the device knows.
    pub(super) fn on_grain(&mut self, now: Instant, grain: Grain) {
        if self.parts.pieces.is_none() {
            return;
        }
        let before = std::mem::take(&mut self.coarse);
        self.parts.lacks.retain(|lack| Some(lack) != before.as_ref());
        match grain {
            Grain::Block(why) => self.give_up_pieces(now, why),
            Grain::Piece => {
                tracing::info!("the device takes pieces now");
                self.remark(now, "memory that cannot go offline can go in pieces now".into());
                if let Some(which) = self.by_pieces.take() {
                    self.parts.blocks.allow_pieces(which);
                }
            }
        }
    }

    /// A device that takes none has none on its books, or forgets them with the next hello, which does
    /// not name them: nobody has to be asked for them, and nothing drops them any more.
    fn give_up_pieces(&mut self, now: Instant, why: Coarseness) {
        let lack = Lack::pieces(&Unfit::from(why).to_string());
        let which = self.parts.blocks.allow_pieces(ByPieces::None);
        self.by_pieces.get_or_insert(which);
        // One that is being taken as well.
        self.parts.hands.abort();
        let in_pieces = self.parts.blocks.in_pieces();
        let mut held = self.parts.blocks.offline_by_us();
        held.retain(|block| in_pieces.contains(block));
        let back = match held.len() {
            0 => String::new(),
            count => format!("; what stands for {count} blocks goes back to this guest"),
        };
        tracing::warn!("this guest lacks {}: {}{back}", lack.what, lack.effect);
        self.remark(now, format!("take nothing in pieces: {}{back}", Unfit::from(why)));
        self.coarse = Some(lack.clone());
        self.parts.lacks.push(lack);
        held.into_iter().for_each(|block| self.bring_back(block));
    }

    /// Pieces were taken. While that was under way the device may have become one that takes none, and
    /// must not hear of them.
    pub(super) fn may_report_pieces(&mut self, block: BlockId) -> bool {
        let may = self.parts.link.grain() == Grain::Piece;
        if !may {
            self.outcomes.push(Outcome::StealFailed(block, StealFailure::Aborted));
            self.bring_back(block);
        }
        may
    }

    /// Says so where an administrator has asked for huge pages and got those that are held here.
    pub(super) fn see_to_adopted(&mut self) {
        let pages = self.parts.pieces.as_ref().map_or(0, Pieces::adopted);
        let lack = (pages > 0).then(|| Lack::adopted(pages));
        say_lack(&mut self.parts.lacks, &mut self.adopted, lack);
    }
}
