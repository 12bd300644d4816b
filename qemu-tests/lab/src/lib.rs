//! The lab: stock QEMU, stock Debian kernels, a systemd guest, and the scenarios that run on them.
//!
//! [`setup::run`] fetches and builds everything into the user's cache, once. [`tools::Tools`] puts
//! together what a guest shall have of ours, [`machine::Machine`] boots it, and [`guest::Guest`]
//! runs commands in it. Nothing needs a network in the guest, a mount on the host, or (after
//! set-up) root.
//!
//! ```no_run
//! # use std::time::Duration;
//! use memtide_lab::cargo::{Profile, build};
//! use memtide_lab::machine::{Machine, MachineSpec};
//! use memtide_lab::{Cache, Kernel, setup, tools::Tools};
//!
//! # fn main() -> memtide_lab::Result<()> {
//! let lab = setup::run(Cache::of_user()?, &[Kernel::V7_3], &mut setup::Silent)?;
//! let built = build(&["memtide-lab-guest"], Profile::Dev)?;
//! let tools = Tools::new(built.program("memtide-lab-guest")?)?;
//! let spec = MachineSpec::new("example", Kernel::V7_3, tools.path(), "artifacts/example");
//! let machine = Machine::start(&lab, &spec)?;
//! machine.wait_ready(Duration::from_secs(120))?;
//! let release = machine.guest().check(&["uname", "-r"], Duration::from_secs(10))?;
//! assert!(release.starts_with("7."));
//! # Ok(())
//! # }
//! ```

pub mod cache;
pub mod cargo;
mod command;
mod error;
pub mod guest;
mod image;
mod lab;
pub mod machine;
pub mod rundir;
pub mod setup;
pub mod text;
pub mod tools;

pub use cache::Cache;
pub use error::{Error, Result};
pub use lab::Lab;
pub use machine::{Accel, Balloon, Machine, MachineSpec};
pub use setup::Kernel;
