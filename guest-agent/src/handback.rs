//! The way back: the stock driver gets the balloon, and the kernel its settings, after an agent that
//! was killed, that failed for good, or whose package goes.
//!
//! Every step can be repeated from wherever an earlier attempt, or an agent that was killed, has
//! stopped, and each is tried whatever became of the one before. It works where no agent ever ran.

use std::time::Duration;

use memtide_policy::guest::Mode;
use memtide_sysfs::memory::StateRequest;
use memtide_sysfs::pci::{self, Address};
use memtide_sysfs::{Error, Root, damon, memory};
use memtide_units::{BlockId, ByteSize, Instant, Pfn};

use crate::agent::Agent;
use crate::blocks::Blocks;
use crate::config::{Config, Conversion, DamonUse, PlainUse};
use crate::damon_watch::ModuleSwitch;
use crate::hardware::Hardware;
use crate::link::Kind;
use crate::overcommit::{Overcommit, OvercommitUse};
use crate::pieces::Pieces;
use crate::remove::{Plugger, Policy, Removers};
use crate::run::{Purpose, RunError, run};
use crate::runtime::RuntimeDir;
use crate::swap_space::{self, SwapUse, SystemTools, Undone};
use crate::takeover;

/// Once blocks are taken unasked, so long for putting them online and telling the host.
const TAKING: Duration = Duration::from_secs(30);
/// `num_pages` in the configuration space.
const NUM_PAGES: usize = 0;

/// What to do about stolen blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stolen {
    /// They stay stolen, for the agent to come.
    Leave,
    /// No agent will come: ask the host for so long, and take back what it has not granted then.
    Return(Duration),
}

/// How the device was when an agent last drove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    /// It answered, or was never asked.
    Answered,
    /// It did not. Its configuration must not be read, by nobody: not by the stock driver either.
    Silent,
}

/// Gives the balloon back to the stock driver when no agent runs, and puts back what the agent
/// changed in the kernel's settings.
///
/// # Errors
/// [`RunError`], among it that an agent runs; of several things that went wrong the first.
pub fn hand_back(config: &Config, root: &Root, stolen: Stolen) -> Result<(), RunError> {
    let runtime = RuntimeDir::open(&config.runtime_dir)?;
    let left = ours(root, &runtime)?;
    if let Stolen::Return(asking) = stolen
        && !left.is_empty()
        && !runtime.is_silent()
    {
        tracing::info!("{} stolen blocks are asked back first", left.len());
        drop(runtime);
        if let Err(error) = run(&for_returning(config), root, &Purpose::ReturnAll(asking)) {
            tracing::warn!("the host cannot be asked: {error}");
        }
        let runtime = RuntimeDir::open(&config.runtime_dir)?;
        return put_back(config, root, &runtime, stolen);
    }
    put_back(config, root, &runtime, stolen)
}

/// An agent that only brings blocks back changes nothing else.
fn for_returning(config: &Config) -> Config {
    Config {
        damon: DamonUse::Off,
        conversion: Conversion::Leave,
        overcommit: OvercommitUse::Leave,
        swap: SwapUse::Off,
        plain_balloon: PlainUse::Drive,
        ..config.clone()
    }
}

fn put_back(
    config: &Config,
    root: &Root,
    runtime: &RuntimeDir,
    stolen: Stolen,
) -> Result<(), RunError> {
    let device = if runtime.is_silent() { Device::Silent } else { Device::Answered };
    let balloons = release_all(config, root, device);
    let online = match (&balloons, device) {
        (Ok((_, target)), _) => bring_online(config, root, runtime, (stolen, *target)),
        // Nobody is there any more who could drop anything.
        (Err(_), Device::Silent) => bring_online(config, root, runtime, (stolen, ByteSize::ZERO)),
        (Err(error), Device::Answered) => {
            tracing::error!(
                "the balloon cannot be taken away from {} ({error}): it may still drop memory, and \
                 stolen blocks stay offline",
                takeover::UIO
            );
            Ok(())
        }
    };
    let drivers = match &balloons {
        Ok(_) if device == Device::Silent => {
            tracing::warn!(
                "the device was silent and stays without a driver until the VM is restarted: the \
                 stock driver would read its configuration, and that ends a VM whose device died"
            );
            Ok(())
        }
        Ok((addresses, _)) => {
            addresses.iter().try_for_each(|address| takeover::settle(root, *address))
        }
        Err(_) => Ok(()),
    };
    let settings = restore_settings(root, runtime);
    // When the blocks are back: what is in it has to find room.
    let swap = give_up_swap(root, runtime);
    let rest = drivers.and(settings).map_err(RunError::from).and(swap);
    balloons.map(drop).and(online).and(rest)
}

/// Takes every balloon that an agent has left somewhere away from UIO, which stops it, and answers
/// with what a plain one is to hold for its host.
fn release_all(
    config: &Config,
    root: &Root,
    device: Device,
) -> Result<(Vec<Address>, ByteSize), RunError> {
    let addresses = match takeover::left_behind(root, config.pci) {
        Err(error) if error.is_missing() => return Ok((Vec::new(), ByteSize::ZERO)),
        found => found?,
    };
    let mut target = ByteSize::ZERO;
    for address in &addresses {
        if device == Device::Answered {
            target = target.max(plain_target(config, root, *address).unwrap_or_default());
        }
        takeover::release(root, *address)?;
    }
    Ok((addresses, target))
}

/// What the host of a plain balloon wants in it, where it can still be asked.
fn plain_target(config: &Config, root: &Root, address: Address) -> Option<ByteSize> {
    if pci::driver(root, address).ok()?.as_deref() != Some(takeover::UIO) {
        return None;
    }
    let uio = pci::uio_path(root, address).ok()??;
    let settings = for_returning(config);
    let (hardware, transport) = Hardware::open(root, address, &uio, &settings).ok()?;
    let pages = transport.config_u32(NUM_PAGES)?;
    matches!(hardware.kind(), Kind::Plain(_)).then(|| Pfn::SIZE.times(pages.into()))
}

/// Puts blocks online that no agent will: all of them, or as many as the stock driver of a plain
/// balloon is about to take. Only for a device that has been stopped, or is dead: it drops nothing
/// any more.
fn bring_online(
    config: &Config,
    root: &Root,
    runtime: &RuntimeDir,
    (stolen, wanted): (Stolen, ByteSize),
) -> Result<(), RunError> {
    let left = ours(root, runtime).unwrap_or_default();
    let Some(size) = memory::block_size(root).ok().filter(|_| !left.is_empty()) else {
        return Ok(());
    };
    let count = match stolen {
        Stolen::Return(_) => left.len(),
        Stolen::Leave => {
            usize::try_from(wanted.bytes().div_ceil(size.size().bytes())).unwrap_or(left.len())
        }
    };
    // The agent to come can steal what is movable alone, and converts no block twice.
    let how = match (stolen, config.conversion) {
        (Stolen::Leave, Conversion::Convert) => StateRequest::OnlineMovable,
        (Stolen::Leave, Conversion::Leave) | (Stolen::Return(_), _) => StateRequest::Online,
    };
    let policy = Policy::new(root, runtime.auto_online());
    let plugger = Plugger::new(root, removers(root, runtime), policy)
        .with_pieces(left_in_pieces(root, runtime));
    let mut first = Ok(());
    for block in left.into_iter().take(count) {
        match plugger.put_online(block, how) {
            Ok(()) => tracing::info!("{block} is online again"),
            Err(error) => {
                tracing::error!("{block} stays offline: {error}");
                first = first.and(Err(error.into()));
            }
        }
    }
    first
}

fn removers(root: &Root, runtime: &RuntimeDir) -> Removers {
    Removers::new(root, runtime.ejected())
}

fn left_in_pieces(root: &Root, runtime: &RuntimeDir) -> Option<Pieces> {
    Pieces::left_behind(root, runtime.huge_pages())
}

/// The blocks that are offline by an agent's doing, or that pieces stand for.
pub(crate) fn ours(root: &Root, runtime: &RuntimeDir) -> Result<Vec<BlockId>, RunError> {
    if !runtime.knows_blocks() {
        return Ok(Vec::new());
    }
    let removers = removers(root, runtime);
    let blocks = Blocks::read(root, &runtime.seen(root)?, &removers)?;
    let (ejected, mut ours): (Vec<_>, Vec<_>) =
        blocks.offline_by_us().into_iter().partition(|block| blocks.is_ejected(*block));
    if !ejected.is_empty() {
        tracing::warn!(
            "{} blocks were ejected, and only the host brings them back: memtided does within a minute when \
             no agent drives the balloon",
            ejected.len()
        );
    }
    ours.extend(left_in_pieces(root, runtime).iter().flat_map(Pieces::left));
    Ok(ours)
}

/// DAMON's monitor, modules that held it, what happens to plugged memory, `vm.overcommit_memory`. Large mappings were allowed since the
/// agent would have brought back every page that is touched; now nobody would.
fn restore_settings(root: &Root, runtime: &RuntimeDir) -> Result<(), Error> {
    if let Err(error) = damon::stop_leftover(root) {
        tracing::warn!("DAMON's monitor goes on: {error}");
    }
    let mut modules = ModuleSwitch::new(root, runtime.damon_modules());
    modules.adopt();
    let modules = modules.restore();
    let policy = Policy::new(root, runtime.auto_online()).restore();
    if let Some(Err(error)) = left_in_pieces(root, runtime).map(|pieces| pieces.restore()) {
        tracing::warn!("the pool of huge pages may grow over what was set: {error}");
    }
    modules.and(policy).and(Overcommit::new(root, runtime.overcommit()).restore())
}

/// Takes the agent's own swap device away, unless that would leave the guest short of memory.
fn give_up_swap(root: &Root, runtime: &RuntimeDir) -> Result<(), RunError> {
    match swap_space::undo(root, &runtime.zram(), &SystemTools) {
        Ok(Undone::Gone) => Ok(()),
        Ok(Undone::Full { used, available }) => {
            tracing::warn!(
                "{used} of programs' memory are in the agent's swap device and {available} are \
                 available: it stays; run hand-back again when there is room, or reboot"
            );
            Ok(())
        }
        Err(error) => {
            let source = std::io::Error::other(error);
            Err(RunError::Own { what: "the agent's swap device stays", source })
        }
    }
}

/// An agent on its way out: asks everything back, takes what was not granted in time.
#[derive(Debug)]
pub(crate) struct Returning {
    asking_ends: Instant,
    taking_ends: Option<Instant>,
}

impl Returning {
    /// Has the agent ask, for so long.
    pub(crate) fn begin(agent: &mut Agent, now: Instant, asking: Duration) -> Self {
        agent.set_mode(Mode::Restore);
        Self { asking_ends: now + asking, taking_ends: None }
    }

    /// After each turn; true when it is over.
    pub(crate) fn proceed(&mut self, agent: &mut Agent, now: Instant) -> bool {
        if agent.has_all_that_can_come() {
            return true;
        }
        match self.taking_ends {
            None if now < self.asking_ends => false,
            None => {
                tracing::warn!("the host has not granted all of it in time: the rest is taken");
                self.taking_ends = Some(now + TAKING);
                !agent.take_all()
            }
            Some(end) => now >= end,
        }
    }
}

#[cfg(test)]
mod tests;
