//! Whole scripts, in this process, with memory that is damaged between them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Sender};

use super::*;
use crate::audit::KeepGoing;
use crate::control::{Controls, Go, Nudge};
use crate::journal::Journal;

struct Stage {
    player: Player<Vec<u8>>,
    host: Sender<Nudge>,
    stop: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

fn stage(keep_going: KeepGoing) -> Stage {
    let (host, nudges) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let controls = Controls::new(nudges, Arc::clone(&stop));
    let dir = tempfile::tempdir().unwrap();
    let salt = Salt::of_run(7, 7);
    let register = Register::default();
    let settings = Settings { dir: dir.path().to_owned(), thp: Thp::Default, salt, register };
    let audit = Audit { journal: Journal::new(Vec::new()), controls, keep_going };
    Stage { player: Player::new(settings, audit), host, stop, _dir: dir }
}

impl Stage {
    fn play(&mut self, text: &str) -> Summary {
        let script = Script::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        self.player.play(&script).unwrap()
    }

    /// Plays steps of which the names were allocated by an earlier script.
    fn play_on(&mut self, text: &str, skip: usize) -> Summary {
        let mut script = Script::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        script.steps.drain(..skip);
        self.player.play(&script).unwrap()
    }

    fn memory(&mut self, name: &str, extent: usize) -> &mut crate::mapping::Mapping {
        self.player.regions.get_mut(name).unwrap().extents[extent].memory_mut()
    }

    fn events(&self) -> Vec<serde_json::Value> {
        let text = str::from_utf8(self.player.audit.journal.out()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn named(&self, event: &str) -> Vec<serde_json::Value> {
        self.events().into_iter().filter(|line| line["event"] == event).collect()
    }
}

#[test]
fn plays_eight_mebibytes_from_end_to_end() {
    let mut stage = stage(KeepGoing::Yes);
    stage.host.send(Nudge::Go(Go::Signal)).unwrap();
    let summary = stage.play(
        "alloc heap 8MiB; hot heap 2MiB 50ms; idle 1ms; free heap 4MiB; files 1MiB 1ms\n\
         grow heap 4MiB; alloc other 64KiB; hot heap 6MiB 20ms; wait; verify; free heap",
    );
    assert_eq!((summary.outcome, summary.pages_bad), (Outcome::Finished, 0));
    // The last verify alone sees 8 MiB and 64 KiB; the file has 256 pages.
    assert!(summary.pages_checked >= 2048 + 16 + 256, "{summary:?}");
    assert!(summary.pages_touched >= 512 + 1536, "{summary:?}");

    let phases = stage.named("phase");
    assert_eq!(phases.len(), 11);
    assert_eq!(phases[1]["name"], "hot heap 2MiB 50ms");
    let done = stage.named("phase_done");
    let owned: Vec<_> =
        done.iter().map(|line| line["owned_bytes"].as_u64().unwrap() >> 20).collect();
    assert_eq!(owned, [8, 8, 8, 4, 4, 8, 8, 8, 8, 8, 0]);
    assert!(done[1]["duration_ms"].as_u64().unwrap() >= 50);
    assert_eq!(stage.named("go")[0]["by"], "signal");
}

#[test]
fn a_file_is_made_once_and_what_is_lost_of_it_is_found_at_the_next_reading() {
    let mut stage = stage(KeepGoing::Yes);
    let summary = stage.play("read src 1MiB; read src 1MiB");
    assert_eq!(
        (summary.outcome, summary.pages_bad, summary.pages_checked),
        (Outcome::Finished, 0, 512)
    );
    stage.player.files.get_mut("src").unwrap().lose(7);
    let summary = stage.play("read src 1MiB; read src 1MiB");
    assert_eq!((summary.pages_bad, summary.faults.zeroed), (1, 1));
}

#[test]
fn each_lost_page_is_found_named_and_counted_once() {
    let mut stage = stage(KeepGoing::Yes);
    stage.play("alloc heap 1MiB; grow heap 1MiB");
    let neighbour = *stage.memory("heap", 0).page(8);
    stage.memory("heap", 0).page_mut(3).fill(0);
    *stage.memory("heap", 1).page_mut(255) = neighbour;
    stage.memory("heap", 1).page_mut(7)[100] ^= 1;
    let summary = stage.play_on("alloc heap 1MiB; verify heap; verify", 1);
    let faults = summary.faults;
    assert_eq!((faults.zeroed, faults.stale, faults.foreign, faults.corrupt), (1, 0, 1, 1));
    assert_eq!(summary.pages_bad, 3);

    let bad = stage.named("bad_page");
    let kinds: Vec<_> = bad.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["zeroed", "corrupt", "foreign"]);
    let address = format!("{:#x}", stage.memory("heap", 0).address(3));
    assert_eq!(bad[0]["address"], address.as_str());
    assert!(bad[1]["detail"].as_str().unwrap().contains("from byte 800 on"), "{}", bad[1]);
}

#[test]
fn keeping_memory_hot_finds_what_is_lost_there() {
    let mut stage = stage(KeepGoing::Yes);
    stage.play("alloc heap 256KiB; hot heap 256KiB 20ms");
    stage.memory("heap", 0).page_mut(60).fill(0);
    let summary = stage.play_on("alloc heap 256KiB; hot heap 256KiB 50ms", 1);
    assert_eq!((summary.faults.zeroed, summary.pages_bad), (1, 1));
}

#[test]
fn an_old_copy_of_a_rewritten_page_is_stale() {
    let mut stage = stage(KeepGoing::Yes);
    stage.play("alloc heap 64KiB");
    let old = *stage.memory("heap", 0).page(5);
    stage.play_on("alloc heap 64KiB; hot heap 64KiB 20ms", 1);
    *stage.memory("heap", 0).page_mut(5) = old;
    let summary = stage.play_on("alloc heap 64KiB; verify", 1);
    assert_eq!((summary.faults.stale, summary.pages_bad), (1, 1));
    let detail = stage.named("bad_page")[0]["detail"].as_str().unwrap().to_owned();
    assert!(detail.starts_with("generation 0 where generation "), "{detail}");
}

#[test]
fn memory_that_was_freed_and_comes_back_is_foreign() {
    let mut stage = stage(KeepGoing::Yes);
    stage.play("alloc heap 64KiB");
    let old = *stage.memory("heap", 0).page(5);
    stage.play_on("alloc heap 64KiB; free heap; alloc heap 64KiB", 1);
    *stage.memory("heap", 0).page_mut(5) = old;
    let summary = stage.play_on("alloc heap 64KiB; verify", 1);
    assert_eq!((summary.faults.foreign, summary.pages_bad), (1, 1));
}

#[test]
fn a_bad_page_ends_the_script_where_that_was_asked_for() {
    let mut stage = stage(KeepGoing::No);
    stage.play("alloc heap 64KiB");
    stage.memory("heap", 0).page_mut(0).fill(0);
    stage.memory("heap", 0).page_mut(1).fill(0);
    let summary = stage.play_on("alloc heap 64KiB; verify; idle 2min", 1);
    assert_eq!((summary.outcome, summary.pages_bad), (Outcome::StoppedAtBadPage, 1));
}

#[test]
fn a_stop_ends_any_phase_with_a_summary() {
    for phase in
        ["alloc b 64MiB", "hot a 64KiB 2min", "idle 2min", "wait", "files 64MiB 2min", "verify"]
    {
        let mut stage = stage(KeepGoing::Yes);
        stage.play("alloc a 64KiB");
        stage.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let summary = stage.play_on(&format!("alloc a 64KiB; {phase}"), 1);
        assert_eq!(summary.outcome, Outcome::Interrupted, "{phase}");
        assert_eq!(stage.events().last().unwrap()["outcome"], "interrupted", "{phase}");
    }
}

#[test]
fn a_place_that_takes_no_files_is_named_with_a_remedy() {
    let mut stage = stage(KeepGoing::Yes);
    stage.player.settings.dir = PathBuf::from("/proc/nothing");
    let summary = stage.play("files 64KiB 1s");
    assert_eq!((summary.outcome, summary.pages_bad), (Outcome::Failed, 0));
    let message = stage.named("error")[0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("64 KiB in /proc/nothing") && message.contains("--dir"), "{message}");
}
