//! `target`: sets how large the balloon shall be, and waits for the guest.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use memtide_api::device::{DeviceStatus, Driver, Event, Request};
use memtide_units::ByteSize;
use serde::Serialize;

use crate::args::{Balloon, Target};
use crate::client::Client;
use crate::commands::{Form, json_line, show};
use crate::error::CtlError;
use crate::output::print;

/// A balloon is made of pages of this size (virtio 1.3, 5.5.6).
const PAGE: ByteSize = ByteSize::from_kib(4);

/// How often progress is looked at. A stock driver tells of each MiB, hundreds of them a second.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How far the guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Progress {
    /// What the balloon shall be.
    target: ByteSize,
    /// What it is.
    balloon: ByteSize,
    /// What the guest has with that; zero where no VMM is connected.
    guest: ByteSize,
    reached: bool,
}

/// Sets the target, and waits where that is wanted.
pub(crate) fn run(
    client: &mut Client,
    status: &DeviceStatus,
    wanted: &Target,
    form: Form,
) -> Result<(), CtlError> {
    let balloon = balloon(wanted.balloon, memory(status))?;
    client.call(Request::SetTarget { balloon })?;
    match wanted.wait {
        None => {
            let status = client.status()?;
            show(form, &progress(&status), |now| set(&status, *now))
        }
        Some(seconds) => follow(client, Duration::from_secs(seconds), form),
    }
}

/// The size of the balloon. Without a VMM the guest's memory is not known, and a size of the balloon
/// is taken as it is: it holds for the next VMM.
fn balloon(wanted: Balloon, memory: ByteSize) -> Result<ByteSize, CtlError> {
    let known = !memory.is_zero();
    match (wanted.size, wanted.guest) {
        (_, Some(_)) if !known => Err(CtlError::NoVmm),
        (_, Some(guest)) if guest > memory => Err(CtlError::TooMuch { guest, memory }),
        (_, Some(guest)) if guest.is_zero() => Err(CtlError::TooLarge { balloon: memory, memory }),
        (_, Some(guest)) => Ok((memory - guest).round_down_to(PAGE)),
        (Some(balloon), _) if known && balloon >= memory => {
            Err(CtlError::TooLarge { balloon, memory })
        }
        (size, None) => Ok(size.unwrap_or_default().round_down_to(PAGE)),
    }
}

fn memory(status: &DeviceStatus) -> ByteSize {
    status.memory.iter().map(|region| region.range.len()).sum()
}

/// A stock driver comes to the exact page. An agent gives whole blocks, as many as fit into the
/// target, and may give more of its own accord.
fn progress(status: &DeviceStatus) -> Progress {
    let stolen: ByteSize = status.stolen.iter().map(|range| range.len()).sum();
    let target = status.target;
    let (balloon, reached) = match (status.driver, &status.hello) {
        (Driver::Agent, Some(hello)) => (stolen, stolen >= target.round_down_to(hello.block_size)),
        _ => (status.actual, status.driver == Driver::Stock && status.actual == target),
    };
    Progress { target, balloon, guest: memory(status) - balloon, reached }
}

fn follow(client: &mut Client, wait: Duration, form: Form) -> Result<(), CtlError> {
    let deadline = Instant::now() + wait;
    let mut shown = Shown::default();
    loop {
        let status = client.status()?;
        let now = progress(&status);
        if now.reached {
            shown.end();
            return show(form, &now, |now| done(*now));
        }
        if !status.vmm_connected {
            shown.end();
            return Err(CtlError::NoVmm);
        }
        if Instant::now() >= deadline {
            shown.end();
            return Err(CtlError::Deadline(too_late(&status, now, wait)));
        }
        shown.show(now, form)?;
        pass_time(client, deadline, &shown)?;
    }
}

/// Lets events pass until it is time for another look, or the guest seems to have arrived.
fn pass_time(client: &mut Client, deadline: Instant, shown: &Shown) -> Result<(), CtlError> {
    let next = deadline.min(Instant::now() + LOOK_EVERY);
    while let Some(event) = client.event(Some(next))? {
        let target = shown.last.map(|last| last.target);
        if matches!(event, Event::Balloon { actual } if Some(actual) == target) {
            break;
        }
    }
    Ok(())
}

fn set(status: &DeviceStatus, now: Progress) -> String {
    let Progress { target, balloon, .. } = now;
    let what = if now.reached {
        format!("The balloon is {balloon}, as it shall be")
    } else {
        format!("The balloon shall be {target}; it is {balloon}")
    };
    let who = match (status.vmm_connected, status.driver) {
        (false, _) => ". No VMM is connected: it holds for the next one",
        (true, Driver::None) => ". The guest has no driver for it yet",
        (true, Driver::Stock | Driver::Agent) => "",
    };
    format!("{what}{who}.\n")
}

fn done(now: Progress) -> String {
    format!("The balloon is {}, and the guest has {}.\n", now.balloon, now.guest)
}

fn too_late(status: &DeviceStatus, now: Progress, wait: Duration) -> String {
    let why = match status.driver {
        Driver::None => {
            "it does not drive the balloon: it is still booting, or has no balloon driver"
        }
        Driver::Stock => "it may have no more to spare, or be slow: try a longer --wait=SECONDS",
        Driver::Agent => {
            "its agent keeps what it needs, and its own minimum: see \"decided\" in \"status\""
        }
    };
    format!(
        "after {} s the balloon is {} and not {}: {why}. The target stays as it is set",
        wait.as_secs(),
        now.balloon,
        now.target
    )
}

/// Progress on standard error for people, on one line of a terminal; JSON lines on standard output.
#[derive(Default)]
struct Shown {
    last: Option<Progress>,
    line_is_open: bool,
}

impl Shown {
    fn show(&mut self, now: Progress, form: Form) -> io::Result<()> {
        if self.last.replace(now) == Some(now) {
            return Ok(());
        }
        if form == Form::Json {
            return print(&json_line(&now)?);
        }
        let text = format!("balloon {}, wanted {}, guest {}", now.balloon, now.target, now.guest);
        let mut stderr = io::stderr().lock();
        if stderr.is_terminal() {
            self.line_is_open = true;
            write!(stderr, "\r\x1b[K{text}")
        } else {
            writeln!(stderr, "{text}")
        }
    }

    /// Leaves the terminal's line clean for what follows.
    fn end(&mut self) {
        if std::mem::take(&mut self.line_is_open) {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_api::device::{AgentHello, MemoryRegion};
    use memtide_units::{Gpa, GpaRange};

    fn mib(n: u64) -> ByteSize {
        ByteSize::from_mib(n)
    }

    fn status(driver: Driver, target: ByteSize, actual: ByteSize) -> DeviceStatus {
        let range = GpaRange::new(Gpa(0), mib(1024)).unwrap();
        let region = MemoryRegion { range, file_offset: ByteSize::ZERO, inode: 1 };
        let memory = vec![region];
        DeviceStatus { vmm_connected: true, driver, target, actual, memory, ..Default::default() }
    }

    #[test]
    fn a_guests_share_is_turned_round_and_nonsense_is_refused() {
        let of = |size, guest| balloon(Balloon { size, guest }, mib(1024));
        assert_eq!(of(Some(mib(100)), None).unwrap(), mib(100));
        assert_eq!(of(None, Some(mib(1024))).unwrap(), ByteSize::ZERO);
        assert_eq!(of(None, Some(mib(1000))).unwrap(), mib(24));
        assert_eq!(of(Some(ByteSize::from_bytes(5000)), None).unwrap(), PAGE);
        let said = |size, guest| of(size, guest).unwrap_err().to_string();
        assert!(said(Some(mib(1024)), None).contains("leaves nothing"));
        assert!(said(None, Some(ByteSize::ZERO)).contains("leaves nothing"));
        assert!(said(None, Some(mib(2048))).contains("cannot keep 2 GiB"));
        // Nobody knows yet how large the guest will be.
        let without = |size, guest| balloon(Balloon { size, guest }, ByteSize::ZERO);
        assert_eq!(without(Some(mib(2048)), None).unwrap(), mib(2048));
        assert!(matches!(without(None, Some(mib(1))), Err(CtlError::NoVmm)));
    }

    #[test]
    fn a_stock_driver_has_followed_to_the_page_and_an_agent_to_the_block() {
        let stock = |actual| progress(&status(Driver::Stock, mib(100), actual));
        assert!(stock(mib(100)).reached && !stock(mib(99)).reached && !stock(mib(101)).reached);
        assert_eq!(stock(mib(99)).guest, mib(925));
        assert!(!progress(&status(Driver::None, mib(0), mib(0))).reached);
        let agent = |blocks: u64| DeviceStatus {
            hello: Some(AgentHello { block_size: mib(128), ..Default::default() }),
            stolen: vec![GpaRange::new(Gpa(0), mib(128 * blocks)).unwrap()],
            ..status(Driver::Agent, mib(300), mib(0))
        };
        assert!(!progress(&agent(1)).reached);
        assert!(progress(&agent(2)).reached && progress(&agent(3)).reached);
        assert_eq!(progress(&agent(2)).guest, mib(768));
    }
}
