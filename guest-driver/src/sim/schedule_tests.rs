//! Seeded schedules: one writer that crashes and comes back, readers at any speed, and what each of them may see.
//!
//! `RECEIPT_SCHEDULES=100000 cargo test schedules` runs more; a failing seed is printed and repeats.

use super::{Fate, Rng, Sim};
use crate::layout::PAGE_BYTES;
use crate::path::PathHash;
use crate::{Error, FormatOptions, Put, Reader, ReceiptPath, Writer, WriterOptions, format};
use std::collections::HashMap;
use std::sync::OnceLock;

const PATHS: usize = 5;
const FILLERS: usize = 50;
const PATH_KEY: [u8; 32] = [9; 32];
const NEVER: u64 = u64::MAX;

/// A value of a path and when a reader may see it. Value 0 = nothing stored.
#[derive(Debug)]
struct Seen {
    end: u64,
    value: u64,
}

#[derive(Debug)]
struct World {
    sim: Sim,
    /// When the store was made.
    first_tick: u64,
    rng: Rng,
    seen: Vec<Vec<Seen>>,
    acked: Vec<u64>,
    in_flight: Vec<Vec<u64>>,
    lens: HashMap<u64, usize>,
    /// Path, from, to: a crash may have taken an index entry back that was acknowledged; a put may be half done.
    unclean: Vec<(usize, u64, u64)>,
    last_cycle: Vec<usize>,
    host_crashes: Vec<u64>,
    next_value: u64,
    bad: Vec<String>,
}

/// The paths share two index pages with the fillers behind them, so that a page holds entries older than the replay window and
/// changes in more than one sector.
fn path(number: usize) -> ReceiptPath {
    static NAMES: OnceLock<Vec<ReceiptPath>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let pages = (256 << 10) / PAGE_BYTES;
        let home = |name: &ReceiptPath| PathHash::of(&PATH_KEY, name.as_str().as_bytes()).bucket % pages;
        let names = (0..).map(|n: u32| ReceiptPath::new(&format!("p/{n}")).unwrap());
        names.filter(|name| home(name) < 2).take(PATHS + FILLERS).collect()
    });
    names[number].clone()
}

fn bytes_of(value: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(value);
    let mut bytes: Vec<u8> = value.to_le_bytes().to_vec();
    let block: Vec<u8> = (0..64).flat_map(|_| rng.number().to_le_bytes()).collect();
    while bytes.len() < len {
        bytes.extend_from_slice(&block);
    }
    bytes.truncate(len.max(8));
    bytes
}

fn options() -> WriterOptions {
    WriterOptions { fixed_clock_ms: Some(1), fixed_uuid: Some([1; 16]), ..WriterOptions::default() }
}

/// A store with the fillers.
fn base() -> Sim {
    let sim = Sim::new(4 << 20);
    let format_options = FormatOptions {
        segment_bytes: Some(256 << 10),
        fixed_identity: Some(([7; 16], PATH_KEY)),
        fixed_clock_ms: Some(1),
        ..FormatOptions::default()
    };
    let device = sim.writer();
    format(&device, &format_options).unwrap();
    let mut writer = Writer::open(&device, &options()).unwrap();
    for number in PATHS..PATHS + FILLERS {
        writer.put(&Put::new(&path(number), b"filler")).unwrap();
    }
    writer.close().unwrap();
    sim
}

impl World {
    fn new(seed: u64) -> Self {
        static BASE: OnceLock<Sim> = OnceLock::new();
        let sim = BASE.get_or_init(base).fork();
        Self {
            first_tick: sim.tick(),
            sim,
            rng: Rng(seed),
            seen: (0..PATHS).map(|_| vec![Seen { end: NEVER, value: 0 }]).collect(),
            acked: vec![0; PATHS],
            in_flight: vec![Vec::new(); PATHS],
            lens: HashMap::new(),
            unclean: Vec::new(),
            last_cycle: Vec::new(),
            host_crashes: Vec::new(),
            next_value: 0,
            bad: Vec::new(),
        }
    }

    /// One writer from opening to its end; true when it closed.
    fn session(&mut self) -> bool {
        self.trace("session");
        let device = self.sim.writer();
        if self.rng.chance(75) {
            let span = if self.rng.chance(30) { 12 } else { 60 };
            self.sim.stop_at(self.rng.below(span), self.rng.below(80));
        }
        let mut writer = match Writer::open(&device, &options()) {
            Ok(writer) => writer,
            Err(Error::Device(_)) => return false,
            Err(error) => {
                self.bad.push(format!("opening failed: {error}"));
                return false;
            }
        };
        let now = self.sim.tick();
        self.trace("opened");
        for unclean in self.unclean.iter_mut().filter(|unclean| unclean.2 == NEVER) {
            unclean.2 = now;
        }
        for _ in 0..self.rng.below(7) {
            if !self.commit(&mut writer) {
                return false;
            }
        }
        self.rng.chance(60) && writer.close().is_ok()
    }

    fn commit(&mut self, writer: &mut Writer<&super::SimWriter>) -> bool {
        let count = 1 + self.rng.below(3);
        let mut numbers: Vec<usize> = (0..PATHS).collect();
        let mut puts = Vec::new();
        for _ in 0..count {
            let at = usize::try_from(self.rng.below(numbers.len() as u64)).unwrap();
            let number = numbers.remove(at);
            self.next_value += 1;
            let len = [20, 4000, 20_000, 60_000][usize::try_from(self.rng.below(4)).unwrap()];
            self.lens.insert(self.next_value, len);
            self.seen[number].push(Seen { end: NEVER, value: self.next_value });
            self.in_flight[number].push(self.next_value);
            puts.push((number, path(number), bytes_of(self.next_value, len)));
        }
        let batch: Vec<Put<'_>> =
            puts.iter().map(|(_, path, data)| Put { is_new_version: true, ..Put::new(path, data) }).collect();
        let flushes = self.sim.counts().flushes;
        let results = match writer.commit(&batch) {
            Ok(results) => results,
            Err(Error::Device(_)) => return false,
            Err(error) => {
                self.bad.push(format!("commit failed: {error}"));
                return false;
            }
        };
        let now = self.sim.tick();
        self.trace(&format!(
            "acked {:?}",
            puts.iter().map(|(n, _, _)| (*n, self.next_value)).collect::<Vec<_>>()
        ));
        if self.sim.counts().flushes > flushes {
            self.last_cycle.clear();
        }
        for ((number, _, _), result) in puts.iter().zip(results) {
            match result {
                Ok(_) => {
                    let seen = &mut self.seen[*number];
                    self.acked[*number] = seen.last().unwrap().value;
                    self.in_flight[*number].clear();
                    let newest = seen.len() - 1;
                    for older in seen[..newest].iter_mut().filter(|older| older.end == NEVER) {
                        older.end = now;
                    }
                    self.last_cycle.push(*number);
                }
                Err(Error::NoSpace { .. }) => {
                    self.seen[*number].pop();
                    self.in_flight[*number].pop();
                }
                Err(Error::Device(_)) => return false,
                Err(error) => self.bad.push(format!("put failed: {error}")),
            }
        }
        true
    }

    /// Tells the story of a seed: `RECEIPT_SEED=n RECEIPT_SCHEDULES=1 RECEIPT_TRACE=1`.
    fn trace(&self, what: &str) {
        if std::env::var_os("RECEIPT_TRACE").is_some() {
            eprintln!("{} {what}", self.sim.tick());
        }
    }

    fn crash(&mut self) {
        let from = self.sim.tick();
        if self.rng.chance(70) {
            self.host_crashes.push(from);
            self.sim.crash_host(Fate::Random(&mut self.rng));
        } else {
            self.sim.crash_guest();
        }
        self.trace(&format!("crash, host crashes {:?}, last cycle {:?}", self.host_crashes, self.last_cycle));
        for number in 0..PATHS {
            if self.last_cycle.contains(&number) || !self.in_flight[number].is_empty() {
                self.unclean.push((number, from, NEVER));
            }
        }
    }

    /// One reader somewhere in the past, until the next power failure, reading a few paths.
    fn read(&mut self) {
        let end = self.sim.tick();
        let start = self.first_tick + self.rng.below(end + 1 - self.first_tick);
        let end = self.host_crashes.iter().copied().filter(|crash| *crash >= start).min().unwrap_or(end);
        let step = [0, 1, 4, 40, 400][usize::try_from(self.rng.below(5)).unwrap()];
        let reader = Reader::new(self.sim.past(start, end, step, self.rng.number()), "sim");
        for _ in 0..=self.rng.below(3) {
            let number = usize::try_from(self.rng.below(PATHS as u64)).unwrap();
            let from = reader.device().tick();
            let result = reader.get(&path(number));
            self.judge(number, from, reader.device().tick(), result.map(|receipt| receipt.data().to_vec()));
        }
    }

    fn judge(&mut self, number: usize, from: u64, to: u64, result: Result<Vec<u8>, Error>) {
        let may: Vec<u64> = self.seen[number].iter().filter(|s| s.end >= from).map(|s| s.value).collect();
        let is_unclean =
            self.unclean.iter().any(|(n, start, end)| *n == number && *start <= to && *end >= from);
        let fault = match result {
            Ok(data) => {
                let value = data[..8].try_into().map(u64::from_le_bytes).unwrap();
                let is_known = self.lens.get(&value).is_some_and(|len| bytes_of(value, *len) == data);
                let was_here = self.seen[number].iter().any(|s| s.value == value);
                if !is_known || !was_here {
                    Some(format!("foreign bytes, value {value}"))
                } else if !may.contains(&value) && !is_unclean {
                    Some(format!("stale value {value}, may be {may:?}"))
                } else {
                    None
                }
            }
            Err(Error::NotFound { .. }) if !may.contains(&0) => Some("acknowledged put not found".to_owned()),
            Err(Error::NotFound { .. }) => None,
            Err(Error::Pending { .. }) if !is_unclean && may.len() < 2 => {
                Some("pending without reason".to_owned())
            }
            Err(Error::Pending { .. }) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(fault) = fault {
            self.bad.push(format!("path {number} from {from} to {to}: {fault}"));
        }
    }

    /// After a last power failure a writer recovers; everything acknowledged must be there.
    fn finish(&mut self) {
        self.sim.crash_host(Fate::Random(&mut self.rng));
        let device = self.sim.writer();
        if let Err(error) = Writer::open(&device, &options()).and_then(Writer::close) {
            self.bad.push(format!("recovery failed: {error}"));
            return;
        }
        let reader = Reader::new(self.sim.reader(), "sim");
        for number in 0..PATHS {
            let value = match reader.get(&path(number)) {
                Ok(receipt) => receipt.data()[..8].try_into().map(u64::from_le_bytes).unwrap(),
                Err(Error::NotFound { .. }) => 0,
                Err(error) => {
                    self.bad.push(format!("path {number} after recovery: {error}"));
                    continue;
                }
            };
            if value != self.acked[number] && !self.in_flight[number].contains(&value) {
                self.bad.push(format!("path {number} has {value}, acknowledged {}", self.acked[number]));
            }
        }
        let mut findings = Vec::new();
        let report = crate::verify::verify(&reader, |finding| {
            findings.push(format!("{finding:?}"));
            Ok(())
        });
        if let Err(error) = report {
            self.bad.push(format!("verify: {error}"));
        }
        self.bad.append(&mut findings);
    }
}

/// Runs one schedule; returns what went wrong.
fn run(seed: u64) -> Vec<String> {
    let mut world = World::new(seed);
    for _ in 0..1 + world.rng.below(6) {
        if !world.session() {
            world.crash();
        }
        world.last_cycle.clear();
    }
    for _ in 0..20 {
        world.read();
    }
    world.finish();
    world.bad
}

#[test]
fn no_schedule_loses_tears_or_invents_a_receipt() {
    let count = std::env::var("RECEIPT_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(3000);
    let first = std::env::var("RECEIPT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut bad = Vec::new();
    for seed in first..first + count {
        let faults = run(seed);
        if !faults.is_empty() {
            bad.push(format!("seed {seed}: {}", faults.join("; ")));
        }
    }
    assert!(
        bad.is_empty(),
        "{} of {count} schedules went wrong, e.g.\n{}",
        bad.len(),
        bad[..bad.len().min(5)].join("\n")
    );
}
