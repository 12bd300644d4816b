//! Telemetry for the host, the status for people, and the log.

use std::time::Duration;

use memtide_access::Digest;
use memtide_policy::guest::{Decision, DeviceState};
use memtide_sysfs::hugetlb::PAGE;
use memtide_units::{ByteSize, Instant};
use memtide_wire::block::{Heat, Request, Telemetry};

use super::Agent;
use crate::blocks::Hold;
use crate::damon_watch::{Closeness, Tuner};
use crate::remove::STRUCT_PAGE;
use crate::status::{
    BlockCounts, GateStatus, LimitsStatus, MemoryStatus, Status, StructPages, WatchStatus,
};

impl Agent {
    /// Remembers what was decided; the log gets what is news. Not while a block is being taken, or brought
    /// back: the journal's daemon wakes up for a line, and was seen to have the thread that does it wait
    /// for 10 ms. Then the log gets it with the next decision, a tenth of a second later.
    pub(super) fn take_note(&mut self, now: Instant, decision: Decision) {
        let at_ms = self.parts.access.monotonic_ms(now);
        self.parts.decisions.note(at_ms, &decision);
        let note = decision.to_string();
        if note == self.note {
            return;
        }
        self.note = note;
        self.unsaid = Some(decision);
        if !self.parts.hands.is_at_work() {
            self.say_what_is_unsaid();
        }
    }

    /// Tells the log what was decided.
    pub(super) fn say_what_is_unsaid(&mut self) {
        let Some(decision) = self.unsaid.take() else { return };
        match decision {
            Decision::Rest(_) | Decision::Stealing | Decision::Waiting { .. } => {
                tracing::debug!("{decision}");
            }
            Decision::TakeUnasked { .. } => tracing::warn!("{decision}"),
            _ => tracing::info!("{decision}"),
        }
    }

    /// Tells the log, and whoever asks for the last decisions.
    pub(super) fn tell(&mut self, now: Instant, text: String) {
        tracing::info!("{text}");
        self.remark(now, text);
    }

    /// Remembers what was decided beside what the policy decides on blocks.
    pub(super) fn remark(&mut self, now: Instant, text: String) {
        let at_ms = self.parts.access.monotonic_ms(now);
        self.parts.decisions.remark(at_ms, text);
    }

    /// Tells the host and whoever asks for the status.
    pub(super) fn report(&mut self, now: Instant) {
        if self.parts.link.device_state() == DeviceState::Ready {
            let telemetry = self.telemetry();
            self.parts.link.post(Request::Telemetry(telemetry));
        }
        self.tell_stall(now);
        self.see_to_processors(now);
        let path = self.parts.runtime.status();
        if let Err(error) = self.status(now).write(&path) {
            tracing::warn!("{} cannot be written: {error}", path.display());
        }
        let path = self.parts.runtime.decisions();
        if let Err(error) = self.parts.decisions.write(self.parts.access.monotonic_ms(now), &path) {
            tracing::warn!("{} cannot be written: {error}", path.display());
        }
        let present = self.present();
        // Samples of pages take long where the guest is slow, and blocks that have just gone offline
        // wait to be reported.
        if !self.parts.hands.is_busy() {
            self.parts.access.look(now, &present);
        }
        self.parts.access.write(now);
    }

    fn see_to_processors(&mut self, now: Instant) {
        if let Some(cpu) = self.parts.senses.cpu() {
            self.processors.take(now, cpu);
        }
        if self.parts.watching.reclaiming().is_some() {
            let goal = self.parts.controller.settings().limits.psi_goal();
            self.processors.look_at_disk(now, &self.parts.root, goal);
        }
    }

    /// For a DAMON that cannot read PSI itself.
    fn tell_stall(&mut self, now: Instant) {
        let (Some((reclaiming, damon)), Some(psi)) =
            (self.parts.watching.pager(), self.reading.psi)
        else {
            return;
        };
        if let Some(stall_us) = reclaiming.stall_us(now, psi.some.total_us) {
            damon.tell_stall(stall_us);
        }
    }

    fn telemetry(&self) -> Telemetry {
        let info = &self.reading.meminfo;
        let psi = self.reading.psi.unwrap_or_default();
        let set = self.heat.working_set();
        let seen = self.parts.access.last().map(|last| last.amounts);
        let used = seen.map_or(info.total - info.free, |seen| seen.used);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Telemetry {
            total: info.total,
            free: info.free,
            available: info.available,
            cached: info.cached,
            working_set: set.unwrap_or_default(),
            cold: set.map_or(ByteSize::ZERO, |set| used - set),
            psi_some_us: psi.some.total_us,
            psi_full_us: psi.full.total_us,
            psi_some_avg10: psi.some.avg10,
            oom_kills: self.reading.oom_kills(),
            blocks_total: count(self.parts.blocks.count()),
            blocks_movable: count(self.parts.blocks.movable_count()),
            blocks_stolen: count(self.parts.blocks.offline_by_us().len()),
            steals_failed: count(self.counters.steals_failed),
            agent_rss: self.parts.senses.own_rss(),
            note: self.note.clone(),
            heat: self.parts.access.last().map(|last| Box::new(heat(last))),
        }
    }

    /// How the agent is.
    pub fn status(&self, now: Instant) -> Status {
        let blocks = &self.parts.blocks;
        let limits = &self.parts.controller.settings().limits;
        let info = &self.reading.meminfo;
        let silent = match self.parts.link.device_state() {
            DeviceState::Ready => None,
            DeviceState::Silent { since } => Some(now.since(since).as_secs()),
        };
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            mode: format!("{:?}", self.mode).to_lowercase(),
            doing: self.note.clone(),
            device_silent_s: silent,
            limits: LimitsStatus {
                min: limits.min(),
                max: limits.max(),
                psi_goal: limits.psi_goal(),
                host_guarantees: self.parts.link.guaranteed(),
                host_wants: self.parts.link.config().balloon,
            },
            reloads: Some(self.reloads.clone()),
            memory: MemoryStatus {
                present: blocks.present(),
                online: blocks.online(),
                available: info.available,
                working_set: self.heat.working_set(),
                pressure_avg10: self.reading.psi.map(|psi| psi.some.avg10),
            },
            blocks: BlockCounts {
                size: blocks.size().size(),
                total: blocks.count(),
                movable: blocks.movable_count(),
                stolen: blocks.with(Hold::Stolen),
                in_transit: [blocks.with(Hold::Leaving), blocks.with(Hold::Returning)].concat(),
                in_pieces: blocks.in_pieces(),
                foreign: blocks.with(Hold::Foreign),
            },
            struct_pages: self.struct_pages(),
            free_page_reporters: self.reporters.clone(),
            watching: self.watching(),
            reclaim: self
                .parts
                .watching
                .reclaiming()
                .map(|reclaiming| reclaiming.status(self.swap.unwrap_or_default())),
            gate: self.returns.ticket().map(|ticket| GateStatus {
                ticket: ticket.ticket,
                blocks: ticket.blocks.len(),
                urgency: ticket.urgency.to_string(),
                reason: self.returns.reason().map(|reason| reason.name().to_string()),
            }),
            counters: self.counters,
            lacks: [self.parts.lacks.as_slice(), self.parts.watching.lacks()].concat(),
        }
    }
}

impl Agent {
    fn watching(&self) -> Option<WatchStatus> {
        let damon = self.parts.watching.damon()?;
        let Closeness { sample, aggregation, regions } = self.closeness?;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(WatchStatus {
            regions,
            sample_ms: millis(sample),
            aggregation_ms: millis(aggregation),
            tuned_by: match damon.tuner() {
                Tuner::Kernel => "kernel".into(),
                Tuner::Agent => "agent".into(),
            },
            modules_off: self.parts.watching.modules_off(),
        })
    }

    fn struct_pages(&self) -> StructPages {
        let blocks = &self.parts.blocks;
        let page = ByteSize::from_bytes(rustix::param::page_size() as u64);
        let per_block = blocks.size().size().bytes() / page.bytes() * STRUCT_PAGE;
        let of = |count: usize| ByteSize::from_bytes(per_block).times(count as u64);
        let (stolen, removed) = (blocks.offline_by_us().len(), blocks.removed().len());
        // A page of those that belong to each piece stays (Documentation/mm/vmemmap_dedup.rst).
        let pieces = blocks.in_pieces().len() as u64 * blocks.size().size().bytes() / PAGE.bytes();
        let left_of_pieces = page.times(pieces);
        let of_pieces = of(blocks.in_pieces().len()) - left_of_pieces;
        StructPages {
            freed: of(removed) + of_pieces,
            remain: of(stolen.saturating_sub(removed)) - of_pieces,
            all: self.reading.memmap_pages().map(|pages| page.times(pages)),
        }
    }
}

/// A digest in the words of the wire.
fn heat(digest: &Digest) -> Heat {
    let amounts = &digest.amounts;
    Heat {
        at_ms: digest.at_ms,
        watched_ms: digest.watched_ms,
        stolen: amounts.stolen,
        free: amounts.free,
        kernel: amounts.kernel,
        used: amounts.used,
        touched: amounts.touched,
        untouched: amounts.untouched,
        idle_ms: amounts.idle_ms,
        cell: digest.layout.cell(),
        spans: digest.layout.spans().to_vec(),
        cells: digest.cells.iter().map(|cell| cell.to_bytes()).collect(),
    }
}
