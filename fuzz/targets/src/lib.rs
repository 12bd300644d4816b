//! What is fuzzed: everything that a guest, a VMM, a host or a client can feed to Memtide.
//!
//! Each target is a plain function from bytes to nothing that panics where an invariant breaks. It
//! keeps no state from one input to the next, so that an input that fails once fails again. Three
//! run them: libFuzzer (the binaries in `fuzz/`, by `cargo xtask fuzz`), the smoke run in
//! `tests/smoke.rs` (the corpora and some thousand mutants of them), and a person with one input.
//! fuzz/README.md tells what each one asserts.
//!
//! This crate's code goes into no program that is shipped: it may panic, that is how it speaks.

pub mod access;
pub mod device;
pub mod driver;
pub mod kernel;
pub mod meter;
pub mod mutate;
pub mod policy;
pub mod process;
pub mod wire;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its binary and of its corpus.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Longer inputs find nothing that shorter ones do not, in bytes.
    pub len_max: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "access", run: access::run, len_max: 1024 },
    Target { name: "control", run: process::control::run, len_max: 512 },
    Target { name: "driver", run: driver::run, len_max: 512 },
    Target { name: "guest", run: device::guest::run, len_max: 512 },
    Target { name: "kernel", run: kernel::run, len_max: 512 },
    Target { name: "policy", run: policy::run, len_max: 512 },
    Target { name: "rings", run: device::rings::run, len_max: 512 },
    Target { name: "session", run: process::session::run, len_max: 512 },
    Target { name: "state", run: device::state::run, len_max: 512 },
    Target { name: "wire", run: wire::run, len_max: 512 },
];
