//! vhost-user-balloon: the virtio-balloon device of one VM, as a process.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use vhost_user_balloon::Service;
use vhost_user_balloon::cli::{Args, CAPABILITIES};

fn main() -> ExitCode {
    // Before anything is parsed: the convention has this option win over whatever else is there.
    if std::env::args_os().any(|word| word == "--print-capabilities") {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
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

/// Serves until SIGTERM or SIGINT, which arrive as bytes on a socket that the loop waits for.
fn serve(args: Args) -> Result<(), Box<dyn Error>> {
    // First of all: a descriptor that was inherited must be adopted before others are opened.
    let options = args.options()?;
    let (stop, signals) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, signals.try_clone()?)?;
    }
    Service::start(options)?.run(&stop)?;
    tracing::info!("done");
    Ok(())
}
