//! memtided: the host's ledger, gate and API.

use std::process::ExitCode;

use clap::Parser;
use memtided::{Args, Config};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = start_log(&args.log) {
        eprintln!("memtided: {error}");
        return ExitCode::FAILURE;
    }
    match Config::from_args(&args).map_err(Into::into).and_then(memtided::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// To standard error; without times and colours where a journal adds its own.
fn start_log(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|e| format!("--log {filter:?} is not understood ({e}): try info or debug"))?;
    let to_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_target(false).with_ansi(false);
    if to_journal {
        log.without_time().init();
    } else {
        log.init();
    }
    Ok(())
}
