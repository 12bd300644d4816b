//! Takes the balloon's PCI function over from the stock driver, and gives it back.
//!
//! `virtio_balloon` lets go of a function only after it has deflated everything, so a takeover
//! loses nothing (73 ms for 64 MiB, 427 ms for 512 MiB were measured). The module that takes its
//! place is loaded *before* the stock driver is asked to go: a guest that cannot load it keeps its
//! balloon. Every step can be repeated, from wherever an earlier attempt stopped.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use memtide_sysfs::pci::{self, Address, Function};
use memtide_sysfs::{Error, Root, virtio};

/// The driver that lets user space drive a function.
pub const UIO: &str = "uio_pci_generic";
/// The driver of virtio's PCI functions, above which a driver such as `virtio_balloon` sits.
const VIRTIO_PCI: &str = "virtio-pci";
/// Red Hat's vendor ID, which all virtio functions have.
const VIRTIO_VENDOR: u16 = 0x1af4;
/// A balloon of virtio 1.0 and later: 0x1040 plus the device type 5.
const BALLOON_MODERN: u16 = 0x1045;
/// A transitional balloon.
const BALLOON_TRANSITIONAL: u16 = 0x1002;
/// udev makes the device file; it was seen within 20 ms.
const DEVICE_FILE_DEADLINE: Duration = Duration::from_secs(3);

/// Why the function could not be taken over. The stock driver has it, as before.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// There is none.
    #[error("this machine has no virtio balloon: start it with a Memtide balloon device")]
    NoBalloon,
    /// There are several.
    #[error(
        "this machine has several virtio balloons ({0}), and not just one of them is Memtide's: say which with --pci ADDRESS"
    )]
    Several(String),
    /// The address that was given names something else.
    #[error("{0} is no virtio balloon (it is {1:04x}:{2:04x})")]
    NotABalloon(Address, u16, u16),
    /// Kernel lockdown forbids it.
    #[error(
        "the kernel is locked down ({0}), as under Secure Boot, and lets no program drive a device: the stock driver keeps working; to use Memtide here start the VM without Secure Boot"
    )]
    Lockdown(String),
    /// The module cannot be loaded.
    #[error(
        "the module {UIO} cannot be loaded ({0}): install it (Debian has it in every kernel package)"
    )]
    NoModule(String),
    /// The module did not bind.
    #[error("{address} did not go to {UIO} but to {found}: see the kernel's log")]
    NotBound {
        /// The function.
        address: Address,
        /// The driver it has instead, or "no driver".
        found: String,
    },
    /// The device file did not come.
    #[error("{UIO} has the balloon, but {} did not appear: is udev or devtmpfs running?", .0.display())]
    NoDeviceFile(PathBuf),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] Error),
}

/// Loads a kernel module by name.
pub type LoadModule<'a> = &'a dyn Fn(&str) -> io::Result<()>;

/// Loads a module with modprobe(8).
///
/// # Errors
/// That it could not be run, or what it printed.
pub fn modprobe(module: &str) -> io::Result<()> {
    run_modprobe(&[module])
}

/// The same, with parameters for the module.
///
/// # Errors
/// As [`modprobe`].
pub fn modprobe_with(module: &str, parameters: &[&str]) -> io::Result<()> {
    run_modprobe(&[&[module], parameters].concat())
}

/// Whether [`modprobe`] would find the module; nothing is loaded.
///
/// # Errors
/// As [`modprobe`].
pub fn modprobe_dry(module: &str) -> io::Result<()> {
    run_modprobe(&["--dry-run", module])
}

fn run_modprobe(arguments: &[&str]) -> io::Result<()> {
    let path = ["/sbin/modprobe", "/usr/sbin/modprobe"].into_iter().find(|p| Path::new(p).exists());
    let output = Command::new(path.unwrap_or("modprobe")).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(said.trim().to_string()))
}

/// Whether a balloon is a Memtide device; false where that cannot be found out.
pub type IsMemtide<'a> = &'a dyn Fn(Address) -> bool;

/// Finds the balloon, or checks the one at `wanted`. Of several it is the one that an earlier agent
/// left with the UIO driver, or else the one that is a Memtide device: a VM of libvirt's has QEMU's own
/// besides, and that one's stock driver goes on to report free pages. The devices are asked only if
/// there are several.
///
/// # Errors
/// [`TakeoverError`].
pub fn find(
    root: &Root,
    wanted: Option<Address>,
    is_memtide: IsMemtide<'_>,
) -> Result<Function, TakeoverError> {
    if let Some(address) = wanted {
        let function = pci::read(root, address)?;
        if !is_balloon(&function) {
            return Err(TakeoverError::NotABalloon(address, function.vendor, function.device));
        }
        return Ok(function);
    }
    let mut balloons: Vec<_> = pci::list(root)?.into_iter().filter(is_balloon).collect();
    if balloons.len() > 1 {
        let ours = |balloon: &&Function| balloon.driver.as_deref() == Some(UIO);
        let memtides = |balloon: &&Function| is_memtide(balloon.address);
        let only = only(&balloons, ours).or_else(|| only(&balloons, memtides));
        return only.cloned().ok_or_else(|| {
            let names: Vec<_> = balloons.iter().map(|b| b.address.to_string()).collect();
            TakeoverError::Several(names.join(", "))
        });
    }
    balloons.pop().ok_or(TakeoverError::NoBalloon)
}

/// The one that passes `test`, unless several do.
fn only<T>(all: &[T], test: impl Fn(&&T) -> bool) -> Option<&T> {
    let mut passing = all.iter().filter(test);
    passing.next().filter(|_| passing.next().is_none())
}

fn is_balloon(function: &Function) -> bool {
    function.vendor == VIRTIO_VENDOR
        && [BALLOON_MODERN, BALLOON_TRANSITIONAL].contains(&function.device)
}

/// Gives the function to the UIO driver, if it has not got it, and answers with the device file.
///
/// # Errors
/// [`TakeoverError`]; the stock driver has the function then.
pub fn take(root: &Root, address: Address, load: LoadModule<'_>) -> Result<PathBuf, TakeoverError> {
    let bound = bind(root, address, load).and_then(|()| device_file(root, address));
    if bound.is_err() {
        // The error that matters is the first one.
        if let Err(error) = give_back(root, address) {
            tracing::error!("the balloon cannot be given back to the stock driver: {error}");
        }
    }
    bound
}

fn bind(root: &Root, address: Address, load: LoadModule<'_>) -> Result<(), TakeoverError> {
    let driver = pci::driver(root, address)?;
    if driver.as_deref() == Some(UIO) {
        return Ok(());
    }
    if !root.exists(format!("sys/bus/pci/drivers/{UIO}")) {
        load(UIO).map_err(|error| TakeoverError::NoModule(error.to_string()))?;
    }
    pci::set_driver_override(root, address, Some(UIO))?;
    if driver.is_some() {
        pci::unbind(root, address)?;
    }
    // An override that an earlier agent left has bound the function when the module was loaded.
    settle(root, address)?;
    // Probing succeeds whatever it found: only the link tells.
    match pci::driver(root, address)? {
        Some(driver) if driver == UIO => Ok(()),
        found => {
            let found = found.unwrap_or_else(|| "no driver".into());
            Err(TakeoverError::NotBound { address, found })
        }
    }
}

fn device_file(root: &Root, address: Address) -> Result<PathBuf, TakeoverError> {
    let missing = || TakeoverError::NoDeviceFile(root.path("dev/uioN"));
    let path = pci::uio_path(root, address)?.ok_or_else(missing)?;
    let started = Instant::now();
    while !path.exists() {
        if started.elapsed() > DEVICE_FILE_DEADLINE {
            return Err(TakeoverError::NoDeviceFile(path));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(path)
}

/// Has the stock driver start on other balloons than `ours` on which it has failed. Linux lets one
/// device report free pages (mm/page_reporting.c, `page_reporting_register`: -EBUSY), so until the agent
/// took its function, that one may have kept a second from starting; nobody tries again. The PCI
/// function is probed anew, since a virtio device is reset only when it is registered (a second probe
/// alone was seen to fail with -ENOENT: its queues are set up still).
pub fn settle_others(root: &Root, ours: Address) {
    let functions = pci::list(root).unwrap_or_else(|error| {
        tracing::warn!("another balloon may stay without a driver: {error}");
        Vec::new()
    });
    for other in functions.iter().filter(|other| is_balloon(other) && other.address != ours) {
        match settle_virtio(root, other) {
            Ok(false) => {}
            Ok(true) => tracing::info!("the stock driver starts on {} as well", other.address),
            Err(error) => tracing::warn!("{} stays without a driver: {error}", other.address),
        }
    }
}

/// True where its stock driver was not there, and has been asked once more.
fn settle_virtio(root: &Root, function: &Function) -> Result<bool, Error> {
    let address = function.address;
    if function.driver.as_deref() != Some(VIRTIO_PCI) {
        return Ok(false);
    }
    match virtio::of_pci(root, address)? {
        Some(device) if !virtio::has_driver(root, &device)? => {}
        _ => return Ok(false),
    }
    pci::unbind(root, address)?;
    settle(root, address)?;
    Ok(true)
}

/// Gives the function back to whatever driver the kernel has for it. Does nothing where the UIO
/// driver has not got it, except lifting an override of ours.
///
/// # Errors
/// [`Error`] with the file that could not be written.
pub fn give_back(root: &Root, address: Address) -> Result<(), Error> {
    release(root, address)?;
    settle(root, address)
}

/// Takes the function away from the UIO driver, if that has it, and lifts an override of ours. The
/// device is stopped then: it reads and writes no memory.
///
/// # Errors
/// As [`give_back`].
pub fn release(root: &Root, address: Address) -> Result<(), Error> {
    if pci::driver(root, address)?.as_deref() == Some(UIO) {
        pci::unbind(root, address)?;
    }
    if pci::driver_override(root, address)?.as_deref() == Some(UIO) {
        pci::set_driver_override(root, address, None)?;
    }
    Ok(())
}

/// Has the kernel find a driver for a function that has none.
///
/// # Errors
/// As [`give_back`].
pub fn settle(root: &Root, address: Address) -> Result<(), Error> {
    match pci::driver(root, address)? {
        None => pci::probe_drivers(root, address),
        Some(_) => Ok(()),
    }
}

/// The balloons that an agent may have left somewhere on the way: those that the UIO driver has, or
/// is to have, and those without a driver; or just the one at `wanted`. None is no error.
///
/// # Errors
/// [`Error`].
pub fn left_behind(root: &Root, wanted: Option<Address>) -> Result<Vec<Address>, Error> {
    let mut found = Vec::new();
    for function in pci::list(root)?.into_iter().filter(is_balloon) {
        let is_meant = wanted.is_none_or(|wanted| wanted == function.address);
        let is_ours = function.driver.as_deref().is_none_or(|driver| driver == UIO)
            || pci::driver_override(root, function.address)?.as_deref() == Some(UIO);
        if is_meant && is_ours {
            found.push(function.address);
        }
    }
    Ok(found)
}

/// Fails where the kernel lets no program drive a device.
///
/// # Errors
/// [`TakeoverError::Lockdown`].
pub fn must_not_be_locked_down(root: &Root) -> Result<(), TakeoverError> {
    match lockdown(root)? {
        None => Ok(()),
        Some(mode) => Err(TakeoverError::Lockdown(mode)),
    }
}

/// How the kernel is locked down, if it is: the word in brackets, unless that is `none`.
pub(crate) fn lockdown(root: &Root) -> Result<Option<String>, Error> {
    let text = match root.read("sys/kernel/security/lockdown") {
        Ok(text) => text,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error),
    };
    let chosen =
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word);
    Ok(chosen.filter(|word| *word != "none").map(str::to_string))
}

#[cfg(test)]
mod tests;
