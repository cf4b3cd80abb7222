//! A simulated disk on which the real reader and writer run.
//!
//! The faults, as prose: a write lands sector by sector (512 bytes) in a volatile cache, several that are made at the same time in any
//! mixture; a flush makes all of it durable. A host crash
//! keeps each write since the last flush whole, loses it whole, or tears it sector by sector, in any order. A guest crash
//! stops the writer at any sector but keeps the cache. A stopped writer is fenced: nothing of it lands later. The disk remembers
//! every state it was ever in, so a reader can be run after the fact at any speed through the past, sector by sector: readers leave no
//! trace, so that is the same as running both at once, and every schedule repeats from its seed. A write can also be lost or land elsewhere
//! although the disk says that it is done, and bits can rot. What was discarded reads as it was, as zeroes or as garbage, sector by sector.

#[cfg(test)]
mod checksum_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod exhaustive_tests;
#[cfg(test)]
mod failing_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod field_tests;
mod handles;
#[cfg(test)]
mod lie_tests;
#[cfg(test)]
mod life_rule_tests;
#[cfg(test)]
mod life_tests;
#[cfg(test)]
mod life_world;
#[cfg(test)]
mod parallel_tests;
#[cfg(test)]
mod repair_case_tests;
#[cfg(test)]
mod repair_tests;
#[cfg(test)]
mod repair_world_tests;
#[cfg(test)]
mod review_tests;
#[cfg(test)]
mod rule_tests;
#[cfg(test)]
mod schedule_tests;
mod state;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod world;

pub use handles::{SimReader, SimWriter};

use state::{Sectors, State, zeroes};
use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR_BYTES: usize = 512;

/// What a disk that lies does with a write that it says it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing lands.
    Lose,
    /// It lands at this byte offset instead.
    Misdirect(u64),
}

/// A small repeatable random number generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What happens to the writes that were not flushed.
#[derive(Debug)]
pub enum Fate<'a> {
    /// All of them land.
    Keep,
    /// None of them lands.
    Lose,
    /// Each is kept, lost or torn.
    Random(&'a mut Rng),
}

/// Operations so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
}

/// The disk. Clones of the handle share it; [`Sim::fork`] copies it.
#[derive(Clone, Debug)]
pub struct Sim {
    state: Arc<Mutex<State>>,
}

impl Sim {
    /// A disk of zeroes.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let state = State { size_bytes, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the disk with its own future.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.lock().clone())) }
    }

    /// A handle for a new writer; the one before is fenced.
    #[must_use]
    pub fn writer(&self) -> SimWriter {
        let mut state = self.lock();
        state.session += 1;
        state.op = 0;
        state.stop_at = None;
        state.fail_at = None;
        state.lie_at = None;
        SimWriter { sim: self.clone(), session: state.session }
    }

    /// Stops the current writer at its operation `op`; a write lands its first `sectors` sectors.
    pub fn stop_at(&self, op: u64, sectors: u64) {
        self.lock().stop_at = Some((op, sectors));
    }

    /// Makes the current writer's operation `op` fail; the ones after it work.
    pub fn fail_at(&self, op: u64) {
        self.lock().fail_at = Some(op);
    }

    /// Makes the disk lie about the current writer's operation `op`, if it is a write.
    pub fn lie_at(&self, op: u64, lie: Lie) {
        self.lock().lie_at = Some((op, lie));
    }

    /// Forgets the past, all of it durable: forks are cheap from here.
    pub fn freeze(&self) {
        let mut state = self.lock();
        let mut base = (*state.base).clone();
        for (sector, past) in std::mem::take(&mut state.history) {
            base.extend(past.last().map(|(_, bytes)| (sector, bytes.clone())));
        }
        state.base = Arc::new(base);
        state.durable.clear();
        state.pending.clear();
    }

    /// Every sector that was ever written, in order.
    #[must_use]
    pub fn sectors(&self) -> Vec<u64> {
        let state = self.lock();
        let mut sectors: Vec<u64> = state.base.keys().chain(state.history.keys()).copied().collect();
        sectors.sort_unstable();
        sectors.dedup();
        sectors
    }

    /// Power failure: the writer is dead and unflushed writes meet their fate.
    pub fn crash_host(&self, mut fate: Fate<'_>) {
        let mut state = self.lock();
        state.session += 1;
        let pending = std::mem::take(&mut state.pending);
        let mut fates: Sectors<u64> = Sectors::default();
        let mut touched: Vec<u64> = pending.iter().map(|(_, sector, _)| *sector).collect();
        touched.sort_unstable();
        touched.dedup();
        for (op, sector, bytes) in pending {
            let is_kept = match &mut fate {
                Fate::Keep => true,
                Fate::Lose => false,
                Fate::Random(rng) => match *fates.entry(op).or_insert_with(|| rng.below(3)) {
                    0 => true,
                    1 => false,
                    _ => rng.chance(50),
                },
            };
            if is_kept {
                state.durable.insert(sector, bytes);
            }
        }
        state.tick += 1;
        for sector in touched {
            let bytes = state.durable.get(&sector).or_else(|| state.base.get(&sector)).cloned();
            let bytes = bytes.unwrap_or_else(zeroes);
            state.set(sector, bytes);
        }
    }

    /// The guest of the writer dies; the cache stays.
    pub fn crash_guest(&self) {
        self.lock().session += 1;
    }

    /// Flips bits of one byte, durably.
    pub fn rot(&self, offset_bytes: u64, mask: u8) {
        let mut state = self.lock();
        let sector = offset_bytes / SECTOR_BYTES as u64;
        let at = usize::try_from(offset_bytes % SECTOR_BYTES as u64).unwrap_or_default();
        let tick = state.tick;
        let mut bytes = state.at(sector, tick).map_or([0; SECTOR_BYTES], |b| **b);
        bytes[at] ^= mask;
        let bytes = Arc::new(bytes);
        state.durable.insert(sector, bytes.clone());
        state.set(sector, bytes);
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.lock().size_bytes
    }

    /// Makes the disk larger.
    pub fn resize(&self, size_bytes: u64) {
        let mut state = self.lock();
        assert!(size_bytes >= state.size_bytes, "disks do not shrink");
        state.size_bytes = size_bytes;
    }

    /// Bytes that are not zero by nature: sectors that were written and not zeroed since.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        let state = self.lock();
        let tick = state.tick;
        let sectors = state.known_sectors(0, state.size_bytes / SECTOR_BYTES as u64);
        let used = sectors
            .iter()
            .filter(|sector| state.at(**sector, tick).is_some_and(|b| b.iter().any(|b| *b != 0)));
        used.count() as u64 * SECTOR_BYTES as u64
    }

    /// Whether these bytes lie anywhere on the disk, inside one sector and its neighbour.
    #[must_use]
    pub fn holds_bytes(&self, needle: &[u8]) -> bool {
        let state = self.lock();
        let tick = state.tick;
        let sectors = state.known_sectors(0, state.size_bytes / SECTOR_BYTES as u64);
        sectors.iter().any(|sector| {
            let pair =
                [*sector, sector + 1].map(|s| state.at(s, tick).map_or([0; SECTOR_BYTES], |bytes| **bytes));
            pair.concat().windows(needle.len()).any(|window| window == needle)
        })
    }

    /// A reader that always sees the newest state.
    #[must_use]
    pub fn reader_of_now(&self) -> SimReader {
        self.past(u64::MAX / 2, u64::MAX, 0, 0)
    }

    /// Time of the disk: grows with each operation and each sector that changes.
    #[must_use]
    pub fn tick(&self) -> u64 {
        self.lock().tick
    }

    /// Operations of the current writer.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.lock().op
    }

    /// Operations of all writers.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// A reader that sees the disk as it was, from `start_tick` on, at most up to `end_tick`; between two sectors up to
    /// `step_max` ticks pass.
    #[must_use]
    pub fn past(&self, start_tick: u64, end_tick: u64, step_max: u64, seed: u64) -> SimReader {
        SimReader {
            sim: self.clone(),
            tick: Cell::new(start_tick),
            end_tick,
            step_max,
            rng: RefCell::new(Rng(seed)),
            reads: Cell::new(0),
        }
    }

    /// A reader that sees the disk as it is now.
    #[must_use]
    pub fn reader(&self) -> SimReader {
        let now = self.tick();
        self.past(now, now, 0, 0)
    }
}
