//! Every target on its corpus and on some thousand mutants of it: the same ones each time, with
//! nothing but the stable toolchain.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memtide_fuzz_targets::mutate::{Chance, mutant};
use memtide_fuzz_targets::{TARGETS, Target};

/// Inputs that are made for each target, at most.
const MUTANTS: u64 = 20_000;
/// A slow machine makes fewer: a smoke run that is too long is not run.
const TIME_MAX: Duration = Duration::from_secs(6);

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target.name);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Says which input it was that the target died of: a panic's own text does not know.
struct LastWords<'a> {
    target: &'a Target,
    input: &'a [u8],
    what: String,
}

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { target, input, what } = self;
            eprintln!("the target {} fails on {what}: {}", target.name, hex(input));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn run(target: &Target, input: &[u8], what: String) {
    let last_words = LastWords { target, input, what };
    (target.run)(input);
    drop(last_words);
}

/// Runs the target of this name.
pub(crate) fn smoke(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    let corpus = corpus(target);
    for (path, input) in &corpus {
        run(target, input, path.display().to_string());
    }
    let inputs: Vec<Vec<u8>> = corpus.into_iter().map(|(_, input)| input).collect();
    let (start, mut chance) = (Instant::now(), Chance::new(1));
    for n in 0..MUTANTS {
        if start.elapsed() > TIME_MAX {
            eprintln!("{name}: {n} mutants in {TIME_MAX:?}, and no more");
            break;
        }
        let input = mutant(&inputs, target.len_max, &mut chance);
        run(target, &input, format!("mutant {n}"));
    }
}
