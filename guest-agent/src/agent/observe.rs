//! What the policy is shown of the guest.

use memtide_policy::guest::{
    BlockView, Census, Effort, FreeMemory, Memory, Observation, StealState,
};
use memtide_sysfs::{Error, hugetlb};
use memtide_units::{BlockId, Instant};

use super::{Agent, Woken};
use crate::blocks::Hold;

impl Agent {
    /// Looks at the guest. What has ended since the last time is handed over.
    pub(super) fn observe(&mut self, now: Instant, woken: Woken) -> Result<Observation, Error> {
        self.reading = self.parts.senses.read(now, &self.reading)?;
        self.notice_news(now);
        let swap = self.swap(now);
        self.judge_host(now);
        Ok(Observation {
            memory: self.memory(),
            free_memory: self.free_memory(),
            squeeze: self.reading.squeeze(),
            psi: self.reading.psi_totals(),
            trigger_fired: woken.by_trigger,
            balloon: self.parts.link.config().balloon,
            blocks: self.views(),
            working_set: self.heat.working_set(),
            swap,
            steal: self.steal_state(),
            effort: self.effort(),
            ticket: self.returns.ticket().cloned(),
            device: self.parts.link.device_state(),
            mode: self.mode,
            outcomes: std::mem::take(&mut self.outcomes),
        })
    }

    /// The guest's memory, without what pieces hold: that is neither used nor to be had. While they hold
    /// some, what is free counts only where the kernel's own memory comes from as well: pieces lie there,
    /// and memory that only programs can have is of no help to the kernel.
    fn memory(&self) -> Memory {
        let mut memory = self.reading.memory();
        let blocks = self.parts.pieces.as_ref().map_or(0, |pieces| pieces.count());
        if blocks == 0 {
            return memory;
        }
        let held = self.parts.blocks.size().size().times(blocks as u64);
        memory.total -= held;
        match hugetlb::free_for_kernel(&self.parts.root) {
            Ok(free) => {
                memory.free = memory.free.min(free);
                memory.available = memory.available.min(free + memory.cache);
            }
            Err(error) => tracing::debug!("what is free for the kernel is not known: {error}"),
        }
        memory
    }

    fn free_memory(&self) -> FreeMemory {
        if self.reporters.is_empty() { FreeMemory::KeptByGuest } else { FreeMemory::ReportedToHost }
    }

    /// All blocks, with how much has to be moved out of each where samples of them tell.
    fn views(&self) -> Vec<BlockView> {
        let (blocks, access) = (&self.parts.blocks, &self.parts.access);
        let mut views = blocks.views(&self.heat);
        for view in &mut views {
            let used = blocks.size().range(view.id).and_then(|range| access.used_in(range));
            let census = |to_migrate| Census { to_migrate, unmovable_pages: 0 };
            view.census = used.map(census);
        }
        views
    }

    fn effort(&self) -> Effort {
        let per_second = self.processors.spare().for_stealing();
        Effort { per_second, stealing: self.parts.hands.steal_time() }
    }

    fn steal_state(&self) -> StealState {
        // Before the hello everything offline is unreported, and nothing of it can be aborted.
        // What was ejected is nobody's steal any more: it may be that no device knows of it.
        let blocks = &self.parts.blocks;
        let leaves = |block: &BlockId| !blocks.is_ejected(*block);
        let unreported = self.has_greeted() && blocks.with(Hold::Leaving).iter().any(leaves);
        if self.parts.hands.is_stealing() || unreported {
            StealState::Running
        } else {
            StealState::Idle
        }
    }
}
