//! `cargo xtask lab`: prepare the lab, or sit down at one of its guests.

mod shell;

use clap::{Args, Subcommand, ValueEnum};
use memtide_lab::setup::{self, Printed};
use memtide_lab::{Cache, Kernel, Lab};

/// The result of a task.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Tasks of the lab.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Fetch and build everything into the user's cache; a second run finds it there.
    Setup(Setup),
    /// Boot a guest and open a root shell in it, here, in this terminal.
    Shell(shell::Shell),
}

/// Arguments of `lab setup`.
#[derive(Debug, Args)]
pub(crate) struct Setup {
    /// Which guest kernels to fetch.
    #[arg(long, value_name = "VERSION", value_enum, default_value_t = Kernels::All)]
    kernel: Kernels,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kernels {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    #[value(name = "7.3")]
    V7_3,
    All,
}

impl Kernels {
    fn list(self) -> Vec<Kernel> {
        match self {
            Self::V6_1 => vec![Kernel::V6_1],
            Self::V6_12 => vec![Kernel::V6_12],
            Self::V7_3 => vec![Kernel::V7_3],
            Self::All => Kernel::ALL.to_vec(),
        }
    }
}

/// Runs one.
pub(crate) fn run(task: &Task) -> Result<()> {
    match task {
        Task::Setup(arguments) => {
            let lab = set_up(&arguments.kernel.list())?;
            describe(&lab)
        }
        Task::Shell(arguments) => shell::run(arguments),
    }
}

/// Sets up (or finds) the lab, telling the terminal about it.
pub(crate) fn set_up(kernels: &[Kernel]) -> Result<Lab> {
    let cache = Cache::of_user()?;
    eprintln!("the lab, in {}:", cache.root().display());
    Ok(setup::run(cache, kernels, &mut Printed::on_stderr())?)
}

/// What there is now.
fn describe(lab: &Lab) -> Result<()> {
    let releases = Kernel::ALL.iter().filter_map(|kernel| lab.kernel(*kernel).ok());
    let releases: Vec<String> = releases.map(|files| format!("Linux {}", files.release)).collect();
    println!("ready: QEMU {}, {}", lab.qemu().version(), releases.join(", "));
    println!("`cargo xtask lab shell` opens a shell in a guest");
    Ok(())
}
