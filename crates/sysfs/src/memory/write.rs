//! Asking the kernel to change a block's state.

use memtide_units::BlockId;
use rustix::io::Errno;

use super::directory;
use crate::{Error, Root};

/// What to ask of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateRequest {
    /// Migrate what is in it, and stop using it.
    Offline,
    /// Use it, in the zone that the kernel prefers.
    Online,
    /// Use it in `ZONE_MOVABLE`, so that it can go offline again.
    OnlineMovable,
}

impl StateRequest {
    /// The keyword that the kernel knows it by.
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Online => "online",
            Self::OnlineMovable => "online_movable",
        }
    }
}

/// Why the kernel did not do it. The block is then in the state that it was in before.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// EBUSY: the block holds a page that cannot be moved, or another request is under way. May
    /// go better later, when that page is free.
    #[error("{block} could not go {}: it holds memory that cannot be moved, or another request is under way (EBUSY); try another block first", .request.keyword())]
    Busy {
        /// The block.
        block: BlockId,
        /// What was asked of it.
        request: StateRequest,
    },
    /// EINVAL: the block spans a hole or zones and can never go offline, or it is in the wanted
    /// state already (drivers/base/memory.c, `state_store`).
    #[error("{block} cannot go {}: it spans a hole or several zones, or is in that state already (EINVAL)", .request.keyword())]
    Invalid {
        /// The block.
        block: BlockId,
        /// What was asked of it.
        request: StateRequest,
    },
    /// EINTR: a signal ended the attempt, and everything is as before. The caller's deadline.
    #[error("{block} did not go {} before a signal ended the attempt (EINTR)", .request.keyword())]
    Interrupted {
        /// The block.
        block: BlockId,
        /// What was asked of it.
        request: StateRequest,
    },
    /// Anything else: no such block, no privilege, no memory to put it online (ENOMEM).
    #[error(transparent)]
    Other(#[from] Error),
}

/// Asks for `block` what `request` says, and waits for the kernel to do it.
///
/// Offlining migrates every used page and, where the rest of memory has no room for them, tries for
/// ever: check that there is room, and have a signal interrupt the calling *thread* (with a handler
/// installed without `SA_RESTART`) when its time is up. The write is one write(2) and is not
/// repeated after a signal.
///
/// # Errors
/// [`WriteError`], by what the caller can do about it.
pub fn write_state(root: &Root, block: BlockId, request: StateRequest) -> Result<(), WriteError> {
    let file = format!("{}/state", directory(block));
    root.write(file, request.keyword()).map_err(|error| match error.errno() {
        Some(Errno::BUSY) => WriteError::Busy { block, request },
        Some(Errno::INVAL) => WriteError::Invalid { block, request },
        Some(Errno::INTR) => WriteError::Interrupted { block, request },
        _ => WriteError::Other(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeBlock, FakeRoot};
    use crate::memory::{State, Zone, read};
    use memtide_units::BlockSize;

    fn guest() -> FakeRoot {
        let fake = FakeRoot::new();
        fake.add_blocks(
            BlockSize::X86_SMALL,
            [(0, FakeBlock::HOLE), (1, FakeBlock::KERNEL), (2, FakeBlock::KERNEL)],
        );
        fake
    }

    #[test]
    fn boot_memory_becomes_movable_by_going_offline_and_back() {
        let fake = guest();
        let root = fake.root();
        write_state(&root, BlockId(1), StateRequest::Offline).unwrap();
        let offline = read(&root, BlockId(1)).unwrap();
        assert_eq!(offline.state, State::Offline);
        assert!(offline.can_be_movable());
        write_state(&root, BlockId(1), StateRequest::OnlineMovable).unwrap();
        assert_eq!(read(&root, BlockId(1)).unwrap().current_zone(), Some(Zone::Movable));
    }

    #[test]
    fn each_refusal_has_its_name() {
        let fake = guest();
        let root = fake.root();
        let offline = |block| write_state(&root, BlockId(block), StateRequest::Offline);
        assert!(matches!(offline(0), Err(WriteError::Invalid { block: BlockId(0), .. })));
        fake.refuse_block(BlockId(1), Errno::BUSY);
        assert!(matches!(offline(1), Err(WriteError::Busy { .. })));
        fake.refuse_block(BlockId(1), Errno::INTR);
        assert!(matches!(offline(1), Err(WriteError::Interrupted { .. })));
        assert!(matches!(offline(7), Err(WriteError::Other(error)) if error.is_missing()));
        assert_eq!(read(&root, BlockId(1)).unwrap().state, State::Online);
    }

    #[test]
    fn asking_for_what_is_already_so_is_invalid() {
        let fake = guest();
        let again = write_state(&fake.root(), BlockId(1), StateRequest::Online);
        assert!(matches!(again, Err(WriteError::Invalid { .. })));
    }
}
