//! How fast things are on the machine under the kernel.

use std::time::Duration;

use memtide_units::ByteSize;

use crate::chance::Chance;

/// What runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// QEMU without KVM on two processors: where the figures below were measured.
    Emulated,
    /// KVM on a server: a tenth of those times.
    Hardware,
}

/// Which kernel it is, as far as that changes what the policy sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Migration that finds no room counts much as a stall.
    V6_12,
    /// Migration that finds no room counts little as a stall.
    V7_3,
}

/// The machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// How fast.
    pub pace: Pace,
    /// Which kernel.
    pub release: Release,
    /// Processors of the guest: so many tasks touch memory, and reclaim it, at once.
    pub cpus: u64,
}

impl Machine {
    /// Taking an empty block of 128 MiB offline: 0.04 to 0.3 s under emulation (measured on Debian
    /// 6.12 and 7.3, two processors).
    pub fn isolation(self, chance: &mut Chance) -> Duration {
        self.scaled(chance.between(40_000, 300_000))
    }

    /// Migrating one page: a full block of 128 MiB (32768 pages) took 4.2 to 10.6 s under
    /// emulation.
    pub fn migration(self, chance: &mut Chance) -> Duration {
        self.scaled(chance.between(128, 323))
    }

    /// Putting a block of 128 MiB online: 20 to 80 ms under emulation. What it costs grows with
    /// the block: its `struct page`s are written anew.
    pub fn onlining(self, chance: &mut Chance, block: ByteSize) -> Duration {
        let small_blocks = block.bytes().div_ceil(128 << 20);
        self.scaled(chance.between(20_000, 80_000) * small_blocks)
    }

    /// Memory that programs touch for the first time in a second: zeroing and the page faults,
    /// about 300 MiB on an emulated processor, 2 GB on a real one.
    pub fn touched_per_second(self) -> ByteSize {
        let each = match self.pace {
            Pace::Emulated => ByteSize::from_mib(300),
            Pace::Hardware => ByteSize::from_mib(2_000),
        };
        each.times(self.cpus)
    }

    /// Clean page cache that those who allocate free by themselves in a second, in direct reclaim.
    pub fn reclaimed_per_second(self) -> ByteSize {
        let each = match self.pace {
            Pace::Emulated => ByteSize::from_mib(200),
            Pace::Hardware => ByteSize::from_mib(1_500),
        };
        each.times(self.cpus)
    }

    /// File pages that are read back in a second: a virtual disk.
    pub fn read_per_second(self) -> ByteSize {
        match self.pace {
            Pace::Emulated => ByteSize::from_mib(60),
            Pace::Hardware => ByteSize::from_mib(300),
        }
    }

    /// Share of the time, in permille, that counts as a stall while an offline finds no room: 2.5 s
    /// in 15 on 6.12, 0.34 s in 15 on 7.3 (measured).
    pub fn stall_of_stuck_offline(self) -> u64 {
        match self.release {
            Release::V6_12 => 167,
            Release::V7_3 => 23,
        }
    }

    /// How long an allocation goes on without any progress of reclaim before the OOM killer is
    /// called: `MAX_RECLAIM_RETRIES` (16) rounds (mm/page_alloc.c, `should_reclaim_retry`), each
    /// with a wait for writeback or a scheduling in between.
    pub fn oom_after(self) -> Duration {
        match self.pace {
            Pace::Emulated => Duration::from_millis(800),
            Pace::Hardware => Duration::from_millis(300),
        }
    }

    fn scaled(self, us: u64) -> Duration {
        match self.pace {
            Pace::Emulated => Duration::from_micros(us),
            Pace::Hardware => Duration::from_micros(us / 10),
        }
    }
}
