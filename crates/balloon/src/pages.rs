//! The standard queues that name pages: inflate, deflate, free page reporting.
//!
//! Deflate is answered at once: the stock driver is not gated. `MUST_TELL_HOST` makes it wait for
//! the answer before it uses a page, but it waits without end and where a guest is in need (Linux:
//! `tell_host` under the OOM notifier, and under unbind), so a held answer would hang the guest.

use memtide_units::{ByteSize, GpaRange, Pfn};
use memtide_wire::pfn;
use vm_memory::GuestMemory;

use crate::chain::{Chain, ChainError};
use crate::device::Balloon;
use crate::reclaim::Reclaim;
use crate::ring::Moment;

/// PFNs that are looked at at once: a memory block of 128 MiB, so that one block is one hole, in
/// 128 KiB of buffer.
const PFNS_AT_ONCE: usize = 32_768;

impl Balloon {
    /// Drops the pages that an inflate request names, whatever the guest poisons its free pages
    /// with: a driver that acked `PAGE_POISON` fills a page itself when it takes it back (virtio
    /// 1.3, 5.5.6.6.1).
    pub(crate) fn inflate<M: GuestMemory, R: Reclaim>(
        &mut self,
        chain: &Chain,
        memory: &M,
        moment: &mut Moment<'_, R>,
    ) -> Result<ByteSize, ChainError> {
        let max = pfn::PFNS_MAX * pfn::PFN_LEN;
        if chain.readable() > max as u64 {
            return Err(ChainError::TooLong(chain.readable(), max));
        }
        let mut done = ByteSize::ZERO;
        chain.read_pieces(memory, PFNS_AT_ONCE * pfn::PFN_LEN, |bytes| {
            for range in pfn::coalesce(pfn::frames(bytes)) {
                done += self.drop_pages(range, moment);
            }
        })?;
        self.counters.inflated += done;
        Ok(done)
    }

    /// Counts the pages that a deflate request takes back. They need nothing of the host: the next
    /// touch brings them in.
    pub(crate) fn deflate(&mut self, chain: &Chain) -> ByteSize {
        let pages = chain.readable() / pfn::PFN_LEN as u64;
        self.counters.deflated += Pfn::SIZE.times(pages.min(pfn::PFNS_MAX as u64));
        ByteSize::ZERO
    }

    /// Drops the free pages of a report. Its writable buffers *are* the pages: reading one would
    /// bring in what is to go.
    ///
    /// A guest that fills its free pages with a value wants to find it there again (virtio 1.3,
    /// 5.5.6.7.2: the device must not change a reported page to another value). A hole reads as
    /// zeros. So with any value but 0 the pages stay, and the report is answered all the same.
    pub(crate) fn report<R: Reclaim>(
        &mut self,
        chain: &Chain,
        moment: &mut Moment<'_, R>,
    ) -> ByteSize {
        let mut done = ByteSize::ZERO;
        let poison = self.poison();
        if poison != 0 {
            self.refuse("page-poison", moment.now, || {
                format!("reported pages stay: the guest wants to find {poison:#010x} in them")
            });
            return done;
        }
        for range in chain.writable_ranges() {
            done += self.drop_pages(range, moment);
        }
        self.counters.reported += done;
        done
    }

    /// Drops what of `range` is guest memory, and says how much that is. The rest is ignored and
    /// counted, as is a failure: neither queue has an answer that could tell.
    fn drop_pages<R: Reclaim>(&mut self, range: GpaRange, moment: &mut Moment<'_, R>) -> ByteSize {
        let inside = self.memory.within(range);
        let covered: ByteSize = inside.iter().map(|part| part.len()).sum();
        if covered < range.len() {
            self.refuse("outside-memory", moment.now, || {
                format!(
                    "the guest gave up {range}, which is not all its memory; that part is ignored"
                )
            });
        }
        for part in inside {
            match moment.host.reclaim(part) {
                Ok(reclaimed) => self.counters.count_reclaim(reclaimed),
                Err(error) => self.reclaim_failed(&error, moment.now),
            }
        }
        covered
    }
}
