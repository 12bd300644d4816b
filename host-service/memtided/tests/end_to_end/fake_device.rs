//! A device process with a guest in it, as far as its control socket shows: it speaks
//! `memtide_api::device` over a real socket, from threads of the test.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use memtide_api::device::*;
use memtide_api::line::{LineBuffer, to_line};
use memtide_units::{ByteSize, Gpa, GpaRange};

pub(crate) const BLOCK: ByteSize = ByteSize::from_mib(128);

#[derive(Default)]
struct State {
    status: DeviceStatus,
    /// What the agent would say in a hello, where that differs from the device's own map.
    truth: Option<ByteSize>,
    controller: Option<UnixStream>,
    heard: Vec<Request>,
    decisions: Vec<(u32, Decision)>,
    /// It is older than `set_pluggable`.
    is_old: bool,
    ended: bool,
}

/// A device with an agent behind it.
pub(crate) struct FakeDevice {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

impl FakeDevice {
    /// A guest with so many blocks of memory, of which so many are stolen.
    pub(crate) fn start(path: &Path, blocks: u64, stolen: u64) -> Self {
        let whole = GpaRange::new(Gpa(0), BLOCK.times(blocks)).unwrap();
        let status = DeviceStatus {
            pid: std::process::id(),
            vmm_connected: true,
            driver: Driver::Agent,
            memory: vec![MemoryRegion { range: whole, file_offset: ByteSize::ZERO, inode: 1 }],
            stolen: map(BLOCK.times(stolen)),
            resident: BLOCK.times(blocks - stolen),
            ..DeviceStatus::default()
        };
        Self::with_status(path, status)
    }

    pub(crate) fn with_status(path: &Path, status: DeviceStatus) -> Self {
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let state = Arc::new(Mutex::new(State { status, ..State::default() }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.lock().unwrap().ended {
                    return;
                }
                let (stream, shared) = (stream.unwrap(), Arc::clone(&shared));
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { path: path.into(), state }
    }

    /// The agent's own map, which the device learns of with the next hello.
    pub(crate) fn set_truth(&self, stolen: u64) {
        self.state().truth = Some(BLOCK.times(stolen));
    }

    /// The guest asks for so many blocks.
    pub(crate) fn ask(&self, ticket: u32, blocks: u64, urgency: Urgency) {
        let mut state = self.state();
        let bytes = BLOCK.times(blocks);
        let ranges = vec![GpaRange::new(Gpa(0), bytes).unwrap()];
        let reason = "asking".into();
        let pending = PendingReturn { ticket, bytes, ranges, urgency, waited_ms: 0, reason };
        state.status.pending = Some(pending.clone());
        state.emit(Event::ReturnAsked(pending));
    }

    pub(crate) fn cancel(&self) {
        let mut state = self.state();
        let ticket = state.status.pending.take().unwrap().ticket;
        state.emit(Event::ReturnCancelled { ticket });
    }

    /// The guest takes blocks unasked.
    pub(crate) fn take(&self, blocks: u64) {
        let mut state = self.state();
        let left = state.stolen() - BLOCK.times(blocks);
        state.set_stolen(left);
        let ranges = vec![GpaRange::new(Gpa(0), BLOCK.times(blocks)).unwrap()];
        state.emit(Event::Taken { ranges, stolen: left });
    }

    pub(crate) fn steal(&self, blocks: u64) {
        let mut state = self.state();
        let stolen = state.stolen() + BLOCK.times(blocks);
        state.set_stolen(stolen);
        state.emit(Event::Stolen { ranges: Vec::new(), stolen });
    }

    /// Says something that is not so: the status knows nothing of it but the numbers.
    pub(crate) fn say(&self, event: Event) {
        let mut state = self.state();
        match &event {
            Event::Stolen { stolen, .. } => state.status.stolen = map(*stolen),
            Event::Balloon { actual } => state.status.actual = *actual,
            _ => {}
        }
        state.emit(event);
    }

    /// Its status is another from now on.
    pub(crate) fn change(&self, change: impl FnOnce(&mut DeviceStatus)) {
        change(&mut self.state().status);
    }

    /// It cannot read `set_pluggable`.
    pub(crate) fn is_old(&self) {
        self.state().is_old = true;
    }

    pub(crate) fn set_resident(&self, resident: ByteSize) {
        self.state().status.resident = resident;
    }

    /// What it was told about returns, in order.
    pub(crate) fn decisions(&self) -> Vec<(u32, Decision)> {
        self.state().decisions.clone()
    }

    pub(crate) fn heard(&self) -> Vec<Request> {
        self.state().heard.clone()
    }

    pub(crate) fn status(&self) -> DeviceStatus {
        self.state().status.clone()
    }

    pub(crate) fn has_controller(&self) -> bool {
        self.state().controller.is_some()
    }

    /// The process dies and leaves its socket behind.
    pub(crate) fn crash(self) {}

    /// The process ends in good order.
    pub(crate) fn end(self) {
        let _ = fs::remove_file(&self.path);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for FakeDevice {
    fn drop(&mut self) {
        let mut state = self.state();
        state.ended = true;
        if let Some(controller) = state.controller.take() {
            let _ = controller.shutdown(Shutdown::Both);
        }
        drop(state);
        // Wakes the thread that accepts, so that it closes the listener.
        let _ = UnixStream::connect(&self.path);
    }
}

fn map(stolen: ByteSize) -> Vec<GpaRange> {
    GpaRange::new(Gpa(0), stolen).into_iter().collect()
}

impl State {
    fn stolen(&self) -> ByteSize {
        self.status.stolen.iter().map(|range| range.len()).sum()
    }

    /// Stolen blocks have no backing; those that come back get theirs when they are touched.
    fn set_stolen(&mut self, stolen: ByteSize) {
        self.status.stolen = map(stolen);
        let memory: ByteSize = self.status.memory.iter().map(|region| region.range.len()).sum();
        self.status.resident = self.status.resident.min(memory - stolen);
    }

    fn emit(&mut self, event: Event) {
        if let Some(controller) = &mut self.controller {
            let _ = controller.write_all(&to_line(&FromDevice::Event { event }).unwrap());
        }
    }

    fn reply(&mut self, call: &Call, stream: &UnixStream) -> Reply {
        let result = self.handle(&call.call, stream);
        if self.is_old && matches!(call.call, Request::SetPluggable { .. }) {
            let message = "a line is not understood: unknown variant `set_pluggable`".into();
            let refusal = Refusal { name: "bad-request".into(), message };
            return Reply { id: 0, result: Outcome::Error(refusal) };
        }
        Reply { id: call.id, result }
    }

    fn handle(&mut self, request: &Request, stream: &UnixStream) -> Outcome {
        self.heard.push(request.clone());
        match request {
            Request::Attach { version, role } => {
                assert_eq!(*version, VERSION);
                if *role == Role::Controller {
                    self.controller = Some(stream.try_clone().unwrap());
                }
                return Outcome::Ok(Answer::Status(Box::new(self.status.clone())));
            }
            Request::Status => return Outcome::Ok(Answer::Status(Box::new(self.status.clone()))),
            Request::SetTarget { balloon } => self.status.target = *balloon,
            Request::SetMin { min } => self.status.min = *min,
            Request::SetLocalRule { rule } => self.status.local_rule = *rule,
            Request::AskHello => self.say_hello(),
            Request::SetPluggable { .. } if self.is_old => {}
            Request::SetPluggable { ranges } => self.status.pluggable.clone_from(ranges),
            Request::Decide { ticket, decision } => return self.decide(*ticket, decision),
        }
        Outcome::Ok(Answer::Done)
    }

    fn say_hello(&mut self) {
        if let Some(truth) = self.truth.take() {
            self.set_stolen(truth);
        }
        let stolen = self.status.stolen.clone();
        let hello = AgentHello { epoch: 2, block_size: BLOCK, stolen, ..AgentHello::default() };
        self.status.hello = Some(hello.clone());
        self.emit(Event::Hello(hello));
    }

    /// A granted return is fetched at once, as an agent does.
    fn decide(&mut self, ticket: u32, decision: &Decision) -> Outcome {
        let Some(pending) = self.status.pending.clone().filter(|p| p.ticket == ticket) else {
            let message = format!("no return with ticket {ticket} is open");
            return Outcome::Error(Refusal { name: "no-such-ticket".into(), message });
        };
        self.decisions.push((ticket, decision.clone()));
        match decision {
            Decision::Grant => {
                self.status.pending = None;
                let stolen = self.stolen() - pending.bytes;
                self.set_stolen(stolen);
                let (ranges, by) = (pending.ranges, GrantedBy::Controller);
                self.emit(Event::Returned { ticket, ranges, by, stolen });
            }
            Decision::Hold(reason) => {
                self.status.pending = Some(PendingReturn { reason: reason.clone(), ..pending });
            }
            Decision::Deny(_) => self.status.pending = None,
        }
        Outcome::Ok(Answer::Done)
    }
}

fn serve(mut stream: UnixStream, shared: &Mutex<State>) {
    let mut input = LineBuffer::default();
    let mut chunk = [0; 4096];
    while let Ok(count) = stream.read(&mut chunk)
        && count > 0
    {
        input.extend(&chunk[..count]);
        while let Ok(Some(call)) = input.next_message::<Call>() {
            let mut state = shared.lock().unwrap();
            if state.ended {
                return;
            }
            let reply = FromDevice::Reply(state.reply(&call, &stream));
            let _ = stream.write_all(&to_line(&reply).unwrap());
        }
    }
    shared.lock().unwrap().controller = None;
}
