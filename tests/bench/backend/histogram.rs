//! Latencies, to a thirty-second of their size.

use std::time::Duration;

/// Steps between a power of two and the next.
const STEPS_SHIFT: u32 = 5;
const BUCKETS: usize = 64 << STEPS_SHIFT;

/// Counts by logarithm of nanoseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS] }
    }
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1 << STEPS_SHIFT);
        let shift = nanos.ilog2() - STEPS_SHIFT;
        let bucket = (u64::from(shift) << STEPS_SHIFT) + (nanos >> shift) - (1 << STEPS_SHIFT);
        self.counts[usize::try_from(bucket).unwrap()] += 1;
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
    }

    /// Microseconds that `percent` of all stayed below.
    pub fn percentile_us(&self, percent: f64) -> f64 {
        let total: u64 = self.counts.iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let wanted = total as f64 * percent / 100.0;
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            #[expect(clippy::cast_precision_loss, reason = "as above")]
            let found = below as f64 >= wanted;
            found
        });
        let bucket = u64::try_from(bucket.unwrap_or(0)).unwrap();
        let (shift, step) = (bucket >> STEPS_SHIFT, bucket & ((1 << STEPS_SHIFT) - 1));
        let nanos = ((1 << STEPS_SHIFT) + step) << shift;
        #[expect(clippy::cast_precision_loss, reason = "as above")]
        let micros = nanos as f64 / 1e3;
        micros
    }
}
