//! What set-up tells the person who waits for it.

use std::io::{self, Write};
use std::time::Duration;

/// Hears about the steps of a set-up as they happen.
pub trait Progress {
    /// A step's result was already there.
    fn found(&mut self, step: &str, elapsed: Duration);
    /// A step begins to work.
    fn started(&mut self, step: &str);
    /// The step that began last has its result.
    fn made(&mut self, step: &str, elapsed: Duration);
    /// The step that began last failed; the error follows by another way.
    fn failed(&mut self, step: &str, elapsed: Duration);
    /// Something worth a line.
    fn note(&mut self, text: &str);
}

/// Says nothing: for tests, whose set-up was made before.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn found(&mut self, _: &str, _: Duration) {}
    fn started(&mut self, _: &str) {}
    fn made(&mut self, _: &str, _: Duration) {}
    fn failed(&mut self, _: &str, _: Duration) {}
    fn note(&mut self, _: &str) {}
}

/// One line for each step, begun when the step begins and ended with its time.
#[derive(Debug)]
pub struct Printed<W> {
    out: W,
}

impl Printed<io::Stderr> {
    /// On standard error, so that a program's own output stays clean.
    pub fn on_stderr() -> Self {
        Self { out: io::stderr() }
    }
}

impl<W: Write> Printed<W> {
    /// On something else.
    pub fn to(out: W) -> Self {
        Self { out }
    }

    /// A terminal that cannot be written to is no reason to fail a set-up.
    fn print(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes());
        let _ = self.out.flush();
    }

    fn begin(&mut self, step: &str) {
        self.print(&format!("  {step:.<30} "));
    }
}

impl<W: Write> Progress for Printed<W> {
    fn found(&mut self, step: &str, elapsed: Duration) {
        self.begin(step);
        self.print(&format!("already there ({} ms)\n", elapsed.as_millis()));
    }

    fn started(&mut self, step: &str) {
        self.begin(step);
    }

    fn made(&mut self, _: &str, elapsed: Duration) {
        self.print(&format!("done in {:.1} s\n", elapsed.as_secs_f64()));
    }

    fn failed(&mut self, _: &str, elapsed: Duration) {
        self.print(&format!("FAILED after {:.1} s\n", elapsed.as_secs_f64()));
    }

    fn note(&mut self, text: &str) {
        self.print(&format!("  {text}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_one_line() {
        let mut printed = Printed::to(Vec::new());
        printed.found("QEMU", Duration::from_millis(3));
        printed.started("guest image");
        printed.made("guest image", Duration::from_millis(36_420));
        printed.started("kernel 7.3");
        printed.failed("kernel 7.3", Duration::from_secs(2));
        let text = String::from_utf8(printed.out).unwrap();
        assert_eq!(
            text,
            "  QEMU.......................... already there (3 ms)\n  \
               guest image................... done in 36.4 s\n  \
               kernel 7.3.................... FAILED after 2.0 s\n"
        );
    }
}
