//! Whether what the agent steals is cold, by the record of the only one who knows: the workload, which says
//! every two seconds how many of its pages lie in each memory block and how many of those it has touched
//! in the last minute. What the last look before said of a block is what went with it.
//!
//! The guest is made such that a thief who does not look does harm: what is hot is allocated first, which
//! is at the top of memory, and two of three pieces there are given up again, so that these blocks are
//! emptied with little effort and those with cold memory in them are full. There are next to no empty blocks.
//!
//! The guest has 3 GiB, of which QEMU's q35 puts 1 GiB above the hole for devices, at 4 GiB. The hot
//! memory lies there, so that the same run shows whether DAMON watches it.
//!
//! Under emulation the workload's neighbours make its accesses visible to DAMON (`--tlb-neighbour`).

mod books;

use std::path::Path;
use std::time::Duration;

use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_units::{BlockId, BlockSize, ByteSize, Gpa, Permille};
use serde_json::Value;

use self::books::{Books, Pages};
use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::Unit;
use crate::lone_guest::LoneGuest as Guest;
use crate::player::BlockContents;

const MEMORY: ByteSize = ByteSize::from_gib(3);
/// Where memory goes on above the hole.
const ABOVE: Gpa = Gpa(4 << 30);
/// What is above the hole is for programs alone from the start on: what they allocate first lies there.
const TOP_IS_MOVABLE: &str = "movablecore=1G";
/// A first agent makes boot memory movable, and takes nothing.
const TAKE_NOTHING: &str = "min = \"3GiB\"\n";
/// Three blocks of four are movable then; less some in which the kernel has settled already.
const MOVABLE_LEAST: usize = 14;
/// What is hot, in pieces of 8 MiB with twice as much between them that is given up again.
const HOT: ByteSize = ByteSize::from_mib(192);
const SCRIPT: &str = "alloc hot 8MiB; alloc gap 16MiB; repeat 23 { grow hot 8MiB; grow gap 16MiB }; \
                      alloc cold 1536MiB; free gap; hot hot 192MiB 30min";
const KEPT_HOT: &str = "hot hot 192MiB 30min";
const CENSUS: &str = "2s";
/// For a first agent to make memory movable, and for filling memory.
const SOON: Duration = Duration::from_secs(120);
/// For what was filled to have been untouched for a minute.
const COOL: Duration = Duration::from_secs(100);
/// For the agent to look, and to empty as many blocks as the share has to mean something for; under
/// emulation each takes it up to half a minute.
const TAKE: Duration = Duration::from_secs(150);
const TAKEN: usize = 2;
/// Most that may have been hot of what went.
const HOT_MOST: Permille = Permille(50);

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("contents, {kernel}"));
    let (program, size) = ((programs, Unit::Installed), (kernel, MEMORY));
    let started = Guest::start_with(lab, program, size, logs, |spec| {
        spec.kernel_arguments.push(TOP_IS_MOVABLE.to_owned());
    });
    let Some(mut guest) = checks.step("the guest starts", started) else { return checks };
    let (mut books, movable) = (Books::default(), make_movable(&mut guest));
    checks.step("a first agent makes boot memory movable", movable);
    let filled = fill(&mut guest, &mut books);
    checks.step("a workload has hot and cold memory", filled);
    let before = books.by_effort();
    println!(
        "hot are {}; of MiB in each movable block {}",
        Pages::of(&books.last),
        by_block(&before)
    );
    let taken = guest.start_agent("").and_then(|()| take(&mut guest, &mut books));
    checks.step("the agent takes blocks with something in them", taken);
    judge(&mut checks, &books, Pages::of(before.iter().take(TAKEN)));
    let above = seen_above(&mut guest, &mut books);
    if let Some(seen) = checks.step("what is hot above 4 GiB is seen to be", above) {
        println!("{seen}");
    }
    checks.pages(&guest.player);
    checks
}

fn make_movable(guest: &mut Guest) -> Result<(), ScenarioError> {
    guest.start_agent(TAKE_NOTHING)?;
    guest.until("memory is movable", SOON, |guest| {
        let status = guest.status().unwrap_or_default();
        let movable = status["blocks"]["movable"].as_u64().unwrap_or(0);
        Ok((movable >= MOVABLE_LEAST as u64, format!("{}", status["blocks"])))
    })?;
    guest.shell("systemctl stop memtide-agent").map(drop)
}

/// Until what is cold has been untouched for a minute by the workload's record, and what is hot lies where
/// somebody blind would begin.
fn fill(guest: &mut Guest, books: &mut Books) -> Result<(), ScenarioError> {
    guest.start_workload(&["--census", CENSUS, SCRIPT])?;
    guest.until("memory is filled", SOON, |guest| {
        listen(guest, books);
        Ok((guest.player.phase == KEPT_HOT, format!("{:?}", guest.player)))
    })?;
    guest.until("a minute has passed", COOL, |guest| {
        listen(guest, books);
        let seen = Pages::of(&books.last);
        Ok((seen.all > 0 && seen.hot <= HOT.bytes() >> 12, format!("{seen}")))
    })
}

/// Until enough blocks have gone that something lay in, and none that nobody has looked into.
fn take(guest: &mut Guest, books: &mut Books) -> Result<(), ScenarioError> {
    guest.until("blocks have been stolen", TAKE, |guest| {
        listen(guest, books);
        let filled = books.gone.iter().filter(|block| block.pages > 0).count();
        let mut gone: Vec<BlockId> = books.gone.iter().map(|block| block.block).collect();
        gone.sort_unstable();
        let status = guest.status()?;
        let stolen: Vec<BlockId> =
            serde_json::from_value(status["blocks"]["stolen"].clone()).unwrap_or_default();
        let seen = format!("{gone:?} went, stolen are {stolen:?}; {}", status["doing"]);
        Ok((filled >= TAKEN && gone == stolen, seen))
    })
}

/// What went was cold, which is no wonder of the place.
fn judge(checks: &mut Checks, books: &Books, blind: Pages) {
    let taken = books.taken();
    println!(
        "in {} stolen blocks were hot {taken}; where it takes the least effort, {blind}; {}",
        books.gone.len(),
        by_block(&books.gone),
    );
    let is_cold = taken.all > 0 && taken.is_within(HOT_MOST);
    checks.check("at most 5 % of what went was hot in the last minute", is_cold, taken);
    checks.check("somebody blind would have taken more", !blind.is_within(HOT_MOST), blind);
}

/// At least half of what is hot above the hole, by the workload's record, was found touched by DAMON.
fn seen_above(guest: &mut Guest, books: &mut Books) -> Result<String, ScenarioError> {
    let mut said = String::new();
    guest.until("touched memory is seen above 4 GiB", SOON, |guest| {
        listen(guest, books);
        let heat: Value =
            serde_json::from_str(&guest.shell("memtide-agent heat --json")?).unwrap_or_default();
        let first = BlockSize::X86_SMALL.block_of(ABOVE);
        let blocks = || books.last.iter().filter(|seen| seen.block >= first);
        let above = Pages::of(blocks());
        let (hot, touched) = (ByteSize::from_bytes(above.hot << 12), touched_above(&heat));
        said = format!("above 4 GiB {hot} are hot, and {touched} were found touched");
        let is_seen = hot.times(4) >= HOT && touched.times(2) >= hot;
        Ok((is_seen, format!("{said}; {}", by_block(blocks()))))
    })?;
    Ok(said)
}

/// Bytes of the cells above the hole that were touched by the last snapshot, however often.
fn touched_above(heat: &Value) -> ByteSize {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let last = list(&heat["columns"]).pop().unwrap_or_default();
    let cells = list(&heat["addresses"]).into_iter().zip(list(&last["accessed"]));
    let is_touched = |(address, accessed): &(Value, Value)| {
        address.as_u64() >= Some(ABOVE.0) && accessed.as_u64() > Some(0)
    };
    let cell = ByteSize::from_bytes(heat["cell"].as_u64().unwrap_or(0));
    cell.times(cells.filter(is_touched).count() as u64)
}

/// Hears the workload, and books what it has seen.
fn listen(guest: &mut Guest, books: &mut Books) {
    guest.listen();
    guest.player.looks.drain(..).for_each(|look| books.look(look));
}

/// Hot of all MiB of each.
fn by_block<'a>(blocks: impl IntoIterator<Item = &'a BlockContents>) -> String {
    let told =
        |seen: &BlockContents| format!("{}: {}/{}", seen.block, seen.hot >> 8, seen.pages >> 8);
    blocks.into_iter().map(told).collect::<Vec<_>>().join(", ")
}
