//! Ranges of the disk that an operator has sealed: nobody writes, discards or zeroes there until an operator unseals them. Pure.
//!
//! Invariant: ranges are sorted, not empty, multiples of [`SEAL_UNIT_BYTES`], and neither overlap nor touch each other.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{MAX_SEALED_RANGES, SEAL_UNIT_BYTES};
use crate::order::ByteRange;

/// See the module. In the state file: a list of pairs, first byte and first byte behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Seals {
    ranges: Vec<ByteRange>,
}

/// Why ranges cannot be sealed or unsealed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum SealError {
    #[error("range {start}-{end}: its ends are multiples of {SEAL_UNIT_BYTES}, the first before the second")]
    BadRange { start: u64, end: u64 },
    #[error("range {start}-{end} goes beyond the disk's end at byte {capacity_bytes}")]
    BeyondEnd { start: u64, end: u64, capacity_bytes: u64 },
    #[error("that would be {0} separate ranges; {MAX_SEALED_RANGES} are possible")]
    TooMany(usize),
}

impl Seals {
    /// All ranges.
    #[must_use]
    pub fn ranges(&self) -> &[ByteRange] {
        &self.ranges
    }

    /// Whether nothing is sealed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes that are sealed.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether a byte of any of `ranges` is sealed.
    #[must_use]
    pub fn touch(&self, ranges: &[ByteRange]) -> bool {
        !self.ranges.is_empty() && ranges.iter().any(|range| self.touches(*range))
    }

    fn touches(&self, range: ByteRange) -> bool {
        let first = self.ranges.partition_point(|sealed| sealed.end <= range.start);
        self.ranges.get(first).is_some_and(|sealed| sealed.start < range.end)
    }

    /// These and `more`, on a disk of `capacity_bytes`.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn with(&self, more: &[ByteRange], capacity_bytes: u64) -> Result<Self, SealError> {
        more.iter().try_for_each(|range| check(*range, capacity_bytes))?;
        let mut all: Vec<ByteRange> = self.ranges.iter().chain(more).copied().collect();
        all.sort_by_key(|range| range.start);
        let mut ranges: Vec<ByteRange> = Vec::with_capacity(all.len());
        for range in all {
            match ranges.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        Self { ranges }.checked()
    }

    /// These without `less`, on a disk of `capacity_bytes`.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn without(&self, less: &[ByteRange], capacity_bytes: u64) -> Result<Self, SealError> {
        less.iter().try_for_each(|range| check(*range, capacity_bytes))?;
        let mut ranges = self.ranges.clone();
        for gone in less {
            ranges = ranges
                .into_iter()
                .flat_map(|range| {
                    [
                        ByteRange { start: range.start, end: range.end.min(gone.start) },
                        ByteRange { start: range.start.max(gone.end), end: range.end },
                    ]
                })
                .filter(|range| !range.is_empty())
                .collect();
        }
        Self { ranges }.checked()
    }

    fn checked(self) -> Result<Self, SealError> {
        debug_assert!(self.ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "sorted and apart");
        let count = self.ranges.len();
        if count > MAX_SEALED_RANGES { Err(SealError::TooMany(count)) } else { Ok(self) }
    }
}

fn check(range: ByteRange, capacity_bytes: u64) -> Result<(), SealError> {
    let ByteRange { start, end } = range;
    let is_unit = |at: u64| at.is_multiple_of(SEAL_UNIT_BYTES);
    if range.is_empty() || !is_unit(start) || !is_unit(end) {
        return Err(SealError::BadRange { start, end });
    }
    if end > capacity_bytes {
        return Err(SealError::BeyondEnd { start, end, capacity_bytes });
    }
    Ok(())
}

impl TryFrom<Vec<(u64, u64)>> for Seals {
    type Error = SealError;

    fn try_from(pairs: Vec<(u64, u64)>) -> Result<Self, SealError> {
        let ranges: Vec<ByteRange> = pairs.into_iter().map(|(start, end)| ByteRange { start, end }).collect();
        Self::default().with(&ranges, u64::MAX)
    }
}

impl From<Seals> for Vec<(u64, u64)> {
    fn from(seals: Seals) -> Self {
        seals.ranges.into_iter().map(|range| (range.start, range.end)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = SEAL_UNIT_BYTES;
    const UNITS: u64 = 40;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start: start * UNIT, end: end * UNIT }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let seals = Seals::default();
        for (start, end) in [(0, 0), (UNIT, UNIT), (2 * UNIT, UNIT), (1, UNIT), (0, 512), (0, u64::MAX)] {
            let bad = ByteRange { start, end };
            assert_eq!(seals.with(&[bad], u64::MAX), Err(SealError::BadRange { start, end }));
            assert_eq!(seals.without(&[bad], u64::MAX), Err(SealError::BadRange { start, end }));
        }
        assert!(matches!(seals.with(&[range(0, 11)], 10 * UNIT), Err(SealError::BeyondEnd { .. })));
        let many: Vec<ByteRange> =
            (0..=MAX_SEALED_RANGES as u64).map(|at| range(2 * at, 2 * at + 1)).collect();
        assert_eq!(seals.with(&many, u64::MAX), Err(SealError::TooMany(MAX_SEALED_RANGES + 1)));
        let most = seals.with(&many[1..], u64::MAX).unwrap();
        assert_eq!(most.ranges().len(), MAX_SEALED_RANGES);
        assert!(most.with(&[range(3, 4)], u64::MAX).is_ok(), "neighbours are joined");
    }

    #[test]
    fn state_file_with_nonsense_is_refused() {
        for text in ["[[0,1]]", "[[8192,4096]]", "[[-4096,0]]", "[0,4096]"] {
            assert!(serde_json::from_str::<Seals>(text).is_err(), "{text}");
        }
        let seals: Seals = serde_json::from_str("[[4096,8192],[0,4096]]").unwrap();
        assert_eq!(serde_json::to_string(&seals).unwrap(), "[[0,8192]]");
    }

    proptest! {
        /// Against one flag a unit.
        #[test]
        fn seals_agree_with_a_flag_a_unit(
            steps in prop::collection::vec((any::<bool>(), 0..UNITS, 1..12_u64), 0..30),
            probes in prop::collection::vec((0..UNITS * UNIT, 1..9 * UNIT), 20),
        ) {
            let mut seals = Seals::default();
            let mut flags = [false; 64];
            for (is_seal, start, len) in steps {
                let one = [range(start, start + len)];
                let change = if is_seal { seals.with(&one, u64::MAX) } else { seals.without(&one, u64::MAX) };
                seals = change.unwrap();
                (start..start + len).for_each(|at| flags[usize::try_from(at).unwrap()] = is_seal);
                prop_assert!(seals.ranges().windows(2).all(|pair| pair[0].end < pair[1].start));
                let sealed = flags.iter().filter(|flag| **flag).count() as u64;
                prop_assert_eq!(seals.len_bytes(), sealed * UNIT);
            }
            for (start, len) in probes {
                let probe = ByteRange { start, end: start + len };
                let expected = (start / UNIT..(start + len).div_ceil(UNIT))
                    .any(|at| flags[usize::try_from(at).unwrap()]);
                prop_assert_eq!(seals.touch(&[probe]), expected);
            }
        }
    }
}
