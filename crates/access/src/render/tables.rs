//! The working set and the tail of idle times, in figures and bars of 80 columns.

use memtide_units::ByteSize;

use crate::digest::Amounts;
use crate::working_set::WorkingSet;

use super::words::{bar, share, time};

/// Whether a terminal takes colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Into files and pipes, and for those who do not want them.
    Plain,
    /// As xterm has them.
    Ansi,
}

impl Paint {
    fn heading(self, text: &str) -> String {
        match self {
            Self::Plain => format!("{text}\n"),
            Self::Ansi => format!("\x1b[1m{text}\x1b[0m\n"),
        }
    }
}

/// Width of a bar between its ends.
const BAR: usize = 40;

/// What `wss` prints.
pub fn working_set(set: &WorkingSet, paint: Paint) -> String {
    let mut text = sizes(set, paint);
    text.push('\n');
    text += &amounts(&set.now, paint);
    text.push('\n');
    text += &tail(set, paint);
    text
}

fn row(name: &str, size: ByteSize, whole: ByteSize) -> String {
    let size_text = size.to_string();
    let bar = bar(size.bytes(), whole.bytes(), BAR);
    format!("  {name:<17} {size_text:>10}  {bar}\n")
}

fn sizes(set: &WorkingSet, paint: Paint) -> String {
    let Some(sizes) = set.working_set else {
        return paint.heading("Working set")
            + "  not known yet: somebody has to watch for half a minute first\n";
    };
    let over = time(set.over_ms);
    let mut text = paint.heading(&format!(
        "Working set (touched within 30 s): percentiles of {over}, {} snapshots",
        set.snapshots
    ));
    let whole = set.now.present;
    for (percent, size) in set.percents.iter().zip(sizes) {
        text += &row(&format!("{percent:>3} %"), size, whole);
    }
    match set.now.touched {
        Some(now) => text + &row("now", now, whole),
        None => text + "  now               not known: watching has just begun again\n",
    }
}

fn amounts(now: &Amounts, paint: Paint) -> String {
    let mut text = paint.heading(&format!("What {} of memory are now", now.present));
    let idle = now.used - now.touched.unwrap_or_default();
    let part = |name, size| row(name, size, now.present);
    match now.touched {
        Some(touched) => {
            text += &part("used, touched", touched);
            text += &part("used, idle", idle);
        }
        None => text += &part("used", now.used),
    }
    match now.kernel {
        Some(kernel) => text += &part("the kernel's own", kernel),
        None => text += "  (what is used and idle includes the kernel's own)\n",
    }
    text += &part("free", now.free);
    text + &part("stolen", now.stolen)
}

fn tail(set: &WorkingSet, paint: Paint) -> String {
    let used = set.now.used;
    let watched = time(set.watched_ms);
    let mut text =
        paint.heading(&format!("How long the {used} in use lay idle (watched for {watched})"));
    for (seconds, size) in set.tail_s.iter().zip(set.now.untouched) {
        let name = format!("{} or longer", time(seconds * 1000));
        if seconds * 1000 > set.watched_ms {
            text += &format!("  {name:<17} {:>10}  nobody has watched for so long\n", "?");
            continue;
        }
        let part = share(size.bytes(), used.bytes());
        let bar = bar(size.bytes(), used.bytes(), BAR - 10);
        text += &format!("  {name:<17} {:>10}  {part:>7}  {bar}\n", size.to_string());
    }
    text.push('\n');
    text += &paint.heading("Idle for at most");
    let longest = set.now.idle_ms.iter().max().copied().unwrap_or(0);
    for (percent, ms) in set.idle_percents.iter().zip(set.now.idle_ms) {
        let name = format!("{percent:>3} % of it");
        text += &format!("  {name:<17} {:>10}  {}\n", time(ms), bar(ms, longest, BAR));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::tests::example;
    use crate::render::golden::check;

    #[test]
    fn people_see_what_was_reviewed() {
        let set = WorkingSet::of(&example(), None).unwrap();
        check("wss.txt", &working_set(&set, Paint::Plain));
        let mut early = WorkingSet { working_set: None, watched_ms: 20_000, ..set };
        early.now.touched = None;
        early.now.kernel = None;
        check("wss-early.txt", &working_set(&early, Paint::Plain));
    }

    #[test]
    fn the_largest_numbers_fit() {
        let set = WorkingSet::of(&example(), None).unwrap();
        let most = ByteSize::from_bytes(u64::MAX);
        let huge = Amounts {
            present: most,
            stolen: most,
            free: most,
            kernel: Some(most),
            used: most,
            touched: Some(most),
            untouched: [most; 3],
            idle_ms: [u64::MAX; 5],
        };
        let set = WorkingSet {
            now: huge,
            working_set: Some([most; 5]),
            over_ms: u64::MAX,
            watched_ms: u64::MAX,
            snapshots: u64::MAX,
            ..set
        };
        assert!(working_set(&set, Paint::Ansi).lines().count() > 20);
    }
}
