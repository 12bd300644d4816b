//! What the kernels can do at most: a loop over blocks in the guest, and holes punched into the
//! memfd on the host, with nobody in between.

use std::fs::File;
use std::time::{Duration, Instant};

use memtide_lab::machine::GuestMemory;
use memtide_units::{BlockSize, ByteSize};
use rustix::fs::{FallocateFlags, fallocate};

use crate::contest::Contestant;
use crate::error::{BenchError, Result};
use crate::machines::Machines;
use crate::meter::{Moved, Round, Stopwatch};
use crate::qemu_devices::{PAGE, resident};
use crate::subject::Subject;

/// The block size of guests with less than 64 GiB.
const BLOCK: ByteSize = BlockSize::X86_SMALL.size();
/// QEMU's q35 machine has guest memory up to 2 GiB below the hole and what is more from 4 GiB on
/// (hw/i386/pc_q35.c, `pc_q35_init`), where the file just goes on.
const LOW_END: u64 = 2 << 30;
const HIGH_START: u64 = 4 << 30;

/// Makes the highest blocks movable, as the agent does it, and prints their numbers.
const CONVERT: &str = r#"
cd /sys/devices/system/memory
for name in $(ls -d memory* | sort -V -r); do
  [ "$found" = "$1" ] && break
  if echo offline > $name/state && echo online_movable > $name/state; then
    found=$((found + 1))
    echo ${name#memory}
  fi 2>/dev/null
done
"#;

/// Writes a state to blocks; prints how long that took by the guest's clock, in seconds.
const SET_STATE: &str = r#"
set -e
state=$1
shift
cd /sys/devices/system/memory
from=$EPOCHREALTIME
for block; do echo $state > memory$block/state; done
to=$EPOCHREALTIME
echo $from $to
"#;

/// The raw limits, on one guest.
pub(crate) struct Raw {
    subject: Subject,
    file: File,
    blocks: Vec<String>,
    moved: ByteSize,
    /// Each turn's three parts.
    pub(crate) parts: Vec<Parts>,
}

/// One turn in its parts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parts {
    /// Blocks taken offline in the guest.
    pub(crate) offline: Moved,
    /// Holes punched on the host.
    pub(crate) punch: Moved,
}

impl Raw {
    /// A guest of which as many blocks are movable as will be moved.
    pub(crate) fn start(machines: &Machines<'_>, moved: ByteSize) -> Result<Self> {
        let subject = machines.plain("raw")?;
        let needed = moved.bytes() / BLOCK.bytes();
        let text = subject.bash_with(CONVERT, &[needed.to_string()])?;
        let blocks: Vec<String> = text.split_whitespace().map(Into::into).collect();
        if (blocks.len() as u64) < needed {
            let (who, found) = (subject.name().to_owned(), blocks.len());
            return Err(BenchError::FewBlocks { who, found, needed });
        }
        let failed = BenchError::call("the guest's memfd cannot be opened for punching");
        let file = subject.machine().memory().reopen().map_err(failed)?;
        Ok(Self { subject, file, blocks, moved, parts: vec![] })
    }

    fn set_state(&self, state: &str) -> Result<Moved> {
        let pids = [self.subject.machine().qemu_pid()];
        let watch = Stopwatch::start(&self.subject, &pids)?;
        let mut words = vec![state.to_owned()];
        words.extend(self.blocks.iter().cloned());
        let text = self.subject.bash_with(SET_STATE, &words)?;
        let bytes = self.moved.bytes();
        let moved = watch.stop(&self.subject, &pids, (bytes, Instant::now()))?;
        let time =
            elapsed(&text).ok_or_else(|| self.subject.unexpected("a loop over blocks", text))?;
        Ok(Moved { time, ..moved })
    }

    fn punch(&self) -> Result<Moved> {
        let failed = BenchError::call("a hole cannot be punched into the guest's memfd");
        let memory = self.subject.machine().memory();
        let before = resident(memory)?;
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let pids = [self.subject.machine().qemu_pid(), std::process::id()];
        let watch = Stopwatch::start(&self.subject, &pids)?;
        for block in &self.blocks {
            let offset = offset_of(block.parse().unwrap_or(0));
            fallocate(&self.file, mode, offset, BLOCK.bytes()).map_err(&failed)?;
        }
        let end = Instant::now();
        let bytes = before.saturating_sub(resident(memory)?);
        watch.stop(&self.subject, &pids, (bytes, end))
    }
}

impl Contestant for Raw {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn backing(&self) -> (Vec<&GuestMemory>, usize) {
        (vec![self.subject.machine().memory()], PAGE)
    }

    fn turn(&mut self) -> Result<Round> {
        self.subject.wait_calm()?;
        let offline = self.set_state("offline")?;
        let punch = self.punch()?;
        let online = self.set_state("online_movable")?;
        self.parts.push(Parts { offline, punch });
        let slower = if offline.rate() < punch.rate() { offline } else { punch };
        let reclaim = Moved {
            host_cpu: offline.host_cpu + punch.host_cpu,
            guest_cpu: offline.guest_cpu + punch.guest_cpu,
            ..slower
        };
        Ok(Round { reclaim, give_back: online })
    }
}

/// Where block `number` lies in the memfd.
fn offset_of(number: u64) -> u64 {
    let gpa = number * BLOCK.bytes();
    if gpa >= HIGH_START { gpa - HIGH_START + LOW_END } else { gpa }
}

/// "1764110000.123456 1764110001.623456" are one and a half seconds.
fn elapsed(text: &str) -> Option<Duration> {
    let micros = |word: &str| {
        let (seconds, micros) = word.split_once(['.', ','])?;
        (micros.len() == 6).then_some(())?;
        Some(seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?)
    };
    let (from, to) = text.trim().split_once(' ')?;
    Some(Duration::from_micros(micros(to)?.checked_sub(micros(from)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_clock_is_read_to_the_microsecond() {
        let text = "1764110000.923456 1764110002.423457\n";
        assert_eq!(elapsed(text), Some(Duration::from_micros(1_500_001)));
        for text in ["", "1.5 2.5", "2.000000 1.000000", "1.000000"] {
            assert_eq!(elapsed(text), None, "{text:?}");
        }
    }

    #[test]
    fn blocks_above_the_hole_follow_those_below_it() {
        assert_eq!(offset_of(3), 3 * BLOCK.bytes());
        assert_eq!(offset_of(15), 15 * BLOCK.bytes());
        assert_eq!(offset_of(32), 16 * BLOCK.bytes());
    }
}
