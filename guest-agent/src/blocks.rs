//! The agent's table of memory blocks: what the kernel says of each, and whose doing it is.
//!
//! The truth about what is stolen is the kernel's: a block that is offline, and was not offline
//! before the agent's first start, is the agent's. So a restarted agent knows all that it needs
//! from sysfs and from the short list of known and *foreign* blocks that it left in its runtime
//! directory. That list names the *removed* blocks too: the kernel has none of these any more, and
//! says only that it could have them again.

use std::collections::{BTreeMap, BTreeSet};

use memtide_policy::guest::{BlockState, BlockView, FixedReason, HeatMap};
use memtide_sysfs::memory::{Block, Origins, State, Zone};
use memtide_sysfs::{Root, memory};
use memtide_units::{BlockId, BlockSize, ByteSize, GpaRange};

use crate::remove::{self, Plug};
use crate::runtime::Seen;

/// Whose doing it is that a block is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The kernel uses it.
    Online,
    /// The agent took it offline; the host has not heard of it for certain.
    Leaving,
    /// The agent took it offline, and the host knows.
    Stolen,
    /// It was granted, or never reported, and is being put online: the host must not hear of it
    /// as stolen any more.
    Returning,
    /// Somebody else took it offline.
    Foreign,
}

#[derive(Clone, Debug)]
struct Entry {
    hold: Hold,
    zone: Option<Zone>,
    never_offline: bool,
    /// It may hold its own `struct page`s.
    owns_structs: bool,
    /// `Out` where it was removed.
    plug: Plug,
}

impl Entry {
    fn new(block: &Block, hold: Hold, owns_structs: bool) -> Self {
        let (zone, never_offline) = (block.current_zone(), block.never_offline());
        Self { hold, zone, never_offline, owns_structs, plug: Plug::In }
    }

    /// A block that the kernel has not.
    fn removed(hold: Hold) -> Self {
        Self { hold, zone: None, never_offline: false, owns_structs: false, plug: Plug::Out }
    }
}

/// What somebody else did to a block since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surprise {
    /// A block of the agent's is online: the host must be told.
    CameOnline(BlockId),
    /// A block went offline without the agent: it is foreign from now on.
    WentOffline(BlockId),
}

/// The table.
#[derive(Clone, Debug)]
pub struct Blocks {
    size: BlockSize,
    entries: BTreeMap<BlockId, Entry>,
    /// Hold the agent's DMA memory.
    kept: BTreeSet<BlockId>,
}

impl Blocks {
    /// Reads all blocks. Those offline are the agent's, except the foreign ones; and so are the
    /// removed ones that could be plugged in again.
    ///
    /// # Errors
    /// What [`memory::list`] says: a kernel without memory hotplug has none.
    pub fn read(root: &Root, seen: &Seen) -> Result<Self, memtide_sysfs::Error> {
        let size = memory::block_size(root)?;
        let mut table = Self { size, entries: BTreeMap::new(), kept: BTreeSet::new() };
        let own = OwnStructs::look(root);
        for block in memory::list(root)? {
            let owns = own.may_be_in(block.id);
            let hold = match block.state {
                State::Online | State::GoingOffline => Hold::Online,
                // The agent steals no block that may hold them: somebody else took it offline.
                State::Offline if owns || seen.foreign.contains(&block.id) => Hold::Foreign,
                // Not told yet: the hello tells.
                State::Offline => Hold::Leaving,
            };
            table.entries.insert(block.id, Entry::new(&block, hold, owns));
        }
        if !seen.removed.is_empty() {
            for block in remove::unplugged(root)?.intersection(&seen.removed) {
                table.entries.entry(*block).or_insert_with(|| Entry::removed(Hold::Leaving));
            }
        }
        Ok(table)
    }

    /// Size of each.
    pub fn size(&self) -> BlockSize {
        self.size
    }

    /// Never touch these: the device reads and writes in them.
    pub fn keep(&mut self, blocks: impl IntoIterator<Item = BlockId>) {
        self.kept.extend(blocks);
    }

    /// What is known of one block.
    pub fn hold(&self, block: BlockId) -> Option<Hold> {
        self.entries.get(&block).map(|entry| entry.hold)
    }

    /// Whether the block is online in `ZONE_MOVABLE`.
    pub fn is_movable(&self, block: BlockId) -> bool {
        self.entries.get(&block).is_some_and(|entry| entry.zone == Some(Zone::Movable))
    }

    /// The agent has taken a block offline: it is in no zone.
    pub fn went_offline(&mut self, block: BlockId) {
        let plug = self.entries.get(&block).map_or(Plug::In, |entry| entry.plug);
        self.entries.insert(block, Entry { plug, ..Entry::removed(Hold::Leaving) });
    }

    /// Something was done to a block. The kernel says what zone it is in now.
    pub fn set(&mut self, root: &Root, block: BlockId, hold: Hold) {
        match memory::read(root, block) {
            Ok(now) => {
                let owns = self.entries.get(&block).is_some_and(|entry| entry.owns_structs);
                self.entries.insert(block, Entry::new(&now, hold, owns));
            }
            // Unplugged in this moment: the next refresh finds out. Whose doing it is counts all
            // the same: a hello must not name a block that is on its way back.
            Err(error) => {
                if !self.is_removed(block) {
                    tracing::warn!("{block}: {error}");
                }
                if let Some(entry) = self.entries.get_mut(&block) {
                    entry.hold = hold;
                }
            }
        }
    }

    /// The host has heard of these.
    pub fn told(&mut self, stolen: &[GpaRange]) {
        for (id, entry) in &mut self.entries {
            let range = self.size.range(*id);
            let named = stolen.iter().any(|s| range.is_some_and(|range| s.contains(range)));
            if named && entry.hold == Hold::Leaving {
                entry.hold = Hold::Stolen;
            }
        }
    }

    /// Reads all blocks again and says what changed without the agent. Call it while none of the
    /// agent's own changes is under way.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn refresh(&mut self, root: &Root) -> Result<Vec<Surprise>, memtide_sysfs::Error> {
        let blocks = memory::list(root)?;
        let present: BTreeSet<BlockId> = blocks.iter().map(|block| block.id).collect();
        let unplugged = if self.entries.values().any(|entry| entry.plug == Plug::Out) {
            remove::unplugged(root)?
        } else {
            BTreeSet::new()
        };
        let is_known = |id: &BlockId, entry: &Entry| {
            present.contains(id) || entry.plug == Plug::Out && unplugged.contains(id)
        };
        self.entries.retain(|id, entry| is_known(id, entry));
        let own = OwnStructs::look(root);
        let mut surprises = Vec::new();
        for block in blocks {
            let hold = self.hold(block.id).unwrap_or(Hold::Online);
            let now = match (hold, block.state) {
                (Hold::Online, State::Offline) => {
                    surprises.push(Surprise::WentOffline(block.id));
                    Hold::Foreign
                }
                (Hold::Leaving | Hold::Stolen | Hold::Returning, State::Online) => {
                    surprises.push(Surprise::CameOnline(block.id));
                    Hold::Online
                }
                (Hold::Foreign, State::Online) => Hold::Online,
                (same, _) => same,
            };
            self.entries.insert(block.id, Entry::new(&block, now, own.may_be_in(block.id)));
        }
        Ok(surprises)
    }

    /// The policy's view, with heat where it is known.
    pub fn views(&self, heat: &HeatMap) -> Vec<BlockView> {
        let view = |(id, entry): (&BlockId, &Entry)| BlockView {
            id: *id,
            state: self.state(*id, entry),
            heat: heat.heat(*id),
            census: None,
        };
        self.entries.iter().map(view).collect()
    }

    fn state(&self, id: BlockId, entry: &Entry) -> BlockState {
        match entry.hold {
            Hold::Leaving | Hold::Returning => BlockState::InTransit,
            Hold::Stolen => BlockState::Stolen,
            Hold::Foreign => BlockState::Foreign,
            Hold::Online if entry.never_offline => BlockState::Fixed(FixedReason::NeverOffline),
            Hold::Online if self.kept.contains(&id) => BlockState::Fixed(FixedReason::AgentMemory),
            Hold::Online if entry.owns_structs => BlockState::Fixed(FixedReason::OwnStructs),
            Hold::Online if entry.zone == Some(Zone::Movable) => BlockState::Movable,
            Hold::Online => BlockState::Kernel,
        }
    }

    /// Blocks with this hold, ascending.
    pub fn with(&self, hold: Hold) -> Vec<BlockId> {
        self.entries.iter().filter(|(_, entry)| entry.hold == hold).map(|(id, _)| *id).collect()
    }

    /// All blocks, ascending.
    pub fn all(&self) -> Vec<BlockId> {
        self.entries.keys().copied().collect()
    }

    /// All that the kernel does not use, whoever took it, ascending.
    pub fn offline(&self) -> Vec<BlockId> {
        let is_offline = |entry: &Entry| entry.hold != Hold::Online;
        self.entries.iter().filter(|(_, entry)| is_offline(entry)).map(|(id, _)| *id).collect()
    }

    /// All that is offline by the agent's doing and stays so, whether the host knows or not: what a
    /// hello says. A block that is being put online is not among it, or the host would drop what
    /// the guest has begun to use.
    pub fn offline_by_us(&self) -> Vec<BlockId> {
        let ours = |entry: &Entry| matches!(entry.hold, Hold::Leaving | Hold::Stolen);
        self.entries.iter().filter(|(_, entry)| ours(entry)).map(|(id, _)| *id).collect()
    }

    /// Those of [`Self::offline_by_us`] that the kernel says are offline at this moment: somebody
    /// else may have put one online since the last refresh, and the host would drop it in use.
    pub fn offline_still(&self, root: &Root) -> Vec<BlockId> {
        self.offline_by_us().into_iter().filter(|block| self.is_out(root, *block)).collect()
    }

    /// Whether the kernel says at this moment that all of a range is offline.
    pub fn is_offline(&self, root: &Root, range: GpaRange) -> bool {
        let blocks = self.in_ranges(&[range]);
        let size = self.size.size().times(blocks.len() as u64);
        size == range.len() && blocks.into_iter().all(|block| self.is_out(root, block))
    }

    /// Offline, or not even there because it was removed.
    fn is_out(&self, root: &Root, block: BlockId) -> bool {
        match memory::state(root, block) {
            Ok(state) => state == State::Offline,
            Err(error) => error.is_missing() && self.is_removed(block),
        }
    }

    fn is_removed(&self, block: BlockId) -> bool {
        self.entries.get(&block).is_some_and(|entry| entry.plug == Plug::Out)
    }

    /// Blocks that are stolen and removed.
    pub fn removed(&self) -> Vec<BlockId> {
        self.entries.keys().copied().filter(|block| self.is_removed(*block)).collect()
    }

    /// Blocks that may hold their own `struct page`s, and are never stolen for that.
    pub fn with_own_structs(&self) -> usize {
        self.entries.values().filter(|entry| entry.owns_structs).count()
    }

    /// Whether all of these are stolen, the host knows, and the kernel still has them.
    pub fn can_be_removed(&self, blocks: &[BlockId]) -> bool {
        let is_so =
            |block: &BlockId| self.hold(*block) == Some(Hold::Stolen) && !self.is_removed(*block);
        !blocks.is_empty() && blocks.iter().all(is_so)
    }

    /// Those of `blocks` that the kernel has not any more were removed.
    pub fn note_removed(&mut self, root: &Root, blocks: &BTreeSet<BlockId>) {
        for block in blocks {
            let is_gone = memory::state(root, *block).is_err_and(|error| error.is_missing());
            if let Some(entry) = self.entries.get_mut(block).filter(|_| is_gone) {
                entry.plug = Plug::Out;
            }
        }
    }

    /// All memory that the guest has, online or not.
    pub fn present(&self) -> ByteSize {
        self.size.size().times(self.entries.len() as u64)
    }

    /// Memory that is online.
    pub fn online(&self) -> ByteSize {
        self.size.size().times(self.with(Hold::Online).len() as u64)
    }

    /// What an agent that comes later must know of them.
    pub fn seen(&self) -> Seen {
        let known = self.entries.keys().copied().collect();
        let foreign = self.with(Hold::Foreign).into_iter().collect();
        Seen { known, foreign, removed: self.removed().into_iter().collect() }
    }

    /// How many blocks there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// How many are in `ZONE_MOVABLE`, or will come back to it.
    pub fn movable_count(&self) -> usize {
        let movable = |entry: &&Entry| match entry.hold {
            Hold::Online => entry.zone == Some(Zone::Movable),
            Hold::Leaving | Hold::Stolen | Hold::Returning => true,
            Hold::Foreign => false,
        };
        self.entries.values().filter(movable).count()
    }

    /// The addresses of `blocks` (ascending), neighbours joined.
    pub fn ranges(&self, blocks: &[BlockId]) -> Vec<GpaRange> {
        let mut ranges: Vec<GpaRange> = Vec::new();
        for range in blocks.iter().filter_map(|block| self.size.range(*block)) {
            match ranges.last().and_then(|last| last.joined_with(range)) {
                Some(joined) => *ranges.last_mut().expect("it has just been looked at") = joined,
                None => ranges.push(range),
            }
        }
        ranges
    }

    /// The blocks of `ranges`.
    pub fn in_ranges(&self, ranges: &[GpaRange]) -> Vec<BlockId> {
        let named = |id: &&BlockId| {
            let range = self.size.range(**id);
            range.is_some_and(|range| ranges.iter().any(|wanted| wanted.contains(range)))
        };
        self.entries.keys().filter(named).copied().collect()
    }
}

/// Which blocks may hold their own `struct page`s.
enum OwnStructs {
    /// As far as the kernel tells by block.
    By(Origins),
    /// It does not tell, and its parameter says whether any may.
    AllOrNone(bool),
}

impl OwnStructs {
    fn look(root: &Root) -> Self {
        Origins::read(root).map_or_else(
            |error| {
                tracing::warn!("nothing is known of where blocks came from: {error}");
                Self::AllOrNone(memory::may_hold_own_structs(root))
            },
            Self::By,
        )
    }

    fn may_be_in(&self, block: BlockId) -> bool {
        match self {
            Self::By(origins) => origins.may_hold_own_structs(block),
            Self::AllOrNone(all) => *all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_sysfs::memory::{StateRequest, write_state};

    fn guest() -> FakeRoot {
        let fake = FakeRoot::new();
        let blocks = [
            (0, FakeBlock::HOLE),
            (1, FakeBlock::KERNEL),
            (2, FakeBlock::KERNEL),
            (3, FakeBlock::MOVABLE),
            (4, FakeBlock::MOVABLE),
        ];
        fake.add_blocks(BlockSize::X86_SMALL, blocks);
        fake
    }

    fn offline(fake: &FakeRoot, block: u64) {
        write_state(&fake.root(), BlockId(block), StateRequest::Offline).unwrap();
    }

    fn states(blocks: &Blocks) -> Vec<BlockState> {
        let heat = HeatMap::new(blocks.size());
        blocks.views(&heat).into_iter().map(|view| view.state).collect()
    }

    #[test]
    fn an_offline_block_is_ours_unless_it_was_so_before_us() {
        let fake = guest();
        offline(&fake, 3);
        let foreign = BTreeSet::from([BlockId(3)]);
        offline(&fake, 4);
        let seen = Seen { foreign, ..Seen::default() };
        let mut blocks = Blocks::read(&fake.root(), &seen).unwrap();
        blocks.keep([BlockId(1)]);
        let fixed = |reason| BlockState::Fixed(reason);
        let expected = [
            fixed(FixedReason::NeverOffline),
            fixed(FixedReason::AgentMemory),
            BlockState::Kernel,
            BlockState::Foreign,
            BlockState::InTransit,
        ];
        assert_eq!(states(&blocks), expected);
        assert_eq!(blocks.offline_by_us(), [BlockId(4)]);
        blocks.told(&blocks.ranges(&[BlockId(4)]));
        assert_eq!(blocks.with(Hold::Stolen), [BlockId(4)]);
        assert_eq!((blocks.online().mib(), blocks.present().mib()), (3 * 128, 5 * 128));
    }

    #[test]
    fn a_block_that_may_hold_its_own_struct_pages_is_never_ours() {
        let fake = guest();
        offline(&fake, 3);
        fake.put_into_dimm(BlockId(3), "PNP0C80:00");
        fake.put_into_dimm(BlockId(4), "PNP0C80:00");
        fake.put("sys/module/memory_hotplug/parameters/memmap_on_memory", "Y\n");
        let blocks = Blocks::read(&fake.root(), &Seen::default()).unwrap();
        assert_eq!(blocks.with(Hold::Foreign), [BlockId(3)]);
        assert_eq!(states(&blocks)[4], BlockState::Fixed(FixedReason::OwnStructs));
        assert_eq!(states(&blocks)[2], BlockState::Kernel, "it was there at boot");
        assert_eq!(blocks.with_own_structs(), 2);
    }

    /// Blocks 32 to 34 are of a device that has been removed.
    fn removed() -> FakeRoot {
        let fake = guest();
        let memory = GpaRange::new(memtide_units::Gpa(32 << 27), ByteSize::from_mib(384)).unwrap();
        fake.add_dax("dax0.0", BlockSize::X86_SMALL, memory);
        (32..35).for_each(|block| offline(&fake, block));
        remove::remove(&fake.root(), BlockId(32)).unwrap();
        fake
    }

    #[test]
    fn what_was_removed_is_stolen_as_before() {
        let fake = removed();
        let root = fake.root();
        let gone = BTreeSet::from([32, 33, 34].map(BlockId));
        let seen = Seen { removed: gone.clone(), ..Seen::default() };
        let mut blocks = Blocks::read(&root, &seen).unwrap();
        assert_eq!(blocks.offline_still(&root), [32, 33, 34].map(BlockId));
        assert!(blocks.is_offline(&root, blocks.ranges(&[BlockId(32), BlockId(33)])[0]));
        assert_eq!((blocks.count(), blocks.seen().removed), (8, gone));
        assert_eq!(blocks.refresh(&root).unwrap(), []);
        assert_eq!(blocks.removed().len(), 3);
        // A stranger's removal is not ours, and memory that was taken away does not come back.
        assert_eq!(Blocks::read(&root, &Seen::default()).unwrap().count(), 5);
        fake.remove("sys/bus/dax/devices/dax0.0");
        blocks.refresh(&root).unwrap();
        assert_eq!((blocks.count(), blocks.offline_by_us()), (5, vec![]));
    }

    #[test]
    fn what_somebody_else_plugs_in_again_is_noticed() {
        let fake = removed();
        let root = fake.root();
        let seen = Seen { removed: [32, 33, 34].map(BlockId).into(), ..Seen::default() };
        let mut blocks = Blocks::read(&root, &seen).unwrap();
        memtide_sysfs::dax::bind(&root, "dax0.0").unwrap();
        assert_eq!(blocks.offline_still(&root), [], "they are online: a hello must not name them");
        let surprises = blocks.refresh(&root).unwrap();
        assert_eq!(surprises.len(), 3);
        assert_eq!((blocks.with(Hold::Online).len(), blocks.removed()), (8, vec![]));
    }

    #[test]
    fn what_others_do_to_blocks_is_noticed() {
        let fake = guest();
        let root = fake.root();
        offline(&fake, 3);
        let mut blocks = Blocks::read(&root, &Seen::default()).unwrap();
        offline(&fake, 4);
        write_state(&root, BlockId(3), StateRequest::OnlineMovable).unwrap();
        let surprises = blocks.refresh(&root).unwrap();
        let expected = [Surprise::CameOnline(BlockId(3)), Surprise::WentOffline(BlockId(4))];
        assert_eq!(surprises, expected);
        assert_eq!(blocks.refresh(&root).unwrap(), []);
        assert_eq!(states(&blocks)[3..], [BlockState::Movable, BlockState::Foreign]);
    }

    #[test]
    fn a_block_that_cannot_be_read_is_still_on_its_way() {
        let fake = guest();
        offline(&fake, 4);
        let mut blocks = Blocks::read(&fake.root(), &Seen::default()).unwrap();
        fake.put("sys/devices/system/memory/memory4/state", "");
        blocks.set(&fake.root(), BlockId(4), Hold::Returning);
        assert_eq!(blocks.offline_by_us(), [], "a hello would have the host drop it in use");
    }

    #[test]
    fn neighbours_become_one_range_and_ranges_become_blocks() {
        let blocks = Blocks::read(&guest().root(), &Seen::default()).unwrap();
        let ids = [BlockId(0), BlockId(1), BlockId(3)];
        let ranges = blocks.ranges(&ids);
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges[0].len().mib(), 256);
        assert_eq!(blocks.in_ranges(&ranges), ids);
    }
}
