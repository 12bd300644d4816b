//! docs/virtio-conformance.md names tests that exist, in every row at least one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What stands between backquotes in a line and has the form `path::name`.
fn named_tests(line: &str) -> Vec<(&str, &str)> {
    let quoted = line.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|text| text.split_once("::"))
        .filter(|(path, _)| path.ends_with(".rs"))
        .collect()
}

fn exists(path: &str, name: &str) -> bool {
    let text = std::fs::read_to_string(root().join(path)).unwrap_or_default();
    let function = format!("fn {name}(");
    let at = text.find(&function);
    // Between the attribute and the function there may be others, but no other function.
    at.is_some_and(|at| {
        let before = &text[..at];
        let attribute = before.rfind("#[test]");
        attribute.is_some_and(|attribute| !before[attribute..].contains("fn "))
    })
}

#[test]
fn every_test_that_is_named_exists() {
    let document = std::fs::read_to_string(root().join("docs/virtio-conformance.md")).unwrap();
    let is_row = |line: &&str| line.starts_with("| ") && line.contains(" | ");
    let is_head = |line: &str| line.ends_with("| shown by |");
    let rows: Vec<&str> = document.lines().filter(is_row).filter(|line| !is_head(line)).collect();
    assert!(rows.len() > 30, "the tables are not read: {} rows", rows.len());
    for row in rows {
        let tests = named_tests(row);
        assert!(!tests.is_empty(), "no test is named in: {row}");
        for (path, name) in tests {
            assert!(exists(path, name), "there is no test {name} in {path}");
        }
    }
}

#[test]
fn a_name_that_is_none_is_found_out() {
    assert!(exists("crates/balloon/tests/conformance.rs", "a_name_that_is_none_is_found_out"));
    assert!(!exists("crates/balloon/tests/conformance.rs", "root"));
    assert!(!exists("crates/balloon/tests/conformance.rs", "no_such"));
    assert!(!exists("crates/balloon/tests/no_such.rs", "root"));
}
