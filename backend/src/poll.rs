//! How long a worker looks for news before it sleeps. Pure: it is told the time.
//!
//! To be woken costs more than a request does, so after work it pays to look around for a while. How long is learned: a
//! pause that looking would have bridged makes it longer, a pause that was too long for it makes it shorter, down to nothing.
//! A worker that has nothing to do looks less each time and then not at all.

use std::time::Duration;

/// The shortest look that is worth while.
const SHORTEST: Duration = Duration::from_micros(4);

/// See the module.
#[derive(Debug)]
pub struct Patience {
    longest: Duration,
    now: Duration,
}

impl Patience {
    /// Looks for `longest` at most; zero never looks.
    #[must_use]
    pub fn new(longest: Duration) -> Self {
        Self { longest, now: longest }
    }

    /// How long to look this time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Learns from a pause that looking did not bridge and that took this long in all.
    pub fn learn(&mut self, pause: Duration) {
        self.now = if pause <= self.longest {
            (self.now * 2).clamp(SHORTEST.min(self.longest), self.longest)
        } else if self.now <= SHORTEST {
            Duration::ZERO
        } else {
            self.now / 2
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_micros(50);

    fn after(pauses: &[u64]) -> Duration {
        let mut patience = Patience::new(LONGEST);
        pauses.iter().for_each(|&micros| patience.learn(Duration::from_micros(micros)));
        patience.now()
    }

    #[test]
    fn long_pauses_end_all_looking() {
        assert_eq!(after(&[]), LONGEST);
        assert!(after(&[1000]) < LONGEST);
        assert_eq!(after(&[1000; 10]), Duration::ZERO);
    }

    #[test]
    fn pauses_that_looking_would_bridge_bring_it_back() {
        let idle_then_busy = [[1000; 10], [40; 10]].concat();
        assert_eq!(after(&idle_then_busy), LONGEST);
        assert_eq!(after(&[[1000; 10].as_slice(), &[40]].concat()), SHORTEST);
    }

    #[test]
    fn nothing_makes_it_look_when_it_must_not() {
        let mut patience = Patience::new(Duration::ZERO);
        for micros in [0, 1, 50, 1000] {
            patience.learn(Duration::from_micros(micros));
            assert_eq!(patience.now(), Duration::ZERO);
        }
    }
}
