//! A guest's share: requests and bytes a second, with bursts. Pure: it is told the time.
//!
//! Two buckets that fill at the rate and hold the burst. A request is taken while both hold something, and takes what it costs,
//! even if that is more than there is: the debt is waited for afterwards. So a request larger than the burst passes, and over
//! any time the guest gets at most rate times time, the burst, and one request more.

use std::time::{Duration, Instant};

/// What a guest may do of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// A second, over a long time; not zero.
    pub per_second: u64,
    /// At once, after a pause; not zero.
    pub burst: u64,
}

/// Limits of one guest; none by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests of any kind.
    pub requests: Option<Rate>,
    /// Bytes read and written.
    pub bytes: Option<Rate>,
}

/// See the module.
#[derive(Debug)]
pub struct Throttle {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// Billionths of what is counted; below zero is debt.
    level: i128,
    filled: Instant,
}

/// Parts of one that levels are counted in: what one a second adds in a nanosecond.
const PARTS: i128 = 1_000_000_000;

impl Throttle {
    /// Full buckets; `None` for a guest without limits.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Option<Self> {
        let bucket = |rate: Rate| Bucket { rate, level: rate.full(), filled: now };
        let (requests, bytes) = (limits.requests.map(bucket), limits.bytes.map(bucket));
        (requests.is_some() || bytes.is_some()).then_some(Self { requests, bytes })
    }

    /// Requests that may be taken now.
    pub fn room(&mut self, now: Instant) -> usize {
        let rooms = [&mut self.requests, &mut self.bytes].map(|bucket| bucket.as_mut().map(|b| b.room(now)));
        match rooms {
            [_, Some(0)] => 0,
            [Some(requests), _] => requests,
            [None, _] => usize::MAX,
        }
    }

    /// Takes what a request of `len_bytes` costs.
    pub fn charge(&mut self, len_bytes: u64) {
        for (bucket, cost) in [(&mut self.requests, 1), (&mut self.bytes, len_bytes)] {
            if let Some(bucket) = bucket {
                bucket.level -= i128::from(cost) * PARTS;
            }
        }
    }

    /// How long until there is room again, from when [`Throttle::room`] was asked last.
    #[must_use]
    pub fn pause(&self) -> Duration {
        let buckets = [&self.requests, &self.bytes].into_iter().flatten();
        buckets.map(Bucket::pause).max().unwrap_or_default()
    }
}

impl Rate {
    fn full(self) -> i128 {
        i128::from(self.burst) * PARTS
    }
}

impl Bucket {
    fn room(&mut self, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let gained = i128::try_from(passed).unwrap_or(i128::MAX).saturating_mul(self.rate.per_second.into());
        self.level = self.level.saturating_add(gained).min(self.rate.full());
        self.filled = now;
        usize::try_from(self.level / PARTS).unwrap_or(0)
    }

    /// Until it holds one.
    fn pause(&self) -> Duration {
        let missing = u128::try_from(PARTS - self.level).unwrap_or(0);
        let nanos = missing.div_ceil(self.rate.per_second.into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(iops: u64, burst: u64) -> Limits {
        Limits { requests: Some(Rate { per_second: iops, burst }), bytes: None }
    }

    #[test]
    fn without_limits_there_is_no_throttle() {
        assert!(Throttle::new(Limits::default(), Instant::now()).is_none());
    }

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let start = Instant::now();
        let mut throttle = Throttle::new(limits(1000, 50), start).unwrap();
        assert_eq!(throttle.room(start), 50);
        (0..50).for_each(|_| throttle.charge(0));
        assert_eq!((throttle.room(start), throttle.pause()), (0, Duration::from_millis(1)));
        assert_eq!(throttle.room(start + Duration::from_millis(10)), 10);
        assert_eq!(
            throttle.room(start + Duration::from_secs(10)),
            50,
            "a pause gives no more than the burst"
        );
    }

    #[test]
    fn a_request_larger_than_the_burst_passes_and_is_paid_for() {
        let start = Instant::now();
        let bytes = Some(Rate { per_second: 1 << 20, burst: 4096 });
        let mut throttle = Throttle::new(Limits { requests: None, bytes }, start).unwrap();
        assert!(throttle.room(start) > 0);
        throttle.charge(2 << 20);
        assert_eq!(throttle.room(start + Duration::from_secs(1)), 0);
        assert!(throttle.room(start + Duration::from_secs(2)) > 0);
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_rate_and_burst(
            rate in 1u64..100_000, burst in 1u64..1000, steps in prop::collection::vec((0u64..5_000_000, 0usize..100), 1..100),
        ) {
            let start = Instant::now();
            let mut throttle = Throttle::new(limits(rate, burst), start).unwrap();
            let (mut nanos, mut taken) = (0u64, 0u64);
            for (pause, wanted) in steps {
                nanos += pause;
                let room = throttle.room(start + Duration::from_nanos(nanos)).min(wanted);
                (0..room).for_each(|_| throttle.charge(512));
                taken += u64::try_from(room).unwrap();
                prop_assert!(u128::from(taken) <= u128::from(burst) + u128::from(rate) * u128::from(nanos) / 1_000_000_000 + 1);
            }
        }

        #[test]
        fn after_the_pause_there_is_room(rate in 1u64..1_000_000, burst in 1u64..100, charged in 1u64..200) {
            let start = Instant::now();
            let mut throttle = Throttle::new(limits(rate, burst), start).unwrap();
            (0..charged).for_each(|_| throttle.charge(0));
            let pause = throttle.pause();
            prop_assert!(throttle.room(start + pause) > 0);
        }
    }
}
