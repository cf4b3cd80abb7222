//! Keeps a guest from filling the log: at most [`MAX_LOG_LINES_PER_SECOND`] lines, the rest is counted.

use std::fmt::Arguments;
use std::time::{Duration, Instant};

use log::Level;

use crate::limits::MAX_LOG_LINES_PER_SECOND;

/// The log lines of one guest, from one thread.
#[derive(Debug)]
pub struct LogLimit {
    since: Instant,
    lines: u32,
    dropped: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self { since: Instant::now(), lines: 0, dropped: 0 }
    }
}

impl LogLimit {
    /// Logs a line, or counts it where there were too many.
    pub fn log(&mut self, level: Level, line: Arguments<'_>) {
        if self.since.elapsed() >= Duration::from_secs(1) {
            if self.dropped > 0 {
                log::warn!("event=log-lines-dropped count={}", self.dropped);
            }
            *self = Self::default();
        }
        if self.lines < MAX_LOG_LINES_PER_SECOND {
            self.lines += 1;
            log::log!(level, "{line}");
        } else {
            self.dropped += 1;
        }
    }
}
