//! How fast the device model reclaims, beside the raw limit: a loop of `fallocate(PUNCH_HOLE)` in steps
//! of 128 MiB over the same memfd, all of it present. A fake driver fills the rings. Times are those of
//! the thread on its processor: neither side waits for anything, and a busy machine does not count.
//!
//! `cargo run --release -p vhost-user-balloon --example reclaim_speed [MiB]`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use memtide_balloon::fake::{Buffer, FakeDriver};
use memtide_balloon::{
    Balloon, FailKind, Left, Moment, Reclaim, ReclaimFailed, Reclaimed, Ring, Rings, Settings,
};
use memtide_hostmem::{RegionSpec, Regions};
use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange, Instant};
use memtide_wire::block::{Hello, RESPONSE_LEN, Request};
use memtide_wire::features::QueueRole;
use rustix::fs::{FallocateFlags, MemfdFlags};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const BLOCK: u64 = 128 << 20;
const ROUNDS: usize = 7;

/// Rings and requests lie outside what is reclaimed.
const OWN: u64 = 1 << 40;
const REQUESTS: u64 = OWN + (1 << 20);

/// Guest memory, and the time that the kernel took to drop it.
struct Host {
    regions: Regions,
    punching: Duration,
}

impl Reclaim for Host {
    fn reclaim(&mut self, range: GpaRange) -> Result<Reclaimed, ReclaimFailed> {
        let start = busy();
        let punched = self.regions.punch(range);
        self.punching += busy() - start;
        let report = punched
            .map_err(|error| ReclaimFailed { kind: FailKind::Other, text: error.to_string() })?;
        Ok(Reclaimed { bytes: report.bytes, punches: report.punches })
    }
}

struct Bench {
    file: OwnedFd,
    bytes: u64,
    host: Host,
    balloon: Balloon,
    memory: GuestMemoryMmap,
}

/// What a driver puts into the ring for one block.
type Fill = fn(&GuestMemoryMmap, &mut FakeDriver, u64);

fn main() {
    let mib: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1024);
    let bytes = (mib << 20).next_multiple_of(BLOCK);
    let mut bench = Bench::new(bytes);
    let drivers: [(&str, QueueRole, Fill); 4] = [
        ("steal, 128 MiB blocks", QueueRole::Block, steal),
        ("inflate, 32768 pages a request", QueueRole::Inflate, inflate_block),
        ("inflate, 256 pages as Linux", QueueRole::Inflate, inflate_as_linux),
        ("reports of 32 times 4 MiB", QueueRole::Reporting, report),
    ];
    for (name, role, fill) in drivers {
        // In turns, so that both see the same machine. The fastest of each are compared: whatever
        // else runs makes a round slower, never faster.
        let pairs: Vec<_> = (0..ROUNDS).map(|_| (bench.raw(), bench.device(role, fill))).collect();
        let raw = pairs.iter().map(|pair| pair.0).min().unwrap_or_default();
        let device = pairs.iter().map(|pair| pair.1).min().unwrap_or_default();
        let whole: Duration = pairs.iter().map(|pair| pair.1).sum();
        let punching = std::mem::take(&mut bench.host.punching);
        let own = 1.0 - punching.as_secs_f64() / whole.as_secs_f64();
        let speed = |time: Duration| bytes as f64 / time.as_secs_f64() / f64::from(1 << 30);
        println!(
            "{name:32} {:6.2} GiB/s, raw {:6.2} GiB/s, {:.3} of it; {:.1} % of the time is the model's own",
            speed(device),
            speed(raw),
            raw.as_secs_f64() / device.as_secs_f64(),
            own * 100.0
        );
    }
}

/// Processor time of this thread.
fn busy() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

impl Bench {
    fn new(bytes: u64) -> Self {
        let file = rustix::fs::memfd_create("reclaim-speed", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, bytes).unwrap();
        let range = GpaRange::new(Gpa(0), ByteSize::from_bytes(bytes)).unwrap();
        let fd = file.as_fd().try_clone_to_owned().unwrap();
        let spec = RegionSpec { range, fd, file_offset: ByteSize::ZERO };
        let mut balloon = Balloon::new(Settings::default(), Instant::from_millis(0));
        balloon.set_memory([range], ByteSize::from_kib(4));
        balloon.set_rings(Rings::WithBlock);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(OWN), 4 << 20)]).unwrap();
        let mut bench = Self {
            file,
            bytes,
            host: Host { regions: Regions::new([spec]).unwrap(), punching: Duration::ZERO },
            balloon,
            memory,
        };
        bench.hello();
        bench
    }

    fn hello(&mut self) {
        let hello = Request::Hello(Hello {
            ejected: Vec::new(),
            epoch: self.balloon.hello_epoch(),
            block_size: BlockSize::X86_SMALL,
            present: ByteSize::from_bytes(self.bytes),
            online: ByteSize::from_bytes(self.bytes),
            min: ByteSize::ZERO,
            max: ByteSize::MAX,
            stolen: vec![],
        });
        let mut moment = Moment { now: Instant::from_millis(0), host: &mut self.host };
        self.balloon.answer(&hello.encode(1), &mut moment);
    }

    /// Makes every page present.
    fn populate(&self) {
        rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, self.bytes).unwrap();
    }

    fn raw(&self) -> Duration {
        self.populate();
        let start = busy();
        for at in (0..self.bytes).step_by(BLOCK as usize) {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, mode, at, BLOCK).unwrap();
        }
        busy() - start
    }

    /// The time that the passes take; filling the ring is the guest's.
    fn device(&mut self, role: QueueRole, fill: Fill) -> Duration {
        self.populate();
        let mut driver = FakeDriver::new(OWN, 128);
        driver.clear(&self.memory);
        let mut queue = driver.queue();
        let mut spent = Duration::ZERO;
        for at in (0..self.bytes).step_by(BLOCK as usize) {
            fill(&self.memory, &mut driver, at);
            let mut ring = Ring { queue: &mut queue, memory: &self.memory };
            let now = Instant::from_millis(at);
            let mut moment = Moment { now, host: &mut self.host };
            let start = busy();
            while self.balloon.process(role, &mut ring, &mut moment).unwrap().left != Left::Nothing
            {
            }
            spent += busy() - start;
        }
        assert_eq!(self.host.regions.residency().unwrap(), ByteSize::ZERO, "all of it is gone");
        spent
    }
}

fn steal(memory: &GuestMemoryMmap, driver: &mut FakeDriver, at: u64) {
    let range = GpaRange::new(Gpa(at), ByteSize::from_bytes(BLOCK)).unwrap();
    let request = Request::Steal(vec![range]).encode(1);
    memory.write_slice(&request, GuestAddress(REQUESTS)).unwrap();
    let answer = Buffer::Writable(REQUESTS + 4096, RESPONSE_LEN as u32);
    driver.add(memory, &[Buffer::Readable(REQUESTS, request.len() as u32), answer]);
}

/// Page numbers from the top of the block down, as an allocator hands them out.
fn pfns(memory: &GuestMemoryMmap, at: u64) {
    let (first, count) = ((at >> 12) as u32, (BLOCK >> 12) as u32);
    let bytes: Vec<u8> = (first..first + count).rev().flat_map(u32::to_le_bytes).collect();
    memory.write_slice(&bytes, GuestAddress(REQUESTS)).unwrap();
}

fn inflate_block(memory: &GuestMemoryMmap, driver: &mut FakeDriver, at: u64) {
    pfns(memory, at);
    driver.add(memory, &[Buffer::Readable(REQUESTS, (BLOCK >> 10) as u32)]);
}

fn inflate_as_linux(memory: &GuestMemoryMmap, driver: &mut FakeDriver, at: u64) {
    pfns(memory, at);
    for chain in 0..BLOCK >> 20 {
        driver.add(memory, &[Buffer::Readable(REQUESTS + chain * 1024, 1024)]);
    }
}

fn report(memory: &GuestMemoryMmap, driver: &mut FakeDriver, at: u64) {
    let pieces: Vec<Buffer> =
        (0..32).map(|n| Buffer::Writable(at + n * (4 << 20), 4 << 20)).collect();
    driver.add(memory, &pieces);
}
