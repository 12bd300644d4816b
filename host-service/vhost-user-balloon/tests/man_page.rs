//! The manual page says what the program says: its options are written from the command line's own
//! definition. `MEMTIDE_BLESS=1` writes the page anew.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::Command as Process;

use clap::builder::StyledStr;
use clap::{Arg, Command, CommandFactory};
use vhost_user_balloon::cli::Args;

fn file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("doc").join(name)
}

/// Text as troff takes it: a hyphen is a minus to be typed, and no line begins a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace("\n\n", "\n.PP\n");
    text.lines()
        .map(|line| {
            line.strip_prefix('\'').map_or(line.into(), |rest| format!("\\(aq{rest}")) + "\n"
        })
        .collect()
}

fn said(text: Option<&StyledStr>) -> String {
    text.map_or_else(String::new, |text| escaped(&text.to_string()))
}

/// `--wait[=SECONDS]` in bold and italics.
fn usage(arg: &Arg) -> String {
    let value = arg.get_value_names().and_then(|names| names.first()).map(|name| name.to_string());
    let takes = arg.get_action().takes_values();
    let value =
        value.filter(|_| takes).map(|name| format!("\\fI{}\\fR", escaped(&name).trim_end()));
    match (arg.get_long(), value) {
        (None, value) => value.unwrap_or_default(),
        (Some(long), None) => format!("\\fB\\-\\-{}\\fR", escaped(long).trim_end()),
        (Some(long), Some(value)) => {
            let long = escaped(long);
            let optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
            match optional {
                true => format!("\\fB\\-\\-{}\\fR[=\\fI{value}\\fR]", long.trim_end()),
                false => format!("\\fB\\-\\-{}\\fR \\fI{value}\\fR", long.trim_end()),
            }
        }
    }
}

fn argument(arg: &Arg) -> String {
    let mut text = format!(".TP\n{}\n{}", usage(arg), said(arg.get_help()));
    for value in arg.get_possible_values().iter().filter(|_| arg.get_action().takes_values()) {
        let (name, help) = (escaped(value.get_name()), said(value.get_help()));
        text += &format!(".br\n\\fB{}\\fR: {help}", name.trim_end());
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into()).collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        text += &format!("[default: {}]\n", escaped(&defaults.join(" ")).trim_end());
    }
    text
}

fn arguments(command: &Command) -> String {
    let own = |arg: &&Arg| !arg.is_hide_set() && !arg.is_global_set() && arg.get_id() != "help";
    command.get_arguments().filter(own).map(argument).collect()
}

/// A sub-section of one command of `ctl`.
fn command(command: &Command) -> String {
    let mut heading = format!(".SS {}", escaped(command.get_name()).trim_end());
    for positional in command.get_positionals() {
        let name = usage(positional);
        let required = positional.is_required_set();
        heading += &if required { format!(" {name}") } else { format!(" [{name}]") };
    }
    let about = command.get_long_about().or(command.get_about());
    format!("{heading}\n{}{}", said(about), arguments(command))
}

fn page() -> String {
    let mut args = Args::command();
    args.build();
    let ctl = args.find_subcommand("ctl").unwrap();
    let commands = ctl.get_subcommands().filter(|command| command.get_name() != "help");
    let options = format!(".SH OPTIONS\n{}", arguments(&args));
    let version = format!("\"\" \"memtide {}\"", env!("CARGO_PKG_VERSION"));
    let text = std::fs::read_to_string(file("vhost-user-balloon.1.in")).unwrap();
    let text = text.lines().skip_while(|line| line.starts_with(".\\\"")).collect::<Vec<_>>();
    (text.join("\n") + "\n")
        .replace("@VERSION@", &version)
        .replace("@OPTIONS@\n", &options)
        .replace("@CTL@\n", &commands.map(command).collect::<String>())
}

#[test]
fn the_man_page_is_up_to_date() {
    let (page, path) = (page(), file("vhost-user-balloon.1"));
    if std::env::var_os("MEMTIDE_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap() == page, "run it with MEMTIDE_BLESS=1");
    for word in ["--socket-path", "--local-rule", "ctl", "LIBVIRT"] {
        let word = word.replace('-', "\\-").to_lowercase();
        assert!(page.to_lowercase().contains(&word), "{word}");
    }
}

#[test]
fn the_man_page_is_good_troff() {
    // Where groff is not installed there is nobody to ask; the page is text like any other then.
    let Ok(output) = Process::new("groff")
        .args(["-man", "-Tutf8", "-ww"])
        .arg(file("vhost-user-balloon.1"))
        .output()
    else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}
