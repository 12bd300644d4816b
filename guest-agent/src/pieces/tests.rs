//! Pieces over a fake kernel, whose pages are held by nobody.

use super::*;
use memtide_sysfs::fake::FakeRoot;
use memtide_units::Gpa;
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, Ordering};

const OVERCOMMIT: &str = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages";
pub(crate) const SURPLUS: &str = "sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages";
const SIZE: BlockSize = BlockSize::X86_SMALL;

/// Hands out memory from 16 MiB on, as long as there is some.
#[derive(Debug, Default)]
pub(crate) struct FakeGrip {
    taken: AtomicU64,
    /// Bytes that there are; 0 for no limit.
    most: AtomicU64,
    /// Every page by itself, with a hole after it.
    is_scattered: bool,
}

impl Grip for FakeGrip {
    fn hold(&self, _file: &File, part: Range<u64>, held: &mut Held) -> io::Result<()> {
        let size = PAGE.times(part.end - part.start).bytes();
        let at = self.taken.fetch_add(size, Ordering::SeqCst);
        let most = self.most.load(Ordering::SeqCst);
        if most > 0 && at + size > most {
            return Err(Errno::NOMEM.into());
        }
        let apart = if self.is_scattered { 2 } else { 1 };
        let place = |n| Gpa(((16 << 20) + at + PAGE.times(n).bytes()) * apart);
        held.extend((0..part.end - part.start).map(place))
    }
}

/// A guest that frees the `struct page`s of huge pages, and says that it has more surplus pages than
/// anybody takes here.
pub(crate) fn add_huge_pages(fake: &FakeRoot) {
    fake.add_huge_pages("/dev/hugepages");
    fake.put(SURPLUS, "4096\n");
    fake.put("proc/sys/vm/hugetlb_optimize_vmemmap", "1\n");
}

struct Guest {
    fake: FakeRoot,
    dir: tempfile::TempDir,
    grip: Arc<FakeGrip>,
}

impl Guest {
    fn new(grip: FakeGrip) -> Self {
        let fake = FakeRoot::new();
        add_huge_pages(&fake);
        Self { fake, dir: tempfile::tempdir().unwrap(), grip: Arc::new(grip) }
    }

    fn mark(&self) -> PathBuf {
        self.dir.path().join("huge_pages")
    }

    fn pieces(&self) -> Pieces {
        Pieces::with_grip(&self.fake.root(), self.mark(), self.grip.clone()).unwrap()
    }

    fn take(&self, pieces: &Pieces, block: u64) -> Result<(), PiecesError> {
        pieces.take(BlockId(block), SIZE, ByteSize::from_mib(100), &|| true)
    }
}

#[test]
fn a_blocks_worth_is_taken_and_given_back_and_the_pool_is_as_it_was() {
    let guest = Guest::new(FakeGrip::default());
    let pieces = guest.pieces();
    guest.take(&pieces, 1).unwrap();
    let runs = pieces.runs(BlockId(1)).unwrap();
    assert_eq!(runs.iter().map(|run| run.len().mib()).sum::<u64>(), 128);
    assert!(pieces.stand_for(BlockId(1)) && !pieces.stand_for(BlockId(2)));
    let limits: Vec<_> = guest.fake.writes().into_iter().map(|(_, limit)| limit).collect();
    assert_eq!(limits, ["4104", "0"].repeat(8), "raised for each step, no longer");
    assert_eq!((guest.fake.get(OVERCOMMIT), guest.mark().exists()), ("0\n".into(), false));
    let size = fs::metadata(pieces.path(BlockId(1))).unwrap().len();
    assert_eq!(size, SIZE.size().bytes());
    pieces.release(BlockId(1)).unwrap();
    assert_eq!((pieces.left(), pieces.runs(BlockId(1))), (BTreeSet::new(), None));
}

#[test]
fn nothing_is_left_over_of_what_could_not_be_had() {
    let guest = Guest::new(FakeGrip { most: AtomicU64::new(200 << 20), ..FakeGrip::default() });
    let pieces = guest.pieces();
    guest.take(&pieces, 1).unwrap();
    let error = guest.take(&pieces, 2).unwrap_err();
    assert!(matches!(error, PiecesError::File { .. }), "{error}");
    assert_eq!((pieces.left(), guest.mark().exists()), ([BlockId(1)].into(), false));
    assert_eq!(guest.fake.get(OVERCOMMIT), "0\n");
}

#[test]
fn whoever_does_not_want_it_any_more_gets_it_back_after_the_step_at_work() {
    let guest = Guest::new(FakeGrip::default());
    let pieces = guest.pieces();
    let asked = AtomicU64::new(0);
    let is_wanted = || asked.fetch_add(1, Ordering::SeqCst) < 2;
    let error = pieces.take(BlockId(1), SIZE, ByteSize::ZERO, &is_wanted).unwrap_err();
    assert!(matches!(error, PiecesError::Unwanted), "{error}");
    let taken = ByteSize::from_bytes(guest.grip.taken.load(Ordering::SeqCst));
    assert_eq!(taken, ByteSize::from_mib(3 * 16), "no step is larger");
    assert_eq!((pieces.left(), pieces.count()), (BTreeSet::new(), 0));
    assert_eq!((guest.fake.get(OVERCOMMIT), guest.mark().exists()), ("0\n".into(), false));
}

/// The kernel's own memory is looked at before each step, not only at the first.
#[test]
fn what_somebody_needs_meanwhile_is_not_taken() {
    let guest = Guest::new(FakeGrip::default());
    let pieces = guest.pieces();
    let free = |mib: u64| format!("Node 0, zone Normal\n  pages free {}\n", mib * 256);
    guest.fake.put("proc/zoneinfo", &free(1000));
    // The fake frees and takes nothing by itself.
    let surge = || {
        guest.fake.put("proc/zoneinfo", &free(150));
        true
    };
    let error = pieces.take(BlockId(1), SIZE, ByteSize::from_mib(100), &surge).unwrap_err();
    let left = ByteSize::from_mib(128 - 16);
    assert!(matches!(error, PiecesError::NoRoom { size, .. } if size == left), "{error}");
    assert_eq!((pieces.left(), pieces.count()), (BTreeSet::new(), 0));
}

#[test]
fn what_the_kernel_needs_and_what_others_have_set_apart_is_left_alone() {
    let guest = Guest::new(FakeGrip::default());
    let pieces = guest.pieces();
    let free = |mib: u64| format!("Node 0, zone Normal\n  pages free {}\n", mib * 256);
    guest.fake.put("proc/zoneinfo", &(free(227) + "Node 0, zone Movable\n  pages free 99999\n"));
    let error = guest.take(&pieces, 1).unwrap_err();
    assert!(matches!(error, PiecesError::NoRoom { .. }), "{error}");
    guest.fake.put("proc/zoneinfo", &free(228));
    guest.take(&pieces, 1).unwrap();
    guest.fake.put("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "1\n");
    assert!(matches!(guest.take(&pieces, 2), Err(PiecesError::Idle(1))));
    guest.fake.put("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n");
    guest.fake.put(OVERCOMMIT, "5\n");
    assert!(matches!(guest.take(&pieces, 2), Err(PiecesError::Overcommit(5))));
}

#[test]
fn nothing_more_is_taken_once_an_administrator_has_got_what_is_held() {
    let guest = Guest::new(FakeGrip::default());
    let pieces = guest.pieces();
    guest.take(&pieces, 1).unwrap();
    guest.fake.put(SURPLUS, "64\n");
    assert_eq!(pieces.adopted(), 0);
    // nr_hugepages is 50 now.
    guest.fake.put(SURPLUS, "14\n");
    assert_eq!(pieces.adopted(), 50);
    let error = guest.take(&pieces, 2).unwrap_err();
    assert!(matches!(error, PiecesError::Adopted(50)), "{error}");
    pieces.release(BlockId(1)).unwrap();
    assert_eq!(pieces.adopted(), 0);
}

#[test]
fn a_limit_that_somebody_else_has_set_since_stays() {
    let guest = Guest::new(FakeGrip::default());
    fs::write(guest.mark(), "0 128").unwrap();
    guest.fake.put(OVERCOMMIT, "7\n");
    guest.pieces().restore().unwrap();
    assert_eq!((guest.fake.get(OVERCOMMIT), guest.mark().exists()), ("7\n".into(), false));
}

#[test]
fn a_file_that_somebody_has_removed_is_given_back_all_the_same() {
    let guest = Guest::new(FakeGrip::default());
    let pieces = guest.pieces();
    guest.take(&pieces, 1).unwrap();
    fs::remove_file(pieces.path(BlockId(1))).unwrap();
    assert!(pieces.stand_for(BlockId(1)));
    pieces.release(BlockId(1)).unwrap();
    assert_eq!((pieces.count(), pieces.stand_for(BlockId(1))), (0, false));
}

#[test]
fn more_places_than_a_hello_can_name_are_too_many() {
    let guest = Guest::new(FakeGrip { is_scattered: true, ..FakeGrip::default() });
    let pieces = guest.pieces();
    let taken = (1..).take_while(|block| guest.take(&pieces, *block).is_ok()).count();
    assert_eq!(taken, RUNS_MAX / 64);
    assert_eq!(pieces.left().len(), taken);
}

#[test]
fn a_successor_takes_hold_of_what_is_left_and_lets_go_of_what_it_cannot_hold() {
    let guest = Guest::new(FakeGrip::default());
    let pieces = guest.pieces();
    guest.take(&pieces, 1).unwrap();
    guest.take(&pieces, 2).unwrap();
    drop(pieces);
    // Killed between two steps, with the limit raised.
    let dir = guest.fake.root().path("dev/hugepages").join(DIRECTORY);
    fs::write(dir.join(UNFINISHED), "").unwrap();
    fs::write(guest.mark(), "0 128").unwrap();
    guest.fake.put(OVERCOMMIT, "128\n");
    guest.grip.most.store(300 << 20, Ordering::SeqCst);
    guest.grip.taken.store(100 << 20, Ordering::SeqCst);
    let successor = guest.pieces();
    successor.restore().unwrap();
    assert!(!dir.join(UNFINISHED).exists());
    successor.resume();
    assert_eq!((guest.fake.get(OVERCOMMIT), guest.mark().exists()), ("0\n".into(), false));
    assert_eq!(successor.left(), [BlockId(1)].into());
    assert!(successor.runs(BlockId(1)).is_some());
    successor.release_all();
    assert_eq!(successor.left(), BTreeSet::new());
}

#[test]
fn where_there_are_none_it_says_what_to_do() {
    let fake = FakeRoot::new();
    let why = |fake: &FakeRoot| Pieces::find(&fake.root(), "/nowhere".into()).unwrap_err();
    assert!(matches!(why(&fake), Unfit::Kernel(_)));
    fake.add_huge_pages("/dev/hugepages");
    assert!(why(&fake).to_string().contains("set it to 1"));
    fake.remove("proc/sys/vm/hugetlb_optimize_vmemmap");
    assert!(matches!(why(&fake), Unfit::NotOffered));
    add_huge_pages(&fake);
    fake.put("proc/self/mountinfo", "");
    assert!(why(&fake).to_string().contains("mount hugetlbfs"));
}
