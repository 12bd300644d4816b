//! The balloon's PCI function while the agent has it: its files, which must stay open while the
//! device runs, and how the agent notices what the device has done.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use memtide_sysfs::Root;
use memtide_sysfs::pci::{self, Address};
use memtide_wire::config::{EXTENSION_OFFSET, MAGIC};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::{Config, InterruptUse, PlainUse};
use crate::link::{Enable, Kind, Link};
use crate::run::{RunError, own};
use crate::virtio::caps::{Layout, access_window};
use crate::virtio::mmio::{MappedBar, Registers};
use crate::virtio::pci::{ConfigFile, Uio};
use crate::virtio::transport::{RESET_DEADLINE, Transport};

/// How the agent notices what the device has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// By its interrupt.
    Interrupt,
    /// By looking, since it has no interrupt that UIO could pass on: it has MSI-X only.
    NoInterrupt,
    /// By looking, since the settings say so.
    Told,
}

/// The function's files.
#[derive(Debug)]
pub struct Hardware {
    config: Rc<ConfigFile>,
    uio: Uio,
    kind: Kind,
    attention: Attention,
}

impl Hardware {
    /// Opens the function, resets the device, and checks that it is one to be driven.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn open(
        root: &Root,
        address: Address,
        uio: &Path,
        settings: &Config,
    ) -> Result<(Self, Transport), RunError> {
        let uio = Uio::open(uio).map_err(own("the balloon's uio device cannot be opened"))?;
        let config = ConfigFile::open(&pci::config_path(root, address))
            .map_err(own("the balloon's configuration space cannot be opened"))?;
        let space =
            config.bytes().map_err(own("the balloon's configuration space cannot be read"))?;
        let map = |bar| {
            let mapped = MappedBar::open(&pci::resource_path(root, address, bar))?;
            Ok(Rc::new(mapped) as Rc<dyn Registers>)
        };
        config.enable().map_err(own("the balloon cannot be enabled"))?;
        let transport = Transport::open(&Layout::find(&space)?, map)?;
        transport.reset(RESET_DEADLINE)?;
        let kind = Kind::of(&transport.config()?);
        match kind {
            Kind::Gated(extension) => _ = transport.queue_size_max(extension.block_queue.get())?,
            Kind::Plain(_) if settings.plain_balloon == PlainUse::Leave => {
                return Err(RunError::Plain);
            }
            Kind::Plain(_) => {}
        }
        let attention = attention(root, address, settings.interrupt);
        Ok((Self { config: Rc::new(config), uio, kind, attention }, transport))
    }

    /// What kind of balloon it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How the agent notices what the device has done.
    pub fn attention(&self) -> Attention {
        self.attention
    }

    /// What every start of the device needs.
    pub fn enabler(&self) -> Enable {
        let config = Rc::clone(&self.config);
        let attention = self.attention;
        Box::new(move || match attention {
            Attention::Interrupt => config.enable().and_then(|()| config.unmask_interrupt()),
            Attention::NoInterrupt | Attention::Told => config.enable(),
        })
    }

    /// What to wait for, if the function has an interrupt. Without one the uio device answers every
    /// poll(2) at once with an error (drivers/uio/uio.c, `uio_poll`), and waiting would be spinning.
    pub fn awaited(&self) -> Option<PollFd<'_>> {
        (self.attention == Attention::Interrupt).then(|| PollFd::new(&self.uio, PollFlags::IN))
    }

    /// Whether the device has interrupted, or would have; lets the next interrupt through.
    ///
    /// Without an interrupt its status register is looked at: it tells of a change in QEMU's devices
    /// whether or not anybody hears the interrupt. Cloud Hypervisor's never say anything, and what
    /// changes in their configuration is seen when telemetry has been answered.
    pub fn take_interrupt(&mut self, link: &Link) -> bool {
        if self.attention != Attention::Interrupt {
            return link.acknowledge_interrupt();
        }
        if !matches!(self.uio.take(), Ok(true)) {
            return false;
        }
        link.acknowledge_interrupt();
        if let Err(error) = self.config.unmask_interrupt() {
            tracing::warn!("the balloon's interrupt stays masked: {error}");
        }
        true
    }

    /// Waits for the device alone, up to `longest`.
    pub fn wait(&mut self, link: &Link, longest: Duration) {
        let longest = if self.awaited().is_some() { longest } else { crate::waiting::BLIND_AWAIT };
        let timeout = Timespec::try_from(longest).unwrap_or_default();
        let mut fds: Vec<_> = self.awaited().into_iter().collect();
        // Interrupted or not: the caller looks at the clock.
        let _ = poll(&mut fds, Some(&timeout));
        self.take_interrupt(link);
    }
}

/// Whether the balloon at `address` is a Memtide device, of whatever version, found out without
/// disturbing the driver that it has. False where it cannot be asked, or an earlier agent of
/// `runtime_dir` has seen the device fall silent: a question about the configuration of a device whose
/// process is gone can end the VM.
pub fn is_memtide(root: &Root, runtime_dir: &Path, address: Address) -> bool {
    crate::runtime::must_not_be_silent(runtime_dir).is_ok()
        && magic(root, address).is_some_and(|magic| magic == MAGIC)
}

/// Where the configuration of a Memtide device says that it is one.
fn magic(root: &Root, address: Address) -> Option<u32> {
    let config = ConfigFile::open(&pci::config_path(root, address)).ok()?;
    let space = config.bytes().ok()?;
    let (layout, window) = (Layout::find(&space).ok()?, access_window(&space).ok()??);
    let at = u32::try_from(EXTENSION_OFFSET).ok()?;
    let has_it = layout.device.length >= at + 4;
    has_it.then(|| config.read_through(window, layout.device, at).ok()).flatten()
}

fn attention(root: &Root, address: Address, wish: InterruptUse) -> Attention {
    let irq = root.read(format!("sys/bus/pci/devices/{address}/irq"));
    let has_one = irq.is_ok_and(|irq| !matches!(irq.trim(), "" | "0"));
    match (wish, has_one) {
        (InterruptUse::Poll, _) => Attention::Told,
        (InterruptUse::Auto, true) => Attention::Interrupt,
        (InterruptUse::Auto, false) => Attention::NoInterrupt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::FakeRoot;

    #[test]
    fn without_an_interrupt_the_uio_device_is_not_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut hardware = Hardware {
            config: Rc::new(ConfigFile::open(file.path()).unwrap()),
            uio: Uio::open(file.path()).unwrap(),
            kind: Kind::of(&[]),
            attention: Attention::NoInterrupt,
        };
        assert!(hardware.awaited().is_none());
        hardware.attention = Attention::Interrupt;
        assert!(hardware.awaited().is_some());
    }

    #[test]
    fn an_interrupt_is_used_where_there_is_one_and_nobody_forbids_it() {
        let fake = FakeRoot::new();
        let address: Address = "0000:00:03.0".parse().unwrap();
        let found = |wish| attention(&fake.root(), address, wish);
        assert_eq!(found(InterruptUse::Auto), Attention::NoInterrupt);
        fake.put(&format!("sys/bus/pci/devices/{address}/irq"), "11\n");
        assert_eq!(found(InterruptUse::Auto), Attention::Interrupt);
        assert_eq!(found(InterruptUse::Poll), Attention::Told);
        fake.put(&format!("sys/bus/pci/devices/{address}/irq"), "0\n");
        assert_eq!(found(InterruptUse::Auto), Attention::NoInterrupt);
    }
}
