//! Pieces, and devices that do not take them.

use super::Agent;
use crate::blocks::ByPieces;
use crate::link::Grain;
use crate::pieces::Unfit;
use crate::status::Lack;

impl Agent {
    /// The device is another than the agent thought, or has been replaced. Where it takes no pieces it has
    /// never heard of those that are held: nobody has to be asked for them, and nothing drops them.
    pub(super) fn on_grain(&mut self, grain: Grain) {
        if self.parts.pieces.is_none() {
            return;
        }
        let lack = Lack::pieces(&Unfit::Device.to_string());
        match grain {
            Grain::Block => {
                tracing::warn!("this guest lacks {}: {}", lack.what, lack.effect);
                self.parts.lacks.push(lack);
                self.by_pieces = self.parts.blocks.allow_pieces(ByPieces::None);
                let in_pieces = self.parts.blocks.in_pieces();
                let mut held = self.parts.blocks.offline_by_us();
                held.retain(|block| in_pieces.contains(block));
                held.into_iter().for_each(|block| self.bring_back(block));
            }
            Grain::Piece => {
                tracing::info!("the device takes pieces now");
                self.parts.lacks.retain(|other| *other != lack);
                self.parts.blocks.allow_pieces(self.by_pieces);
            }
        }
    }
}
