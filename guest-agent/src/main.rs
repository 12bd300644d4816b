//! memtide-agent: observes a guest, steals its cold memory blocks, asks them back.

use std::process::ExitCode;

fn main() -> ExitCode {
    memtide_agent::cli::main()
}
