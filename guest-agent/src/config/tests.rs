use super::*;
use memtide_policy::guest::PSI_GOAL_DEFAULT;
use proptest::prelude::*;

fn checked(toml: &str) -> Result<Config, String> {
    let wishes = Wishes::parse(Path::new("agent.toml"), toml);
    wishes.and_then(Wishes::check).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_is_the_default() {
    let config = checked("").unwrap();
    assert_eq!(config.gate_deadline, Some(Duration::from_secs(10)));
    assert_eq!((config.damon, config.conversion), (DamonUse::TakeOver, Conversion::Convert));
    assert_eq!(config.wish, LimitsWish::default());
}

/// What stands in the file behind a single `#` can be had by removing it.
#[test]
fn the_shipped_file_names_every_setting_and_its_default() {
    let shipped = include_str!("../../agent.toml");
    assert_eq!(checked(shipped), checked(""));
    let is_setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    let lines = shipped.lines().filter(is_setting).map(|line| &line[1..]);
    let settings = lines.collect::<Vec<_>>().join("\n");
    let config = checked(&settings).unwrap();
    assert_eq!(config.wish.min, Some(ByteSize::from_mib(512)));
    assert_eq!(config.wish.psi_goal, Some(PSI_GOAL_DEFAULT));
    let named = Config { wish: LimitsWish::default(), pci: None, ..config };
    assert_eq!(Ok(named), checked(""));
    let wishes = format!("{:?}", Wishes::parse(Path::new("agent.toml"), &settings).unwrap());
    assert!(!wishes.contains("None"), "the shipped file does not name all: {wishes}");
}

#[test]
fn every_setting_is_read() {
    let config = checked(
        r#"
        min = "512MiB"
        max = "3 GiB"
        psi_goal = "0.25%"
        scale_by = "target"
        pci = "0000:00:03.0"
        gate_deadline = "never"
        damon = "polite"
        convert = false
        overcommit = "leave"
        swap = "existing"
        plain_balloon = "leave"
        interrupt = "poll"
        runtime_dir = "/run/other"
        "#,
    )
    .unwrap();
    assert_eq!(config.wish.min, Some(ByteSize::from_mib(512)));
    assert_eq!(config.wish.max, Some(ByteSize::from_gib(3)));
    assert_eq!(config.wish.psi_goal, Some(PpMillion(2_500)));
    assert_eq!(config.scale_by, ScaleBy::Target);
    assert_eq!(config.pci.unwrap().to_string(), "0000:00:03.0");
    assert_eq!((config.gate_deadline, config.damon), (None, DamonUse::Polite));
    assert_eq!(config.conversion, Conversion::Leave);
    assert_eq!(config.overcommit, OvercommitUse::Leave);
    assert_eq!(config.swap, SwapUse::Existing);
    assert_eq!(config.plain_balloon, PlainUse::Leave);
    assert_eq!(config.interrupt, InterruptUse::Poll);
    assert_eq!(config.runtime_dir, Path::new("/run/other"));
}

#[test]
fn tests_have_a_section_of_their_own() {
    let cold_after = |toml: &str| checked(toml).map(|config| config.for_tests.cold_after);
    assert_eq!(cold_after(""), Ok(Duration::from_secs(60)));
    let tests = "min = \"1GiB\"\n[for-tests]\ncold_after = \"15s\"";
    assert_eq!(cold_after(tests), Ok(Duration::from_secs(15)));
    for wrong in ["cold_after = \"20ms\"", "cold_after = 15", "hot_after = \"15s\""] {
        let error = cold_after(&format!("[for-tests]\n{wrong}")).unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    let cases = [
        ("\nminimum = \"1GiB\"", "agent.toml, line 2, `minimum = \"1GiB\"`: unknown field"),
        (
            "min = 512",
            "line 1, `min = 512`: invalid type: integer `512`, expected a value in quotes",
        ),
        ("min = \"1GB\"", "min: the size \"1GB\" has an unknown unit"),
        ("min = \"1024\"", "has no unit: write for example 1024MiB"),
        ("min = \"2GiB\"\nmax = \"1GiB\"", "lower min or raise max"),
        ("psi_goal = \"0.1\"", "psi_goal: \"0.1\" is no share from 0.01% to 10%"),
        ("psi_goal = \"0.005%\"", "\"0.005%\" is no share from 0.01% to 10%"),
        ("psi_goal = \"11%\"", "\"11%\" is no share from 0.01% to 10%"),
        ("scale_by = \"load\"", "unknown variant `load`, expected `use` or `target`"),
        ("pci = \"3.0\"", "pci: \"3.0\" is no PCI address"),
        ("gate_deadline = \"10\"", "is no time: write for example 1500ms, 10s"),
        ("gate_deadline = \"200ms\"", "use 1s or more"),
        ("damon = \"maybe\"", "take-over"),
        ("convert = 1", "line 1, `convert = 1`: invalid type"),
    ];
    for (toml, expected) in cases {
        let error = checked(toml).unwrap_err();
        assert!(error.contains(expected), "{toml:?} gave {error:?}");
    }
}

#[test]
fn the_command_line_goes_over_the_file() {
    let file = Wishes { min: Some("1GiB".into()), max: Some("4GiB".into()), ..Wishes::default() };
    let line = Wishes { min: Some("2GiB".into()), ..Wishes::default() };
    let config = line.or(file).check().unwrap();
    assert_eq!(config.wish.min, Some(ByteSize::from_gib(2)));
    assert_eq!(config.wish.max, Some(ByteSize::from_gib(4)));
}

#[test]
fn a_named_file_must_exist() {
    assert!(Wishes::read(Some(Path::new("/nowhere/agent.toml"))).is_err());
}

proptest! {
    #[test]
    fn reading_never_panics(text in ".{0,20}") {
        let _ = (percent(&text), deadline(&text));
    }

    #[test]
    fn hundredths_of_a_percent_are_exact(n in 1_u32..=1_000) {
        let text = format!("{}.{:02}%", n / 100, n % 100);
        prop_assert_eq!(percent(&text).unwrap(), PpMillion(n * 100));
    }
}
