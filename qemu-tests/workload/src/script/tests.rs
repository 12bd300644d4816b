//! What a writer of scripts may write, and what he is told when he may not.

use std::time::Duration;

use proptest::prelude::*;

use super::{Command, STEPS_MAX, Script};

fn names(text: &str) -> Vec<String> {
    let script = Script::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    script.steps.into_iter().map(|step| step.name).collect()
}

fn refusal(text: &str) -> String {
    Script::parse(text).expect_err(text).to_string()
}

#[test]
fn reads_the_example() {
    let text = "alloc heap 512MiB; hot heap 128MiB 10s; idle 20s; free heap 256MiB;\n\
                files 64MiB 5s; grow heap 512MiB; verify; wait\nfree heap # all of it";
    let script = Script::parse(text).unwrap();
    let names: Vec<_> = script.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names[..3], ["alloc heap 512MiB", "hot heap 128MiB 10s", "idle 20s"]);
    assert_eq!(names[7..], ["wait", "free heap"]);
    assert!(script.waits());
    let Command::Hot(region, pages, time) = &script.steps[1].command else {
        panic!("{:?}", script.steps[1]);
    };
    assert_eq!((region.text.as_str(), pages.count), ("heap", 32_768));
    assert_eq!(*time, Duration::from_secs(10));
}

#[test]
fn times_may_have_fractions_and_three_units() {
    let time = |text: &str| match &Script::parse(&format!("idle {text}")).unwrap().steps[0].command
    {
        Command::Idle(time) => *time,
        other => panic!("{other:?}"),
    };
    assert_eq!(time("250ms"), Duration::from_millis(250));
    assert_eq!(time("1.5s"), Duration::from_millis(1500));
    assert_eq!(time("0.25min"), Duration::from_secs(15));
    assert_eq!(time("0s"), Duration::ZERO);
}

#[test]
fn repeat_is_unrolled_in_order_also_when_nested() {
    let text = "alloc a 4KiB\nrepeat 2 {\n verify a; repeat 2 { idle 1s }\n}\nrepeat 0{wait}";
    assert_eq!(
        names(text),
        ["alloc a 4KiB", "verify a", "idle 1s", "idle 1s", "verify a", "idle 1s", "idle 1s"]
    );
}

#[test]
fn a_name_may_be_used_again_after_it_is_freed() {
    assert_eq!(names("alloc a 4KiB; free a; alloc a 8KiB; free a 8KiB; alloc a 4KiB").len(), 5);
}

/// Script, and the words that its refusal must contain: the place, the word, the remedy.
const REFUSALS: &[(&str, &[&str])] = &[
    (
        "alloc heap 1MiB\nfrobnicate heap",
        &["line 2, column 1", "\"frobnicate\"", "there are alloc"],
    ),
    ("alloc heap 512", &["line 1, column 12", "\"512\"", "512MiB"]),
    ("alloc heap 5KB", &["column 12", "unknown unit", "KiB"]),
    ("alloc heap 5KiB", &["column 12", "multiple of 4KiB"]),
    ("alloc heap 0MiB", &["column 12", "at least 4KiB"]),
    ("alloc heap 2TiB", &["column 12", "1TiB"]),
    ("alloc heap", &["column 1", "\"alloc\"", "the size is missing", "alloc NAME SIZE"]),
    ("alloc 512MiB heap", &["column 7", "\"512MiB\"", "start with a letter"]),
    ("alloc heap 1MiB verify", &["column 17", "\"verify\"", "semicolon"]),
    ("idle 20", &["column 6", "\"20\"", "10s"]),
    ("idle 5h", &["column 6", "10s"]),
    ("idle 999999999s", &["column 6", "more than a week"]),
    ("alloc a 1MiB; alloc b 1MiB; hot c 1MiB 1s", &["column 33", "\"c\"", "owned: a, b"]),
    ("free heap", &["column 6", "owned: nothing", "alloc it before"]),
    ("verify heap", &["column 8", "alloc it before"]),
    ("alloc a 1MiB; free a; verify a", &["column 30", "owned: nothing"]),
    ("alloc a 1MiB; alloc a 1MiB", &["column 21", "use grow"]),
    ("alloc a 1MiB; free a 2MiB", &["column 22", "\"2MiB\"", "a owns only 1 MiB"]),
    ("alloc a 1MiB; hot a 2MiB 1s", &["column 21", "a owns only 1 MiB"]),
    ("alloc a 8MiB; repeat 3 { free a 4MiB }", &["column 31", "owned: nothing"]),
    ("repeat x { wait }", &["column 8", "\"x\"", "repeat 3 {"]),
    ("repeat 3 wait", &["column 10", "repeat N {"]),
    ("repeat 3; wait", &["column 1", "opening brace", "repeat N {"]),
    ("repeat 3 { wait", &["column 10", "never closed"]),
    ("wait }", &["column 6", "closes nothing"]),
    ("{ wait }", &["column 1", "repeat N {"]),
    ("repeat 10001 { wait }", &["column 8", "10000 steps"]),
    (" # nothing\n;;", &["line 1, column 1", "nothing to play"]),
    ("", &["nothing to play"]),
];

#[test]
fn every_refusal_names_the_word_its_place_and_the_remedy() {
    for (text, parts) in REFUSALS {
        let refusal = refusal(text);
        for part in *parts {
            assert!(refusal.contains(part), "{text:?} says {refusal:?}, which lacks {part:?}");
        }
    }
}

#[test]
fn columns_count_characters() {
    assert!(refusal("wait; größe").contains("line 1, column 7"));
    assert!(refusal("é; wait").contains("line 1, column 1"));
}

#[test]
fn small_scripts_that_unroll_to_much_are_refused_at_once() {
    let nested = "repeat 10000 { ".repeat(8) + "wait" + &" }".repeat(8);
    assert!(refusal(&nested).contains("10000 steps"));
    assert!(refusal("repeat 5000 { wait }\nrepeat 5001 { wait }").contains("10000 steps"));
    assert!(refusal(&"repeat 1 { ".repeat(100_000)).contains("nested more than 8"));
    assert_eq!(names("wait; repeat 18446744073709551615 { }").len(), 1);
}

#[test]
fn a_file_that_stays_is_read_as_a_whole() {
    assert_eq!(names("read src 8KiB; alloc src 4KiB; read src 8KiB").len(), 3);
    let text = refusal("read src 8KiB; read src 4KiB");
    assert!(text.contains("\"4KiB\": the file src has 8 KiB"), "{text}");
}

/// Text that is nearly a script: what a generator of any text would hardly ever reach.
fn nearly_a_script() -> impl Strategy<Value = String> {
    let words = [
        "alloc",
        "hot",
        "idle",
        "grow",
        "free",
        "files",
        "read",
        "verify",
        "wait",
        "repeat",
        "a",
        "b",
        "#",
        "4KiB",
        "8KiB",
        "1.5GiB",
        "99999999TiB",
        "7",
        "10s",
        "1.5min",
        "0ms",
        ";",
        "\n",
        "{",
        "}",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..40)
        .prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
        let _ = Script::parse(&text);
    }

    #[test]
    fn nearly_scripts_are_read_or_refused(text in nearly_a_script()) {
        if let Ok(script) = Script::parse(&text) {
            prop_assert!((1..=STEPS_MAX).contains(&script.steps.len()));
        }
    }

    #[test]
    fn what_is_accepted_reads_the_same_from_its_phases(text in nearly_a_script()) {
        if let Ok(script) = Script::parse(&text) {
            let played: Vec<_> = script.steps.into_iter().map(|step| step.name).collect();
            prop_assert_eq!(names(&played.join(";\n")), played);
        }
    }
}
