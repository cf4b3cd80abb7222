//! What is asked of a backend, and what one guest that asks it sees.

use std::time::{Duration, Instant};

use receiptdisk_tests::rng::Rng;

use crate::guest::{Guest, Op};
use crate::histogram::Histogram;

const SECTOR: u64 = 512;

/// How requests follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// At random offsets; this share of them, in percent, reads.
    Random { read_percent: u64 },
    /// One after the other.
    Sequential { read: bool },
    /// A write, one after the other, and a flush when it is answered; both count as one.
    Commit,
    /// The first guest reads at random offsets of the first half, the other does this in the second, one after the other, and is
    /// not counted.
    Beside(Other),
}

/// What the other guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    WriteAndFlush,
    Discard,
    WriteZeroes,
}

/// Sectors of one discard or write-zeroes: 16 MiB, the most that qemu-storage-daemon takes.
const ERASED_SECTORS: u32 = 16 << 11;

/// One pattern of the benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    pub shape: Shape,
    pub len: u32,
    /// Requests in flight on each queue.
    pub depth: u16,
    pub guests: usize,
    /// Of each guest.
    pub queues: u16,
}

impl Load {
    /// Whether it is run only where it is named.
    pub fn is_extra(&self) -> bool {
        self.is_beside() || self.queues > 1
    }

    /// Whether only one of the guests is counted.
    pub fn is_beside(&self) -> bool {
        matches!(self.shape, Shape::Beside(_))
    }
}

const fn load(name: &'static str, shape: Shape, len: u32, depth: u16, guests: usize) -> Load {
    Load { name, shape, len, depth, guests, queues: 1 }
}

/// All of them.
pub const LOADS: [Load; 14] = [
    load("4k random read, depth 1", Shape::Random { read_percent: 100 }, 4096, 1, 1),
    load("4k random read, depth 32", Shape::Random { read_percent: 100 }, 4096, 32, 1),
    load("4k random write, depth 1", Shape::Random { read_percent: 0 }, 4096, 1, 1),
    load("4k random write, depth 32", Shape::Random { read_percent: 0 }, 4096, 32, 1),
    load("128k sequential read, depth 8", Shape::Sequential { read: true }, 128 << 10, 8, 1),
    load("128k sequential write, depth 8", Shape::Sequential { read: false }, 128 << 10, 8, 1),
    load("100k write and flush, depth 1", Shape::Commit, 100 << 10, 1, 1),
    load("4k random 70% read, depth 16, one guest", Shape::Random { read_percent: 70 }, 4096, 16, 1),
    load("4k random 70% read, depth 16, two guests", Shape::Random { read_percent: 70 }, 4096, 16, 2),
    load("4k random read beside writes and flushes", Shape::Beside(Other::WriteAndFlush), 4096, 1, 2),
    load("4k random read beside discards of 16 MiB", Shape::Beside(Other::Discard), 4096, 1, 2),
    load("4k random read beside zeroing of 16 MiB", Shape::Beside(Other::WriteZeroes), 4096, 1, 2),
    Load { queues: 2, ..load("4k random read, 2 queues of depth 16", READS, 4096, 16, 1) },
    Load { queues: 4, ..load("4k random read, 4 queues of depth 8", READS, 4096, 8, 1) },
];

const READS: Shape = Shape::Random { read_percent: 100 };

/// What one guest saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub requests: u64,
    pub latency: Histogram,
}

/// Keeps `load.depth` requests in flight for `time` and then waits for the last; `number` tells which of the guests it is.
pub fn drive(guest: &mut Guest, load: &Load, number: u64, time: Duration, seed: u64) -> Seen {
    let mut ops = Ops::new(load, guest.sectors(), number, seed);
    let mut seen = Seen::default();
    let began = Instant::now();
    let (mut now, mut in_flight) = (began, load.depth);
    let mut submitted = vec![began; usize::from(load.depth)];
    (0..load.depth).for_each(|slot| guest.put(slot, ops.next()));
    let mut finished = Vec::with_capacity(usize::from(load.depth));
    while in_flight > 0 {
        guest.announce();
        guest.wait(|slot| finished.push(slot));
        now = Instant::now().max(now);
        for slot in finished.drain(..) {
            if ops.is_half_done() {
                guest.put(slot, ops.next());
                continue;
            }
            seen.latency.add(now - submitted[usize::from(slot)]);
            seen.requests += 1;
            if now - began < time {
                submitted[usize::from(slot)] = now;
                guest.put(slot, ops.next());
            } else {
                in_flight -= 1;
            }
        }
    }
    seen
}

/// The requests of one guest.
struct Ops {
    shape: Shape,
    len: u32,
    /// Requests that fit on the disk.
    places: u64,
    next: u64,
    rng: Rng,
    flush_is_next: bool,
    is_first: bool,
}

impl Ops {
    fn new(load: &Load, sectors: u64, number: u64, seed: u64) -> Self {
        let places = sectors * SECTOR / u64::from(load.len);
        let rng = Rng::new(seed * 64 + number);
        let is_first = number == 0;
        Self { shape: load.shape, len: load.len, places, next: 0, rng, flush_is_next: false, is_first }
    }

    /// Whether the request that has come back is the write of a commit whose flush is still to come.
    fn is_half_done(&self) -> bool {
        self.flush_is_next
    }

    fn next(&mut self) -> Op {
        if std::mem::take(&mut self.flush_is_next) {
            return Op::Flush;
        }
        let len = self.len;
        let (place, read) = match self.shape {
            Shape::Random { read_percent: 0 } => (self.rng.below(self.places), false),
            Shape::Random { read_percent: 100 } => (self.rng.below(self.places), true),
            Shape::Random { read_percent } => {
                (self.rng.below(self.places), self.rng.below(100) < read_percent)
            }
            Shape::Sequential { read } => (self.next, read),
            Shape::Commit => {
                self.flush_is_next = true;
                (self.next, false)
            }
            Shape::Beside(_) if self.is_first => (self.rng.below(self.places / 2), true),
            Shape::Beside(Other::WriteAndFlush) => {
                self.flush_is_next = true;
                (self.places / 2 + self.rng.below(self.places / 2), false)
            }
            Shape::Beside(Other::Discard) => {
                return Op::Discard { sector: self.erased(), sectors: ERASED_SECTORS };
            }
            Shape::Beside(Other::WriteZeroes) => {
                return Op::WriteZeroes { sector: self.erased(), sectors: ERASED_SECTORS };
            }
        };
        self.next = (self.next + 1) % self.places;
        let sector = place * u64::from(len) / SECTOR;
        if read { Op::Read { sector, len } } else { Op::Write { sector, len } }
    }

    /// Where the next one begins, round about the second half.
    fn erased(&mut self) -> u64 {
        let sectors = self.places * u64::from(self.len) / SECTOR;
        let count = sectors / 2 / u64::from(ERASED_SECTORS);
        self.next = (self.next + 1) % count;
        sectors / 2 + self.next * u64::from(ERASED_SECTORS)
    }
}
