//! A guest whose workload plays, and what is heard of both.

use std::time::Duration;

use memtide_lab::guest::protocol::Stream;
use memtide_lab::guest::{Event, Process};
use memtide_units::ByteSize;

use super::guests::pause;
use crate::error::{BenchError, Result};
use crate::subject::Subject;
use crate::workload::{Heard, Line, Told};

/// Stalls are looked at in pieces of so long, as `avg10` of the kernel's own is.
const PIECE: Duration = Duration::from_secs(10);
/// So much longer than it is patient waits the host for a guest's clock to move: a guest that stalls says so late.
const LATE: Duration = Duration::from_secs(120);
/// Between two readings of what a guest prints.
const LOOK: Duration = Duration::from_millis(200);

/// Prints once a second the guest's time, its stall for memory since boot and what memory it has. Bash
/// alone, for a process a second would be a workload of its own.
const SAMPLER: &str = r#"
exec 9<> <(:)
while :; do
  read -r stall < /proc/pressure/memory
  read -r _ kib _ < /proc/meminfo
  echo "${EPOCHREALTIME/[.,]/} ${stall##*=} $kib"
  read -r -t 1 -u 9 _
done
"#;

/// What the guest said of itself at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    at_us: u64,
    stalled_us: u64,
    total: ByteSize,
}

/// How far the workload was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Work {
    at_ms: u64,
    pages: u64,
}

/// What was heard of one guest.
#[derive(Debug, Default)]
struct Seen {
    samples: Vec<Sample>,
    work: Vec<Work>,
    told: Told,
}

/// A moment, to look at what was heard since.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    samples: usize,
    work: usize,
}

/// What was heard from one moment to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Window {
    /// Pages that the workload checked in each second.
    pub(super) pages_per_second: f64,
    /// Of each piece of ten seconds, the part in which some task stalled for memory, in ‰.
    pub(super) stalls: Vec<f64>,
    /// What memory the guest had in the end.
    pub(super) total: ByteSize,
}

/// A guest, its workload and its sampler.
pub(super) struct Watched<'a> {
    subject: &'a Subject,
    workload: Process,
    sampler: Process,
    seen: Seen,
}

impl<'a> Watched<'a> {
    /// Starts both.
    pub(super) fn start(subject: &'a Subject, script: &str) -> Result<Self> {
        let guest = subject.machine().guest();
        let sampler = guest.spawn("sampler", &["bash", "-c", SAMPLER])?;
        let argv = ["/opt/memtide/bin/memtide-workload", "play", script];
        let workload = guest.spawn("workload", &argv)?;
        Ok(Self { subject, workload, sampler, seen: Seen::default() })
    }

    pub(super) fn subject(&self) -> &Subject {
        self.subject
    }

    /// Takes in what was printed.
    pub(super) fn listen(&mut self) -> Result<()> {
        for event in self.sampler.new_events() {
            self.seen.of_sampler(event);
        }
        for event in self.workload.new_events() {
            self.seen.of_workload(Heard::of(event));
        }
        match self.seen.told.error.take() {
            Some(text) => Err(self.subject.unexpected("the workload or its sampler", text)),
            None => Ok(()),
        }
    }

    /// The guest's own time, since 1970; zero until it has said so.
    pub(super) fn clock(&self) -> Duration {
        self.seen
            .samples
            .last()
            .map_or(Duration::ZERO, |sample| Duration::from_micros(sample.at_us))
    }

    /// Waits until the workload is in its last phase, for so long by the guest's clock.
    pub(super) fn await_hot(&mut self, within: Duration) -> Result<()> {
        let within = self.subject.patience(within);
        let mut waited = Duration::ZERO;
        while !self.seen.told.phase.starts_with("hot") {
            self.listen()?;
            if waited > within {
                return Err(BenchError::Late {
                    who: self.subject.name().to_owned(),
                    what: "the workload has all of its memory",
                    waited: within,
                    seen: self.seen.told.phase.clone(),
                });
            }
            pause(LOOK)?;
            waited += LOOK;
        }
        Ok(())
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { samples: self.seen.samples.len(), work: self.seen.work.len() }
    }

    pub(super) fn since(&self, mark: Mark) -> Window {
        self.seen.since(mark)
    }

    /// What memory the guest has now.
    pub(super) fn total(&self) -> ByteSize {
        self.seen.samples.last().map_or(ByteSize::ZERO, |sample| sample.total)
    }

    /// Ends both, within so long by the guest's clock; how many of the workload's pages were bad.
    pub(super) fn end(mut self, within: Duration) -> Result<u64> {
        let within = self.subject.patience(within);
        const SIGTERM: i32 = 15;
        self.workload.kill(SIGTERM)?;
        self.sampler.kill(SIGTERM)?;
        let mut waited = Duration::ZERO;
        while self.seen.told.summary.is_none() {
            for event in self.workload.new_events() {
                self.seen.of_workload(Heard::of(event));
            }
            if waited > within {
                let (who, what) = (self.subject.name().to_owned(), "the workload ends");
                return Err(BenchError::Late { who, what, waited, seen: self.seen.told.phase });
            }
            pause(LOOK)?;
            waited += LOOK;
        }
        Ok(self.seen.told.summary.unwrap_or_default())
    }
}

/// Listens to all for so long by each one's own clock; none may be stopped.
pub(super) fn listen_for(watched: &mut [&mut Watched<'_>], time: Duration) -> Result<()> {
    let from: Vec<Duration> = watched.iter().map(|guest| guest.clock()).collect();
    let mut waited = Duration::ZERO;
    loop {
        pause(LOOK)?;
        waited += LOOK;
        watched.iter_mut().try_for_each(|guest| guest.listen())?;
        let mut clocks = watched.iter().zip(&from);
        let Some((behind, from)) = clocks.find(|(guest, from)| guest.clock() < **from + time)
        else {
            return Ok(());
        };
        if waited > behind.subject.patience(time) + LATE {
            return Err(BenchError::Late {
                who: behind.subject.name().to_owned(),
                what: "its clock has moved as far as it should",
                waited,
                seen: format!("{:?} of {time:?}", behind.clock().saturating_sub(*from)),
            });
        }
    }
}

impl Seen {
    fn of_sampler(&mut self, event: Event) {
        match event {
            Event::Line(Stream::Stdout, line) => match sample(&line) {
                Some(sample) => self.samples.push(sample),
                None => self.told.error = Some(line),
            },
            Event::Line(Stream::Stderr, line) => self.told.error = Some(line),
            Event::Exited(ending) => self.told.error = Some(format!("the sampler ended: {ending}")),
        }
    }

    fn of_workload(&mut self, heard: Heard) {
        match self.told.hear(heard) {
            Some(Line::Progress { pages_checked: pages, at_ms }) => {
                self.work.push(Work { at_ms, pages });
            }
            Some(Line::BadPage { kind }) => {
                self.told.error = Some(format!("a page was bad: {kind}"));
            }
            _ => {}
        }
    }

    fn since(&self, mark: Mark) -> Window {
        let (samples, work) = (&self.samples[mark.samples..], &self.work[mark.work..]);
        Window {
            pages_per_second: speed(work),
            stalls: stalls(samples),
            total: samples.last().map_or(ByteSize::ZERO, |sample| sample.total),
        }
    }
}

fn sample(line: &str) -> Option<Sample> {
    let mut numbers = line.split(' ').map(|word| word.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    Some(Sample { at_us: next()?, stalled_us: next()?, total: ByteSize::from_kib(next()?) })
}

fn speed(work: &[Work]) -> f64 {
    match (work.first(), work.last()) {
        (Some(first), Some(last)) if last.at_ms > first.at_ms => {
            (last.pages - first.pages) as f64 * 1000.0 / (last.at_ms - first.at_ms) as f64
        }
        _ => 0.0,
    }
}

/// Whole pieces only.
fn stalls(samples: &[Sample]) -> Vec<f64> {
    let mut shares = Vec::new();
    let Some(mut first) = samples.first() else { return shares };
    for sample in samples {
        let took = sample.at_us.saturating_sub(first.at_us);
        if u128::from(took) + 100_000 >= PIECE.as_micros() {
            let stalled = sample.stalled_us.saturating_sub(first.stalled_us);
            shares.push(stalled as f64 * 1000.0 / took as f64);
            first = sample;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_by_the_guests_own_clock() {
        let work = |at_ms, pages| Work { at_ms, pages };
        assert_eq!(speed(&[work(1000, 50), work(1500, 60), work(3000, 150)]), 50.0);
        assert_eq!(speed(&[work(1000, 50)]), 0.0);
    }

    #[test]
    fn stalls_are_shares_of_ten_seconds() {
        let line = |second: u64, stall: u64| format!("{} {stall} 2000000", 1_000_000 * second);
        let samples: Vec<Sample> =
            (0..25).map(|n| sample(&line(n, n.saturating_sub(10) * 20_000)).unwrap()).collect();
        assert_eq!(stalls(&samples), [0.0, 20.0]);
        assert_eq!(sample("some avg10=0"), None);
    }

    #[test]
    fn a_bad_page_ends_the_measurement() {
        let mut seen = Seen::default();
        seen.of_workload(Heard::of_line(
            r#"{"event":"progress","name":"hot heap","pages_checked":9,"at_ms":500}"#,
        ));
        assert_eq!((seen.work.len(), &seen.told.error), (1, &None));
        seen.of_workload(Heard::of_line(
            r#"{"event":"bad_page","kind":"zeroed","region":"heap","at_ms":600}"#,
        ));
        assert!(seen.told.error.is_some());
    }
}
