//! Which bytes of the disk a host crash could still take back, for guests with `reads=durable`. Pure.
//!
//! Invariants:
//! 1. Ranges are disjoint and ordered by their start.
//! 2. The sequence of a range is not lower than that of the last completed write to any of its bytes
//!    that is not synced; a byte outside all ranges is synced.
//! 3. There are at most `limit` ranges: when there are more, neighbours are joined, together with the clean
//!    bytes between them. That costs a sync too many, never one too few.

use std::collections::BTreeMap;

use crate::order::ByteRange;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dirty {
    end: u64,
    sequence: u64,
}

/// Sequence number of the last completed write of every byte that is not synced.
#[derive(Debug)]
pub struct DirtyMap {
    ranges: BTreeMap<u64, Dirty>,
    limit: usize,
}

impl DirtyMap {
    /// A map of a clean disk that keeps at most `limit` ranges, at least two.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        assert!(limit >= 2);
        Self { ranges: BTreeMap::new(), limit }
    }

    /// Notes that the write with this sequence number, to `range`, has completed.
    pub fn note(&mut self, range: ByteRange, sequence: u64) {
        self.cut_at(range.start);
        self.cut_at(range.end);
        let covered: Vec<u64> = self.ranges.range(range.start..range.end).map(|(&start, _)| start).collect();
        for start in covered {
            self.ranges.remove(&start);
        }
        self.ranges.insert(range.start, Dirty { end: range.end, sequence });
        if self.ranges.len() > self.limit {
            self.coarsen();
        }
    }

    /// The highest sequence number that touches `range`; `None` when all of it is synced.
    #[must_use]
    pub fn highest(&self, range: ByteRange) -> Option<u64> {
        let before =
            self.ranges.range(..range.start).next_back().filter(|(_, dirty)| dirty.end > range.start);
        let inside = self.ranges.range(range.start..range.end);
        before.into_iter().chain(inside).map(|(_, dirty)| dirty.sequence).max()
    }

    /// Forgets every write up to `sequence`: a sync has covered it.
    pub fn forget_synced(&mut self, sequence: u64) {
        self.ranges.retain(|_, dirty| dirty.sequence > sequence);
    }

    /// Divides the range that `at` lies inside of, if there is one.
    fn cut_at(&mut self, at: u64) {
        if let Some((_, dirty)) = self.ranges.range_mut(..at).next_back()
            && dirty.end > at
        {
            let rest = *dirty;
            dirty.end = at;
            self.ranges.insert(at, rest);
        }
    }

    /// Joins every second range with its neighbour.
    fn coarsen(&mut self) {
        let fine: Vec<(u64, Dirty)> = std::mem::take(&mut self.ranges).into_iter().collect();
        for pair in fine.chunks(2) {
            let (Some((start, _)), Some((_, last))) = (pair.first(), pair.last()) else {
                continue;
            };
            let sequence = pair.iter().map(|(_, dirty)| dirty.sequence).max().unwrap_or(last.sequence);
            self.ranges.insert(*start, Dirty { end: last.end, sequence });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn the_last_write_of_each_byte_counts() {
        let mut map = DirtyMap::new(16);
        map.note(range(0, 100), 1);
        map.note(range(40, 60), 2);
        assert_eq!(map.highest(range(0, 40)), Some(1));
        assert_eq!(map.highest(range(59, 60)), Some(2));
        assert_eq!(map.highest(range(60, 61)), Some(1));
        assert_eq!(map.highest(range(0, 100)), Some(2));
        assert_eq!(map.highest(range(100, 200)), None);
        map.forget_synced(1);
        assert_eq!((map.highest(range(0, 40)), map.highest(range(0, 41))), (None, Some(2)));
        map.forget_synced(2);
        assert!(map.ranges.is_empty());
    }

    #[test]
    fn a_full_map_gets_coarser_and_forgets_nothing() {
        let mut map = DirtyMap::new(8);
        for at in 0..1000u64 {
            map.note(range(at * 10, at * 10 + 1), at);
            assert!(map.ranges.len() <= 8);
        }
        for at in 0..1000u64 {
            assert!(map.highest(range(at * 10, at * 10 + 1)) >= Some(at));
        }
    }

    proptest! {
        #[test]
        fn agrees_with_an_array_of_bytes(
            events in prop::collection::vec((0..64u64, 1..20u64, any::<bool>()), 1..200),
            limit in prop::sample::select(vec![2usize, 4, 1000]),
        ) {
            let mut map = DirtyMap::new(limit);
            let mut bytes = [0u64; 84];
            for (sequence, (start, len, sync)) in (1u64..).zip(events) {
                let wanted = range(start, start + len);
                if sync {
                    let up_to = sequence.saturating_sub(len);
                    map.forget_synced(up_to);
                    bytes.iter_mut().filter(|byte| **byte <= up_to).for_each(|byte| *byte = 0);
                } else {
                    map.note(wanted, sequence);
                    for at in start..start + len { bytes[usize::try_from(at).unwrap()] = sequence; }
                }
                let slow = (start..start + len).map(|at| bytes[usize::try_from(at).unwrap()]).max().filter(|s| *s > 0);
                let fast = map.highest(wanted);
                // A coarse map may say more, never less; one with room says exactly this.
                prop_assert!(fast >= slow);
                if limit == 1000 { prop_assert_eq!(fast, slow); }
            }
        }
    }
}
