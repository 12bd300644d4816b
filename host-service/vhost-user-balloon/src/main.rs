//! vhost-user-balloon: the virtio-balloon device of one VM, as a process; and with `ctl`, whoever
//! looks at one and steers it.

use std::error::Error;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use clap::Parser;
use memtide_device_ctl::{CtlError, Form};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use vhost_user_balloon::Service;
use vhost_user_balloon::cli::{Args, CAPABILITIES, Command, Ctl};
use vhost_user_balloon::inherited::Activated;

fn main() -> ExitCode {
    // Before anything is parsed: the convention has this option win over whatever else is there.
    if std::env::args_os().any(|word| word == "--print-capabilities") {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    if let Some(Command::Ctl(ctl)) = &args.command {
        return steer(ctl);
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_max_level(args.log)
        .init();
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-user-balloon: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Asks a device that runs.
fn steer(ctl: &Ctl) -> ExitCode {
    let form = if ctl.json { Form::Json } else { Form::Human };
    match memtide_device_ctl::run(&ctl.socket, &ctl.action, form) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough: `... ctl SOCKET watch | head -1`.
        Err(CtlError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-user-balloon ctl: {error}");
            error.exit_status().into()
        }
    }
}

/// Descriptors that one VM may need: 509 memory regions with a file each, two for each of 6 rings,
/// 12 clients, those of a message that is being read, and some of the process's own.
const DESCRIPTORS: u64 = 1024;

/// Where fewer may be open than a VM may need, and more are allowed. Where they are not, a region that
/// comes too late is refused.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS, |hard| hard.min(DESCRIPTORS));
    if limit.current.is_some_and(|soft| soft < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!("no more than {:?} files can be open: {error}", limit.current);
        }
    }
}

/// Serves until SIGTERM or SIGINT, which arrive as bytes on a socket that the loop waits for.
fn serve(args: Args) -> Result<(), Box<dyn Error>> {
    raise_descriptor_limit();
    // First of all: descriptors that were inherited must be adopted before others are opened.
    let options = args.options(Activated::from_environment()?)?;
    let (stop, signals) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, signals.try_clone()?)?;
    }
    Service::start(options)?.run(&stop)?;
    tracing::info!("done");
    Ok(())
}
