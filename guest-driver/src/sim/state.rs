//! What the disk holds: the cache, what is durable, and every state it was ever in.

use super::{Counts, Lie, Rng, SECTOR_BYTES};
use crate::device::BlockWrite;
use crate::error::DeviceOp;
use crate::rules::Rule;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

pub(super) type Sector = Arc<[u8; SECTOR_BYTES]>;
pub(super) type Sectors<T> = HashMap<u64, T, BuildHasherDefault<SectorHasher>>;

/// Sector numbers need no protection against crafted keys; the simulator looks up millions of them a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SectorHasher(u64);

impl Hasher for SectorHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) size_bytes: u64,
    pub(super) tick: u64,
    pub(super) session: u64,
    pub(super) op: u64,
    pub(super) stop_at: Option<(u64, u64)>,
    pub(super) fail_at: Option<u64>,
    pub(super) lie_at: Option<(u64, Lie)>,
    /// What was there before the history begins; shared by forks.
    pub(super) base: Arc<Sectors<Sector>>,
    pub(super) history: Sectors<Vec<(u64, Sector)>>,
    pub(super) durable: Sectors<Sector>,
    pub(super) pending: Vec<(u64, u64, Sector)>,
    pub(super) counts: Counts,
}

pub(super) fn zeroes() -> Sector {
    Arc::new([0; SECTOR_BYTES])
}

impl State {
    pub(super) fn set(&mut self, sector: u64, bytes: Sector) {
        self.tick += 1;
        self.history.entry(sector).or_default().push((self.tick, bytes));
    }

    pub(super) fn at(&self, sector: u64, tick: u64) -> Option<&Sector> {
        let past = self.history.get(&sector).map(Vec::as_slice).unwrap_or_default();
        let after = past.partition_point(|(t, _)| *t <= tick);
        let last = after.checked_sub(1).and_then(|last| past.get(last)).map(|(_, bytes)| bytes);
        last.or_else(|| self.base.get(&sector))
    }

    /// Counts an operation of the writer; an error when it has stopped or stops now.
    pub(super) fn begin(&mut self, session: u64, op: DeviceOp) -> Result<(), &'static str> {
        if session != self.session && Rule::Fenced.holds() {
            // A fenced writer may still read.
            return if op == DeviceOp::Read { Ok(()) } else { Err("the writer was stopped") };
        }
        match op {
            DeviceOp::Read => self.counts.reads += 1,
            DeviceOp::Write => self.counts.writes += 1,
            DeviceOp::Discard => self.counts.discards += 1,
            DeviceOp::Flush => self.counts.flushes += 1,
        }
        self.tick += 1;
        if session != self.session {
            return Ok(());
        }
        let now = self.op;
        self.op += 1;
        if self.fail_at == Some(now) {
            return Err("the device failed");
        }
        match self.stop_at {
            Some((at, _)) if now == at && !matches!(op, DeviceOp::Write | DeviceOp::Discard) => {
                self.session += 1;
                Err("the writer stops here")
            }
            _ => Ok(()),
        }
    }

    /// The current write on its way; `None` where the disk only says that it has done it.
    pub(super) fn landing<'a>(&self, session: u64, write: BlockWrite<'a>) -> Option<Landing<'a>> {
        let lie =
            self.lie_at.filter(|(at, _)| session == self.session && at + 1 == self.op).map(|(_, lie)| lie);
        let offset_bytes = match lie {
            Some(Lie::Lose) => return None,
            Some(Lie::Misdirect(elsewhere)) => elsewhere.min(self.size_bytes - write.bytes.len() as u64),
            None => write.offset_bytes,
        };
        Some(Landing {
            op: self.counts.writes,
            next_sector: offset_bytes / SECTOR_BYTES as u64,
            rest: write.bytes.chunks_exact(SECTOR_BYTES),
        })
    }

    /// Lands writes that are under way at the same time, sector by sector, in an order that depends on the tick alone; at most `stop`
    /// sectors of them.
    pub(super) fn land(&mut self, mut landings: Vec<Landing<'_>>, stop: Option<u64>) {
        let mut rng = Rng(self.tick);
        let mut left = stop.unwrap_or(u64::MAX);
        while left > 0 && !landings.is_empty() {
            let at = usize::try_from(rng.below(landings.len() as u64)).unwrap_or_default();
            let landing = &mut landings[at];
            let Some(bytes) = landing.rest.next() else {
                landings.swap_remove(at);
                continue;
            };
            let mut copy = [0; SECTOR_BYTES];
            copy.copy_from_slice(bytes);
            let (op, sector, copy) = (landing.op, landing.next_sector, Arc::new(copy));
            landing.next_sector += 1;
            self.set(sector, copy.clone());
            self.pending.push((op, sector, copy));
            left -= 1;
        }
    }

    /// Sectors of a range that were ever written.
    pub(super) fn known_sectors(&self, first: u64, count: u64) -> Vec<u64> {
        let is_known = |sector: &u64| self.history.contains_key(sector) || self.base.contains_key(sector);
        if count <= 4096 {
            return (first..first + count).filter(is_known).collect();
        }
        let mut known: Vec<u64> = self.base.keys().chain(self.history.keys()).copied().collect();
        known.retain(|sector| (first..first + count).contains(sector));
        known.sort_unstable();
        known.dedup();
        known
    }

    /// Sectors of the current write that land before the writer stops.
    pub(super) fn sectors_before_stop(&self) -> Option<u64> {
        self.stop_at.filter(|(at, _)| at + 1 == self.op).map(|(_, sectors)| sectors)
    }
}

/// A write that the disk took, on its way into the cache.
pub(super) struct Landing<'a> {
    op: u64,
    next_sector: u64,
    rest: std::slice::ChunksExact<'a, u8>,
}

impl Landing<'_> {
    pub(super) fn sectors(&self) -> u64 {
        self.rest.len() as u64
    }
}
