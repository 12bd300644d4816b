//! The standard queues that name pages: inflate, deflate, free page reporting.
//!
//! Deflate is answered at once: the stock driver is not gated. `MUST_TELL_HOST` makes it wait for
//! the answer before it uses a page, but it waits without end and where a guest is in need (Linux:
//! `tell_host` under the OOM notifier, and under unbind), so a held answer would hang the guest.

use memtide_units::{ByteSize, GpaRange, Instant, Pfn};
use memtide_wire::{features, pfn};

use crate::chain::{Chain, ChainError};
use crate::device::Balloon;
use crate::layout::append;
use crate::memory::RequestMemory;
use crate::reclaim::Reclaim;
use crate::ring::Moment;
use crate::under_way::Todo;

impl Balloon {
    /// Drops the pages that an inflate request names, whatever the guest poisons its free pages
    /// with: a driver that acked `PAGE_POISON` fills a page itself when it takes it back (virtio
    /// 1.3, 5.5.6.6.1). Where the host's pages are larger, one goes when all of it is in.
    pub(crate) fn inflate<M: RequestMemory, R: Reclaim>(
        &mut self,
        chain: &Chain,
        memory: &M,
        moment: &mut Moment<'_, R>,
    ) -> Result<(), ChainError> {
        let mut done = ByteSize::ZERO;
        for range in self.read_pfns(chain, memory, moment.now)? {
            done += self.note_outside(range, moment.now);
            let complete = self.now_in_balloon(range);
            self.drop_each(complete, moment);
        }
        let forgotten = self.host_pages.take_forgotten();
        if forgotten > 0 {
            self.refuse("host-page-forgotten", moment.now, || {
                "the guest's balloon is scattered over too many of the host's large pages: some of \
                 them stay resident"
                    .into()
            });
        }
        self.counters.inflated += done;
        Ok(())
    }

    /// Counts the pages that a deflate request takes back. They need nothing of the host: the next
    /// touch brings them in.
    pub(crate) fn deflate<M: RequestMemory>(
        &mut self,
        chain: &Chain,
        memory: &M,
        now: Instant,
    ) -> Result<(), ChainError> {
        for range in self.read_pfns(chain, memory, now)? {
            self.counters.deflated += range.len();
            self.host_pages.remove(range, &self.memory);
        }
        Ok(())
    }

    /// Takes a report of free pages, which are to be dropped. Its writable buffers *are* the pages:
    /// reading one would bring in what is to go.
    ///
    /// A guest that fills its free pages with a value wants to find it there again (virtio 1.3,
    /// 5.5.6.7.2: the device must not change a reported page to another value). A hole reads as
    /// zeros. So with any value but 0 the pages stay, and the report is answered all the same.
    pub(crate) fn begin_report(&mut self, chain: &Chain, now: Instant) -> Todo {
        self.note_report_shape(chain, now);
        if let Some(why) = self.keeps_reported_pages() {
            self.refuse("page-poison", now, || format!("reported pages stay: {why}"));
            return Todo::default();
        }
        for range in chain.writable_ranges() {
            let named = self.note_outside(range, now);
            self.counters.reported += named;
        }
        Todo::new(chain.writable_ranges())
    }

    /// The pages that a request names, neighbours as one range; a page that is named twice is one
    /// page.
    fn read_pfns<M: RequestMemory>(
        &mut self,
        chain: &Chain,
        memory: &M,
        now: Instant,
    ) -> Result<Vec<GpaRange>, ChainError> {
        let bytes = chain.read_all(memory, pfn::PFNS_MAX * pfn::PFN_LEN)?;
        self.note_shape(chain, pfn::PFN_LEN, now);
        let ranges = pfn::coalesce(pfn::frames(&bytes));
        let distinct: ByteSize = ranges.iter().copied().map(GpaRange::len).sum();
        let named = (bytes.len() / pfn::PFN_LEN) as u64;
        let twice = named - distinct.bytes() / Pfn::SIZE.bytes();
        if twice > 0 {
            self.refuse("page-twice", now, || format!("a request names {twice} pages twice"));
        }
        Ok(ranges)
    }

    /// The pages of `range` are in the balloon; which ranges can go for it?
    fn now_in_balloon(&mut self, range: GpaRange) -> Vec<GpaRange> {
        // A driver that does not tell before it uses a page again cannot be relied on to leave the
        // earlier ones alone.
        if self.features() & features::MUST_TELL_HOST == 0 {
            return self.memory.droppable(range);
        }
        let mut complete = Vec::new();
        for (piece, part) in self.memory.pieces(range) {
            if part.is_fine() {
                part.whole_pages(piece).into_iter().for_each(|next| append(&mut complete, next));
            } else {
                let pages = self.host_pages.insert(piece, part);
                pages.into_iter().for_each(|next| append(&mut complete, next));
            }
        }
        complete
    }

    /// Says how much of `range` is guest memory. The rest is ignored and counted: no standard queue
    /// has an answer that could tell.
    fn note_outside(&mut self, range: GpaRange, now: Instant) -> ByteSize {
        let covered: ByteSize = self.memory.pieces(range).map(|(piece, _)| piece.len()).sum();
        if covered < range.len() {
            self.refuse("outside-memory", now, || {
                format!(
                    "the guest gave up {range}, which is not all its memory; that part is ignored"
                )
            });
        }
        covered
    }

    fn drop_each<R: Reclaim>(&mut self, ranges: Vec<GpaRange>, moment: &mut Moment<'_, R>) {
        for range in ranges {
            match moment.host.reclaim(range) {
                Ok(reclaimed) => self.counters.count_reclaim(reclaimed),
                Err(error) => self.reclaim_failed(&error, moment.now),
            }
        }
    }

    /// Counts what is odd about a request for the device to read, of entries of `entry` bytes. What
    /// makes sense of it is carried out.
    pub(crate) fn note_shape(&mut self, chain: &Chain, entry: usize, now: Instant) {
        let (readable, writable) = (chain.readable(), chain.writable());
        if writable > 0 {
            self.refuse("wrong-direction", now, || {
                format!("{writable} bytes of a request are for writing; nothing is written")
            });
        } else if readable == 0 {
            self.refuse("empty", now, || "a request has no bytes".into());
        }
        if !readable.is_multiple_of(entry as u64) {
            self.refuse("odd-length", now, || {
                format!("a request of {readable} bytes is not made of {entry} each")
            });
        }
    }

    /// The same for a report, whose buffers are for writing and are pages.
    fn note_report_shape(&mut self, chain: &Chain, now: Instant) {
        if chain.readable() > 0 {
            self.refuse("wrong-direction", now, || {
                "a report has bytes for reading; they are ignored".into()
            });
        } else if chain.writable() == 0 {
            self.refuse("empty", now, || "a report names no pages".into());
        }
        let named: ByteSize = chain.writable_ranges().map(GpaRange::len).sum();
        if named.bytes() < chain.writable() {
            self.refuse("outside-memory", now, || {
                "a report passes the end of the address space; that part is ignored".into()
            });
        }
        if chain.writable_ranges().any(|range| !range.is_aligned_to(Pfn::SIZE)) {
            self.refuse("misaligned", now, || {
                "a report names parts of pages; whole ones of it are dropped".into()
            });
        }
    }
}
