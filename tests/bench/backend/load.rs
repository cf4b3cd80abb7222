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
}

/// One pattern of the benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    pub shape: Shape,
    pub len: u32,
    pub depth: u16,
    pub guests: usize,
}

const fn load(name: &'static str, shape: Shape, len: u32, depth: u16, guests: usize) -> Load {
    Load { name, shape, len, depth, guests }
}

/// All of them.
pub const LOADS: [Load; 9] = [
    load("4k random read, depth 1", Shape::Random { read_percent: 100 }, 4096, 1, 1),
    load("4k random read, depth 32", Shape::Random { read_percent: 100 }, 4096, 32, 1),
    load("4k random write, depth 1", Shape::Random { read_percent: 0 }, 4096, 1, 1),
    load("4k random write, depth 32", Shape::Random { read_percent: 0 }, 4096, 32, 1),
    load("128k sequential read, depth 8", Shape::Sequential { read: true }, 128 << 10, 8, 1),
    load("128k sequential write, depth 8", Shape::Sequential { read: false }, 128 << 10, 8, 1),
    load("100k write and flush, depth 1", Shape::Commit, 100 << 10, 1, 1),
    load("4k random 70% read, depth 16, one guest", Shape::Random { read_percent: 70 }, 4096, 16, 1),
    load("4k random 70% read, depth 16, two guests", Shape::Random { read_percent: 70 }, 4096, 16, 2),
];

/// What one guest saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub requests: u64,
    pub latency: Histogram,
}

/// Keeps `load.depth` requests in flight for `time` and then waits for the last.
pub fn drive(guest: &mut Guest, load: &Load, time: Duration, seed: u64) -> Seen {
    let mut ops = Ops::new(load, guest.sectors(), seed);
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
}

impl Ops {
    fn new(load: &Load, sectors: u64, seed: u64) -> Self {
        let places = sectors * SECTOR / u64::from(load.len);
        let rng = Rng::new(seed);
        Self { shape: load.shape, len: load.len, places, next: 0, rng, flush_is_next: false }
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
        };
        self.next = (self.next + 1) % self.places;
        let sector = place * u64::from(len) / SECTOR;
        if read { Op::Read { sector, len } } else { Op::Write { sector, len } }
    }
}
