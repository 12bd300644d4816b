//! Which blocks count as such.

use memtide_sysfs::fake::{FakeBlock, FakeRoot};
use memtide_sysfs::memory::{StateRequest, write_state};
use memtide_units::{BlockSize, ByteSize, GpaRange};

use super::*;
use crate::remove::Removers;
use crate::runtime::Seen;

const SIZE: BlockSize = BlockSize::X86_SMALL;

/// Blocks 1 and 2 are the kernel's since boot, 3 is movable.
fn guest() -> (FakeRoot, Blocks) {
    let fake = FakeRoot::new();
    let kind = |n| if n < 3 { FakeBlock::KERNEL } else { FakeBlock::MOVABLE };
    fake.add_blocks(SIZE, (1..4).map(|n| (n, kind(n))));
    let root = fake.root();
    let blocks = Blocks::read(&root, &Seen::default(), &Removers::new(&root, "/nowhere".into()));
    (fake, blocks.unwrap())
}

fn plug_in(fake: &FakeRoot, block: u64) {
    fake.add_blocks(SIZE, [(block, FakeBlock::KERNEL)]);
}

fn after_a_look(fake: &FakeRoot, blocks: &mut Blocks) -> Vec<u64> {
    blocks.refresh(&fake.root()).unwrap();
    blocks.latecomers().into_iter().map(|block| block.0).collect()
}

#[test]
fn what_came_to_a_kernel_zone_since_is_a_latecomer_until_it_is_movable_or_gone() {
    let (fake, mut blocks) = guest();
    assert_eq!(after_a_look(&fake, &mut blocks), [] as [u64; 0], "these were there at boot");
    (4..6).for_each(|block| plug_in(&fake, block));
    assert_eq!(after_a_look(&fake, &mut blocks), [4, 5]);
    assert_eq!(blocks.seen().late, BTreeSet::from([BlockId(4), BlockId(5)]));
    let write = |block, how| write_state(&fake.root(), BlockId(block), how).unwrap();
    write(4, StateRequest::Offline);
    write(4, StateRequest::OnlineMovable);
    fake.remove("sys/devices/system/memory/memory5");
    assert_eq!(after_a_look(&fake, &mut blocks), [] as [u64; 0]);
    // Somebody else has the kernel use what was movable.
    write(3, StateRequest::Offline);
    write(3, StateRequest::Online);
    assert_eq!(after_a_look(&fake, &mut blocks), [3]);
    blocks.settle(&BTreeSet::from([BlockId(2), BlockId(4)]));
    assert_eq!(after_a_look(&fake, &mut blocks), [2], "it can be unplugged");
}

#[test]
fn other_memory_at_the_place_of_a_kernels_block_is_one() {
    let (fake, mut blocks) = guest();
    fake.remove("sys/devices/system/memory/memory2");
    plug_in(&fake, 2);
    assert_eq!(after_a_look(&fake, &mut blocks), [2]);
}

#[test]
fn what_is_to_be_made_movable_is_not_taken_in_pieces() {
    let (fake, mut blocks) = guest();
    blocks.allow_pieces(ByPieces::KernelZones);
    plug_in(&fake, 4);
    after_a_look(&fake, &mut blocks);
    let goes_by_pieces = |blocks: &Blocks| [1, 4].map(|n| blocks.goes_by_pieces(BlockId(n)));
    assert_eq!(goes_by_pieces(&blocks), [true, true]);
    blocks.await_conversion(BTreeSet::from([BlockId(4)]));
    assert_eq!(goes_by_pieces(&blocks), [true, false]);
    let by_zone = blocks.by_zone();
    assert_eq!(by_zone.iter().filter(|view| view.state == BlockState::Kernel).count(), 3);
}

#[test]
fn a_block_in_which_pieces_lie_is_known() {
    let (fake, mut blocks) = guest();
    plug_in(&fake, 4);
    after_a_look(&fake, &mut blocks);
    let start = SIZE.range(BlockId(4)).unwrap().start();
    let piece = GpaRange::new(start, ByteSize::from_mib(2)).unwrap();
    blocks.went_in_pieces(BlockId(1), vec![piece]);
    assert_eq!([3, 4].map(|n| blocks.has_pieces_in(BlockId(n))), [false, true]);
    let state = |n: usize| blocks.by_zone()[n - 1].state;
    assert_eq!(state(1), BlockState::Fixed(FixedReason::NeverOffline), "the kernel's all the same");
    assert_eq!(after_a_look(&fake, &mut blocks), [4]);
}
