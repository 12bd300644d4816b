//! A disk of each guest's own, to page out to.
//!
//! It is swap by the time that the agent starts, which therefore makes none in compressed memory.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use memtide_lab::machine::MachineSpec;
use memtide_lab::tools::{GUEST_PATH, Start, Tools};
use memtide_units::ByteSize;
use rustix::fs::{OFlags, fstatfs};
use tempfile::NamedTempFile;

use crate::error::{BenchError, Result};
use crate::setting::Swap;
use crate::subject::Subject;

/// By which the guest finds it among its disks.
const SERIAL: &str = "memtide-swap";
const SCRIPT: &str = "swap-on-disk";
const UNIT: &str = "memtide-bench-swap.service";

/// Makes the disk with the serial number `$1` swap.
const SWAP_ON: &str = r#"
set -e
for block in /sys/block/vd*; do
  [ "$(cat $block/serial)" = "$1" ] || continue
  mkswap /dev/${block##*/} > /dev/null
  swapon /dev/${block##*/}
  exit
done
echo "there is no disk with serial number $1" >&2
exit 1
"#;

/// Waits for the unit, whether it is still to come, at work or done.
const AWAIT: &str =
    r#"systemctl start $1 || { systemctl --no-pager --lines=20 status $1 >&2; exit 1; }"#;

/// `f_type` of tmpfs (include/uapi/linux/magic.h), which takes `O_DIRECT` and is memory all the same.
const TMPFS: u64 = 0x0102_1994;

/// How the disks are made.
#[derive(Clone, Debug)]
pub(crate) struct SwapDisk {
    directory: PathBuf,
    size: ByteSize,
    in_host_memory: bool,
}

impl SwapDisk {
    /// Disks of this size, which are files in `directory`.
    pub(crate) fn new(directory: &Path, size: ByteSize) -> Result<Self> {
        let file = scratch_file(directory)?;
        let in_host_memory = is_in_memory(file.path())
            .map_err(|source| failed("find out about files in", directory, source))?;
        Ok(Self { directory: directory.to_owned(), size, in_host_memory })
    }

    /// For the report.
    pub(crate) fn setting(&self) -> Swap {
        Swap::Disk { size_mib: self.size.mib(), in_host_memory: self.in_host_memory }
    }

    /// Gives a guest one. QEMU opens the file by its name; once the guest has booted it may be dropped,
    /// and takes room for as long as QEMU lives, however either of us ends.
    pub(crate) fn attach(
        &self,
        spec: &mut MachineSpec,
        tools: &mut Tools,
    ) -> Result<NamedTempFile> {
        let file = scratch_file(&self.directory)?;
        file.as_file()
            .set_len(self.size.bytes())
            .map_err(|source| failed("size", file.path(), source))?;
        spec.qemu_arguments.extend(self.arguments(file.path()));
        tools.file(SCRIPT, SWAP_ON)?;
        tools.unit(UNIT, &unit(), Start::AtBoot)?;
        Ok(file)
    }

    fn arguments(&self, file: &Path) -> [String; 4] {
        let cache = if self.in_host_memory { "unsafe" } else { "none" };
        // QEMU splits option values at commas; a doubled one stands for itself.
        let file = file.to_string_lossy().replace(',', ",,");
        [
            "-drive".into(),
            format!("if=none,id={SERIAL},format=raw,cache={cache},file={file}"),
            "-device".into(),
            format!("virtio-blk-pci,drive={SERIAL},serial={SERIAL}"),
        ]
    }
}

/// Returns once the guest has its disk in use.
pub(crate) fn await_use(subject: &Subject) -> Result<()> {
    subject.bash_with(AWAIT, &[UNIT.to_owned()])?;
    Ok(())
}

/// The agent looks for swap when it starts, so this comes before.
fn unit() -> String {
    format!(
        "[Unit]\n\
         Description=Swap on the disk of the bench's\n\
         Before=memtide-agent.service\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart=/bin/bash {GUEST_PATH}/{SCRIPT} {SERIAL}\n"
    )
}

fn scratch_file(directory: &Path) -> Result<NamedTempFile> {
    let file = tempfile::Builder::new().prefix("swap-").tempfile_in(directory);
    file.map_err(|source| failed("make a swap disk in", directory, source))
}

/// Whether what is written to this file stays in the host's memory: QEMU's `cache=none` needs
/// `O_DIRECT`, which some file systems refuse (open(2)).
fn is_in_memory(file: &Path) -> io::Result<bool> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
    match OpenOptions::new().read(true).write(true).custom_flags(direct).open(file) {
        Ok(file) => Ok(u64::try_from(fstatfs(file)?.f_type).is_ok_and(|kind| kind == TMPFS)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(true),
        Err(error) => Err(error),
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> BenchError {
    BenchError::File { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use memtide_lab::Kernel;

    use super::*;

    fn disk(directory: &Path, in_host_memory: bool) -> SwapDisk {
        SwapDisk { directory: directory.to_owned(), size: ByteSize::from_mib(64), in_host_memory }
    }

    #[test]
    fn the_host_keeps_nothing_of_it_where_it_need_not() {
        let words = |in_memory| disk(Path::new("/"), in_memory).arguments(Path::new("/a,b/swap"));
        assert!(words(false)[1].ends_with(",cache=none,file=/a,,b/swap"), "{:?}", words(false));
        assert!(words(true)[1].contains(",cache=unsafe,"));
        assert!(is_in_memory(Path::new("/dev/shm")).is_err(), "a directory");
        let in_memory = NamedTempFile::new_in("/dev/shm").unwrap();
        assert!(is_in_memory(in_memory.path()).unwrap());
    }

    #[test]
    fn a_guest_gets_a_file_that_takes_no_room_and_is_told_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut tools = Tools::new(&std::env::current_exe().unwrap()).unwrap();
        let mut spec = MachineSpec::new("guest", Kernel::V7_3, tools.path(), directory.path());
        let file = disk(directory.path(), false).attach(&mut spec, &mut tools).unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), 64 << 20);
        assert_eq!(spec.qemu_arguments.len(), 4);
        let unit = std::fs::read_to_string(tools.path().join("units").join(UNIT)).unwrap();
        assert!(unit.contains("ExecStart=/bin/bash /opt/memtide/swap-on-disk memtide-swap\n"));
        assert!(tools.path().join(SCRIPT).is_file());
        drop(file);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
