//! The smoke run of the targets that hold nothing of their process.

mod common;

use common::smoke;
use memtide_fuzz_targets::TARGETS;

/// A test for each target, so that each has its line and its time.
macro_rules! smoke {
    ($($name:ident)*) => {
        $(#[test] fn $name() { smoke(stringify!($name)); })*

        const HERE: &[&str] = &[$(stringify!($name)),*];
    };
}

smoke!(access driver guest kernel policy rings state wire);

/// These count descriptors, and are tested in a process of their own.
const ELSEWHERE: &[&str] = &["control", "session"];

#[test]
fn no_target_is_left_out() {
    let is_run = |name: &str| HERE.contains(&name) || ELSEWHERE.contains(&name);
    assert!(TARGETS.iter().all(|target| is_run(target.name)));
}
