//! What a person sees while a run goes on: a few lines that are drawn over themselves in a terminal,
//! or one line every few seconds where the output is a file, or more than one run's.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use memtide_units::{ByteSize, PpMillion};

use crate::sample::Sample;

/// Without a terminal, a line is printed at most this often.
const QUIET_EVERY_MS: u64 = 5_000;
const BAR: usize = 40;

/// Several runs share the output.
static SHARED: AtomicBool = AtomicBool::new(false);

/// From now on runs print lines alone, as several of them go on at once.
pub fn share() {
    SHARED.store(true, Ordering::Relaxed);
}

/// The agent's, the gate's and the run's words beside the numbers.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// What the run does now.
    pub phase: String,
    /// The agent's last decision.
    pub agent: String,
    /// The gate's last decision or what it holds.
    pub gate: String,
}

/// Draws samples.
pub struct Screen {
    header: String,
    memory: ByteSize,
    terminal: bool,
    drawn_lines: usize,
    last_quiet_ms: Option<u64>,
}

impl Screen {
    /// A screen for a guest of `memory`; `header` is its first line.
    pub fn new(header: String, memory: ByteSize) -> Self {
        let terminal = io::stdout().is_terminal() && !SHARED.load(Ordering::Relaxed);
        Self { header, memory, terminal, drawn_lines: 0, last_quiet_ms: None }
    }

    /// Shows `sample`.
    pub fn show(&mut self, sample: &Sample, previous: &Sample, words: &Words) {
        if self.terminal {
            self.redraw(&panel(&self.header, self.memory, (sample, previous), words));
        } else if self.last_quiet_ms.is_none_or(|last| sample.at_ms >= last + QUIET_EVERY_MS) {
            self.last_quiet_ms = Some(sample.at_ms);
            let header = if SHARED.load(Ordering::Relaxed) { &*self.header } else { "" };
            println!("{}", one_line(header, sample, words));
        }
    }

    /// A line that stays, above the panel.
    pub fn say(&mut self, text: &str) {
        self.clear();
        println!("{text}");
    }

    fn redraw(&mut self, lines: &[String]) {
        self.clear();
        for line in lines {
            println!("{line}");
        }
        let _ = io::stdout().flush();
        self.drawn_lines = lines.len();
    }

    fn clear(&mut self) {
        if self.drawn_lines > 0 {
            // Cursor up to the panel's first line, then erase to the end of the screen.
            print!("\x1b[{}A\x1b[J", self.drawn_lines);
            self.drawn_lines = 0;
        }
    }
}

/// A sample in a line, behind the run's name where more than one prints.
fn one_line(header: &str, sample: &Sample, words: &Words) -> String {
    let name = if header.is_empty() { String::new() } else { format!("{header}: ") };
    let guest = if sample.guest_total.is_zero() {
        "no agent tells of the guest".to_owned()
    } else {
        format!(
            "guest {} of {} used, stolen {}/{} blocks",
            sample.guest_used, sample.guest_total, sample.blocks_stolen, sample.blocks_movable
        )
    };
    format!(
        "{:>8} s  {name}{guest}, host resident {}; gate: {}",
        sample.at_ms / 1000,
        sample.resident,
        words.gate
    )
}

fn panel(
    header: &str,
    memory: ByteSize,
    (sample, previous): (&Sample, &Sample),
    words: &Words,
) -> Vec<String> {
    let pressure = PpMillion::of_time(
        sample.psi_some_us.saturating_sub(previous.psi_some_us),
        sample.at_ms.saturating_sub(previous.at_ms) * 1000,
    );
    let cut = |text: &str| -> String { text.chars().take(100).collect() };
    vec![
        format!("{header}   {:>4} s", sample.at_ms / 1000),
        format!("  phase  {}", words.phase),
        format!(
            "  guest  {}  used {:>9}  free {:>9}  online {:>9}  pressure {pressure}",
            bar(&[(sample.guest_used, '#'), (sample.guest_total, '-')], memory),
            sample.guest_used,
            sample.guest_free,
            sample.guest_total,
        ),
        format!(
            "  host   {}  resident {:>9}",
            bar(&[(sample.resident, '#')], memory),
            sample.resident
        ),
        format!(
            "  blocks {}  stolen {} of {} movable ({} in all, {} steals failed)",
            blocks(sample),
            sample.blocks_stolen,
            sample.blocks_movable,
            sample.blocks_total,
            sample.steals_failed
        ),
        format!("  gate   {}", cut(&words.gate)),
        format!("  agent  {}", cut(&words.agent)),
    ]
}

/// A bar of [`BAR`] characters; each mark reaches to its size, later marks lie behind earlier ones.
fn bar(marks: &[(ByteSize, char)], whole: ByteSize) -> String {
    let cell = |n: usize| {
        let at = u128::from(whole.bytes()) * (2 * n as u128 + 1) / (2 * BAR as u128);
        let mark = marks.iter().find(|(size, _)| u128::from(size.bytes()) > at);
        mark.map_or(' ', |(_, mark)| *mark)
    };
    format!("[{}]", (0..BAR).map(cell).collect::<String>())
}

/// One character a block, from the kernel's to the stolen ones: `k` kernel, `m` movable, `.` stolen.
fn blocks(sample: &Sample) -> String {
    const CELLS: u32 = 64;
    let shown = |count: u32| match sample.blocks_total {
        0 => 0,
        total if total <= CELLS => count as usize,
        total => (count * CELLS / total) as usize,
    };
    let kernel = sample.blocks_total.saturating_sub(sample.blocks_movable);
    let movable = sample.blocks_movable.saturating_sub(sample.blocks_stolen);
    format!(
        "[{}{}{}]",
        "k".repeat(shown(kernel)),
        "m".repeat(shown(movable)),
        ".".repeat(shown(sample.blocks_stolen))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_to_its_share() {
        let whole = ByteSize::from_mib(400);
        let half = bar(&[(ByteSize::from_mib(200), '#')], whole);
        assert_eq!(half.matches('#').count(), BAR / 2);
        let both = bar(&[(ByteSize::from_mib(100), '#'), (whole, '-')], whole);
        assert_eq!((both.matches('#').count(), both.matches('-').count()), (10, 30));
    }

    #[test]
    fn a_large_guest_still_fits_the_line() {
        let sample = Sample {
            blocks_total: 512,
            blocks_movable: 384,
            blocks_stolen: 256,
            ..Sample::default()
        };
        assert_eq!(blocks(&sample).matches('.').count(), 32);
        let small =
            Sample { blocks_total: 16, blocks_movable: 12, blocks_stolen: 9, ..Sample::default() };
        assert_eq!(blocks(&small), "[kkkkmmm.........]");
    }
}
