//! From nothing to a running agent, the waiting, and the way back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant as StdInstant};

use memtide_policy::guest::{Controller, KernelZone, Limits, Settings};
use memtide_sysfs::kpageflags::PageFlags;
use memtide_sysfs::memory::StateRequest;
use memtide_sysfs::pagemap::Pagemap;
use memtide_sysfs::{Error, Root};
use memtide_units::{BlockId, BlockSize, Instant};

use crate::access::{AccessHistory, monotonic_ms};
use crate::agent::{Agent, Parts, Woken};
use crate::blocks::Blocks;
use crate::config::{Config, ConfigError, Conversion};
use crate::conversion::convert;
use crate::decisions::Decisions;
use crate::dma::{Area, DmaError, Pin};
use crate::handback::Returning;
use crate::hands::Hands;
use crate::hardware::{self, Attention, Hardware};
use crate::link::{ANSWER_DEADLINE, Kind, Link};
use crate::overcommit::{Found, Overcommit, OvercommitUse};
use crate::pieces;
use crate::reload::{Source, reload};
use crate::remove::{PlugError, Plugger, Policy, Removers};
use crate::runtime::{RuntimeDir, RuntimeError};
use crate::senses::Senses;
use crate::signals::Signals;
use crate::status::Lack;
use crate::suitable::{Unsuitable, must_be_suitable};
use crate::takeover::{self, TakeoverError};
use crate::virtio::caps::CapsError;
use crate::virtio::transport::{Transport, TransportError};
use crate::waiting::wait_for;
use crate::watching::{Means, Watching};
use crate::worker::Worker;

/// For saying goodbye.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between two looks meanwhile.
const FAREWELL_LOOK: Duration = Duration::from_millis(20);
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
    /// The guest.
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    /// The balloon is no Memtide device of this version, and such a one is to be left alone.
    #[error(
        "this balloon is no Memtide device of this agent's version, and plain_balloon is \"leave\": \
         the stock driver keeps it; set \"drive\" to use it all the same"
    )]
    Plain,
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
    /// A block that did not come online.
    #[error(transparent)]
    Block(#[from] PlugError),
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
    /// The exit status. From 2 on trying again will not help until somebody changes the settings or
    /// the machine: the unit does not restart the agent then (RestartPreventExitStatus).
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_) => status::USAGE,
            Self::Takeover(error) => match error {
                TakeoverError::NoBalloon => status::NO_BALLOON,
                TakeoverError::Several(_) | TakeoverError::NotABalloon(..) => status::WHICH_BALLOON,
                TakeoverError::Lockdown(_) => status::LOCKDOWN,
                TakeoverError::NoModule(_) => status::NO_MODULE,
                TakeoverError::NoDeviceFile(_) => status::NO_DEVICE_FILE,
                TakeoverError::NotBound { .. } => status::IMPOSSIBLE,
                TakeoverError::File(_) => status::FAILED,
            },
            Self::Unsuitable(Unsuitable::NoPressure(_)) => status::NO_PRESSURE,
            Self::Unsuitable(Unsuitable::Pages(_)) => status::IMPOSSIBLE,
            Self::Plain => status::LEFT_ALONE,
            Self::Caps(_) => status::IMPOSSIBLE,
            Self::Transport(error) => match error {
                TransportError::Map { source, .. } if is_denied(source) => status::LOCKDOWN,
                TransportError::NoQueue { .. }
                | TransportError::QueueShort { .. }
                | TransportError::NotModern(_)
                | TransportError::FeaturesRefused(_) => status::IMPOSSIBLE,
                _ => status::FAILED,
            },
            Self::Dma(DmaError::Pin(_)) => status::NO_PIN,
            Self::Dma(DmaError::NotTmpfs(_)) => status::IMPOSSIBLE,
            Self::Runtime(RuntimeError::NoBlocks(_)) => status::IMPOSSIBLE,
            Self::Runtime(RuntimeError::NotPrivate(_)) => status::USAGE,
            Self::Runtime(RuntimeError::Silent(_)) => status::SILENT,
            Self::Own { source, .. } if is_denied(source) => status::LOCKDOWN,
            Self::Dma(_)
            | Self::Runtime(_)
            | Self::Kernel(_)
            | Self::Block(_)
            | Self::Own { .. } => status::FAILED,
        }
    }
}

/// What a program without enough rights is told, and every program under kernel lockdown.
fn is_denied(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error())
}

/// Exit statuses, as `memtide-agent --help` and the unit have them.
mod status {
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const IMPOSSIBLE: u8 = 3;
    pub(super) const NO_BALLOON: u8 = 4;
    pub(super) const WHICH_BALLOON: u8 = 5;
    pub(super) const LOCKDOWN: u8 = 6;
    pub(super) const NO_MODULE: u8 = 7;
    pub(super) const NO_PIN: u8 = 8;
    pub(super) const LEFT_ALONE: u8 = 9;
    pub(super) const NO_DEVICE_FILE: u8 = 10;
    pub(super) const SILENT: u8 = 11;
    pub(super) const NO_PRESSURE: u8 = 12;
}

pub(crate) fn own(what: &'static str) -> impl Fn(std::io::Error) -> RunError {
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

/// What an agent is started for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// To scale memory, until a signal ends it. Settings that are wanted anew are read from here.
    Serve(Source),
    /// To bring every stolen block back, asking for so long, and to end then.
    ReturnAll(Duration),
}

/// Runs the agent until a signal ends it, or its purpose is fulfilled.
///
/// # Errors
/// [`RunError`]. The stock driver has the balloon again, as far as that could be done.
pub fn run(config: &Config, root: &Root, purpose: &Purpose) -> Result<(), RunError> {
    let runtime = RuntimeDir::open(&config.runtime_dir)?;
    crate::runtime::must_not_be_silent(&config.runtime_dir)?;
    let signals = Signals::install().map_err(own("signals cannot be handled"))?;
    stay_in_memory();
    let is_memtide = |address| hardware::is_memtide(root, &config.runtime_dir, address);
    let address = takeover::find(root, config.pci, &is_memtide)?.address;
    // Before the stock driver is disturbed.
    takeover::must_not_be_locked_down(root)?;
    if matches!(purpose, Purpose::Serve(_)) {
        must_be_suitable(root, &runtime)?;
    }
    Pin::probe().map_err(DmaError::Pin)?;
    let uio = takeover::take(root, address, &takeover::modprobe)?;
    takeover::settle_others(root, address);
    let clock = Clock::start();
    let opened = Hardware::open(root, address, &uio, config);
    let mut device = Device::Answers;
    let result = opened.and_then(|(hardware, transport)| {
        let parts = assemble(config, root, runtime, transport, (&hardware, clock.now()))?;
        let (result, left) = serve(Agent::new(parts), hardware, clock, &signals, (config, purpose));
        device = left;
        result
    });
    if device == Device::IsGivenUp {
        tracing::warn!(
            "the device is silent and stays without a driver: the stock driver would read its \
             configuration, and that ends a VM whose device has died"
        );
        return result;
    }
    match takeover::give_back(root, address) {
        Ok(()) => tracing::info!("the stock driver has the balloon again"),
        Err(error) => tracing::error!("the balloon cannot be given back: {error}"),
    }
    result
}

/// Page faults of the agent itself must not wait for the memory that it is about to ask for.
fn stay_in_memory() {
    use rustix::mm::{MlockAllFlags, mlockall};
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(flags) {
        tracing::info!("the agent's own memory may be reclaimed: {error}");
    }
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
    let pieces = pieces::resume(root, &runtime, hardware.kind());
    let removers = Removers::new(root, runtime.ejected());
    let policy = Policy::new(root, runtime.auto_online());
    let held = policy.resume(&removers)?;
    let plugger = Plugger::new(root, removers.clone(), policy.clone()).with_pieces(pieces.clone());
    let seen = runtime.seen(root)?;
    let mut blocks = Blocks::read(root, &seen, &removers)?;
    let limits = config.limits(blocks.present())?;
    let mut worker =
        Worker::start(root, blocks.size(), plugger).map_err(own("a thread cannot be started"))?;
    if config.conversion == Conversion::Convert && !runtime.is_converted() {
        convert(root, &mut blocks, &mut worker);
        blocks.settle(&pluggable(&removers));
        runtime.set_converted()?;
    }
    if let Some(pieces) = &pieces {
        pieces::enter(pieces, &mut blocks, config.conversion);
    }
    // Only now: what is pinned leaves ZONE_MOVABLE, and must not be in the way of the conversion.
    let area = Area::prepare(&runtime.dma(), &Pagemap::open(root)?)?;
    blocks.keep(area.blocks(blocks.size()));
    let (senses, no_psi) = Senses::open(root);
    let mut lacks = lacks(root);
    lacks.extend(no_psi);
    lacks.extend((hardware.attention() == Attention::NoInterrupt).then(Lack::interrupt));
    lacks.extend(matches!(hardware.kind(), Kind::Plain(_)).then(Lack::gate));
    let mut watching = Watching::new(Means {
        root: root.clone(),
        damon: config.damon,
        swap: config.swap,
        cold_after: senses.trigger().map(|_| config.for_tests.cold_after),
        modules_mark: runtime.damon_modules(),
        zram_mark: runtime.zram(),
    });
    watching.see_to(now, &blocks, &limits);
    let overcommit = overcommit(config, root, &runtime, &mut lacks);
    for lack in lacks.iter().chain(watching.lacks()) {
        tracing::warn!("this guest lacks {}: {}", lack.what, lack.effect);
    }
    let how_online = match config.conversion {
        Conversion::Convert => StateRequest::OnlineMovable,
        Conversion::Leave => StateRequest::Online,
    };
    let controller = Controller::new(settings(config, blocks.size(), limits));
    let link = Link::new(now, transport, area, hardware.enabler());
    let hands = Hands::new(worker);
    let offset_ms = monotonic_ms().saturating_sub(now.as_millis());
    Ok(Parts {
        access: AccessHistory::resume(root, runtime.access(), offset_ms),
        decisions: Decisions::resume(&runtime.decisions()),
        root: root.clone(),
        runtime,
        seen,
        blocks,
        hands,
        link,
        controller,
        wish: config.wish,
        senses,
        watching,
        pieces,
        removers,
        policy,
        held,
        overcommit,
        how_online,
        conversion: config.conversion,
        lacks,
    })
}

fn settings(config: &Config, block: BlockSize, limits: Limits) -> Settings {
    Settings {
        block,
        limits,
        scale_by: config.scale_by,
        kernel_zone: match config.conversion {
            Conversion::Convert => KernelZone::Leave,
            Conversion::Leave => KernelZone::Steal,
        },
        gate_deadline: config.gate_deadline,
        first_ticket: std::process::id(),
    }
}

/// Blocks of what can be unplugged, by whomever.
fn pluggable(removers: &Removers) -> BTreeSet<BlockId> {
    match removers.units() {
        Ok(units) => units.into_iter().flat_map(|unit| unit.blocks).collect(),
        Err(error) => {
            tracing::debug!("what can be unplugged is not known: {error}");
            BTreeSet::new()
        }
    }
}

fn overcommit(
    config: &Config,
    root: &Root,
    runtime: &RuntimeDir,
    lacks: &mut Vec<Lack>,
) -> Option<Overcommit> {
    let overcommit = Overcommit::new(root, runtime.overcommit());
    if config.overcommit == OvercommitUse::Leave {
        return None;
    }
    match overcommit.look() {
        Ok(Found::Allowed) => {}
        Ok(Found::Strict) => lacks.push(Lack::strict_overcommit()),
        Err(error) => tracing::warn!("large mappings may fail while blocks are stolen: {error}"),
    }
    Some(overcommit)
}

fn lacks(root: &Root) -> Vec<Lack> {
    let mut lacks = Vec::new();
    if let Err(error) = PageFlags::open(root) {
        lacks.push(Lack::census(&error.to_string()));
    }
    lacks
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
    (config, purpose): (&Config, &Purpose),
) -> (Result<(), RunError>, Device) {
    let mut systemd = crate::systemd::Notifier::new();
    let mut woken = Woken::default();
    let mut returning = match purpose {
        Purpose::Serve(_) => None,
        Purpose::ReturnAll(asking) => Some(Returning::begin(&mut agent, clock.now(), *asking)),
    };
    let result = loop {
        let now = clock.now();
        let wait = match agent.turn(now, woken) {
            Ok(wait) => wait,
            Err(error) => break Err(error),
        };
        let is_ready = agent.has_greeted() || now.as_millis() > READY_AT_LAST.as_millis() as u64;
        systemd.tell(now, is_ready, agent.note());
        woken = match wait_for(&agent, &mut hardware, signals, (clock, wait)) {
            Ok(woken) => woken,
            Err(error) => break Err(error),
        };
        if let Some(mode) = signals.mode() {
            agent.set_mode(mode);
        }
        if signals.wants_reload()
            && let Purpose::Serve(source) = purpose
        {
            reload(source, config, &mut agent);
        }
        let is_done =
            returning.as_mut().is_some_and(|returning| returning.proceed(&mut agent, now));
        if is_done || signals.is_ended() {
            break Ok(());
        }
    };
    systemd.stopping();
    farewell(&mut agent, &mut hardware, clock);
    let device = if agent.parts().link.is_given_up() { Device::IsGivenUp } else { Device::Answers };
    let is_plain = agent.parts().link.is_plain();
    // The device is stopped first, its memory and its files are let go of after.
    let stopped = agent.parts().link.stop();
    if is_plain && stopped.is_ok() {
        agent.make_room_for_stock_driver();
    }
    agent.see_to_mappings();
    // Closing the uio device ends bus mastering. Should the device not have stopped when it was told
    // to, that is what keeps it from memory, and so it comes before the pins are let go of.
    drop(hardware);
    drop(agent);
    // A device that is better left alone is so above all when it does not even stop.
    let stopped = if device == Device::IsGivenUp { Ok(()) } else { stopped };
    (result.and(stopped.map_err(RunError::from)), device)
}

/// Ends what is under way and tells the host. What has been asked is waited for until it is answered
/// or the device counts as silent: an agent that left before could not tell a dead device from a slow
/// one, and the stock driver would find out.
fn farewell(agent: &mut Agent, hardware: &mut Hardware, clock: Clock) {
    let start = StdInstant::now();
    let is_over = |agent: &Agent| match start.elapsed() {
        time if time < FAREWELL => false,
        time => time >= FAREWELL + ANSWER_DEADLINE || !agent.parts().link.awaits_answer(),
    };
    agent.begin_farewell();
    while !agent.end_farewell(clock.now()) && !is_over(agent) {
        hardware.wait(&agent.parts().link, FAREWELL_LOOK);
    }
}
