//! memtide: shows and steers memtided from the command line.

mod access;
mod args;
mod client;
mod commands;
mod render;
mod table;

use std::process::ExitCode;

use clap::Parser;
use memtide_device_ctl::CtlError;

use crate::args::Args;
use crate::commands::CommandError;

fn main() -> ExitCode {
    match commands::run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough: `memtide status | head -1`.
        Err(CommandError::Output(error) | CommandError::Device(CtlError::Output(error)))
            if error.kind() == std::io::ErrorKind::BrokenPipe =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("memtide: {error}");
            error.exit_status().into()
        }
    }
}
