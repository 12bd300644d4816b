//! `sim`: plays a scenario, or many.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
