//! Boots a guest of each kernel that is set up and says how long everything took: a check of the
//! lab itself. `cargo run -p memtide-lab --example boot [6.1|6.12|7.3]...`

use std::path::Path;
use std::time::{Duration, Instant};

use memtide_lab::cargo::{Profile, build};
use memtide_lab::setup::{self, Printed};
use memtide_lab::tools::{RUNNER, Start, Tools};
use memtide_lab::{Balloon, Cache, Kernel, Lab, Machine, MachineSpec};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const BOOT: Duration = Duration::from_secs(180);
const COMMAND: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

fn main() -> Result<()> {
    let asked: std::result::Result<Vec<Kernel>, _> =
        std::env::args().skip(1).map(|name| name.parse()).collect();
    let kernels = match asked? {
        none if none.is_empty() => Kernel::ALL.to_vec(),
        some => some,
    };
    let lab = setup::run(Cache::of_user()?, &kernels, &mut Printed::on_stderr())?;
    let built = build(&[RUNNER], Profile::Dev)?;
    let mut tools = Tools::new(built.program(RUNNER)?)?;
    tools.unit("hello.service", "[Service]\nExecStart=/bin/echo from a unit\n", Start::AtBoot)?;
    for kernel in kernels {
        exercise(&lab, kernel, tools.path())?;
    }
    Ok(())
}

/// Prints how long something took.
fn timed<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = action()?;
    println!("  {what:.<34} {:.3} s", start.elapsed().as_secs_f64());
    Ok(result)
}

fn exercise(lab: &Lab, kernel: Kernel, tools: &Path) -> Result<()> {
    let spec = MachineSpec {
        balloon: Balloon::Qemu,
        ..MachineSpec::new("boot", kernel, tools, format!("artifacts/boot-{kernel}"))
    };
    let machine = timed("start", || Ok(Machine::start(lab, &spec)?))?;
    println!("  {:?}", machine.acceleration());
    let hello = timed("until ready", || Ok(machine.wait_ready(BOOT)?))?;
    println!("  guest: Linux {}, up for {:.1} s", hello.kernel, hello.uptime.as_secs_f64());
    commands(&machine)?;
    balloon(&machine)?;
    timed("log collection", || Ok(machine.collect_logs()?))?;
    let how = timed("power off", || Ok(machine.poweroff(Duration::from_secs(60))))?;
    println!("  ended: {how:?}");
    Ok(())
}

fn commands(machine: &Machine) -> Result<()> {
    let guest = machine.guest();
    for _ in 0..3 {
        timed("run true", || Ok(guest.check(&["true"], COMMAND)?))?;
    }
    let content: Vec<u8> = (0..MIB).map(|byte| (byte % 251) as u8).collect();
    timed("write 1 MiB", || Ok(guest.write_file("/root/file", &content, 0o600)?))?;
    let back = timed("read 1 MiB", || Ok(guest.read_file("/root/file")?))?;
    assert!(back == content, "a file came back changed");
    let counting = guest.spawn("count", &["sh", "-c", "echo one; echo two; sleep 600"])?;
    assert!(counting.wait_line(COMMAND, |line| (line == "two").then_some(())).is_some());
    counting.kill(9)?;
    println!("  killed: {:?}", counting.wait_exit(COMMAND));
    let unit =
        guest.shell("systemctl show -P Result hello; journalctl -u hello -o cat", COMMAND)?;
    assert!(unit.contains("from a unit"), "the caller's unit did not run: {unit}");
    let failed = guest.shell("systemctl --failed --no-legend --plain", COMMAND)?;
    assert!(failed.trim().is_empty(), "failed units: {failed}");
    guest.shell("modprobe uio_pci_generic && modprobe zram", COMMAND)?;
    println!(
        "  {}",
        guest.shell("systemd-analyze | head -n 1; free -m | sed -n 2p", COMMAND)?.trim()
    );
    Ok(())
}

/// Has the guest touch memory and free it, inflates QEMU's balloon by half the guest, and watches
/// what the host holds.
fn balloon(machine: &Machine) -> Result<()> {
    let memory = machine.memory();
    let held = || -> Result<u64> { Ok(memory.resident_bytes()? / MIB) };
    println!("  held by the host: {} MiB at first", held()?);
    let touch = "head -c 400M /dev/zero > /dev/shm/x";
    timed("touch 400 MiB", || Ok(machine.guest().shell(touch, COMMAND)?))?;
    println!("  held by the host: {} MiB, QEMU's RSS {} MiB", held()?, machine.rss_kib()? / 1024);
    machine.guest().shell("rm /dev/shm/x", COMMAND)?;
    let target = memory.size() / 2;
    timed("inflate by half", || {
        machine.qmp().execute("balloon", serde_json::json!({ "value": target }))?;
        let inflated = || {
            let actual = machine.qmp().execute("query-balloon", serde_json::json!({}))?;
            Ok((actual["actual"].as_u64() == Some(target)).then_some(()))
        };
        Ok(machine.wait_for("inflated balloon", Duration::from_secs(60), inflated)?)
    })?;
    println!("  held by the host: {} MiB", held()?);
    Ok(())
}
