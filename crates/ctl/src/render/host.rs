//! `memtide status`.

use memtide_api::http::{BudgetSource, HostStatus, VmState, VmStatus};
use memtide_device_ctl::output::{Colour, Tone};
use memtide_device_ctl::text::wrapped;

use super::{driver, held, state};
use crate::table::{Align, Cell, Table, shortened};

/// A name's share of 80 columns, beside four sizes.
const NAME_MAX: usize = 16;

/// The host, its VMs, and whatever needs attention.
pub(crate) fn host(status: &HostStatus, colour: Colour) -> String {
    let mut text = summary(status);
    if status.vms.is_empty() {
        return text + "\nNo VM is configured: add [[vm]] to /etc/memtide/memtided.toml\n";
    }
    text.push('\n');
    text += &table(status).render(colour);
    for vm in &status.vms {
        if let Some(waits) = &vm.held {
            text.push('\n');
            text += &held(&vm.name, waits, colour);
        }
        if let VmState::Lost(why) = &vm.state {
            text.push('\n');
            text += &colour.paint(Tone::Alarm, &format!("{} is lost", vm.name));
            text.push('\n');
            text += &wrapped(why, 2);
        }
    }
    text
}

fn summary(status: &HostStatus) -> String {
    let source = match status.budget_source {
        BudgetSource::Host => "what the host has",
        BudgetSource::Given => "given",
    };
    let rest = if status.committed > status.budget {
        format!("{} too much", status.committed - status.budget)
    } else {
        format!("{} free", status.budget - status.committed)
    };
    format!(
        "Budget  {} ({source}): {} held by VMs, {rest}\n\
         Host    {} available, {} resident for VMs\n",
        status.budget, status.committed, status.host_available, status.resident
    )
}

fn table(status: &HostStatus) -> Table {
    let mut table = Table::new(&[
        ("VM", Align::Left),
        ("STATE", Align::Left),
        ("DRIVER", Align::Left),
        ("MEMORY", Align::Right),
        ("HOLDS", Align::Right),
        ("STOLEN", Align::Right),
        ("RESIDENT", Align::Right),
    ]);
    status.vms.iter().for_each(|vm| table.row(row(vm)));
    table
}

fn row(vm: &VmStatus) -> Vec<Cell> {
    let (state, tone) = match &vm.held {
        Some(_) => ("waiting", Tone::Attention),
        None => state(&vm.state),
    };
    let plain = |text: String| (text, Tone::Plain);
    vec![
        plain(shortened(&vm.name, NAME_MAX)),
        (state.into(), tone),
        plain(driver(vm.driver).into()),
        plain(vm.memory.to_string()),
        plain(vm.committed.to_string()),
        plain(vm.stolen.to_string()),
        plain(vm.resident.to_string()),
    ]
}
