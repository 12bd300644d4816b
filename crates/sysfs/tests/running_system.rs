//! The readers against the system that the tests run on: whatever kernel that is, what it has is
//! understood, and what it lacks or denies is named. Nothing is changed: the one pressure
//! trigger that is registered ends with its descriptor.

use memtide_sysfs::{
    Error, Result, Root, iomem, kpageflags, meminfo, memory, pagemap, pci, psi, vmstat,
};

/// The value where the system lets us have it. Text that is not understood fails the test.
fn understood<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error @ Error::Garbage { .. }) => panic!("{error}"),
        Err(error) => {
            eprintln!("not to be had here: {error}");
            None
        }
    }
}

#[test]
fn memory_adds_up() {
    let info = meminfo::Meminfo::read(&Root::default()).unwrap();
    assert!(!info.total.is_zero());
    assert!(info.free <= info.total && info.available <= info.total);
    let vmstat = vmstat::Vmstat::read(&Root::default()).unwrap();
    assert!(vmstat.page_faults() > 0);
}

#[test]
fn pressure_is_understood() {
    if let Some(psi) = understood(psi::Psi::read(&Root::default())) {
        assert!(psi.full.total_us <= psi.some.total_us);
    }
}

#[test]
fn a_trigger_is_taken_or_its_refusal_is_named() {
    // Two seconds: the shortest window that a process without privileges may ask for.
    understood(psi::PsiTrigger::open(&Root::default(), psi::Stall::Some, 1_000_000, 2_000_000));
}

#[test]
fn blocks_are_as_large_as_memory() {
    let root = Root::default();
    let Some(size) = understood(memory::block_size(&root)) else { return };
    let Some(blocks) = understood(memory::list(&root)) else { return };
    let online = blocks.iter().filter(|block| block.state == memory::State::Online).count() as u64;
    let total = meminfo::Meminfo::read(&root).unwrap().total;
    assert!(size.size().times(online) >= total);
    assert!(blocks.is_sorted_by_key(|block| block.id));
    understood(memory::auto_online(&root));
    understood(memory::memmap_on_memory(&root));
}

#[test]
fn every_page_of_ram_is_something() {
    let root = Root::default();
    let Some(ram) = understood(iomem::system_ram(&root)) else { return };
    let Some(flags) = understood(kpageflags::PageFlags::open(&root)) else { return };
    let last = ram.last().unwrap().range;
    let census = understood(flags.census(last)).unwrap();
    eprintln!("{last}: {census:?}");
    assert_eq!(census.total, last.len().bytes().div_ceil(rustix::param::page_size() as u64));
    assert!(census.free + census.lru > 0);
}

#[test]
fn a_page_of_ours_lies_in_ram() {
    let root = Root::default();
    let page = vec![1_u8; 2 * rustix::param::page_size()];
    let Some(map) = understood(pagemap::Pagemap::open(&root)) else { return };
    let Some(gpa) = understood(map.locate(page.as_ptr().addr())) else { return };
    let gpa = gpa.expect("the page was written just now");
    let Some(ram) = understood(iomem::system_ram(&root)) else { return };
    let lies_in = |ram: &iomem::Ram| ram.range.start() <= gpa && gpa < ram.range.end();
    assert!(ram.iter().any(lies_in), "{gpa} is no RAM");
}

#[test]
fn pci_functions_are_understood() {
    for function in understood(pci::list(&Root::default())).unwrap_or_default() {
        assert_ne!(function.vendor, 0xffff, "{function:?}");
    }
}
