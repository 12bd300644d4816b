//! What is true of blocks in the moment in which something is sent.

use memtide_policy::guest::Limits;
use memtide_sysfs::Root;
use memtide_units::{BlockSize, GpaRange};
use memtide_wire::block::{Hello, RANGES_MAX};
use memtide_wire::config::Plugging;

use crate::blocks::Blocks;
use crate::link::{Guest, HostConfig};

/// What the kernel says when something is sent, and the agent's books.
pub(super) struct Books<'a> {
    pub(super) root: &'a Root,
    pub(super) blocks: &'a Blocks,
    pub(super) limits: Limits,
}

impl Guest for Books<'_> {
    /// What is offline by the agent's doing, and stays so until a grant.
    /// What was ejected is named to a device that knows of such memory: to any other it is none. And it is
    /// named apart: the host may plug it in at any moment, and must not drop it then.
    fn introduction(&self, config: &HostConfig) -> Hello {
        let Self { root, blocks, limits } = self;
        let out = blocks.offline_still(root);
        let (mut ejected, there): (Vec<_>, Vec<_>) =
            out.into_iter().partition(|block| blocks.is_ejected(*block));
        if config.plugging == Plugging::Nobody {
            ejected.clear();
        }
        let ejected = blocks.ranges(&ejected);
        let mut stolen = blocks.given(&there);
        let most = RANGES_MAX.saturating_sub(ejected.len());
        if stolen.len() > most {
            // The host then believes that the guest uses more than it does: safe.
            tracing::error!("{} stolen ranges, and the host hears of {most}", stolen.len());
            stolen.truncate(most);
        }
        Hello {
            epoch: config.hello_epoch,
            block_size: blocks.size(),
            present: blocks.present(),
            online: blocks.online(),
            min: limits.min(),
            max: limits.max(),
            stolen,
            ejected,
        }
    }

    fn is_offline(&self, range: GpaRange) -> bool {
        self.blocks.is_offline(self.root, range)
    }

    fn block_size(&self) -> BlockSize {
        self.blocks.size()
    }
}
