//! Drives several guests at random and records what they saw as a [`History`].

use std::time::Instant;

use crate::SECTOR;
use crate::history::{Action, History, OPEN, Op, Stamp, Version};
use crate::raw::{RawGuest, Request, status};
use crate::rng::Rng;
use crate::wait::SAFETY_NET;

/// Bytes that tell a sector's write; repeated until the sector is full, so that a torn sector shows.
const MARK_BYTES: usize = 32;

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// What one write wrote there.
    Of(Version),
    /// Neither zeroes nor what any write would write there: torn, or of another sector.
    Broken,
}

/// The bytes that a write of `version` gives `count` sectors from `sector` on.
pub fn marked(version: Version, sector: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * SECTOR);
    for sector in (sector..).take(count) {
        bytes.extend_from_slice(&mark(version, sector).repeat(SECTOR / MARK_BYTES));
    }
    bytes
}

/// What each of the sectors from `sector` on holds.
pub fn marks(bytes: &[u8], sector: u64) -> Vec<Mark> {
    (sector..).zip(bytes.chunks(SECTOR)).map(|(sector, bytes)| read_mark(bytes, sector)).collect()
}

fn mark(version: Version, sector: u64) -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    mark[..4].copy_from_slice(&version.writer.to_le_bytes());
    mark[4..8].copy_from_slice(&version.sequence.to_le_bytes());
    mark[8..16].copy_from_slice(&sector.to_le_bytes());
    let check = crc32c::crc32c(&mark[..16]);
    mark[16..20].copy_from_slice(&check.to_le_bytes());
    mark
}

fn read_mark(bytes: &[u8], sector: u64) -> Mark {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let version = Version { writer: word(0), sequence: word(4) };
    let is_whole = bytes[MARK_BYTES..] == bytes[..SECTOR - MARK_BYTES];
    let is_zero = bytes[..MARK_BYTES] == [0; MARK_BYTES];
    if is_whole && (is_zero || bytes[..MARK_BYTES] == mark(version, sector)) {
        Mark::Of(version)
    } else {
        Mark::Broken
    }
}

/// A guest and what it does.
#[derive(Debug)]
pub struct Client {
    /// The guest, its queues started.
    pub guest: RawGuest,
    /// How many of its queues are used.
    pub queues: usize,
    /// Whether it writes.
    pub writes: bool,
}

/// How a history is made.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Sectors that all guests work on.
    pub sectors: usize,
    /// Sectors of the longest request.
    pub longest: usize,
    /// Requests of the whole history.
    pub requests: usize,
    /// Requests that one guest has in flight.
    pub depth: usize,
}

/// Guests on one disk.
#[derive(Debug)]
pub struct Recorder {
    clients: Vec<Client>,
    rng: Rng,
    now: Stamp,
    /// Writes so far, of all histories: no two ever have the same version.
    writes: u32,
}

#[derive(Debug)]
struct InFlight {
    client: usize,
    queue: usize,
    head: u16,
    op: usize,
}

impl Recorder {
    /// Guests that do what `seed` says.
    pub fn new(clients: Vec<Client>, seed: u64) -> Self {
        Self { clients, rng: Rng::new(seed), now: 0, writes: 0 }
    }

    /// Makes requests at random on sectors from `base` on and records them. The last one reads all that the history covers.
    ///
    /// # Panics
    /// When a request fails, or a sector holds what no write would write.
    #[track_caller]
    pub fn record(&mut self, base: u64, load: Load) -> History {
        self.record_while(base, load, |_| ())
    }

    /// As [`Recorder::record`], with `disturb` called again and again meanwhile.
    ///
    /// # Panics
    /// As there.
    #[track_caller]
    pub fn record_while(&mut self, base: u64, load: Load, mut disturb: impl FnMut(&mut [Client])) -> History {
        self.now = 0;
        let initial =
            versions(&self.clients[0].guest.request(&Request::read(base, load.sectors * SECTOR)).data, base);
        let mut history = History { initial, ops: Vec::new() };
        let mut in_flight: Vec<InFlight> = Vec::new();
        let start = Instant::now();
        while history.ops.len() < load.requests || !in_flight.is_empty() {
            for client in 0..self.clients.len() {
                let running = in_flight.iter().filter(|running| running.client == client).count();
                // A burst in one kick now and then: what one ring holds is taken as a batch.
                let room = load.depth - running;
                if room > 0 && history.ops.len() < load.requests {
                    let count = 1 + self.rng.index(room);
                    self.submit(client, count, base, load, &mut history, &mut in_flight);
                }
            }
            disturb(&mut self.clients);
            if !self.collect(base, &mut history, &mut in_flight) {
                std::thread::yield_now();
            }
            assert!(start.elapsed() < SAFETY_NET, "no answer to {in_flight:?}");
        }
        let reader = self.rng.index(self.clients.len());
        let (invoked, answered) = (self.tick(), self.tick());
        let last = self.clients[reader].guest.request(&Request::read(base, load.sectors * SECTOR));
        let action = Action::Read(versions(&last.data, base));
        history.ops.push(Op { first: 0, action, invoked, answered });
        history
    }

    fn submit(
        &mut self,
        client: usize,
        count: usize,
        base: u64,
        load: Load,
        history: &mut History,
        in_flight: &mut Vec<InFlight>,
    ) {
        let queue = self.rng.index(self.clients[client].queues);
        for _ in 0..count {
            let sectors = 1 + self.rng.index(load.longest.min(load.sectors));
            let first = self.rng.index(load.sectors - sectors + 1);
            let is_write = self.clients[client].writes && self.rng.below(2) == 0;
            let (action, request) = if is_write {
                self.writes += 1;
                let version = Version { writer: u32::try_from(client).unwrap() + 1, sequence: self.writes };
                let request =
                    Request::write(base + first as u64, &marked(version, base + first as u64, sectors));
                (Action::Write { version, count: sectors }, request)
            } else {
                (Action::Read(Vec::new()), Request::read(base + first as u64, sectors * SECTOR))
            };
            let request = self.shape(request);
            let invoked = self.tick();
            let guest = &mut self.clients[client].guest;
            let head = guest.publish(queue, &request);
            in_flight.push(InFlight { client, queue, head, op: history.ops.len() });
            history.ops.push(Op { first, action, invoked, answered: OPEN });
        }
        self.clients[client].guest.kick_if_wanted(queue, u16::try_from(count).unwrap());
    }

    /// Addresses that direct IO takes as they are, and those that it does not.
    fn shape(&mut self, request: Request) -> Request {
        let request = request.skew(self.rng.pick(&[0, 0, 0, 1, 8, 511]));
        if self.rng.below(2) == 0 { request.indirect() } else { request }
    }

    /// Takes all answers that are there.
    #[track_caller]
    fn collect(&mut self, base: u64, history: &mut History, in_flight: &mut Vec<InFlight>) -> bool {
        let before = in_flight.len();
        for client in 0..self.clients.len() {
            for queue in 0..self.clients[client].queues {
                while let Some((head, outcome)) = self.clients[client].guest.poll_used(queue) {
                    let answered = self.tick();
                    let is_it = |r: &InFlight| (r.client, r.queue, r.head) == (client, queue, head);
                    let position = in_flight.iter().position(is_it).expect("what is used was in flight");
                    let op = &mut history.ops[in_flight.swap_remove(position).op];
                    assert_eq!(outcome.status, status::OK, "{op:?}");
                    op.answered = answered;
                    if let Action::Read(found) = &mut op.action {
                        *found = versions(&outcome.data, base + op.first as u64);
                    }
                }
            }
        }
        in_flight.len() < before
    }

    fn tick(&mut self) -> Stamp {
        self.now += 1;
        self.now
    }
}

/// A broken sector has a version that nobody writes.
fn versions(bytes: &[u8], sector: u64) -> Vec<Version> {
    let broken = Version { writer: u32::MAX, sequence: u32::MAX };
    let version = |mark| match mark {
        Mark::Of(version) => version,
        Mark::Broken => broken,
    };
    marks(bytes, sector).into_iter().map(version).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_torn_and_misplaced_sectors() {
        let version = Version { writer: 1, sequence: 7 };
        let mut bytes = marked(version, 5, 3);
        assert_eq!(marks(&bytes, 5), [Mark::Of(version); 3]);
        assert_eq!(marks(&bytes, 6), [Mark::Broken; 3]);
        assert_eq!(marks(&[0; SECTOR], 5), [Mark::Of(Version::default())]);
        let later = marked(Version { writer: 1, sequence: 8 }, 5, 3);
        bytes[700..900].copy_from_slice(&later[700..900]);
        assert_eq!(marks(&bytes, 5), [Mark::Of(version), Mark::Broken, Mark::Of(version)]);
    }
}
