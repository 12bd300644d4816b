//! Devices of the DAX bus: removed by taking the driver `kmem` away, plugged in by binding it.
//!
//! The host has no part in either. Where the guest has such a device, 384 MiB went in 40 ms and
//! came back in 50 (QEMU's NVDIMM in devdax mode, under emulation).

use memtide_sysfs::dax::{self, Structs};
use memtide_sysfs::memory;
use memtide_sysfs::{Error, Root};

use super::{Plug, PlugInError, PluggedBy, RemoveError, Remover, Unit};

/// The way of the DAX bus.
#[derive(Debug)]
pub struct Kmem;

impl Remover for Kmem {
    fn name(&self) -> &'static str {
        "dax/kmem"
    }

    /// A device that is too small or lies too crooked for a whole block is none.
    fn units(&self, root: &Root) -> Result<Vec<Unit>, Error> {
        let devices = dax::list(root)?;
        if devices.is_empty() {
            return Ok(Vec::new());
        }
        let size = memory::block_size(root)?;
        let unit = |device: dax::Device| Unit {
            blocks: device.blocks(size),
            plug: if device.is_memory() { Plug::In } else { Plug::Out },
            name: device.name,
            by: PluggedBy::Guest,
        };
        Ok(devices.into_iter().map(unit).filter(|unit| !unit.blocks.is_empty()).collect())
    }

    /// There is one try: the driver goes even where the memory cannot (drivers/dax/kmem.c). So every
    /// block is looked at just before. Nothing keeps somebody with root from putting one online
    /// between that look and the kernel's own; then the memory stays, in use, until the next boot.
    fn remove(&self, root: &Root, unit: &Unit) -> Result<(), RemoveError> {
        unit.must_be_offline(root)?;
        dax::unbind(root, &unit.name)?;
        let is_gone = |error: &Error| error.is_missing();
        let left =
            unit.blocks.iter().find(|b| !memory::state(root, **b).as_ref().is_err_and(is_gone));
        left.map_or(Ok(()), |block| {
            Err(RemoveError::Stuck { unit: unit.name.clone(), block: *block })
        })
    }

    /// The others of its blocks stay stolen, and the host may drop them again: they must not hold
    /// the `struct page`s of anything.
    fn plug_in(&self, root: &Root, unit: &Unit) -> Result<(), PlugInError> {
        if dax::read(root, &unit.name)?.structs == Structs::MayBeOwn {
            dax::keep_structs_elsewhere(root, &unit.name)?;
        }
        Ok(dax::bind(root, &unit.name)?)
    }
}
