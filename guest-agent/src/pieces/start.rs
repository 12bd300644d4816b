//! What an agent does about pieces when it starts.

use memtide_sysfs::Root;

use super::{Pieces, Unfit};
use crate::blocks::{Blocks, ByPieces};
use crate::config::Conversion;
use crate::link::Kind;
use crate::runtime::RuntimeDir;

/// The pieces of this guest, those that an earlier agent took among them; `None` where it may have
/// none. The device must have been reset: it drops nothing meanwhile.
pub fn resume(root: &Root, runtime: &RuntimeDir, kind: Kind) -> Option<Pieces> {
    let mark = runtime.huge_pages();
    let found = match kind {
        Kind::Gated(_) => Pieces::find(root, mark.clone()),
        Kind::Plain(_) => Err(Unfit::Plain),
    };
    match found {
        Ok(pieces) => {
            restore(&pieces);
            pieces.resume();
            Some(pieces)
        }
        Err(why) => {
            tracing::debug!("what cannot be emptied stays: {why}");
            let left = Pieces::left_behind(root, mark)?;
            restore(&left);
            left.release_all();
            None
        }
    }
}

fn restore(pieces: &Pieces) {
    if let Err(error) = pieces.restore() {
        tracing::warn!("the pool of huge pages may grow over what was set: {error}");
    }
}

/// Enters what is held in the table, and says which blocks may be taken in pieces. Where everything
/// that can be is movable, all others may.
pub fn enter(pieces: &Pieces, blocks: &mut Blocks, conversion: Conversion) {
    for block in pieces.left() {
        match pieces.runs(block).filter(|_| blocks.hold(block).is_some()) {
            Some(runs) => blocks.went_in_pieces(block, runs),
            None => pieces.give_up(block),
        }
    }
    blocks.allow_pieces(match conversion {
        Conversion::Convert => ByPieces::KernelZones,
        Conversion::Leave => ByPieces::NeverOffline,
    });
}
