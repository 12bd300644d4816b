//! The table of blocks.

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

fn removers(root: &Root) -> Removers {
    Removers::new(root, "/nowhere".into())
}

fn table(root: &Root, seen: &Seen) -> Blocks {
    Blocks::read(root, seen, &removers(root)).unwrap()
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
    let mut blocks = table(&fake.root(), &seen);
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
    let blocks = table(&fake.root(), &Seen::default());
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
    removers(&fake.root()).remove(BlockId(32)).unwrap();
    fake
}

#[test]
fn what_was_removed_is_stolen_as_before() {
    let fake = removed();
    let root = fake.root();
    let gone = BTreeSet::from([32, 33, 34].map(BlockId));
    let seen = Seen { removed: gone.clone(), ..Seen::default() };
    let mut blocks = table(&root, &seen);
    assert_eq!(blocks.offline_still(&root), [32, 33, 34].map(BlockId));
    assert!(blocks.is_offline(&root, blocks.ranges(&[BlockId(32), BlockId(33)])[0]));
    assert_eq!((blocks.count(), blocks.seen().removed), (8, gone));
    assert_eq!(blocks.refresh(&root).unwrap(), []);
    assert_eq!(blocks.removed().len(), 3);
    // A stranger's removal is not ours, and memory that was taken away does not come back.
    assert_eq!(table(&root, &Seen::default()).count(), 5);
    fake.remove("sys/bus/dax/devices/dax0.0");
    blocks.refresh(&root).unwrap();
    assert_eq!((blocks.count(), blocks.offline_by_us()), (5, vec![]));
}

#[test]
fn what_somebody_else_plugs_in_again_is_noticed() {
    let fake = removed();
    let root = fake.root();
    let seen = Seen { removed: [32, 33, 34].map(BlockId).into(), ..Seen::default() };
    let mut blocks = table(&root, &seen);
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
    let mut blocks = table(&root, &Seen::default());
    offline(&fake, 4);
    write_state(&root, BlockId(3), StateRequest::OnlineMovable).unwrap();
    let surprises = blocks.refresh(&root).unwrap();
    let expected = [Surprise::CameOnline(BlockId(3)), Surprise::WentOffline(BlockId(4))];
    assert_eq!(surprises, expected);
    assert_eq!(blocks.refresh(&root).unwrap(), []);
    assert_eq!(states(&blocks)[3..], [BlockState::Movable, BlockState::Foreign]);
}

/// Unplugs a block's memory and plugs in other memory at its place.
fn replace(fake: &FakeRoot, block: u64, with: FakeBlock) {
    fake.remove(&format!("sys/devices/system/memory/memory{block}"));
    fake.add_blocks(BlockSize::X86_SMALL, [(block, with)]);
}

#[test]
fn other_memory_in_the_place_of_a_stolen_block_is_not_ours() {
    let fake = guest();
    let root = fake.root();
    let mut blocks = table(&root, &Seen::default());
    (3..5).for_each(|block| {
        offline(&fake, block);
        blocks.went_offline(&root, BlockId(block), None);
    });
    blocks.told(&blocks.ranges(&[BlockId(4)]));
    replace(&fake, 3, FakeBlock::MOVABLE);
    replace(&fake, 4, FakeBlock::OFFLINE);
    assert_eq!(blocks.offline_still(&root), [], "no hello names them");
    let expected = [Surprise::Replaced(BlockId(3)), Surprise::Replaced(BlockId(4))];
    assert_eq!(blocks.refresh(&root).unwrap(), expected);
    assert_eq!(states(&blocks)[3..], [BlockState::Movable, BlockState::Foreign]);
    assert_eq!(blocks.refresh(&root).unwrap(), []);
    // What was not stolen is as before: whoever took it offline, it was not the agent.
    replace(&fake, 3, FakeBlock::OFFLINE);
    assert_eq!(blocks.refresh(&root).unwrap(), [Surprise::WentOffline(BlockId(3))]);
}

/// Between two looks other memory came, and went offline by the agent's own hand.
#[test]
fn what_is_stolen_right_after_it_was_plugged_in_is_ours() {
    let fake = guest();
    let root = fake.root();
    let mut blocks = table(&root, &Seen::default());
    let before = blocks.bare_making(BlockId(4));
    replace(&fake, 4, FakeBlock::MOVABLE);
    offline(&fake, 4);
    blocks.went_offline(&root, BlockId(4), None);
    assert_eq!(blocks.refresh(&root).unwrap(), []);
    assert_eq!(blocks.offline_still(&root), [BlockId(4)]);
    assert!(before.is_some() && blocks.bare_making(BlockId(4)) != before);
}

#[test]
fn a_block_that_no_device_brought_is_known_to_be_bare_until_it_is_made_anew() {
    let fake = guest();
    let root = fake.root();
    fake.put_into_dimm(BlockId(4), "PNP0C80:00");
    let mut blocks = table(&root, &Seen::default());
    let making = memory::inode(&root, BlockId(3)).ok();
    assert_eq!([3, 4].map(|block| blocks.bare_making(BlockId(block))), [making, None]);
    // Stolen and brought back it is the same one.
    offline(&fake, 3);
    blocks.went_offline(&root, BlockId(3), making);
    assert_eq!(blocks.offline_still(&root), [BlockId(3)]);
    write_state(&root, BlockId(3), StateRequest::OnlineMovable).unwrap();
    blocks.set(&root, BlockId(3), Hold::Online);
    assert_eq!(blocks.bare_making(BlockId(3)), making);
    // Another one is not known before the next look, nor is a block that turns out to be of a DIMM.
    replace(&fake, 3, FakeBlock::MOVABLE);
    blocks.set(&root, BlockId(3), Hold::Online);
    assert_eq!(blocks.bare_making(BlockId(3)), None);
    fake.put_into_dimm(BlockId(2), "PNP0C80:00");
    blocks.refresh(&root).unwrap();
    let anew = memory::inode(&root, BlockId(3)).ok();
    assert_eq!([2, 3].map(|block| blocks.bare_making(BlockId(block))), [None, anew]);
    // Where the kernel does not say where blocks came from, none is known to be bare.
    fake.put("sys/bus/dax/devices/dax0.0/size", "many\n");
    let blocks = table(&root, &Seen::default());
    assert_eq!(blocks.bare_making(BlockId(3)), None);
}

#[test]
fn what_the_agent_removed_itself_comes_back_as_its_own() {
    let fake = guest();
    let root = fake.root();
    let memory = GpaRange::new(memtide_units::Gpa(32 << 27), ByteSize::from_mib(384)).unwrap();
    fake.add_dax("dax0.0", BlockSize::X86_SMALL, memory);
    let mut blocks = table(&root, &Seen::default());
    let ids = [32, 33, 34].map(BlockId);
    for block in ids {
        offline(&fake, block.0);
        blocks.went_offline(&root, block, None);
    }
    removers(&root).remove(ids[0]).unwrap();
    blocks.note_removed(&root, &ids.into());
    fake.put("sys/devices/system/memory/auto_online_blocks", "offline\n");
    memtide_sysfs::dax::bind(&root, "dax0.0").unwrap();
    assert_eq!(blocks.offline_still(&root), ids);
    assert_eq!(blocks.refresh(&root).unwrap(), []);
    assert_eq!((blocks.offline_by_us(), blocks.removed()), (ids.to_vec(), vec![]));
}

#[test]
fn a_block_that_cannot_be_read_is_still_on_its_way() {
    let fake = guest();
    offline(&fake, 4);
    let mut blocks = table(&fake.root(), &Seen::default());
    fake.put("sys/devices/system/memory/memory4/state", "");
    blocks.set(&fake.root(), BlockId(4), Hold::Returning);
    assert_eq!(blocks.offline_by_us(), [], "a hello would have the host drop it in use");
}

#[test]
fn neighbours_become_one_range_and_ranges_become_blocks() {
    let blocks = table(&guest().root(), &Seen::default());
    let ids = [BlockId(0), BlockId(1), BlockId(3)];
    let ranges = blocks.ranges(&ids);
    assert_eq!(ranges.len(), 2);
    assert_eq!(ranges[0].len().mib(), 256);
    assert_eq!(blocks.in_ranges(&ranges), ids);
}

#[test]
fn what_is_taken_in_pieces_stands_for_its_block() {
    let fake = guest();
    let root = fake.root();
    let mut blocks = table(&root, &Seen::default());
    blocks.allow_pieces(ByPieces::NeverOffline);
    assert_eq!(states(&blocks)[..2], [BlockState::ByPieces, BlockState::Kernel]);
    blocks.allow_pieces(ByPieces::KernelZones);
    assert_eq!(
        states(&blocks)[1..4],
        [BlockState::ByPieces, BlockState::ByPieces, BlockState::Movable]
    );
    let run = |mib: u64, len| {
        GpaRange::new(memtide_units::Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    };
    // The second one is all of block 2, which stays online all the same.
    let runs = [run(16, 2), run(256, 128)];
    blocks.went_in_pieces(BlockId(1), runs.to_vec());
    assert_eq!((blocks.given(&[BlockId(1)]), blocks.online().mib()), (runs.to_vec(), 4 * 128));
    assert!(blocks.is_offline(&root, runs[0]) && !blocks.is_offline(&root, run(18, 2)));
    blocks.told(&runs[..1]);
    assert_eq!(blocks.hold(BlockId(1)), Some(Hold::Leaving), "not all of it");
    blocks.told(&runs[1..]);
    assert_eq!(blocks.hold(BlockId(1)), Some(Hold::Stolen));
    assert_eq!(blocks.hold(BlockId(2)), Some(Hold::Online));
    assert_eq!(blocks.refresh(&root).unwrap(), [], "the block itself is online, and that is well");
    assert!(!blocks.can_be_removed(&[BlockId(1)]));
    assert_eq!((blocks.in_use().len(), blocks.movable_count()), (5, 2));
    // On its way back no hello names it; then it is a block like before.
    blocks.set(&root, BlockId(1), Hold::Returning);
    assert_eq!((blocks.offline_still(&root), blocks.given(&[BlockId(1)])), (vec![], runs.to_vec()));
    assert!(!blocks.is_offline(&root, runs[0]));
    blocks.set(&root, BlockId(1), Hold::Online);
    assert_eq!((blocks.in_pieces(), blocks.ranges(&[BlockId(1)])), (vec![], vec![run(128, 128)]));
}

/// Whoever hears of it first, a look at all blocks or an answer of the host's.
#[test]
fn a_stolen_block_that_somebody_puts_into_a_kernel_zone_has_come_there() {
    let fake = guest();
    let mut blocks = table(&fake.root(), &Seen::default());
    offline(&fake, 4);
    blocks.went_offline(&fake.root(), BlockId(4), None);
    fake.add_blocks(BlockSize::X86_SMALL, [(4, FakeBlock::KERNEL)]);
    blocks.set(&fake.root(), BlockId(4), Hold::Online);
    assert_eq!(blocks.latecomers(), [BlockId(4)]);
    // What pieces come to stand for is not made movable any more.
    blocks.await_conversion([BlockId(4)].into());
    blocks.went_in_pieces(BlockId(4), Vec::new());
    assert_eq!(blocks.awaiting_conversion().count(), 0);
}
