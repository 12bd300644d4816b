//! Set-up: everything that a lab needs, fetched and built into the user's cache, once.
//!
//! A list of named steps. Each looks first whether its result is already there, works in a
//! `.partial` directory that gets its final name when all is done, and can be interrupted at any
//! time: the next run goes on where this one stopped. A run that finds everything takes
//! milliseconds and never calls apt.

mod apt;
mod apt_sources;
mod cpio;
pub(crate) mod guest_image;
mod host_packages;
pub(crate) mod initramfs;
pub(crate) mod kernel;
mod module_order;
mod progress;
pub(crate) mod qemu;
mod stamp;

pub use kernel::{Kernel, KernelFiles};
pub use progress::{Printed, Progress, Silent};
pub use qemu::Qemu;

use std::rc::Rc;
use std::time::Instant;

use crate::cache::Cache;
use crate::error::Result;
use crate::lab::Lab;
use apt::Apt;

/// Sets up (or finds) a lab with these kernels in `cache`.
///
/// # Errors
/// If a package cannot be fetched or a program fails; the text says what to do. What was finished
/// stays finished.
pub fn run(cache: Cache, kernels: &[Kernel], progress: &mut dyn Progress) -> Result<Lab> {
    let _lock = cache.lock(|| progress.note("another set-up is at work; waiting for it"))?;
    let mut setup = Setup { cache: &cache, progress, apt: None };
    setup.host_packages()?;
    let find = |cache: &Cache| Qemu::of_host().or_else(|| Qemu::of_cache(cache));
    let qemu = setup.downloaded("QEMU", find, Qemu::install)?;
    for kernel in kernels {
        setup.kernel(*kernel)?;
    }
    let find = |cache: &Cache| guest_image::is_current(cache).then_some(());
    setup.downloaded("guest image", find, guest_image::build)?;
    Ok(Lab::new(cache, qemu))
}

/// Sees to it that the host has these programs, which the lab itself does not need: each with the
/// Debian package that brings it.
///
/// # Errors
/// If a package is missing and cannot be installed; the text says what to do.
pub fn host_programs(
    cache: &Cache,
    needed: &[(&str, &str)],
    progress: &mut dyn Progress,
) -> Result<()> {
    let missing = host_packages::missing_of(needed);
    if missing.is_empty() {
        return Ok(());
    }
    let _lock = cache.lock(|| progress.note("another set-up is at work; waiting for it"))?;
    Setup { cache, progress, apt: None }.install_on_host(&missing)
}

/// A set-up at work.
struct Setup<'a> {
    cache: &'a Cache,
    progress: &'a mut dyn Progress,
    /// Made by the first step that needs it.
    apt: Option<Rc<Apt>>,
}

impl Setup<'_> {
    /// A step whose result is found, or made.
    fn step<T>(
        &mut self,
        name: &str,
        find: impl FnOnce(&Cache) -> Option<T>,
        make: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        if let Some(found) = find(self.cache) {
            self.progress.found(name, start.elapsed());
            return Ok(found);
        }
        make(self)
    }

    /// Makes a step's result, with its line and its time.
    fn make<T>(&mut self, name: &str, make: impl FnOnce(&Cache) -> Result<T>) -> Result<T> {
        self.progress.started(name);
        let start = Instant::now();
        let result = make(self.cache);
        match result {
            Ok(_) => self.progress.made(name, start.elapsed()),
            Err(_) => self.progress.failed(name, start.elapsed()),
        }
        result
    }

    /// A step whose result is made from packages: the package lists are brought up to date first.
    fn downloaded<T>(
        &mut self,
        name: &str,
        find: impl FnOnce(&Cache) -> Option<T>,
        make: impl FnOnce(&Cache, &Apt) -> Result<T>,
    ) -> Result<T> {
        self.step(name, find, |setup| {
            let apt = setup.apt()?;
            setup.make(name, |cache| make(cache, &apt))
        })
    }

    /// The private apt, with package lists that are fresh enough to download by.
    fn apt(&mut self) -> Result<Rc<Apt>> {
        if let Some(apt) = &self.apt {
            return Ok(Rc::clone(apt));
        }
        let apt = Rc::new(Apt::new(self.cache)?);
        let find = |_: &Cache| apt.is_fresh().then_some(());
        self.step("package lists", find, |setup| setup.make("package lists", |_| apt.update()))?;
        Ok(Rc::clone(self.apt.insert(apt)))
    }

    fn host_packages(&mut self) -> Result<()> {
        let missing = host_packages::missing();
        let find = |_: &Cache| missing.is_empty().then_some(());
        self.step("host packages", find, |setup| setup.install_on_host(&missing))
    }

    fn install_on_host(&mut self, packages: &[&str]) -> Result<()> {
        let name = format!("host packages: {}", packages.join(", "));
        self.make(&name, |cache| host_packages::install(packages, &cache.log()))
    }

    fn kernel(&mut self, kernel: Kernel) -> Result<()> {
        let find = |cache: &Cache| KernelFiles::of_cache(cache, kernel);
        let install = |cache: &Cache, apt: &Apt| kernel::install(cache, apt, kernel);
        let files = self.downloaded(&format!("kernel {kernel}"), find, install)?;
        let name = format!("initramfs {kernel}");
        let find =
            |cache: &Cache| initramfs::is_current(cache, kernel, &files.release).then_some(());
        let build = |cache: &Cache| initramfs::build(cache, kernel, &files.release);
        self.step(&name, find, |setup| setup.make(&name, build))
    }
}
