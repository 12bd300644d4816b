//! From nothing to a running agent, the waiting, and the way back.

use std::rc::Rc;
use std::time::{Duration, Instant as StdInstant};

use memtide_policy::guest::{Controller, KernelZone, Mode, Settings};
use memtide_sysfs::kpageflags::PageFlags;
use memtide_sysfs::memory::StateRequest;
use memtide_sysfs::pagemap::Pagemap;
use memtide_sysfs::pci::{self, Address};
use memtide_sysfs::{Error, Root};
use memtide_units::Instant;
use memtide_wire::config::{Extension, NoExtension};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::agent::{Agent, Parts, Woken};
use crate::blocks::{Blocks, Hold};
use crate::config::{Config, ConfigError, Conversion};
use crate::conversion::convert;
use crate::damon_watch::DamonWatch;
use crate::dma::{Area, DmaError};
use crate::hands::Hands;
use crate::link::Link;
use crate::overcommit::{Found, Overcommit, OvercommitUse};
use crate::runtime::{RuntimeDir, RuntimeError};
use crate::senses::Senses;
use crate::signals::Signals;
use crate::status::Lack;
use crate::takeover::{self, TakeoverError};
use crate::virtio::caps::{CapsError, Layout};
use crate::virtio::mmio::{MappedBar, Registers};
use crate::virtio::pci::{ConfigFile, Uio};
use crate::virtio::transport::{RESET_DEADLINE, Transport, TransportError};
use crate::worker::Worker;

/// Without an interrupt the device is looked at so often, and a thousand times a second while an
/// answer is awaited.
const BLIND_LOOK: Duration = Duration::from_millis(100);
const BLIND_AWAIT: Duration = Duration::from_millis(1);
/// Even with an interrupt an answer is looked for after this long: one may get lost.
const LOST_INTERRUPT: Duration = Duration::from_millis(50);
/// For saying goodbye.
const FAREWELL: Duration = Duration::from_secs(2);
/// systemd hears "ready" after this long even if the device has not answered: the agent works on
/// it, and holding up the boot would help nobody.
const READY_AT_LAST: Duration = Duration::from_secs(10);

/// Why the agent cannot run, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings contradict the machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The runtime directory.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The function.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// The device has no extension.
    #[error(
        "{0}: the stock driver keeps the balloon; stealing blocks needs a Memtide device on the host"
    )]
    Plain(#[from] NoExtension),
    /// The device cannot be driven.
    #[error(transparent)]
    Caps(#[from] CapsError),
    /// The device cannot be driven.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// There is no memory for the device.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// A kernel file.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// Something of the agent's own.
    #[error("{what}: {source}")]
    Own {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl RunError {
    /// True where trying again will not help until somebody changes the machine.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Takeover(TakeoverError::File(_) | TakeoverError::NoDeviceFile(_)) => false,
            Self::Takeover(_) | Self::Plain(_) | Self::Caps(_) => true,
            Self::Transport(error) => matches!(
                error,
                TransportError::NoQueue { .. }
                    | TransportError::QueueShort { .. }
                    | TransportError::NotModern(_)
                    | TransportError::FeaturesRefused(_)
            ),
            Self::Dma(error) => matches!(error, DmaError::NotTmpfs(_) | DmaError::Pin(_)),
            Self::Runtime(error) => matches!(error, RuntimeError::NoBlocks(_)),
            Self::Config(_) | Self::Kernel(_) | Self::Own { .. } => false,
        }
    }
}

fn own(what: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::Own { what, source }
}

/// The process's clock: milliseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock(StdInstant);

impl Clock {
    /// Starts at zero.
    pub fn start() -> Self {
        Self(StdInstant::now())
    }

    /// Now.
    pub fn now(&self) -> Instant {
        Instant::from_millis(u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// The function's files, which must stay open while the device runs.
struct Hardware {
    config: Rc<ConfigFile>,
    uio: Uio,
    has_interrupt: bool,
}

/// Runs the agent until a signal ends it.
///
/// # Errors
/// [`RunError`]. The stock driver has the balloon again, as far as that could be done.
pub fn run(config: &Config, root: &Root) -> Result<(), RunError> {
    let signals = Signals::install().map_err(own("signals cannot be handled"))?;
    stay_in_memory();
    let runtime = RuntimeDir::open(&config.runtime_dir)?;
    let address = takeover::find(root, config.pci)?.address;
    let uio = takeover::take(root, address, &takeover::modprobe)?;
    let clock = Clock::start();
    let result = Hardware::open(root, address, &uio).and_then(|(hardware, transport)| {
        let parts = assemble(config, root, runtime, transport, (&hardware, clock.now()))?;
        serve(Agent::new(parts), hardware, clock, &signals)
    });
    if matches!(result, Ok(Device::IsGivenUp)) {
        tracing::warn!(
            "the device is silent and stays without a driver: the stock driver would read its \
             configuration, and that ends a VM whose device has died"
        );
        return Ok(());
    }
    match takeover::give_back(root, address) {
        Ok(()) => tracing::info!("the stock driver has the balloon again"),
        Err(error) => tracing::error!("the balloon cannot be given back: {error}"),
    }
    result.map(drop)
}

/// Page faults of the agent itself must not wait for the memory that it is about to ask for.
fn stay_in_memory() {
    use rustix::mm::{MlockAllFlags, mlockall};
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(flags) {
        tracing::info!("the agent's own memory may be reclaimed: {error}");
    }
}

impl Hardware {
    /// Opens the function, resets the device, and checks that it is a Memtide device.
    fn open(
        root: &Root,
        address: Address,
        uio: &std::path::Path,
    ) -> Result<(Self, Transport), RunError> {
        let uio = Uio::open(uio).map_err(own("the balloon's uio device cannot be opened"))?;
        let config = ConfigFile::open(&pci::config_path(root, address))
            .map_err(own("the balloon's configuration space cannot be opened"))?;
        let space =
            config.bytes().map_err(own("the balloon's configuration space cannot be read"))?;
        let map = |bar| {
            let mapped = MappedBar::open(&pci::resource_path(root, address, bar))?;
            Ok(Rc::new(mapped) as Rc<dyn Registers>)
        };
        config.enable().map_err(own("the balloon cannot be enabled"))?;
        let transport = Transport::open(&Layout::find(&space)?, map)?;
        transport.reset(RESET_DEADLINE)?;
        let extension = Extension::find(&transport.config()?)?;
        transport.queue_size_max(extension.block_queue.get())?;
        let has_interrupt = has_interrupt(root, address);
        Ok((Self { config: Rc::new(config), uio, has_interrupt }, transport))
    }

    /// What every start of the device needs.
    fn enabler(&self) -> Box<dyn Fn() -> std::io::Result<()>> {
        let config = Rc::clone(&self.config);
        Box::new(move || config.enable().and_then(|()| config.unmask_interrupt()))
    }

    /// What to wait for, if the function has an interrupt. Without one the uio device answers every
    /// poll(2) at once with an error (drivers/uio/uio.c, `uio_poll`), and waiting would be spinning.
    fn awaited(&self) -> Option<PollFd<'_>> {
        self.has_interrupt.then(|| PollFd::new(&self.uio, PollFlags::IN))
    }

    /// Takes the interrupt, if there was one, and lets the next one through.
    fn take_interrupt(&mut self, link: &Link) -> bool {
        if !matches!(self.uio.take(), Ok(true)) {
            return false;
        }
        link.acknowledge_interrupt();
        if let Err(error) = self.config.unmask_interrupt() {
            tracing::warn!("the balloon's interrupt stays masked: {error}");
        }
        true
    }
}

fn has_interrupt(root: &Root, address: Address) -> bool {
    let irq = root.read(format!("sys/bus/pci/devices/{address}/irq"));
    irq.is_ok_and(|irq| !matches!(irq.trim(), "" | "0"))
}

/// Makes all parts, from the kernel's files and a device that has just been reset.
fn assemble(
    config: &Config,
    root: &Root,
    runtime: RuntimeDir,
    transport: Transport,
    (hardware, now): (&Hardware, Instant),
) -> Result<Parts, RunError> {
    crate::alarm::install_handler().map_err(own("SIGALRM cannot be handled"))?;
    let foreign = runtime.foreign(root)?;
    let mut blocks = Blocks::read(root, &foreign)?;
    let limits = config.limits(blocks.present())?;
    let mut worker =
        Worker::start(root, blocks.size()).map_err(own("a thread cannot be started"))?;
    if config.conversion == Conversion::Convert && !runtime.is_converted() {
        convert(root, &mut blocks, &mut worker);
        runtime.set_converted()?;
    }
    // Only now: what is pinned leaves ZONE_MOVABLE, and must not be in the way of the conversion.
    let area = Area::prepare(&runtime.dma(), &Pagemap::open(root)?)?;
    blocks.keep(area.blocks(blocks.size()));
    let (senses, no_psi) = Senses::open(root);
    let mut lacks = lacks(root, &blocks, config.conversion);
    lacks.extend(no_psi.map(|why| Lack::psi(&why)));
    lacks.extend((!hardware.has_interrupt).then(Lack::interrupt));
    let damon = watch(config, root, &blocks, &mut lacks, &runtime.damon_stat());
    let overcommit = allow_overcommit(config, root, &runtime, &mut lacks);
    for lack in &lacks {
        tracing::warn!("this guest lacks {}: {}", lack.what, lack.effect);
    }
    let (how_online, kernel_zone) = match config.conversion {
        Conversion::Convert => (StateRequest::OnlineMovable, KernelZone::Leave),
        Conversion::Leave => (StateRequest::Online, KernelZone::Steal),
    };
    let controller = Controller::new(Settings {
        block: blocks.size(),
        limits,
        scale_by: config.scale_by,
        kernel_zone,
        gate_deadline: config.gate_deadline,
        first_ticket: std::process::id(),
    });
    let link = Link::new(now, transport, area, hardware.enabler());
    let hands = Hands::new(worker);
    Ok(Parts {
        root: root.clone(),
        runtime,
        foreign,
        blocks,
        hands,
        link,
        controller,
        senses,
        damon,
        overcommit,
        how_online,
        lacks,
    })
}

fn allow_overcommit(
    config: &Config,
    root: &Root,
    runtime: &RuntimeDir,
    lacks: &mut Vec<Lack>,
) -> Option<Overcommit> {
    let overcommit = Overcommit::new(root, runtime.overcommit());
    if config.overcommit == OvercommitUse::Leave {
        return None;
    }
    match overcommit.allow() {
        Ok(Found::Allowed) => {}
        Ok(Found::Strict) => lacks.push(Lack::strict_overcommit()),
        Err(error) => tracing::warn!("large mappings may fail while blocks are stolen: {error}"),
    }
    Some(overcommit)
}

fn lacks(root: &Root, blocks: &Blocks, conversion: Conversion) -> Vec<Lack> {
    let mut lacks = Vec::new();
    if let Err(error) = PageFlags::open(root) {
        lacks.push(Lack::census(&error.to_string()));
    }
    if memtide_sysfs::memory::may_hold_own_structs(root) {
        lacks.push(Lack::plain_blocks());
    } else if conversion == Conversion::Convert && blocks.movable_count() == 0 {
        lacks.push(Lack::stealable());
    }
    lacks
}

fn watch(
    config: &Config,
    root: &Root,
    blocks: &Blocks,
    lacks: &mut Vec<Lack>,
    mark: &std::path::Path,
) -> Option<DamonWatch> {
    let ranges = blocks.ranges(&blocks.with(Hold::Online));
    match DamonWatch::start(root, config.damon, ranges, blocks.count(), mark) {
        Ok(watch) => {
            if watch.has_paused_stat() {
                tracing::info!("damon_stat is off for as long as the agent watches");
            }
            Some(watch)
        }
        Err(why) => {
            lacks.push(Lack::damon(&why));
            None
        }
    }
}

/// How the device was at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Answers,
    IsGivenUp,
}

/// Turns until a signal says that it is enough, then says goodbye.
fn serve(
    mut agent: Agent,
    mut hardware: Hardware,
    clock: Clock,
    signals: &Signals,
) -> Result<Device, RunError> {
    let mut systemd = crate::systemd::Notifier::new();
    let mut woken = Woken::default();
    let result = loop {
        let now = clock.now();
        let wait = match agent.turn(now, woken) {
            Ok(wait) => wait,
            Err(error) => break Err(error),
        };
        let is_ready = agent.has_greeted() || now.as_millis() > READY_AT_LAST.as_millis() as u64;
        systemd.tell(now, is_ready, agent.note());
        woken = match wait_for(&agent, &mut hardware, signals, wait) {
            Ok(woken) => woken,
            Err(error) => break Err(error),
        };
        if let Some(mode) = signals.mode() {
            agent.set_mode(mode);
        }
        if signals.is_ended() {
            break Ok(());
        }
    };
    systemd.stopping();
    farewell(&mut agent, &mut hardware, clock);
    let device = if agent.parts().link.is_given_up() { Device::IsGivenUp } else { Device::Answers };
    agent.restore_overcommit();
    // The device is stopped first, its memory and its files are let go of after.
    let stopped = agent.parts().link.stop();
    drop(agent);
    drop(hardware);
    match (result, stopped, device) {
        // A device that is better left alone is so above all when it does not even stop.
        (Ok(()), _, Device::IsGivenUp) => Ok(device),
        (result, stopped, _) => result.and(stopped.map_err(RunError::from)).map(|()| device),
    }
}

/// Waits until something happens, or as long as the turn said.
fn wait_for(
    agent: &Agent,
    hardware: &mut Hardware,
    signals: &Signals,
    wait: Duration,
) -> Result<Woken, RunError> {
    let parts = agent.parts();
    let longest = match (parts.link.awaits_answer(), hardware.has_interrupt) {
        (true, true) => LOST_INTERRUPT,
        (true, false) => BLIND_AWAIT,
        (false, true) => wait,
        (false, false) => BLIND_LOOK,
    };
    let timeout = Timespec::try_from(wait.min(longest)).unwrap_or_default();
    let mut fds =
        vec![PollFd::new(signals, PollFlags::IN), PollFd::new(&parts.hands, PollFlags::IN)];
    fds.extend(parts.senses.trigger().map(|trigger| PollFd::new(trigger, PollFlags::PRI)));
    fds.extend(hardware.awaited());
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(own("waiting failed")(error.into())),
    }
    let by_trigger = fds.get(2).is_some_and(|fd| fd.revents().contains(PollFlags::PRI));
    signals.drain();
    let by_device = hardware.take_interrupt(&parts.link);
    Ok(Woken { by_trigger, by_device })
}

/// Ends what is under way and tells the host.
fn farewell(agent: &mut Agent, hardware: &mut Hardware, clock: Clock) {
    let end = StdInstant::now() + FAREWELL;
    agent.begin_farewell();
    while !agent.end_farewell(clock.now()) && StdInstant::now() < end {
        std::thread::sleep(BLIND_AWAIT);
        hardware.take_interrupt(&agent.parts().link);
    }
}

/// Gives the balloon back to the stock driver when no agent runs.
///
/// # Errors
/// [`RunError`], among it that an agent runs.
pub fn hand_back(config: &Config, root: &Root) -> Result<(), RunError> {
    let _runtime = RuntimeDir::open(&config.runtime_dir)?;
    let address = takeover::find(root, config.pci)?.address;
    Ok(takeover::give_back(root, address)?)
}

/// The signal for a mode.
pub fn signal_of(mode: Mode) -> nix::sys::signal::Signal {
    match mode {
        Mode::Tune => nix::sys::signal::Signal::SIGUSR1,
        Mode::Restore => nix::sys::signal::Signal::SIGUSR2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_interrupt_the_uio_device_is_not_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut hardware = Hardware {
            config: Rc::new(ConfigFile::open(file.path()).unwrap()),
            uio: Uio::open(file.path()).unwrap(),
            has_interrupt: false,
        };
        assert!(hardware.awaited().is_none());
        hardware.has_interrupt = true;
        assert!(hardware.awaited().is_some());
    }
}
