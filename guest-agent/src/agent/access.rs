//! What DAMON has seen, what it pages out, and who watches when it has ended.

use memtide_access::Amounts;
use memtide_policy::guest::{Reclaim, Swap};
use memtide_sysfs::damon::Paging;
use memtide_units::Instant;

use super::Agent;
use crate::access::Present;
use crate::damon_watch::{Finding, Seen};
use crate::watching::watched;

impl Agent {
    /// Takes in what was found, and has somebody watch again where nobody does.
    pub(super) fn see_to_watching(&mut self, now: Instant) {
        for finding in self.parts.watching.findings() {
            match finding {
                Finding::Snapshot(Seen { regions, touched, closeness }) => {
                    self.closeness = Some(closeness);
                    let present = self.present();
                    self.heat.observe(&regions);
                    let seen = (&regions[..], touched);
                    if let Some(digest) = self.parts.access.observe(now, seen, &present) {
                        let Amounts { used, touched, .. } = digest.amounts;
                        self.heat.set_used(used, touched);
                    }
                }
                Finding::PagedOut(stats) => {
                    if let Some((reclaiming, _)) = self.parts.watching.pager() {
                        reclaiming.take_stats(stats);
                    }
                }
                Finding::Ended(why) => {
                    let text =
                        format!("DAMON has ended ({why}): blocks are chosen from the top now");
                    tracing::warn!("{text}");
                    self.remark(now, text);
                    self.heat.forget();
                    self.closeness = None;
                    self.parts.access.ended();
                    self.parts.watching.ended(now, &why);
                }
            }
        }
        let limits = self.parts.controller.settings().limits;
        if self.parts.watching.see_to(now, &self.parts.blocks, &limits) {
            self.heat.expect();
            let off = self.parts.watching.modules_off();
            let for_it = if off.is_empty() { "" } else { ", for which it switched off " };
            let text = format!("DAMON watches from now on{for_it}{}", off.join(" and "));
            self.remark(now, text);
        }
    }

    /// What memory there is, for the history of access.
    pub(super) fn present(&self) -> Present {
        let blocks = &self.parts.blocks;
        let offline = blocks.offline();
        Present {
            memory: blocks.ranges(&blocks.all()),
            offline: blocks.given(&offline),
            free: self.reading.meminfo.free,
        }
    }

    /// Has DAMON watch what is online once blocks have stopped coming and going: each time is a commit
    /// of all its settings, which takes the kernel and the agent's thread tenths of a second, and of
    /// memory that is offline it sees nothing by itself (mm/damon/ops-common.c, `damon_get_folio`).
    pub(super) fn rewatch_if_due(&mut self) {
        if self.owes_rewatch && !self.parts.hands.is_busy() {
            self.rewatch();
        }
    }

    /// Has DAMON watch what is online now.
    pub(super) fn rewatch(&mut self) {
        self.owes_rewatch = false;
        if let Some(damon) = self.parts.watching.damon_mut() {
            damon.watch(watched(&self.parts.blocks));
        }
    }

    /// Has cold memory paged out, or no longer.
    pub(super) fn see_to_reclaim(&mut self, now: Instant, reclaim: Reclaim) {
        let Some((reclaiming, damon)) = self.parts.watching.pager() else { return };
        damon.page_out(match reclaim {
            Reclaim::On(_) => Paging::On(self.processors.spare().for_paging()),
            Reclaim::Off(_) => Paging::Off,
        });
        if let Some(news) = reclaiming.take(reclaim) {
            tracing::debug!("{news}");
            self.remark(now, news.to_string());
        }
    }

    /// What can be paged out to: looked at once a second, which fills no swap. What is in it is of the same
    /// moment as what is available, for the two are compared.
    pub(super) fn swap(&mut self, now: Instant) -> Option<Swap> {
        let reclaiming = self.parts.watching.reclaiming()?;
        if self.swap.is_none() || now >= self.due.report {
            self.swap = Some(reclaiming.swap(&self.parts.root, &self.reading.meminfo));
        }
        let swapped = self.reading.meminfo.swapped();
        self.swap.map(|swap| Swap { swapped, ..swap })
    }
}
