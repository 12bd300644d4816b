use super::*;

/// A configuration file with this text, read.
fn from_file(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memtided.toml");
    std::fs::write(&path, text).unwrap();
    let args = Args { config: Some(path), ..Args::default() };
    Config::from_args(&args).map_err(|error| error.to_string())
}

fn from_flags(vms: &[&str]) -> Result<Config, String> {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let args = Args {
        config: Some(empty.path().into()),
        vms: vms.iter().map(ToString::to_string).collect(),
        ..Args::default()
    };
    Config::from_args(&args).map_err(|error| error.to_string())
}

#[test]
fn the_example_file_is_a_configuration() {
    let config = from_file(include_str!("../../memtided.toml.example")).unwrap();
    assert_eq!(config.budget, Budget::Host);
    let [started, adopted] = config.vms.as_slice() else { panic!("{config:?}") };
    assert_eq!(started.device, Device::Start { vhost_socket: "/run/memtide/web1.sock".into() });
    assert_eq!(started.control, PathBuf::from("/run/memtide/web1.sock.ctl"));
    assert_eq!(adopted.device, Device::Adopt);
    assert_eq!(adopted.limits.max(), ByteSize::MAX);
    assert_eq!((&started.qmp, &adopted.qmp), (&None, &None), "nothing is plugged in unasked");
}

#[test]
fn it_runs_without_a_file() {
    let config = from_flags(&["name=a,control=/tmp/a,min=1GiB,max=2GiB", "name=b,control=/tmp/b"]);
    let config = config.unwrap();
    assert_eq!(config.socket, PathBuf::from(DEFAULT_SOCKET));
    assert_eq!(config.vms[0].limits.max(), ByteSize::from_gib(2));
    assert_eq!(config.vms[1].limits.min(), DEFAULT_MIN);
}

/// Each line: a file, and the words that its refusal must hold (the line, the key, the remedy).
#[test]
fn refusals_name_the_line_the_key_and_the_remedy() {
    let vm = |rest: &str| format!("\n[[vm]]\nname = \"a\"\n{rest}\n");
    let adopt = "min = \"1GiB\"\ndevice = \"adopt\"\n";
    let cases: Vec<(String, &[&str])> = vec![
        ("budgt = \"host\"".into(), &["line 1", "budgt", "budget"]),
        ("budget = \"4\"".into(), &["line 1", "no unit", "4MiB", "host"]),
        ("budget = \"0MiB\"".into(), &["line 1", "nothing"]),
        ("budget = 4".into(), &["line 1", "in quotes", "host"]),
        ("[vm]\nname = \"a\"".into(), &["line 1", "[[vm]]"]),
        ("socket = \"api.sock\"".into(), &["memtided.toml: socket", "from /"]),
        (vm("min = 512\ndevice = \"adopt\""), &["line 4", "in quotes", "512MiB"]),
        (vm("min = \"512\"\ndevice = \"adopt\""), &["line 4", "no unit", "512MiB"]),
        (vm("device = \"adopt\""), &["line 3", "min", "add min = "]),
        (vm("min = \"1GiB\""), &["line 3", "device", "start", "adopt"]),
        ("\n[[vm]]\nmin = \"1GiB\"".into(), &["line 2", "name", "add name = "]),
        (vm("min = \"1GiB\"\ndevice = \"steal\""), &["line 5", "steal", "adopt", "start"]),
        (vm("min = \"0MiB\"\ndevice = \"adopt\""), &["line 3", "min", "512MiB"]),
        (vm(adopt), &["line 3", "control", "add"]),
        (vm("min = \"1GiB\"\ndevice = \"start\"\ncontrol = \"/c\""), &["line 3", "vhost_socket"]),
        (vm(&format!("{adopt}max = \"1MiB\"\ncontrol = \"/c\"")), &["line 3", "min", "raise max"]),
        (vm(&format!("{adopt}control = \"c\"")), &["line 3", "control", "from /"]),
        (vm(&format!("{adopt}control = \"/c\"\nqmp = \"q\"")), &["line 3", "qmp", "from /"]),
        (
            vm(&format!("{adopt}control = \"/c\"\nqmp = \"/{}\"", "q".repeat(107))),
            &["line 3", "qmp", "108 bytes", "shorten"],
        ),
    ];
    for (text, words) in cases {
        let error = from_file(&text).unwrap_err();
        for word in words {
            assert!(error.contains(word), "{word:?} is missing from: {error}");
        }
    }
}

#[test]
fn two_vms_share_nothing() {
    let error = from_flags(&["name=a,control=/c/1", "name=a,control=/c/2"]).unwrap_err();
    assert!(error.contains("taken by another VM") && error.contains("rename"), "{error}");
    let error = from_flags(&["name=a,control=/c/1", "name=b,control=/c/1"]).unwrap_err();
    assert!(error.contains("control of a") && error.contains("of its own"), "{error}");
    let error = from_flags(&["name=a,control=/c/1,qmp=/c/1"]).unwrap_err();
    assert!(error.contains("qmp") && error.contains("control of a"), "{error}");
    let error =
        from_flags(&["name=a,control=/c/1,qmp=/q", "name=b,control=/c/2,qmp=/q"]).unwrap_err();
    assert!(error.contains("qmp of a") && error.contains("of its own"), "{error}");
    let api = format!("name=a,control={DEFAULT_SOCKET}");
    let error = from_flags(&[&api]).unwrap_err();
    assert!(error.contains("memtided's own API"), "{error}");
}

#[test]
fn a_flag_that_is_not_understood_shows_the_form() {
    for text in
        ["web1", "name=a", "control=/c", "name=a,control=/c,mim=1GiB", "name=../a,control=/c"]
    {
        let error = from_flags(&[text]).unwrap_err();
        assert!(error.contains("control=PATH") || error.contains("letters"), "{error}");
    }
    let error = from_flags(&["name=a,control=/c,name=b"]).unwrap_err();
    assert!(error.contains("name: it is given twice"), "{error}");
    let error = from_flags(&["name=a,control=/c,min=7"]).unwrap_err();
    assert!(error.contains("min: the size \"7\" has no unit"), "{error}");
}

#[test]
fn a_monitor_is_named_in_a_file_or_a_flag() {
    let vm = "[[vm]]\nname = \"a\"\nmin = \"1GiB\"\ndevice = \"adopt\"\ncontrol = \"/c\"\n";
    let config = from_file(&format!("{vm}qmp = \"/q\"\n")).unwrap();
    assert_eq!(config.vms[0].qmp, Some("/q".into()));
    assert_eq!(from_flags(&["name=a,control=/c,qmp=/q"]).unwrap().vms[0].qmp, Some("/q".into()));
}

#[test]
fn a_socket_that_cannot_be_used_is_refused_with_the_option_that_named_it() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let config = Some(empty.path().into());
    let args = Args { config, socket: Some("api.sock".into()), ..Args::default() };
    let error = Config::from_args(&args).unwrap_err().to_string();
    assert!(error.starts_with("--socket: socket:") && error.contains("from /"), "{error}");
}
