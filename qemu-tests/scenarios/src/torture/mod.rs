//! Long runs that do harsh things over and over, on a guest whose device stands alone.
//!
//! Each is `cargo xtask torture NAME`, and in a short version part of `cargo xtask test`. What is
//! drawn by chance is drawn from a seed, which the summary names.

mod arena;
mod chance;
mod hostile;
mod kills;
mod rebinds;
mod stops;
mod storm;
mod summary;

pub(crate) use arena::Arena;
pub use hostile::hostile;
pub use kills::kills;
pub use rebinds::rebinds;
pub use stops::stops;

use std::path::Path;

use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Torture<'a> {
    /// QEMU, kernels, images.
    pub lab: &'a Lab,
    /// Our programs.
    pub programs: &'a Built,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// How often.
    pub count: u32,
    /// What chance draws from.
    pub seed: u64,
    /// Where the logs go.
    pub logs: &'a Path,
}
