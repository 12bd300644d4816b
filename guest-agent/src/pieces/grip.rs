//! Holding a file's huge pages where they are.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;

use memtide_sysfs::hugetlb::PAGE;
use memtide_sysfs::pagemap::Pagemap;
use memtide_sysfs::{Error, Root};
use memtide_units::{ByteSize, Gpa, GpaRange};

use crate::dma::{PAGE as SMALL_PAGE, Pages, Pin};

/// Huge pages that are held in one step at most: some milliseconds, half a second under emulation, in
/// which nobody can end it.
const STEP: u64 = 8;

/// Pages that are held until this is dropped.
#[derive(Debug, Default)]
pub struct Held {
    places: Vec<Gpa>,
    runs: Vec<GpaRange>,
    /// Nothing where a fake holds them.
    pin: Option<Pin>,
}

impl Held {
    /// Where they lie, neighbours joined, ascending.
    pub fn runs(&self) -> &[GpaRange] {
        &self.runs
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.places.len() as u64
    }

    /// There are more, and they lie there.
    ///
    /// # Errors
    /// Places that cannot be.
    pub fn extend(&mut self, places: impl IntoIterator<Item = Gpa>) -> io::Result<()> {
        self.places.extend(places);
        self.runs = runs(self.places.clone())?;
        Ok(())
    }
}

/// A way of holding pages.
pub trait Grip: fmt::Debug + Send + Sync {
    /// Has the huge pages `part` of `file` be there, and stay where they are, with those of it that are
    /// held already.
    ///
    /// # Errors
    /// What the kernel says; ENOMEM where there are not so many. `held` is of no use then.
    fn hold(&self, file: &File, part: Range<u64>, held: &mut Held) -> io::Result<()>;
}

/// All huge pages of a file of `size`, in steps.
pub(super) fn steps(size: ByteSize) -> impl Iterator<Item = Range<u64>> {
    let all = size.bytes() / PAGE.bytes();
    (0..all).step_by(STEP as usize).map(move |first| first..all.min(first + STEP))
}

/// The real one: a mapping and a registration with io_uring.
#[derive(Debug)]
pub struct PinnedPages {
    root: Root,
}

impl PinnedPages {
    /// With `root`'s pagemap.
    pub fn new(root: &Root) -> Self {
        Self { root: root.clone() }
    }
}

impl Grip for PinnedPages {
    fn hold(&self, file: &File, part: Range<u64>, held: &mut Held) -> io::Result<()> {
        let pagemap = Pagemap::open(&self.root).map_err(io::Error::other)?;
        let bytes = PAGE.times(part.end - part.start).bytes();
        let count = usize::try_from(bytes).map_err(io::Error::other)? / SMALL_PAGE;
        // The mapping reserves all of it or fails; the pages are made, and zeroed, at once.
        let pages = Pages::of_file_at(file, PAGE.times(part.start).bytes(), count)?;
        let pin = match &mut held.pin {
            Some(pin) => pin,
            none => none.insert(Pin::in_parts(room(file)?)?),
        };
        // A page that lies in ZONE_MOVABLE is moved out of it now, and stays where it is after.
        pin.add(pages.clone())?;
        let places = (0..part.end - part.start).map(|n| place(&pages, &pagemap, n));
        held.extend(places.collect::<io::Result<Vec<_>>>()?)
    }
}

/// Steps of all of a file.
fn room(file: &File) -> io::Result<u32> {
    let size = ByteSize::from_bytes(file.metadata()?.len());
    u32::try_from(steps(size).count()).map_err(io::Error::other)
}

fn place(pages: &Pages, pagemap: &Pagemap, n: u64) -> io::Result<Gpa> {
    let offset = usize::try_from(n * PAGE.bytes()).map_err(io::Error::other)?;
    let found =
        pagemap.locate(pages.address(offset)).map_err(|error: Error| io::Error::other(error))?;
    found.ok_or_else(|| io::Error::other(format!("huge page {n} of a step is not there")))
}

/// Pages of 2 MiB as ranges.
///
/// # Errors
/// A page that lies across two such places, or in the same one as another: what the kernel said of them
/// is not to be relied on.
fn runs(mut places: Vec<Gpa>) -> io::Result<Vec<GpaRange>> {
    let strange = |place: Gpa| io::Error::other(format!("no huge page can lie at {place}"));
    places.sort_unstable();
    let mut runs: Vec<GpaRange> = Vec::new();
    for place in places {
        let page = GpaRange::new(place, PAGE).map_err(|_| strange(place))?;
        let is_twice = runs.last().is_some_and(|last| last.end() > place);
        if is_twice || !page.is_aligned_to(PAGE) {
            return Err(strange(place));
        }
        match runs.last_mut().and_then(|last| Some((last.joined_with(page)?, last))) {
            Some((joined, last)) => *last = joined,
            None => runs.push(page),
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mib: &[u64]) -> Vec<Gpa> {
        mib.iter().map(|mib| Gpa(mib << 20)).collect()
    }

    #[test]
    fn neighbours_are_one_run_and_what_cannot_be_is_refused() {
        let found = runs(at(&[40, 12, 10, 14, 42])).unwrap();
        let named: Vec<_> =
            found.iter().map(|run| (run.start().0 >> 20, run.len().mib())).collect();
        assert_eq!(named, [(10, 6), (40, 4)]);
        for strange in [&[10, 10][..], &[11], &[10, 12, 10]] {
            assert!(runs(at(strange)).is_err(), "{strange:?}");
        }
    }
}
