//! Pauses of work in the background, so that most of the time the disk belongs to those who get and put.
//!
//! A pause is as long as the work since the last one makes it: where the disk is slow, or the writer busy, the work itself slows down.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Work shorter than this is not worth a pause.
const WORK_MIN: Duration = Duration::from_millis(1);
/// No pause is longer, so that one slow step does not stop everything.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How much of the time is spent working.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Percent of the time, at least 1; 100 = no pauses.
    pub work_percent: u8,
    /// The clock.
    pub now: fn() -> Instant,
    /// Pauses.
    pub pause: fn(Duration),
}

impl Pace {
    /// By the system's clock.
    #[must_use]
    pub fn new(work_percent: u8) -> Self {
        Self { work_percent, now: Instant::now, pause: std::thread::sleep }
    }
}

/// Work at a pace.
#[derive(Debug)]
pub(crate) struct Paced {
    pace: Pace,
    /// When the work since the last pause began.
    began: Cell<Instant>,
}

impl Paced {
    pub(crate) fn new(pace: Pace) -> Self {
        Self { pace, began: Cell::new((pace.now)()) }
    }

    /// Whether there are pauses at all.
    pub(crate) fn has_pauses(&self) -> bool {
        self.pace.work_percent < 100
    }

    /// Called between two steps, with nothing locked: pauses if there was enough work since the last pause.
    pub(crate) fn rest(&self) {
        let worked = (self.pace.now)().saturating_duration_since(self.began.get());
        if !self.has_pauses() || worked < WORK_MIN {
            return;
        }
        let percent = u32::from(self.pace.work_percent.max(1));
        let pause = worked.saturating_mul(100 - percent) / percent;
        (self.pace.pause)(pause.min(PAUSE_MAX));
        self.began.set((self.pace.now)());
    }
}
