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
mod damage_tests;
#[cfg(test)]
mod exhaustive_tests;
#[cfg(test)]
mod failing_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod field_tests;
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
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod world;

use crate::device::{BlockWrite, Device, DeviceResult, check_range};
use crate::error::{DeviceError, DeviceOp};
use crate::rules::Rule;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR_BYTES: usize = 512;
type Sector = Arc<[u8; SECTOR_BYTES]>;
type Sectors<T> = HashMap<u64, T, BuildHasherDefault<SectorHasher>>;

/// Sector numbers need no protection against crafted keys; the simulator looks up millions of them a second.
#[derive(Clone, Copy, Debug, Default)]
struct SectorHasher(u64);

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

#[derive(Clone, Debug, Default)]
struct State {
    size_bytes: u64,
    tick: u64,
    session: u64,
    op: u64,
    stop_at: Option<(u64, u64)>,
    fail_at: Option<u64>,
    lie_at: Option<(u64, Lie)>,
    /// What was there before the history begins; shared by forks.
    base: Arc<Sectors<Sector>>,
    history: Sectors<Vec<(u64, Sector)>>,
    durable: Sectors<Sector>,
    pending: Vec<(u64, u64, Sector)>,
    counts: Counts,
}

fn zeroes() -> Sector {
    Arc::new([0; SECTOR_BYTES])
}

impl State {
    fn set(&mut self, sector: u64, bytes: Sector) {
        self.tick += 1;
        self.history.entry(sector).or_default().push((self.tick, bytes));
    }

    fn at(&self, sector: u64, tick: u64) -> Option<&Sector> {
        let past = self.history.get(&sector).map(Vec::as_slice).unwrap_or_default();
        let after = past.partition_point(|(t, _)| *t <= tick);
        let last = after.checked_sub(1).and_then(|last| past.get(last)).map(|(_, bytes)| bytes);
        last.or_else(|| self.base.get(&sector))
    }

    /// Counts an operation of the writer; an error when it has stopped or stops now.
    fn begin(&mut self, session: u64, op: DeviceOp) -> Result<(), &'static str> {
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
    fn landing<'a>(&self, session: u64, write: BlockWrite<'a>) -> Option<Landing<'a>> {
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
    fn land(&mut self, mut landings: Vec<Landing<'_>>, stop: Option<u64>) {
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
    fn known_sectors(&self, first: u64, count: u64) -> Vec<u64> {
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
    fn sectors_before_stop(&self) -> Option<u64> {
        self.stop_at.filter(|(at, _)| at + 1 == self.op).map(|(_, sectors)| sectors)
    }
}

/// A write that the disk took, on its way into the cache.
struct Landing<'a> {
    op: u64,
    next_sector: u64,
    rest: std::slice::ChunksExact<'a, u8>,
}

impl Landing<'_> {
    fn sectors(&self) -> u64 {
        self.rest.len() as u64
    }
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

/// The writer's handle.
#[derive(Debug)]
pub struct SimWriter {
    sim: Sim,
    session: u64,
}

impl SimWriter {
    /// Changes what a range of sectors holds; those that were never written stay zero.
    fn clear(
        &self,
        op: DeviceOp,
        offset_bytes: u64,
        len_bytes: u64,
        content: impl Fn(u64, u64) -> Option<[u8; SECTOR_BYTES]>,
    ) -> DeviceResult<()> {
        let mut state = self.sim.lock();
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        check_range(op, state.size_bytes, offset_bytes, len)?;
        state.begin(self.session, op).map_err(|why| failed(op, offset_bytes, len, why))?;
        let stop = state.sectors_before_stop().filter(|_| self.session == state.session);
        let number = state.counts.writes + (state.counts.discards << 32);
        let sectors =
            state.known_sectors(offset_bytes / SECTOR_BYTES as u64, len_bytes / SECTOR_BYTES as u64);
        for (done, sector) in (0_u64..).zip(sectors) {
            if stop.is_some_and(|stop| done >= stop) {
                break;
            }
            if let Some(bytes) = content(sector, state.tick) {
                let bytes = Arc::new(bytes);
                state.set(sector, bytes.clone());
                state.pending.push((number, sector, bytes));
            }
        }
        if stop.is_some() {
            state.session += 1;
            return Err(failed(op, offset_bytes, len, "the writer stops here"));
        }
        Ok(())
    }
}

fn failed(op: DeviceOp, offset_bytes: u64, len_bytes: usize, why: &'static str) -> DeviceError {
    DeviceError { op, offset_bytes, len_bytes, source: std::io::Error::other(why) }
}

impl Device for SimWriter {
    fn size_bytes(&self) -> u64 {
        self.sim.lock().size_bytes
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        let mut state = self.sim.lock();
        check_range(DeviceOp::Read, state.size_bytes, offset_bytes, buf.len())?;
        let len = buf.len();
        state
            .begin(self.session, DeviceOp::Read)
            .map_err(|why| failed(DeviceOp::Read, offset_bytes, len, why))?;
        let tick = state.tick;
        for (sector, bytes) in (offset_bytes / SECTOR_BYTES as u64..).zip(buf.chunks_exact_mut(SECTOR_BYTES))
        {
            match state.at(sector, tick) {
                Some(found) => bytes.copy_from_slice(found.as_slice()),
                None => bytes.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, offset_bytes: u64, bytes: &[u8]) -> DeviceResult<()> {
        self.write_many(&mut std::iter::once(BlockWrite { offset_bytes, bytes }))
    }

    fn write_many<'a>(&self, writes: &mut dyn Iterator<Item = BlockWrite<'a>>) -> DeviceResult<()> {
        let writes: Vec<BlockWrite<'a>> = writes.collect();
        let mut state = self.sim.lock();
        let mut landings = Vec::new();
        let mut stop = None;
        let mut done = Ok(());
        for write in writes {
            let (len, before) = (write.bytes.len(), landings.iter().map(Landing::sectors).sum::<u64>());
            let fail = |why| failed(DeviceOp::Write, write.offset_bytes, len, why);
            check_range(DeviceOp::Write, state.size_bytes, write.offset_bytes, len)?;
            match state.begin(self.session, DeviceOp::Write) {
                Ok(()) => landings.extend(state.landing(self.session, write)),
                Err(why) => done = done.and(Err(fail(why))), // the others land all the same
            }
            if self.session == state.session
                && let Some(sectors) = state.sectors_before_stop()
            {
                stop = Some(before + sectors);
                done = done.and(Err(fail("the writer stops here")));
                break;
            }
        }
        state.land(landings, stop);
        state.session += u64::from(stop.is_some());
        done
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        self.clear(DeviceOp::Write, offset_bytes, len_bytes, |_, _| Some([0; SECTOR_BYTES]))
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        self.clear(DeviceOp::Discard, offset_bytes, len_bytes, |sector, tick| {
            match Rng(sector ^ tick).below(4) {
                0 => None,
                1 => Some([0xdd; SECTOR_BYTES]),
                _ => Some([0; SECTOR_BYTES]),
            }
        })
    }

    fn flush(&self) -> DeviceResult<()> {
        let mut state = self.sim.lock();
        state.begin(self.session, DeviceOp::Flush).map_err(|why| failed(DeviceOp::Flush, 0, 0, why))?;
        for (_, sector, bytes) in std::mem::take(&mut state.pending) {
            state.durable.insert(sector, bytes);
        }
        Ok(())
    }
}

/// A reader's handle.
#[derive(Debug)]
pub struct SimReader {
    sim: Sim,
    tick: Cell<u64>,
    end_tick: u64,
    step_max: u64,
    rng: RefCell<Rng>,
    reads: Cell<u64>,
}

impl SimReader {
    /// Where the reader is in time.
    pub fn tick(&self) -> u64 {
        self.tick.get()
    }

    /// Reads so far.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }
}

impl Device for SimReader {
    fn size_bytes(&self) -> u64 {
        self.sim.lock().size_bytes
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        let state = self.sim.lock();
        check_range(DeviceOp::Read, state.size_bytes, offset_bytes, buf.len())?;
        self.reads.set(self.reads.get() + 1);
        for (sector, bytes) in (offset_bytes / SECTOR_BYTES as u64..).zip(buf.chunks_exact_mut(SECTOR_BYTES))
        {
            let step = self.rng.borrow_mut().below(self.step_max + 1);
            self.tick.set((self.tick.get() + step).min(self.end_tick));
            match state.at(sector, self.tick.get()) {
                Some(found) => bytes.copy_from_slice(found.as_slice()),
                None => bytes.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        Err(failed(DeviceOp::Write, offset_bytes, buf.len(), "readers do not write"))
    }

    fn flush(&self) -> DeviceResult<()> {
        Err(failed(DeviceOp::Flush, 0, 0, "readers do not flush"))
    }
}
