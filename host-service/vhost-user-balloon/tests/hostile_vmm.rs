//! Messages that make no sense. One test, alone in its process: it counts file descriptors.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use common::{DEADLINE, Device, MEMORY, USER_BASE};
use memtide_api::device::Request as Call;
use memtide_balloon::Settings;
use memtide_units::ByteSize;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

const NEED_REPLY: u32 = 1 << 3;

/// A VMM that says whatever it is told to say.
struct RawVmm {
    socket: UnixStream,
    /// What the device answers to GET_FEATURES.
    features: Vec<u8>,
}

impl RawVmm {
    fn send(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut bytes = Vec::new();
        for word in [request, 1 | NEED_REPLY, payload.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(payload);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let sent = rustix::net::sendmsg(
            &self.socket,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::empty(),
        );
        assert_eq!(sent.unwrap(), bytes.len());
    }

    fn reply(&mut self) -> (u32, Vec<u8>) {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(word(4), 1 | 1 << 2, "a reply is marked as one");
        let mut payload = vec![0; word(8) as usize];
        self.socket.read_exact(&mut payload).unwrap();
        (word(0), payload)
    }

    fn ask(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Vec<u8> {
        self.send(request, payload, fds);
        let (answered, reply) = self.reply();
        assert_eq!(answered, request);
        reply
    }

    /// The acknowledgement of a request: zero for done.
    fn ack(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> u64 {
        u64::from_ne_bytes(self.ask(request, payload, fds).try_into().unwrap())
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn halves(halves: &[u32]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_ne_bytes()).collect()
}

/// A memory table of regions by guest address, size and offset in the file.
fn table(regions: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut payload = halves(&[regions.len() as u32, 0]);
    for (guest, size, offset) in regions {
        payload.extend(words(&[*guest, *size, USER_BASE.wrapping_add(*guest), *offset]));
    }
    payload
}

fn memfd() -> OwnedFd {
    let fd = rustix::fs::memfd_create("guest", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, MEMORY.bytes()).unwrap();
    fd
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

const MIB: u64 = 1 << 20;

fn bad_memory(vmm: &mut RawVmm) {
    let file = memfd();
    let sealed = memfd();
    rustix::fs::fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
    let (one, two) = ([file.as_fd()], [file.as_fd(), file.as_fd()]);
    let good = table(&[(0, MIB, 0), (MIB, MIB, MIB)]);
    assert_eq!(vmm.ack(5, &good, &two), 0);
    // As many as the vhost crate sends in one message, and one more.
    let regions: Vec<_> = (0..33).map(|n| (n * MIB, MIB, n * MIB)).collect();
    let fds = [file.as_fd(); 33];
    assert_eq!(vmm.ack(5, &table(&regions[..32]), &fds[..32]), 0);
    assert_ne!(vmm.ack(5, &table(&regions), &fds), 0);
    for (payload, fds) in [
        (table(&[(0, 2 * MIB, 0), (MIB, MIB, 2 * MIB)]), &two[..]),
        (table(&[(0, MIB, 0), (0, MIB, 0)]), &two),
        (table(&[(0, 65 * MIB, 0)]), &one),
        (table(&[(0, MIB, u64::MAX)]), &one),
        (table(&[(0, MIB, 3)]), &one),
        (table(&[(0, 0, 0)]), &one),
        (table(&[(u64::MAX, MIB, 0)]), &one),
        (table(&[(0, 1 << 62, 0)]), &one),
        (table(&[(0, MIB, 0)]), &two),
        (table(&[(0, MIB, 0)]), &[]),
        (good[..good.len() - 1].to_vec(), &two),
        (halves(&[u32::MAX, 0]), &one),
        (vec![], &one),
        (table(&[(0, MIB, 0)]), &[sealed.as_fd()]),
        (table(&[(0, MIB, 0)]), &[vmm.socket.try_clone().unwrap().as_fd()]),
    ] {
        assert_ne!(vmm.ack(5, &payload, fds), 0, "{payload:x?}");
    }
    let single = |guest: u64| words(&[0, guest, MIB, USER_BASE + guest, 4 * MIB]);
    assert_eq!(vmm.ack(37, &single(4 * MIB), &one), 0);
    assert_ne!(vmm.ack(37, &single(4 * MIB), &one), 0, "it is there already");
    assert_ne!(vmm.ack(37, &single(8 * MIB), &[]), 0);
    assert_ne!(vmm.ack(38, &single(16 * MIB), &[]), 0);
    assert_eq!(vmm.ack(38, &single(4 * MIB), &one), 0, "older QEMUs send a descriptor here");
    assert_ne!(vmm.ack(38, &single(4 * MIB)[..8], &[]), 0);
}

fn bad_rings(vmm: &mut RawVmm) {
    let null = std::fs::File::open("/dev/null").unwrap();
    for index in [6, 255, 256, u32::MAX] {
        for request in [8, 10, 18] {
            assert_ne!(vmm.ack(request, &halves(&[index, 1]), &[]), 0);
        }
        assert_eq!(vmm.ask(11, &halves(&[index, 0]), &[]), [0; 8], "it has a reply in any case");
        assert_ne!(vmm.ack(9, &[halves(&[index, 0]), words(&[0; 4])].concat(), &[]), 0);
    }
    for request in [12, 13, 14] {
        assert_ne!(vmm.ack(request, &words(&[6]), &[null.as_fd()]), 0);
        assert_ne!(vmm.ack(request, &words(&[0]), &[]), 0, "a descriptor is missing");
        assert_ne!(vmm.ack(request, &words(&[1 << 8]), &[null.as_fd()]), 0, "one too many");
        assert_ne!(vmm.ack(request, &words(&[0]), &[null.as_fd(), null.as_fd()]), 0);
        assert_eq!(vmm.ack(request, &words(&[1 << 8]), &[]), 0, "none, and said so");
    }
    for request in [8, 9, 10, 18] {
        assert_ne!(vmm.ack(request, &[0; 7], &[]), 0);
        assert_ne!(vmm.ack(request, &halves(&[0, 1]), &[null.as_fd()]), 0);
    }
    // What a guest can cause is no error: a ring that is no ring is ignored, and stops like one.
    for size in [0, 3, 65536] {
        assert_eq!(vmm.ack(8, &halves(&[1, size]), &[]), 0);
        assert_eq!(vmm.ack(12, &words(&[1 | 1 << 8]), &[]), 0);
    }
    assert_eq!(vmm.ack(8, &halves(&[1, 128]), &[]), 0);
    assert_eq!(vmm.ack(10, &halves(&[1, 77]), &[]), 0);
    for addresses in [[0; 4], [u64::MAX; 4], [USER_BASE + 3; 4], [USER_BASE + 2 * MIB - 64; 4]] {
        assert_eq!(vmm.ack(9, &[halves(&[1, 0]), words(&addresses)].concat(), &[]), 0);
        assert_eq!(vmm.ack(18, &halves(&[1, 1]), &[]), 0);
    }
    assert_eq!(vmm.ask(11, &halves(&[1, 0]), &[]), halves(&[1, 77]));
}

/// A ring that runs keeps its size and its place, whatever is said meanwhile.
fn changes_while_running(vmm: &mut RawVmm) {
    let file = memfd();
    assert_eq!(vmm.ack(5, &table(&[(0, MIB, 0)]), &[file.as_fd()]), 0);
    let parts = words(&[USER_BASE, USER_BASE + 0x3000, USER_BASE + 0x2000, 0]);
    let start = |vmm: &mut RawVmm| {
        assert_eq!(vmm.ack(8, &halves(&[2, 128]), &[]), 0);
        assert_eq!(vmm.ack(10, &halves(&[2, 0]), &[]), 0);
        assert_eq!(vmm.ack(9, &[halves(&[2, 0]), parts.clone()].concat(), &[]), 0);
        assert_eq!(vmm.ack(12, &words(&[2 | 1 << 8]), &[]), 0);
        assert_eq!(vmm.ack(18, &halves(&[2, 1]), &[]), 0);
    };
    start(vmm);
    for request in [8, 10] {
        assert_ne!(vmm.ack(request, &halves(&[2, 64]), &[]), 0, "{request} while it runs");
    }
    for request in [12, 13, 14] {
        assert_eq!(vmm.ack(request, &words(&[2 | 1 << 8]), &[]), 0);
    }
    // RESET_OWNER is said by nobody any more, and means nothing.
    assert_eq!(vmm.ack(4, &[], &[]), 0);
    assert_eq!(vmm.ask(11, &halves(&[2, 0]), &[]), halves(&[2, 0]));
    assert_eq!(vmm.ask(11, &halves(&[2, 0]), &[]), halves(&[2, 0]), "stopped twice");
    start(vmm);
    assert_eq!(vmm.ask(11, &halves(&[2, 0]), &[]), halves(&[2, 0]));
}

/// Transfers of the device's state that cannot be: each has its reply at once.
fn bad_transfers(vmm: &mut RawVmm) {
    let file = memfd();
    let one = [file.as_fd()];
    let failed = words(&[1 << 8 | 1]);
    for (payload, fds) in [
        (halves(&[0, 0]), &[][..]),
        (halves(&[2, 0]), &one),
        (halves(&[0, 1]), &one),
        (halves(&[0]), &one),
        (halves(&[0, 0, 0]), &one),
        (halves(&[0, 0]), &[file.as_fd(), file.as_fd()]),
    ] {
        assert_eq!(vmm.ask(42, &payload, fds), failed, "{payload:?}");
    }
    assert_eq!(vmm.ask(43, &[], &[]), words(&[1]), "none was begun");
    // A file does as a channel: this one holds 64 MiB of zeros.
    assert_eq!(vmm.ask(42, &halves(&[1, 0]), &one), words(&[1 << 8]));
    assert_eq!(vmm.ask(43, &[], &[]), words(&[1]), "that is no state");
}

/// A message that comes in two pieces, with whatever time between them.
fn half_a_message(vmm: &mut RawVmm, client: &mut common::Client) {
    let whole = halves(&[1, 1 | NEED_REPLY, 0]);
    for cut in 1..whole.len() {
        rustix::net::send(&vmm.socket, &whole[..cut], SendFlags::empty()).unwrap();
        client.status();
        rustix::net::send(&vmm.socket, &whole[cut..], SendFlags::empty()).unwrap();
        assert_eq!(vmm.reply(), (1, vmm.features.clone()));
    }
    // A reply to nothing.
    rustix::net::send(&vmm.socket, &halves(&[3, 1 | 1 << 2 | NEED_REPLY, 0]), SendFlags::empty())
        .unwrap();
    assert_eq!(vmm.reply(), (3, words(&[1])));
}

fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("/memfd:guest")).count()
}

fn bad_others(vmm: &mut RawVmm) {
    let null = std::fs::File::open("/dev/null").unwrap();
    for request in [0, 6, 7, 19, 22, 26, 31, 34, 39, 40, 77, u32::MAX] {
        assert_eq!(vmm.ack(request, &[], &[null.as_fd()]), 1, "{request} is unknown");
    }
    for request in [2, 16, 21] {
        assert_ne!(vmm.ack(request, &[1, 2, 3], &[]), 0);
    }
    let many = vec![null.as_fd(); 60];
    assert_eq!(vmm.ask(1, &[], &many), [0; 8], "a reply, but nothing in it");
    let config = |offset, size, room| [halves(&[offset, size, 0]), vec![0; room]].concat();
    assert_eq!(vmm.ask(24, &config(0, 4096, 4096), &[])[28..32], *b"MTDE");
    assert_eq!(vmm.ask(24, &config(u32::MAX, 4, 4), &[])[12..], [0; 4]);
    assert_eq!(vmm.ask(24, &config(0, 0, 0), &[]).len(), 12);
    for (size, room) in [(8, 4), (4, 8), (64, 0)] {
        assert_eq!(vmm.ask(24, &config(0, size, room), &[]).len(), 12 + size as usize);
    }
    for (size, room) in [(u32::MAX, 4), (4097, 4097)] {
        let reply = vmm.ask(24, &config(0, size, room), &[]);
        assert!(reply.is_empty(), "an empty reply is a refusal");
    }
    assert_eq!(vmm.ack(25, &config(u32::MAX, 64, 64), &[]), 0);
    assert_eq!(vmm.ack(25, &config(0, 65, 64), &[]), 0);
    assert_ne!(vmm.ack(25, &[0; 11], &[]), 0);
    assert_ne!(vmm.ack(25, &vec![0; 100_000], &[null.as_fd()]), 0);
}

#[test]
fn whatever_a_vmm_says_the_device_goes_on_and_keeps_nothing() {
    let (device, socket) = Device::connected(Settings::default());
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut vmm = RawVmm { socket, features: vec![] };
    // Not acknowledged itself: acknowledgements are negotiated only by it.
    vmm.send(16, &words(&[1 << 0 | 1 << 3 | 1 << 9 | 1 << 15]), &[]);
    let mut client = device.control();
    vmm.features = vmm.ask(1, &[], &[]);
    let round = |vmm: &mut RawVmm| {
        bad_memory(vmm);
        bad_rings(vmm);
        changes_while_running(vmm);
        bad_transfers(vmm);
        bad_others(vmm);
    };
    round(&mut vmm);
    half_a_message(&mut vmm, &mut client);
    let before = (open_descriptors(), mappings());
    for _ in 0..20 {
        round(&mut vmm);
    }
    assert_eq!((open_descriptors(), mappings()), before);

    // After all of it a whole table is taken, and the status says so.
    let file = memfd();
    assert_eq!(vmm.ack(5, &table(&[(0, 64 * MIB, 0)]), &[file.as_fd()]), 0);
    let status = client.status();
    assert_eq!(status.memory.len(), 1);
    assert_eq!(status.memory[0].range.len(), MEMORY);
    assert_eq!(status.resident, ByteSize::ZERO);
    assert!(matches!(client.call(Call::Status), memtide_api::device::Outcome::Ok(_)));

    // The version is the one thing that ends a connection, and with it this device.
    rustix::net::send(&vmm.socket, &halves(&[1, 2, 0]), SendFlags::empty()).unwrap();
    device.ended();
}
