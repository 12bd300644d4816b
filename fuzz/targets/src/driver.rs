//! The agent's virtio driver against a device that lies: registers, capability list, used ring,
//! responses, configuration.
//!
//! Whatever the device says, the driver panics nowhere, reaches no register outside its windows or
//! off its boundary, has the device reach its own pages only, and believes no answer to a request
//! that was not asked. And the rule that a guest's memory rests on: where [`Link::settle`] says that
//! nothing is dropped any more, no steal and no hello is on its way.

mod device;
mod noise;
mod registers;
mod steps;

use std::rc::Rc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use memtide_agent::dma::{Area, PAGE, PAGES, Pages};
use memtide_agent::link::{Guest, HostConfig, Link, LinkEvent};
use memtide_agent::virtio::caps::{Layout, Place};
use memtide_agent::virtio::mmio::Registers;
use memtide_agent::virtio::transport::Transport;
use memtide_units::{BlockId, BlockSize, ByteSize, Gpa, GpaRange, Instant};
use memtide_wire::block::{Hello, Request, ReturnRequest, Urgency};

use crate::meter;

use device::Device;
use noise::capabilities;
use steps::{Post, Step};

/// Requests of a page or so, some dozens of them that wait.
const MEMORY_MAX: usize = 1 << 20;
const STEPS_MAX: usize = 96;

const QUEUES: u16 = 6;
const INFLATE_QUEUE: u16 = 0;
const BLOCK_QUEUE: u16 = 5;
/// Pages of the area lie here, in falling order: nothing is contiguous.
const TOP: u64 = 0x20_0000;

/// Reads `data` as a capability list and what lies behind it, and as what a device does.
pub fn run(data: &[u8]) {
    meter::within(MEMORY_MAX, || {
        capabilities(data);
        link(&mut Unstructured::new(data));
    });
}

thread_local! {
    static AREA: Pages = Pages::anonymous(PAGES).expect("a test needs memory");
}

fn place(page: usize) -> Gpa {
    Gpa(TOP - (page * PAGE) as u64)
}

/// Where in the area a guest-physical address lies.
fn find(gpa: u64) -> usize {
    let page =
        (0..PAGES).find(|page| (place(*page).0..place(*page).0 + PAGE as u64).contains(&gpa));
    let page = page.unwrap_or_else(|| panic!("the driver gave away {gpa:#x}"));
    page * PAGE + (gpa - place(page).0) as usize
}

fn link(input: &mut Unstructured<'_>) {
    let memory = AREA.with(Pages::clone);
    memory.clear();
    let device = Device::new(memory.clone());
    let layout = layout();
    let registers: Rc<dyn Registers> = Rc::new(device.clone());
    let transport = Transport::open(&layout, |_| Ok(Rc::clone(&registers))).expect("it fits");
    let area = Area::located(memory, (0..PAGES).map(place).collect());
    let mut now = Instant::from_millis(0);
    let mut link = Link::new(now, transport, area, Box::new(|| Ok(())));
    for _ in 0..STEPS_MAX {
        let Ok(step) = Step::arbitrary(input) else { break };
        match step {
            Step::Wait(ms) => now = now + Duration::from_millis(ms.into()),
            Step::Service => service(&mut link, now, &device),
            Step::Settle => {
                let settled = link.settle();
                assert!(!settled || !device.may_drop(), "settled, and a steal is on its way");
            }
            step => drive(&mut link, &device, step, now),
        }
        if input.is_empty() {
            break;
        }
    }
}

/// A guest that somebody else puts memory online in: every fifth block, whatever is reported.
struct Kernel;

impl Guest for Kernel {
    fn introduction(&self, config: &HostConfig) -> Hello {
        Hello {
            ejected: Vec::new(),
            epoch: config.hello_epoch,
            block_size: BlockSize::X86_SMALL,
            present: ByteSize::from_gib(1),
            online: ByteSize::from_gib(1),
            min: ByteSize::ZERO,
            max: ByteSize::MAX,
            stolen: Vec::new(),
        }
    }

    fn is_offline(&self, range: GpaRange) -> bool {
        !(range.start().0 / range.len().bytes()).is_multiple_of(5)
    }

    fn block_size(&self) -> BlockSize {
        BlockSize::X86_SMALL
    }
}

fn service(link: &mut Link, now: Instant, device: &Device) {
    let waited = device.waiting();
    for event in link.service(now, &Kernel) {
        match event {
            LinkEvent::Answered(request, _) => {
                // One that still waits in the ring of an honest device has had no answer, unless it is
                // the same once more.
                let honest = !device.0.borrow().scribbled;
                let given = device.takes_answer();
                assert!(!honest || given || waited != Some(request), "an answer that nobody gave");
            }
            LinkEvent::NotOffline(ranges) => {
                assert!(!ranges.iter().any(|range| Kernel.is_offline(*range)), "{ranges:?} are");
            }
            _ => {}
        }
    }
}

fn drive(link: &mut Link, device: &Device, step: Step<'_>, now: Instant) {
    let range = |n: u8| BlockSize::X86_SMALL.range(BlockId(u64::from(n % 16))).expect("small");
    match step {
        Step::Post(Post::Steal(n)) => _ = link.post(Request::Steal(vec![range(n)])),
        Step::Post(Post::Taken(n)) => _ = link.post(Request::Taken(vec![range(n)])),
        Step::Post(Post::Cancel) => _ = link.post(Request::Cancel { ticket: 1 }),
        Step::Post(Post::Goodbye) => _ = link.post(Request::Goodbye),
        Step::Post(Post::Return(n)) => {
            let (ticket, urgency) = (1, Urgency::Pressure);
            let ranges = vec![range(n)];
            link.post(Request::Return(ReturnRequest { ticket, urgency, ranges }));
        }
        Step::ReportStolen(n) => link.report_stolen(vec![range(n)]),
        Step::Unreport(n) => _ = link.unreport(range(n)),
        Step::GreetAgain => link.greet_again(),
        Step::Look => link.look_soon(),
        Step::Check => _ = link.check(now),
        Step::Answer { verdict, reason } => device.answer(verdict, reason),
        Step::AnswerBytes { bytes, id, len, by } => device.answer_bytes(bytes, id, len, by),
        Step::GiveBack { queue, chains } => device.give_back(queue, chains),
        Step::GiveBackOther { queue, id, by } => device.give_back_other(queue, id, by),
        Step::Scribble { page, offset, bytes } => device.scribble(page, offset, bytes),
        Step::Config { offset, bytes } => device.configure(offset, bytes),
        Step::Lie(lie) => device.lie(&lie),
        Step::Service | Step::Settle | Step::Wait(_) => {}
    }
    assert!(link.due().is_none_or(|due| due <= now + Duration::from_secs(60)));
}

/// As QEMU lays its devices out.
fn layout() -> Layout {
    let place = |offset, length| Place { bar: 4, offset, length };
    Layout {
        common: place(0, 0x1000),
        isr: place(0x1000, 0x1000),
        device: place(0x2000, 0x1000),
        notify: place(0x3000, 0x1000),
        notify_multiplier: 4,
    }
}
