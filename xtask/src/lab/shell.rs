//! `cargo xtask lab shell`: a root shell in a guest, with Memtide on both sides of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use memtide_lab::cargo::{Profile, build};
use memtide_lab::machine::{Console, GuestClock, Machine, MachineSpec};
use memtide_lab::rundir::RunDir;
use memtide_lab::tools::{RUNNER, Tools};
use memtide_lab::{Balloon, Kernel, Lab};
use memtide_scenarios::guest_side::{GuestOptions, GuestSide, Shape, Unit};
use memtide_scenarios::host_side::{HostLimits, VM};
use memtide_scenarios::run::Stage;
use memtide_scenarios::solo::Device;
use memtide_units::ByteSize;

use super::{Result, set_up};
use crate::programs;

/// Nobody ends somebody's session; this is only where waiting must have an end.
const SESSION: Duration = Duration::from_secs(30 * 24 * 3600);

/// Arguments of `lab shell`.
#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// The guest's kernel: 6.1, 6.12 or 7.3.
    #[arg(long, value_name = "VERSION", default_value = "7.3")]
    kernel: Kernel,
    /// The guest's memory, such as 2GiB.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    memory: ByteSize,
    /// What drives the guest's memory.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = With::Agent)]
    with: With,
    /// By what the guest's clock goes: host, or counted, where each instruction takes a nanosecond of the
    /// guest's time and it is five times slower by ours.
    #[arg(long, value_name = "CLOCK", default_value = "host")]
    clock: GuestClock,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum With {
    /// memtide-agent in the guest, the device and memtided on the host.
    Agent,
    /// The device and memtided, but the guest's stock driver.
    Stock,
    /// The device by itself, for `vhost-user-balloon ctl`, and the guest's stock driver.
    Device,
    /// QEMU's own balloon and nothing of ours.
    QemuBalloon,
    /// No balloon.
    Nothing,
}

/// Boots the guest and waits until its user leaves.
pub(crate) fn run(arguments: &Shell) -> Result<()> {
    let lab = set_up(&[arguments.kernel])?;
    let artifacts = PathBuf::from("artifacts/shell");
    let (rows, columns) = terminal_size();
    let console = Console::Terminal { rows, columns };
    match arguments.with {
        With::Agent => staged(&lab, arguments, console, Unit::Enabled),
        With::Stock => staged(&lab, arguments, console, Unit::Absent),
        With::Device => alone(&lab, arguments, console),
        With::QemuBalloon => plain(&lab, arguments, console, (Balloon::Qemu, &artifacts)),
        With::Nothing => plain(&lab, arguments, console, (Balloon::None, &artifacts)),
    }
}

/// A guest on our device, which nobody steers but the user.
fn alone(lab: &Lab, arguments: &Shell, console: Console) -> Result<()> {
    let programs = programs::build()?;
    let artifacts = PathBuf::from("artifacts/shell");
    std::fs::create_dir_all(&artifacts)?;
    let sockets = RunDir::new()?;
    let device = Device::start(&programs, sockets.path(), &artifacts, &[])?;
    let program = programs.program("vhost-user-balloon")?;
    eprintln!("logs: {}/", artifacts.display());
    eprintln!(
        "in another terminal:\n  alias ctl='{} ctl {}'",
        program.display(),
        device.control_socket().display()
    );
    eprintln!("  ctl status; ctl target 512MiB --wait; ctl stats; ctl watch");
    eprintln!("Leave it with `exit` or Ctrl-d; Ctrl-a x ends it at once.\n");
    let size = (arguments.kernel, arguments.memory);
    let options = GuestOptions {
        console,
        shape: shape(arguments),
        ..GuestOptions::new(size, Unit::Absent, &artifacts)
    };
    GuestSide::start(lab, &programs, device.vhost_socket(), &options)?.wait_end(SESSION)?;
    Ok(())
}

/// A guest on our device, with memtided beside it.
fn staged(lab: &Lab, arguments: &Shell, console: Console, agent: Unit) -> Result<()> {
    let programs = programs::build()?;
    let artifacts = PathBuf::from("artifacts/shell");
    let limits = HostLimits { budget: None, min: ByteSize::from_mib(arguments.memory.mib() / 4) };
    let size = (arguments.kernel, arguments.memory);
    let shape = shape(arguments);
    let options = GuestOptions { console, shape, ..GuestOptions::new(size, agent, &artifacts) };
    let stage = Stage::start(lab, &programs, limits, &options)?;
    let memtide = programs.program("memtide")?;
    let socket = stage.host.api_socket();
    eprintln!("logs: {}/", artifacts.display());
    eprintln!("in another terminal:\n  export MEMTIDE_SOCKET={}", socket.display());
    eprintln!("  {} vm {VM}\n  {} status --watch", memtide.display(), memtide.display());
    eprintln!("in the guest: memtide-agent status; journalctl -fu memtide-agent");
    eprintln!("Leave it with `exit` or Ctrl-d; Ctrl-a x ends it at once.\n");
    stage.guest.wait_end(SESSION)?;
    Ok(())
}

fn shape(arguments: &Shell) -> Shape {
    Shape { clock: arguments.clock, ..Shape::default() }
}

/// A guest without anything of ours but the lab's runner.
fn plain(
    lab: &Lab,
    arguments: &Shell,
    console: Console,
    (balloon, artifacts): (Balloon, &Path),
) -> Result<()> {
    let built = build(&[RUNNER], Profile::Dev)?;
    let tools = Tools::new(built.program(RUNNER)?)?;
    let spec = MachineSpec {
        memory_mib: arguments.memory.mib(),
        balloon,
        console,
        accelerator: arguments.clock.accelerator(),
        ..MachineSpec::new("shell", arguments.kernel, tools.path(), artifacts)
    };
    let machine = Machine::start(lab, &spec)?;
    eprintln!("engine: {:?} ({})", machine.acceleration().engine, machine.acceleration().reason);
    eprintln!("logs: {}/serial.log, qemu.log", artifacts.display());
    eprintln!("The guest boots. Leave it with `exit` or Ctrl-d; Ctrl-a x ends it at once.\n");
    machine.wait_end(SESSION)?;
    Ok(())
}

fn terminal_size() -> (u16, u16) {
    // A pipe has no size: that of a terminal from 1978 will do.
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.map_or((24, 80), |size| (size.ws_row, size.ws_col))
}
