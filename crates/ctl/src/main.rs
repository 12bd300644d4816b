//! memtide: shows and steers memtided from the command line.

mod args;
mod client;
mod commands;
mod device;
mod output;
mod render;
mod table;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;
use crate::commands::CommandError;

fn main() -> ExitCode {
    match commands::run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough: `memtide status | head -1`.
        Err(CommandError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("memtide: {error}");
            ExitCode::FAILURE
        }
    }
}
