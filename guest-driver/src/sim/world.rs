//! One seeded schedule: writers that crash, are replaced and come back, readers at any speed, and what each of them may see.

mod judge;

use super::{Fate, Rng, Sim, SimWriter};
use crate::layout::PAGE_BYTES;
use crate::path::PathHash;
use crate::rules::Rule;
use crate::writer::Change;
use crate::{Error, FormatOptions, Locator, Put, ReceiptPath, Writer, WriterOptions, format};
use std::collections::HashMap;
use std::sync::LazyLock;

pub(super) const PATHS: usize = 5;
const PATH_KEY: [u8; 32] = [9; 32];
const NEVER: u64 = u64::MAX;

/// The store that a schedule begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Small segments, two index pages, and behind the log what an older store left.
    Small,
    /// An index page that is nearly full, so that the paths spill.
    Spill,
    /// Segments of 2 MiB that are due for a Summary.
    Summary,
}

/// A value of a path and when a reader may see it. Value 0 = nothing stored.
#[derive(Debug)]
struct Seen {
    end: u64,
    value: u64,
}

/// An acknowledged version that was addressed by locator.
#[derive(Debug)]
struct Located {
    locator: Locator,
    value: u64,
    from: u64,
}

pub(super) struct World {
    pub(super) sim: Sim,
    base: Base,
    /// When the store was made.
    first_tick: u64,
    pub(super) rng: Rng,
    seen: Vec<Vec<Seen>>,
    pub(super) acked: Vec<u64>,
    in_flight: Vec<Vec<u64>>,
    located: Vec<Located>,
    lens: HashMap<u64, usize>,
    /// Path, from, to: a crash may have taken an index entry back that was acknowledged; a put may be half done.
    unclean: Vec<(usize, u64, u64)>,
    last_cycle: Vec<usize>,
    host_crashes: Vec<u64>,
    next_value: u64,
    /// A writer that is alive, but replaced.
    replaced: Option<Writer<SimWriter>>,
    pub(super) bad: Vec<String>,
}

/// The paths share two index pages with the fillers behind them, so that a page holds entries older than the replay window and
/// changes in more than one sector.
struct Names {
    paths: Vec<ReceiptPath>,
    fillers: Vec<ReceiptPath>,
}

fn names(base: Base) -> &'static Names {
    static NAMES: LazyLock<Vec<Names>> = LazyLock::new(|| {
        let all = [(256 << 10, 2, 50), (256 << 10, 1, 124), (2 << 20, 256, 250)];
        all.map(|(segment_bytes, homes, fillers)| {
            let pages = segment_bytes / PAGE_BYTES;
            let home = |name: &ReceiptPath| PathHash::of(&PATH_KEY, name.as_str().as_bytes()).bucket % pages;
            let names = (0..).map(|n: u32| ReceiptPath::new(&format!("p/{n}")).unwrap());
            let mut names = names.filter(|name| home(name) < homes);
            let paths = names.by_ref().take(PATHS).collect();
            Names { paths, fillers: names.take(fillers).collect() }
        })
        .into()
    });
    &NAMES[base as usize]
}

pub(super) fn path(base: Base, number: usize) -> ReceiptPath {
    names(base).paths[number].clone()
}

pub(super) fn bytes_of(value: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(value);
    let mut bytes: Vec<u8> = value.to_le_bytes().to_vec();
    let block: Vec<u8> = (0..64).flat_map(|_| rng.number().to_le_bytes()).collect();
    while bytes.len() < len {
        bytes.extend_from_slice(&block);
    }
    bytes.truncate(len.max(8));
    bytes
}

pub(super) fn options() -> WriterOptions {
    WriterOptions { fixed_clock_ms: Some(1), fixed_uuid: Some([1; 16]), ..WriterOptions::default() }
}

/// A store with the fillers; behind its log lies what an older store with the same fillers went on with.
fn store(base: Base) -> Sim {
    let (size_bytes, segment_bytes) =
        if base == Base::Summary { (16 << 20, 2 << 20) } else { (4 << 20, 256 << 10) };
    let sim = Sim::new(size_bytes);
    for (uuid, epoch, is_old) in [([6; 16], 1_000_000, true), ([7; 16], 5, false)] {
        let format_options = FormatOptions {
            segment_bytes: Some(segment_bytes),
            fixed_identity: Some((uuid, PATH_KEY)),
            // The older store has the higher epochs, or the same ones where the test wants its chain to be the same.
            fixed_epoch: Some(if Rule::Genesis.holds() { epoch } else { 5 }),
            fixed_clock_ms: Some(1),
            force: true,
            ..FormatOptions::default()
        };
        let device = sim.writer();
        format(&device, &format_options).unwrap();
        let mut writer = Writer::open(&device, &options()).unwrap();
        for name in &names(base).fillers {
            writer.put(&Put::new(name, b"filler")).unwrap();
        }
        if is_old {
            for name in &names(base).paths {
                writer.put(&Put::new(name, b"of the older store")).unwrap();
            }
        }
        writer.close().unwrap();
    }
    sim.freeze();
    sim
}

fn image(base: Base) -> Sim {
    static IMAGES: LazyLock<Vec<Sim>> =
        LazyLock::new(|| [Base::Small, Base::Spill, Base::Summary].map(store).into());
    if Rule::Genesis.holds() && Rule::RecordsBound.holds() {
        IMAGES[base as usize].fork()
    } else {
        store(base)
    }
}

/// Tells the story of a seed: `RECEIPT_SEED=n RECEIPT_SCHEDULES=1 RECEIPT_TRACE=1`.
fn is_traced() -> bool {
    static TRACE: LazyLock<bool> = LazyLock::new(|| std::env::var_os("RECEIPT_TRACE").is_some());
    *TRACE
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let base = [Base::Small, Base::Small, Base::Small, Base::Spill, Base::Summary]
            [usize::try_from(rng.below(5)).unwrap()];
        let sim = image(base);
        Self {
            first_tick: sim.tick(),
            sim,
            base,
            rng,
            seen: (0..PATHS).map(|_| vec![Seen { end: NEVER, value: 0 }]).collect(),
            acked: vec![0; PATHS],
            in_flight: vec![Vec::new(); PATHS],
            located: Vec::new(),
            lens: HashMap::new(),
            unclean: Vec::new(),
            last_cycle: Vec::new(),
            host_crashes: Vec::new(),
            next_value: 0,
            replaced: None,
            bad: Vec::new(),
        }
    }

    pub(super) fn path(&self, number: usize) -> ReceiptPath {
        path(self.base, number)
    }

    /// Where the newest acknowledged value of a path was put.
    pub(super) fn locator_of(&self, number: usize) -> Option<&Locator> {
        let is_it = |located: &&Located| located.value == self.acked[number];
        self.located.iter().find(is_it).map(|located| &located.locator)
    }

    /// One writer from opening to its end; true when it closed.
    pub(super) fn session(&mut self) -> bool {
        self.trace("session");
        let device = self.sim.writer();
        if self.rng.chance(75) {
            let span = if self.rng.chance(30) { 12 } else { 60 };
            self.sim.stop_at(self.rng.below(span), self.rng.below(80));
        }
        let mut writer = match Writer::open(device, &options()) {
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
            if self.replaced.is_some() && self.rng.chance(40) {
                self.write_though_replaced();
            }
            if !self.commit(&mut writer, false) {
                return false;
            }
        }
        match self.rng.below(100) {
            0..60 => writer.close().is_ok(),
            60..80 => {
                self.replaced = Some(writer);
                false
            }
            _ => false,
        }
    }

    /// One writer that nothing stops; false when the store refused something.
    pub(super) fn quiet_session(&mut self, lie: Option<(u64, super::Lie)>) -> bool {
        let device = self.sim.writer();
        if let Some((op, lie)) = lie {
            self.sim.lie_at(op, lie);
        }
        let Ok(mut writer) = Writer::open(device, &options()) else { return false };
        for _ in 0..3 {
            if !self.commit(&mut writer, false) || !self.bad.is_empty() {
                return false;
            }
        }
        writer.close().is_ok()
    }

    fn write_though_replaced(&mut self) {
        if let Some(mut writer) = self.replaced.take()
            && self.commit(&mut writer, true)
        {
            self.replaced = Some(writer);
        }
    }

    fn commit(&mut self, writer: &mut Writer<SimWriter>, is_replaced: bool) -> bool {
        let count = 1 + self.rng.below(3);
        let mut numbers: Vec<usize> = (0..PATHS).collect();
        let mut puts = Vec::new();
        for _ in 0..count {
            let at = usize::try_from(self.rng.below(numbers.len() as u64)).unwrap();
            let number = numbers.remove(at);
            if self.rng.chance(25) {
                self.seen[number].push(Seen { end: NEVER, value: 0 });
                self.in_flight[number].push(0);
                puts.push((number, self.path(number), Vec::new()));
                continue;
            }
            self.next_value += 1;
            let len = [20, 4000, 20_000, 60_000][usize::try_from(self.rng.below(4)).unwrap()];
            self.lens.insert(self.next_value, len);
            self.seen[number].push(Seen { end: NEVER, value: self.next_value });
            self.in_flight[number].push(self.next_value);
            puts.push((number, self.path(number), bytes_of(self.next_value, len)));
        }
        let batch: Vec<Change<'_>> = puts
            .iter()
            .map(|(_, path, data)| match data.is_empty() {
                true => Change::Remove(path),
                false => Change::Put(Put { is_new_version: true, ..Put::new(path, data) }),
            })
            .collect();
        let flushes = self.sim.counts().flushes;
        let results = match writer.commit_changes(&batch) {
            Ok(results) => results,
            Err(Error::Fenced { .. }) if is_replaced => {
                self.take_back(&puts);
                return false;
            }
            Err(Error::Device(_)) => return false,
            Err(error) => {
                self.bad.push(format!("commit failed: {error}"));
                return false;
            }
        };
        let now = self.sim.tick();
        self.trace(&format!(
            "acked {:?} up to {}",
            puts.iter().map(|p| p.0).collect::<Vec<_>>(),
            self.next_value
        ));
        if self.sim.counts().flushes > flushes {
            self.last_cycle.clear();
        }
        for ((number, _, _), result) in puts.iter().zip(results) {
            match result {
                Ok(stored) => {
                    let seen = &mut self.seen[*number];
                    let value = seen.last().unwrap().value;
                    self.acked[*number] = value;
                    self.in_flight[*number].clear();
                    let newest = seen.len() - 1;
                    for older in seen[..newest].iter_mut().filter(|older| older.end == NEVER) {
                        older.end = now;
                    }
                    if value != 0 {
                        self.located.push(Located { locator: stored.locator, value, from: now });
                    }
                    self.last_cycle.push(*number);
                }
                Err(Error::NoSpace { .. } | Error::NotFound { .. }) => {
                    self.seen[*number].pop();
                    self.in_flight[*number].pop();
                }
                Err(Error::Device(_)) => return false,
                Err(error) => self.bad.push(format!("put failed: {error}")),
            }
        }
        true
    }

    /// Nothing of a fenced writer lands.
    fn take_back(&mut self, puts: &[(usize, ReceiptPath, Vec<u8>)]) {
        for (number, _, _) in puts {
            self.seen[*number].pop();
            self.in_flight[*number].pop();
        }
    }

    fn trace(&self, what: &str) {
        if is_traced() {
            eprintln!("{} {what}", self.sim.tick());
        }
    }

    pub(super) fn crash(&mut self) {
        let from = self.sim.tick();
        if self.replaced.is_none() && self.rng.chance(70) {
            self.host_crashes.push(from);
            self.sim.crash_host(Fate::Random(&mut self.rng));
        } else if self.replaced.is_none() {
            self.sim.crash_guest();
        }
        self.trace(&format!("crash, host crashes {:?}, last cycle {:?}", self.host_crashes, self.last_cycle));
        for number in 0..PATHS {
            if self.last_cycle.contains(&number) || !self.in_flight[number].is_empty() {
                self.unclean.push((number, from, NEVER));
            }
        }
    }
}

/// Runs the sessions of one schedule.
pub(super) fn sessions(seed: u64) -> World {
    let mut world = World::new(seed);
    for _ in 0..1 + world.rng.below(6) {
        if !world.session() {
            world.crash();
        }
        world.last_cycle.clear();
    }
    world
}

/// Runs one schedule; returns what went wrong.
pub(super) fn run(seed: u64) -> Vec<String> {
    let mut world = sessions(seed);
    for _ in 0..20 {
        world.read();
    }
    world.finish();
    world.bad
}
