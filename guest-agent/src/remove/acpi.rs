//! DIMMs of ACPI's: ejected from inside, and plugged in again by the host.
//!
//! The kernel lets a DIMM's memory go and tells the firmware (`_EJ0`), the VMM takes it out of the VM.
//! Nothing in the guest brings it back. So the agent ejects only what the host has said it will plug in
//! again, and asks for it when some of it was granted (docs/adr/0026).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use memtide_sysfs::memory;
use memtide_sysfs::{Error, Root, dimm};
use memtide_units::BlockId;

use super::ejected::Ejected;
use super::{Plug, PlugInError, PluggedBy, RemoveError, Remover, Unit};

/// The kernel ejects a DIMM whose blocks are offline in 0.1 to 0.3 s under emulation.
const EJECT_DEADLINE: Duration =
    if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };
/// Between two looks whether it is so far.
const LOOK: Duration = Duration::from_millis(5);

/// The way of ACPI.
#[derive(Clone, Debug)]
pub struct Acpi {
    ejected: Ejected,
}

impl Acpi {
    /// With the file that says what was ejected.
    pub(super) fn new(ejected: PathBuf) -> Self {
        Self { ejected: Ejected::new(ejected) }
    }

    /// Nobody knows any more of what was ejected.
    pub(super) fn forget_all(&self) {
        for name in self.ejected.read().into_keys() {
            self.forget(&name);
        }
    }

    /// What the kernel has again is not out, whoever brought it. Were it still on file when its operator unplugs it,
    /// it would be taken for the agent's.
    pub(super) fn forget_what_is_back(&self, root: &Root) {
        for (name, blocks) in self.ejected.read() {
            if blocks.iter().all(|block| is_linked(root, *block)) {
                self.forget(&name);
            }
        }
    }

    pub(super) fn forget(&self, name: &str) {
        if let Err(error) = self.ejected.forget(name) {
            tracing::warn!("{name} stays on file as ejected: {error}");
        }
    }
}

impl Remover for Acpi {
    fn name(&self) -> &'static str {
        "ACPI eject"
    }

    /// What was ejected and is there again is on file until somebody looks. Blocks come one by one, and may go
    /// online until the kernel is done with them: till then each is out.
    fn units(&self, root: &Root) -> Result<Vec<Unit>, Error> {
        let mut out = self.ejected.read();
        out.values_mut().for_each(|blocks| blocks.retain(|block| !is_linked(root, *block)));
        out.retain(|_, blocks| !blocks.is_empty());
        let unit = |plug| move |(name, blocks)| Unit { name, blocks, plug, by: PluggedBy::Host };
        let plugged = dimm::list(root)?.into_iter().map(unit(Plug::In));
        Ok(plugged.chain(out.into_iter().map(unit(Plug::Out))).collect())
    }

    /// Should somebody put a block online between the look and the kernel's own, the kernel takes it
    /// offline, or leaves all of the DIMM as it was (drivers/acpi/scan.c, `acpi_scan_hot_remove`). It would try
    /// for ever where a page of it does not move.
    fn remove(&self, root: &Root, unit: &Unit) -> Result<(), RemoveError> {
        let name = || unit.name.clone();
        unit.must_be_offline(root)?;
        self.ejected.add(unit).map_err(|source| RemoveError::NotOnFile { unit: name(), source })?;
        let is_gone = |block: &BlockId| memory::state(root, *block).is_err_and(|e| e.is_missing());
        let ejected = dimm::eject(root, &unit.name);
        let has_gone =
            ejected.is_ok() && within(EJECT_DEADLINE, || unit.blocks.iter().all(is_gone));
        if !has_gone {
            self.forget(&unit.name);
        }
        ejected?;
        if has_gone { Ok(()) } else { Err(RemoveError::NotEjected { unit: name() }) }
    }

    /// Whoever needs it has the host plug it in before.
    fn plug_in(&self, root: &Root, unit: &Unit) -> Result<(), PlugInError> {
        if !is_there(root, unit) {
            return Err(PlugInError::Nobody);
        }
        self.forget(&unit.name);
        Ok(())
    }
}

/// Whether all blocks of a DIMM are there. The kernel links them to it when it is done with them, their going
/// online by themselves included (drivers/acpi/acpi_memhotplug.c, `acpi_memory_enable_device`).
pub(super) fn is_there(root: &Root, unit: &Unit) -> bool {
    unit.blocks.iter().all(|block| is_linked(root, *block))
}

fn is_linked(root: &Root, block: BlockId) -> bool {
    matches!(memory::dimm_of(root, block), Ok(Some(_)))
}

/// Waits for something to be so; false where it is not in time.
fn within(deadline: Duration, is_so: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    while !is_so() {
        if started.elapsed() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::FakeRoot;
    use memtide_sysfs::memory::{StateRequest, write_state};
    use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange};
    use rustix::io::Errno;

    const NAME: &str = "PNP0C80:01";

    struct Guest {
        fake: FakeRoot,
        acpi: Acpi,
        _dir: tempfile::TempDir,
    }

    impl Guest {
        /// Blocks 32 and 33 are a DIMM, offline.
        fn new() -> Self {
            let fake = FakeRoot::new();
            let memory = GpaRange::new(Gpa(32 << 27), ByteSize::from_mib(256)).unwrap();
            fake.add_dimm(NAME, BlockSize::X86_SMALL, memory);
            for block in [32, 33] {
                write_state(&fake.root(), BlockId(block), StateRequest::Offline).unwrap();
            }
            let dir = tempfile::tempdir().unwrap();
            Self { fake, acpi: Acpi::new(dir.path().join("ejected")), _dir: dir }
        }

        fn unit(&self) -> Unit {
            self.acpi.units(&self.fake.root()).unwrap().remove(0)
        }

        fn remove(&self) -> Result<(), RemoveError> {
            self.acpi.remove(&self.fake.root(), &self.unit())
        }
    }

    #[test]
    fn what_is_ejected_is_known_and_comes_back() {
        let guest = Guest::new();
        let before = guest.unit();
        guest.remove().unwrap();
        assert_eq!(guest.unit(), Unit { plug: Plug::Out, ..before.clone() });
        let root = guest.fake.root();
        let nobody = guest.acpi.plug_in(&root, &guest.unit());
        assert!(matches!(nobody, Err(PlugInError::Nobody)), "nobody was asked");
        guest.fake.plug_in_dimm_unlinked(NAME);
        let early = guest.acpi.plug_in(&root, &before);
        assert!(matches!(early, Err(PlugInError::Nobody)), "the kernel is still at it");
        guest.fake.link_dimm(NAME);
        guest.acpi.plug_in(&root, &before).unwrap();
        assert_eq!(guest.unit(), before);
        assert_eq!(guest.acpi.ejected.read().len(), 0);
    }

    #[test]
    fn each_block_that_the_kernel_is_not_done_with_is_out() {
        let guest = Guest::new();
        guest.remove().unwrap();
        guest.fake.plug_in_dimm_unlinked(NAME);
        assert_eq!((guest.unit().plug, guest.unit().blocks.len()), (Plug::Out, 2));
        guest.fake.link_dimm(NAME);
        assert_eq!(guest.unit().plug, Plug::In);
    }

    #[test]
    fn what_is_in_use_is_not_ejected_and_what_the_kernel_keeps_is_not_on_file() {
        let guest = Guest::new();
        write_state(&guest.fake.root(), BlockId(33), StateRequest::Online).unwrap();
        let used = guest.remove().unwrap_err();
        assert!(matches!(used, RemoveError::InUse { block: BlockId(33), .. }), "{used}");
        assert!(!guest.fake.writes().iter().any(|(file, _)| file.ends_with("eject")));
        let guest = Guest::new();
        guest.fake.refuse("sys/bus/acpi/devices/PNP0C80:01/eject", Errno::IO);
        let error = guest.remove().unwrap_err();
        assert!(error.to_string().contains(NAME), "{error}");
        assert_eq!((guest.unit().plug, guest.acpi.ejected.read().len()), (Plug::In, 0));
        let guest = Guest::new();
        guest.fake.refuse_block(BlockId(33), Errno::BUSY);
        let error = guest.remove().unwrap_err();
        assert!(matches!(error, RemoveError::NotEjected { .. }), "{error}");
        assert_eq!((guest.unit().plug, guest.acpi.ejected.read().len()), (Plug::In, 0));
    }
}
