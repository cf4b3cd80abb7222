//! A line on a terminal about what takes longer than a second.

use receipt_store::verify::Step;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Shows how far something has come, at most ten times a second, and nothing in the first second.
#[derive(Debug)]
pub struct Progress {
    unit: &'static str,
    is_terminal: bool,
    start: Instant,
    shown: Option<Instant>,
}

impl Progress {
    /// Begins; nothing is ever shown where standard error is no terminal.
    pub fn new(unit: &'static str) -> Self {
        Self { unit, is_terminal: std::io::stderr().is_terminal(), start: Instant::now(), shown: None }
    }

    /// As [`Progress::new`], beside lines on standard output: not where they go to a terminal, too, because they show it already.
    pub fn beside_output(unit: &'static str) -> Self {
        let is_output_seen = std::io::stdout().is_terminal();
        let progress = Self::new(unit);
        Self { is_terminal: progress.is_terminal && !is_output_seen, ..progress }
    }

    /// Shows `done`, and a bar where `all` is known.
    pub fn show(&mut self, done: u64, all: Option<u64>) {
        if !self.is_terminal || self.start.elapsed() < Duration::from_secs(1) {
            return;
        }
        if self.shown.is_some_and(|shown| shown.elapsed() < Duration::from_millis(100)) {
            return;
        }
        self.shown = Some(Instant::now());
        let seconds = self.start.elapsed().as_secs();
        let line = line(done, all, self.unit, seconds);
        let _ = write!(std::io::stderr(), "\r{line}\x1b[K"); // only a hint
    }

    /// Takes the line away.
    pub fn end(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K"); // only a hint
        }
    }
}

impl Progress {
    /// Shows how far a check has come.
    pub fn step(&mut self, step: Step) {
        let (unit, done, all) = match step {
            Step::Log(done, all) => ("records", done, all),
            Step::Index(done, all) => ("index pages", done, all),
        };
        self.unit = unit;
        self.show(done, Some(all));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn line(done: u64, all: Option<u64>, unit: &str, seconds: u64) -> String {
    match all.filter(|all| *all > 0) {
        Some(all) => {
            let tenths = usize::try_from(done.min(all).saturating_mul(20) / all).unwrap_or_default();
            format!("[{:<20}] {done} of {all} {unit}, {seconds} s", "#".repeat(tenths))
        }
        None => format!("{done} {unit}, {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn lines() {
        assert_eq!(line(5, Some(10), "records", 3), "[##########          ] 5 of 10 records, 3 s");
        assert_eq!(line(5, None, "receipts", 3), "5 receipts, 3 s");
        assert_eq!(line(5, Some(0), "receipts", 3), "5 receipts, 3 s");
    }
}
