//! What a guest lacks, in the words of whoever reads the status.

use memtide_policy::guest::ZoneBalance;
use serde::{Deserialize, Serialize};

/// What a guest without DAMON lacks.
pub(super) const WATCHING: &str = "access monitoring (DAMON): ";

/// What follows where nothing can be paged out.
const COLD_STAYS: &str =
    "what programs no longer use stays in memory, and only what is free or cached makes room";

/// What has memory be movable from the start.
const HOW_MOVABLE: &str = "to have such memory movable, unplug it and plug it in again with \
                           /sys/devices/system/memory/auto_online_blocks at online_movable (or boot with \
                           memhp_default_state=online_movable)";

/// Something that this guest lacks, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// What is missing, and why.
    pub what: String,
    /// What does not work without it, and what still does.
    pub effect: String,
}

/// Replaces what was lacking of one kind (`known`) among all `lacks`, and tells the log of it where it is news.
pub fn say_lack(lacks: &mut Vec<Lack>, known: &mut Option<Lack>, now: Option<Lack>) {
    if now == *known {
        return;
    }
    if let Some(lack) = &now {
        tracing::warn!("this guest lacks {}: {}", lack.what, lack.effect);
    }
    let before = std::mem::replace(known, now.clone());
    lacks.retain(|other| Some(other) != before.as_ref());
    lacks.extend(now);
}

impl Lack {
    /// No PSI.
    pub fn psi(why: &str) -> Self {
        Self {
            what: format!("pressure stall information: {why}"),
            effect: "nothing is stolen, since nobody would notice that it hurts; blocks that are \
                     stolen are still returned when memory runs short"
                .into(),
        }
    }

    /// PSI without a trigger.
    pub fn psi_trigger(why: &str) -> Self {
        Self {
            what: format!("a trigger for memory pressure: {why}"),
            effect: "that tasks stall is noticed at the next look, a second later at most, and cold memory is \
                     not paged out"
                .into(),
        }
    }

    /// No DAMON.
    pub fn damon(why: &str) -> Self {
        Self {
            what: format!("{WATCHING}{why}"),
            effect: "blocks are stolen from the top of memory down, not the coldest first".into(),
        }
    }

    /// No page census.
    pub fn census(why: &str) -> Self {
        Self {
            what: format!("page flags: {why}"),
            effect: "every block counts as full before it is stolen, and no boot memory is made \
                     movable"
                .into(),
        }
    }

    /// Nobody who tells the host what is free.
    pub fn free_page_reporting(why: &str) -> Self {
        Self {
            what: format!("free page reporting: {why}"),
            effect: "free memory inside online blocks stays with this guest; give the VM a balloon of \
                     the VMM's own besides (QEMU: -device virtio-balloon-pci,free-page-reporting=on)"
                .into(),
        }
    }

    /// Nowhere to page out to.
    pub fn swap(why: &str) -> Self {
        Self { what: format!("swap: {why}"), effect: COLD_STAYS.into() }
    }

    /// No goals for schemes.
    pub fn pageout() -> Self {
        Self {
            what: "a DAMON that pages out no more than the guest bears (goals for its schemes)"
                .into(),
            effect: COLD_STAYS.into(),
        }
    }

    /// Nobody who plugs in what was ejected.
    pub fn host_that_plugs(blocks: usize) -> Self {
        Self {
            what: format!("somebody on the host who plugs in the {blocks} blocks that were ejected"),
            effect: "they stay stolen, also where memory runs short, until memtided is there again with \
                     this VM's QMP socket, or whoever runs the VM plugs them in (device_add)"
                .into(),
        }
    }

    /// Strict overcommit.
    pub fn strict_overcommit() -> Self {
        Self {
            what: "an overcommit limit that follows the VM's size (vm.overcommit_memory is 2)"
                .into(),
            effect: "each stolen block lowers how much programs may allocate; set 0 or 1".into(),
        }
    }

    /// Blocks whose first pages may be their own `struct page`s.
    pub fn plain_blocks(count: usize) -> Self {
        Self {
            what: format!(
                "{count} blocks without struct pages of their own (they were plugged in, and \
                 memory_hotplug.memmap_on_memory is on)"
            ),
            effect: "these are not stolen; boot without that parameter".into(),
        }
    }

    /// Memory that was plugged in and that nobody makes movable.
    pub fn left_in_kernel_zone(count: usize) -> Self {
        Self {
            what: format!(
                "ZONE_MOVABLE for {count} blocks that were plugged in (they are in a kernel zone, and convert \
                 is false)"
            ),
            effect: format!(
                "they are stolen, removed and ejected only while no kernel memory lies in them; {HOW_MOVABLE}, or \
                 set convert = true"
            ),
        }
    }

    /// Memory that was plugged in and could not be made movable: some since it cannot be emptied, some since
    /// it would be too much.
    pub fn kernel_zone(stuck: usize, over: usize) -> Self {
        let reasons = [
            (stuck, "cannot be emptied"),
            (
                over,
                "are the kernel's share: one block of four, so that it does not run out of memory",
            ),
        ];
        let reasons = reasons.iter().filter(|(count, _)| *count > 0);
        let reasons: Vec<_> = reasons.map(|(count, why)| format!("{count} {why}")).collect();
        Self {
            what: format!(
                "ZONE_MOVABLE for {} blocks that were plugged in (they are in a kernel zone; {})",
                stuck + over,
                reasons.join(", ")
            ),
            effect: format!(
                "they are not stolen whole, and what they belong to is neither removed nor ejected; \
                 {HOW_MOVABLE}"
            ),
        }
    }

    /// Too little that the kernel can use for itself.
    pub fn kernel_memory(balance: ZoneBalance) -> Self {
        let ZoneBalance { movable, kernel } = balance;
        Self {
            what: format!(
                "memory that the kernel can use for itself: {movable} blocks are movable, and {kernel} are not"
            ),
            effect: "with more than four to one the kernel may run out of memory, and kill, while programs \
                     have some free; plug memory in with auto_online_blocks at online_kernel, or restart the \
                     guest"
                .into(),
        }
    }

    /// Nothing whose `struct page`s could go.
    pub fn removal(why: &str) -> Self {
        Self {
            what: format!("memory that can be removed: {why}"),
            effect:
                "stolen blocks are only offline, and their struct pages remain: 2 MiB for each \
                     128 MiB"
                    .into(),
        }
    }

    /// No pieces.
    pub fn pieces(why: &str) -> Self {
        Self {
            what: format!("a way to take memory that cannot go offline: {why}"),
            effect: "blocks with kernel memory in them stay, however much of them is free".into(),
        }
    }

    /// Pieces that count as somebody else's.
    pub fn adopted(pages: u64) -> Self {
        Self {
            what: format!(
                "{pages} huge pages of 2 MiB that nr_hugepages asks for: the agent held them when that \
                 was raised, and the kernel counts them as that pool's"
            ),
            effect:
                "programs cannot have them, and no more are taken; memtide-agent restore gives \
                     them to that pool"
                    .into(),
        }
    }

    /// No interrupt.
    pub fn interrupt() -> Self {
        Self {
            what: "an interrupt of the balloon device".into(),
            effect: "the device is looked at ten times a second instead".into(),
        }
    }

    /// No gate.
    pub fn gate() -> Self {
        Self {
            what: "a gate: this is a plain balloon".into(),
            effect: "the host is told, not asked: blocks come back when the guest needs them, within \
                     the host's target; the host sees the balloon's size and statistics, and nothing \
                     else; free page reporting rests while the agent drives"
                .into(),
        }
    }

    /// No block that could be stolen.
    pub fn stealable() -> Self {
        Self {
            what: "a memory block that can be stolen: kernel memory lies in all of them".into(),
            effect:
                "nothing is stolen; more memory, or movablecore= on the kernel's command line, \
                     would change that"
                    .into(),
        }
    }
}
