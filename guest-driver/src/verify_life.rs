//! What the full check accepts as missing, and only with proof from the chain: parts of the log that a Retire record names, and data that an Erase
//! record names.

use crate::record::{Header, Kind};
use crate::retire::{Range, Retired, decode_ranges};
use crate::rules::Rule;
use crate::superblock::Superblock;
use std::collections::{HashMap, HashSet};

/// Sequences that no segment holds.
#[derive(Clone, Debug)]
pub struct Gap {
    /// First one.
    pub first_seq: u64,
    /// Last one.
    pub last_seq: u64,
    /// Hash of the header before, where it is known.
    pub prev_hash: Option<[u8; 32]>,
    /// What the record behind names as the hash before it, where it is known.
    pub last_hash: Option<[u8; 32]>,
    /// The segment behind.
    pub segment: u64,
}

/// What was met on the way through the log.
#[derive(Debug, Default)]
pub struct Life {
    /// Gaps between segments.
    pub gaps: Vec<Gap>,
    /// Parts of the chain that have gone, by their first sequence.
    ranges: HashMap<u64, Vec<Range>>,
    /// Segments, with their generations, that have gone.
    retired: HashSet<(u64, u32)>,
    /// Records whose data is zero: path and place.
    pub zeroed: HashMap<u64, (Vec<u8>, String)>,
}

impl Life {
    /// Whether proof is still missing.
    pub fn is_open(&self) -> bool {
        !self.gaps.is_empty() || !self.zeroed.is_empty()
    }

    /// Takes what a record proves; false when it is a Retire record that does not make sense.
    pub fn prove(&mut self, superblock: &Superblock, header: &Header, data: &[u8]) -> bool {
        match header.kind {
            Kind::Erase => {
                self.zeroed.remove(&header.previous_version_seq);
                true
            }
            Kind::Retire => {
                let (Some(own), Some(others)) =
                    (Retired::of(header, &superblock.geometry), decode_ranges(data))
                else {
                    return false;
                };
                self.retired.insert((own.segment, own.generation));
                for range in others.into_iter().chain([own.range]) {
                    self.ranges.entry(range.first_seq).or_default().push(range);
                }
                true
            }
            _ => true,
        }
    }

    /// Whether a Retire record names this life of a segment.
    pub fn has_retired(&self, segment: u64, generation: u32) -> bool {
        self.retired.contains(&(segment, generation))
    }

    /// Whether Retire records bridge the gap from hash to hash.
    pub fn bridges(&self, gap: &Gap) -> bool {
        let (mut next_seq, mut hash) = (gap.first_seq, gap.prev_hash);
        while next_seq <= gap.last_seq {
            let fits = |range: &&Range| {
                range.last_seq <= gap.last_seq && hash.is_none_or(|hash| hash == range.prev_hash)
            };
            let longest =
                self.ranges.get(&next_seq).into_iter().flatten().filter(fits).max_by_key(|r| r.last_seq);
            let Some(range) = longest else { return false };
            (next_seq, hash) = (range.last_seq + 1, Some(range.last_hash));
        }
        gap.last_hash.is_none_or(|last| Some(last) == hash)
    }

    /// Notes a record whose data is all zero although it should not be; false when that is no excuse.
    pub fn note_zeroed(&mut self, header: &Header, place: &str) -> bool {
        if header.kind != Kind::Put {
            return false;
        }
        self.zeroed.insert(header.seq, (header.meta.clone(), place.to_owned()));
        if !Rule::EraseIsProven.holds() {
            self.zeroed.clear();
        }
        true
    }
}
