//! The VMM, and the guest's drivers.

use std::os::unix::net::UnixStream;

use memtide_balloon::fake::{Buffer, FakeDriver};
use memtide_balloon::{BLOCK_QUEUE, QUEUES};
use memtide_wire::block::{RESPONSE_LEN, Request as BlockRequest, Response};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VringConfigData};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{
    ANSWER, Memory, PROTOCOL_FEATURES, REQUEST, RINGS, USER_BASE, VERSION_1, wait_readable,
};

/// A VMM with a guest, connected to a device.
pub struct Vm {
    pub frontend: Frontend,
    pub memory: Memory,
    pub drivers: Vec<FakeDriver>,
    pub kicks: Vec<EventFd>,
    pub calls: Vec<EventFd>,
    pub channel: UnixStream,
    sequence: u32,
}

impl Vm {
    /// Negotiates, hands memory over, and starts `queues` with `features`.
    pub fn start(socket: UnixStream, features: u64, queues: &[usize]) -> Self {
        let mut vm = Self::negotiated(socket, features);
        vm.frontend.set_mem_table(&vm.memory.regions()).unwrap();
        vm.start_rings(queues);
        vm
    }

    pub fn negotiated(socket: UnixStream, features: u64) -> Self {
        let memory = Memory::new();
        let drivers = fresh_drivers(&memory);
        Self::negotiated_over(socket, features, (memory, drivers))
    }

    /// Negotiates, hands `memory` over, and starts `queues` with `features`.
    pub fn start_over(socket: UnixStream, memory: Memory, features: u64, queues: &[usize]) -> Self {
        let drivers = fresh_drivers(&memory);
        let mut vm = Self::negotiated_over(socket, features, (memory, drivers));
        vm.frontend.set_mem_table(&vm.memory.regions()).unwrap();
        vm.start_rings(queues);
        vm
    }

    /// A guest that another device has served before: its memory and its rings are as they are.
    pub fn negotiated_over(
        socket: UnixStream,
        features: u64,
        (memory, drivers): (Memory, Vec<FakeDriver>),
    ) -> Self {
        let mut frontend = Frontend::from_stream(socket, QUEUES as u64);
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let acked = features | VERSION_1 | PROTOCOL_FEATURES;
        assert_eq!(offered & acked, acked, "the device offers what the test needs");
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(frontend.get_queue_num().unwrap(), QUEUES as u64);
        let (channel, theirs) = UnixStream::pair().unwrap();
        frontend.set_backend_request_fd(&theirs).unwrap();
        frontend.set_features(acked).unwrap();
        let event = || EventFd::new(libc_efd_nonblock()).unwrap();
        Self {
            frontend,
            memory,
            drivers,
            kicks: (0..QUEUES).map(|_| event()).collect(),
            calls: (0..QUEUES).map(|_| event()).collect(),
            channel,
            sequence: 0,
        }
    }

    /// The VMM loses its device and connects to another one. The guest notices nothing.
    pub fn reconnected(self, socket: UnixStream, features: u64) -> Self {
        let Self { memory, drivers, .. } = self;
        let vm = Self::negotiated_over(socket, features, (memory, drivers));
        vm.frontend.set_mem_table(&vm.memory.regions()).unwrap();
        vm
    }

    pub fn start_rings(&mut self, queues: &[usize]) {
        for &index in queues {
            self.set_up(index, 0);
        }
        for index in 0..QUEUES {
            self.frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// Sets one ring up as QEMU does it, from `base` on. The interrupt that comes of a start is taken.
    pub fn set_up(&mut self, index: usize, base: u16) {
        self.hand_over(index, base);
        let _ = self.calls[index].read();
    }

    /// The same, with that interrupt left to be seen.
    pub fn hand_over(&mut self, index: usize, base: u16) {
        let driver = &self.drivers[index];
        self.frontend.set_vring_num(index, driver.size()).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend.set_vring_addr(index, &addresses(driver)).unwrap();
        self.frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
        self.frontend.set_vring_call(index, &self.calls[index]).unwrap();
    }

    /// Stops every ring as QEMU does it; the positions that the device answers.
    pub fn stop_rings(&mut self, queues: &[usize]) -> Vec<u32> {
        for index in 0..QUEUES {
            self.frontend.set_vring_enable(index, false).unwrap();
        }
        queues.iter().map(|index| self.frontend.get_vring_base(*index).unwrap()).collect()
    }

    /// Hands a chain to a queue, kicks, and waits for the interrupt; bytes that were written.
    pub fn submit(&mut self, index: usize, buffers: &[Buffer]) -> u32 {
        let head = self.drivers[index].add(&self.memory.map, buffers);
        self.kicks[index].write(1).unwrap();
        self.await_used(index, head)
    }

    /// Waits until a chain is answered; bytes that were written.
    pub fn await_used(&mut self, index: usize, head: u16) -> u32 {
        loop {
            wait_readable(&self.calls[index]);
            let _ = self.calls[index].read();
            let used = self.drivers[index].take_used(&self.memory.map);
            if let Some((_, len)) = used.into_iter().find(|(used, _)| *used == head) {
                return len;
            }
        }
    }

    /// Inflates or deflates pages by number.
    pub fn pages(&mut self, index: usize, pfns: impl IntoIterator<Item = u32>) {
        let bytes: Vec<u8> = pfns.into_iter().flat_map(u32::to_le_bytes).collect();
        self.memory.map.write_slice(&bytes, GuestAddress(REQUEST)).unwrap();
        self.submit(index, &[Buffer::Readable(REQUEST, bytes.len() as u32)]);
    }

    /// One request on the block queue, and its answer.
    pub fn ask(&mut self, request: &BlockRequest) -> Response {
        self.sequence += 1;
        let bytes = request.encode(self.sequence);
        let response = self.ask_raw(&bytes);
        assert_eq!(response.sequence, self.sequence);
        response
    }

    pub fn ask_raw(&mut self, bytes: &[u8]) -> Response {
        self.memory.map.write_slice(bytes, GuestAddress(REQUEST)).unwrap();
        let buffers = [
            Buffer::Readable(REQUEST, bytes.len() as u32),
            Buffer::Writable(ANSWER, RESPONSE_LEN as u32),
        ];
        assert_eq!(self.submit(BLOCK_QUEUE, &buffers), RESPONSE_LEN as u32);
        let mut answer = [0; RESPONSE_LEN];
        self.memory.map.read_slice(&mut answer, GuestAddress(ANSWER)).unwrap();
        Response::decode(&answer).unwrap()
    }

    pub fn config(&mut self, offset: u32, len: u32) -> Vec<u8> {
        let flags = vhost::vhost_user::message::VhostUserConfigFlags::empty();
        self.frontend.get_config(offset, len, flags, &vec![0; len as usize]).unwrap().1
    }
}

pub fn fresh_drivers(memory: &Memory) -> Vec<FakeDriver> {
    let driver = |index| {
        let driver = FakeDriver::new(RINGS + index as u64 * FakeDriver::LEN, 128);
        driver.clear(&memory.map);
        driver
    };
    (0..QUEUES).map(driver).collect()
}

pub fn addresses(driver: &FakeDriver) -> VringConfigData {
    VringConfigData {
        queue_max_size: driver.size(),
        queue_size: driver.size(),
        flags: 0,
        desc_table_addr: USER_BASE + driver.descriptors(),
        used_ring_addr: USER_BASE + driver.used_ring(),
        avail_ring_addr: USER_BASE + driver.available_ring(),
        log_addr: None,
    }
}

fn libc_efd_nonblock() -> i32 {
    rustix::event::EventfdFlags::NONBLOCK.bits() as i32
}
