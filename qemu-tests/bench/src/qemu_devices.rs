//! QEMU's own means: virtio-balloon and virtio-mem, steered by QMP.

use memtide_lab::machine::GuestMemory;
use memtide_units::ByteSize;
use serde_json::json;

use crate::contest::{Contestant, Resizer, turn};
use crate::error::{BenchError, Result};
use crate::machines::Machines;
use crate::meter::Round;
use crate::subject::Subject;

/// Ordinary pages.
pub(crate) const PAGE: usize = 4096;

/// QEMU's virtio-balloon.
pub(crate) struct QemuBalloon {
    subject: Subject,
    memory: ByteSize,
    moved: ByteSize,
}

impl QemuBalloon {
    pub(crate) fn start(machines: &Machines<'_>, moved: ByteSize) -> Result<Self> {
        let subject = machines.with_balloon("qemu-virtio-balloon")?;
        Ok(Self { subject, memory: machines.memory, moved })
    }
}

impl Contestant for QemuBalloon {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn backing(&self) -> (Vec<&GuestMemory>, usize) {
        (vec![self.subject.machine().memory()], PAGE)
    }

    fn turn(&mut self) -> Result<Round> {
        let moved = self.moved;
        turn(self, moved)
    }
}

impl Resizer for QemuBalloon {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.subject.machine().qemu_pid()]
    }

    fn resident(&self) -> Result<u64> {
        resident(self.subject.machine().memory())
    }

    /// QEMU's word is the size that the guest shall have.
    fn take(&mut self, size: ByteSize) -> Result<()> {
        let left = (self.memory - size).bytes();
        self.subject.machine().qmp().execute("balloon", json!({ "value": left }))?;
        Ok(())
    }
}

/// QEMU's virtio-mem.
pub(crate) struct VirtioMem {
    subject: Subject,
    plugged: GuestMemory,
    moved: ByteSize,
}

impl VirtioMem {
    pub(crate) fn start(machines: &Machines<'_>, moved: ByteSize) -> Result<Self> {
        let subject = machines.with_virtio_mem("qemu-virtio-mem", moved)?;
        let plugged = GuestMemory::of_process(subject.machine().qemu_pid(), moved.bytes())?;
        Ok(Self { subject, plugged, moved })
    }
}

impl Contestant for VirtioMem {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn backing(&self) -> (Vec<&GuestMemory>, usize) {
        (vec![self.subject.machine().memory(), &self.plugged], PAGE)
    }

    fn turn(&mut self) -> Result<Round> {
        let moved = self.moved;
        turn(self, moved)
    }
}

impl Resizer for VirtioMem {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.subject.machine().qemu_pid()]
    }

    fn resident(&self) -> Result<u64> {
        resident(&self.plugged)
    }

    fn take(&mut self, size: ByteSize) -> Result<()> {
        let value = (self.moved - size).bytes();
        let arguments = json!({ "path": "vmem0", "property": "requested-size", "value": value });
        self.subject.machine().qmp().execute("qom-set", arguments)?;
        Ok(())
    }
}

/// Bytes of backing, from `st_blocks`.
pub(crate) fn resident(memory: &GuestMemory) -> Result<u64> {
    memory.resident_bytes().map_err(BenchError::call("the guest's memfd cannot be looked at"))
}
