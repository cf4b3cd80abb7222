//! One seeded life: receipts of three classes are stored, replaced, removed, held, erased and expire while days pass, the policy changes and the disk
//! grows; writers crash anywhere, readers run at any speed through the past. What each may see is judged as in [`super::world`].

mod changes;
mod judge;

use super::life_tests::{options, path, run_expire, store};
use super::world::bytes_of;
use super::{Fate, Rng, Sim, SimWriter};
use crate::policy::{Kept, Policy, Term};
use crate::{Error, Locator, Put, Reader, ReceiptPath, Writer};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// 2026-01-01.
const DAY: u32 = 20_454;
const NEVER: u64 = u64::MAX;
const FILLERS: usize = 60;
const PATHS: usize = FILLERS + 6;

#[derive(Clone, Debug)]
struct Seen {
    end: u64,
    value: u64,
}

/// A version that was stored.
#[derive(Clone, Debug)]
struct Located {
    locator: Locator,
    value: u64,
    /// When it was acknowledged.
    from: u64,
    erased: u64,
}

/// What is known of a path.
#[derive(Clone, Debug)]
struct Known {
    path: ReceiptPath,
    class: u8,
    issued_day: u32,
    seen: Vec<Seen>,
    acked: u64,
    in_flight: Vec<u64>,
    /// A crash may have taken back what a reader saw.
    unclean: Vec<(u64, u64)>,
    located: Vec<Located>,
    /// An erasure has begun: a locator may find its data half zeroed.
    was_erased: bool,
}

#[derive(Debug)]
struct World {
    sim: Sim,
    rng: Rng,
    day: u32,
    paths: Vec<Known>,
    policy: Policy,
    holds: BTreeMap<Vec<u8>, Option<u32>>,
    /// Length and day of issue of each value.
    values: BTreeMap<u64, (usize, u32)>,
    /// Policy and holds may have changed, or not.
    is_retention_in_flight: bool,
    next_value: u64,
    host_crashes: Vec<u64>,
    /// Paths that the last commit changed.
    last: Vec<usize>,
    first_tick: u64,
    bad: Vec<String>,
}

fn name(number: usize) -> String {
    format!("{}/{}/{number}", ["a", "b", "c"][number % 3], if number < FILLERS { "old" } else { "new" })
}

fn class_of(number: usize) -> u8 {
    [1, 2, 1, 0, 1][number % 5]
}

fn policy() -> Policy {
    let mut policy = Policy { confirmed_day: DAY, ..Policy::default() };
    policy.terms[1] = Term::Years(1);
    policy.terms[2] = Term::YearEnd(3);
    policy
}

fn image() -> Sim {
    static IMAGE: LazyLock<Sim> = LazyLock::new(|| {
        let sim = store(4 << 20);
        let mut writer = Writer::open(sim.writer(), &options(DAY)).unwrap();
        writer
            .change_policy(|now| {
                *now = policy();
                Ok(())
            })
            .unwrap();
        for number in 0..FILLERS {
            let value = number as u64 + 1;
            let (name, data) = (path(&name(number)), bytes_of(value, 20_000));
            let put = Put { class: Some(class_of(number)), ..Put::new(&name, &data) };
            writer.put(&put).unwrap();
        }
        writer.close().unwrap();
        sim.freeze();
        sim
    });
    IMAGE.fork()
}

impl World {
    fn new(seed: u64) -> Self {
        let sim = image();
        let known = |number: usize| {
            let value = if number < FILLERS { number as u64 + 1 } else { 0 };
            Known {
                path: path(&name(number)),
                class: class_of(number),
                issued_day: DAY,
                seen: vec![Seen { end: NEVER, value }],
                acked: value,
                in_flight: Vec::new(),
                unclean: Vec::new(),
                located: Vec::new(),
                was_erased: false,
            }
        };
        Self {
            first_tick: sim.tick(),
            sim,
            rng: Rng(seed),
            day: DAY,
            paths: (0..PATHS).map(known).collect(),
            policy: policy(),
            holds: BTreeMap::new(),
            values: (1..=FILLERS as u64).map(|value| (value, (20_000, DAY))).collect(),
            is_retention_in_flight: false,
            next_value: FILLERS as u64,
            host_crashes: Vec::new(),
            last: Vec::new(),
            bad: Vec::new(),
        }
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.rng.below(end as u64)).unwrap()
    }

    /// Today as the store sees it when nobody confirms the day.
    fn today(&self) -> u32 {
        self.policy.today(self.day)
    }

    fn is_held(&self, number: usize, today: u32) -> bool {
        let path = self.paths[number].path.as_str().as_bytes();
        self.holds
            .iter()
            .any(|(prefix, until)| path.starts_with(prefix) && until.is_none_or(|until| today <= until))
    }

    /// Whether the term of what is stored is over; `None` = it has no term.
    fn is_over(&self, number: usize, today: u32) -> Option<bool> {
        let known = &self.paths[number];
        match self.policy.kept(known.class, known.issued_day) {
            Kept::NoTerm => None,
            Kept::Until(until) => Some(today > until),
            Kept::Forever => Some(false),
        }
    }

    /// From here on a reader may see `value`.
    fn begin(&mut self, number: usize, value: u64) {
        let known = &mut self.paths[number];
        known.seen.push(Seen { end: NEVER, value });
        known.in_flight.push(value);
    }

    fn take_back(&mut self, number: usize) {
        let known = &mut self.paths[number];
        known.seen.pop();
        known.in_flight.pop();
    }

    fn acknowledge(&mut self, number: usize) {
        let now = self.sim.tick();
        let known = &mut self.paths[number];
        known.acked = known.seen.last().unwrap().value;
        known.issued_day = self.values.get(&known.acked).map_or(0, |(_, day)| *day);
        known.in_flight.clear();
        let newest = known.seen.len() - 1;
        for older in known.seen[..newest].iter_mut().filter(|older| older.end == NEVER) {
            older.end = now;
        }
        self.last.push(number);
    }

    /// One writer from opening to its end; true when it closed.
    fn session(&mut self) -> bool {
        let device = self.sim.writer();
        if self.rng.chance(70) {
            let span = [20, 100, 500][self.below(3)];
            self.sim.stop_at(self.rng.below(span), self.rng.below(300));
        }
        let mut writer = match Writer::open(device, &options(self.day)) {
            Ok(writer) => writer,
            Err(Error::Device(_)) => return false,
            Err(error) => {
                self.bad.push(format!("opening failed: {error}"));
                return false;
            }
        };
        let now = self.sim.tick();
        for known in &mut self.paths {
            for unclean in known.unclean.iter_mut().filter(|unclean| unclean.1 == NEVER) {
                unclean.1 = now;
            }
        }
        if !self.compare_retention(&mut writer) {
            return false;
        }
        self.settle();
        for _ in 0..self.rng.below(6) {
            let flushes = self.sim.counts().flushes;
            let goes_on = match self.rng.below(100) {
                0..40 => self.put(&mut writer),
                40..50 => self.remove(&mut writer),
                50..58 => self.hold(&mut writer),
                58..64 => self.change_policy(&mut writer),
                64..72 => self.erase(&mut writer),
                72..76 => self.grow(&mut writer),
                _ => self.expire(&mut writer),
            };
            if !goes_on {
                return false;
            }
            if self.sim.counts().flushes > flushes + 1 {
                self.last.clear();
            }
        }
        self.rng.chance(70) && writer.close().is_ok()
    }

    /// What was acknowledged of policy and holds is there; what was in flight may be.
    fn compare_retention(&mut self, writer: &mut Writer<SimWriter>) -> bool {
        let found = match writer.retention() {
            Ok(found) => found,
            Err(Error::Device(_)) => return false,
            Err(error) => {
                self.bad.push(format!("policy: {error}"));
                return false;
            }
        };
        let holds = found.holds.into_iter().map(|(_, hold)| (hold.prefix, hold.until_day)).collect();
        if !self.is_retention_in_flight && (&found.policy, &holds) != (&self.policy, &self.holds) {
            self.bad
                .push(format!("policy {:?} and holds {holds:?} are not what was acknowledged", found.policy));
        }
        (self.policy, self.holds) = (found.policy, holds);
        self.is_retention_in_flight = false;
        true
    }

    /// After recovery, what was in flight has happened or not.
    fn settle(&mut self) {
        let reader = Reader::new(self.sim.reader(), "sim");
        let now = self.sim.tick();
        for number in 0..PATHS {
            if self.paths[number].in_flight.is_empty() {
                continue;
            }
            let value = match reader.get(&self.paths[number].path) {
                Ok(receipt) => self.value_of(number, receipt.data()),
                Err(Error::NotFound { .. }) => Some(0),
                Err(error) => {
                    self.bad.push(format!("{} after opening: {error}", name(number)));
                    continue;
                }
            };
            let known = &mut self.paths[number];
            let Some(value) = value.filter(|value| *value == known.acked || known.in_flight.contains(value))
            else {
                self.bad.push(format!("{} has {value:?} after opening", name(number)));
                continue;
            };
            known.acked = value;
            known.issued_day = self.values.get(&value).map_or(0, |(_, day)| *day);
            known.in_flight.clear();
            for other in known.seen.iter_mut().filter(|seen| seen.end == NEVER && seen.value != value) {
                other.end = now;
            }
        }
    }

    fn is_stopped<T>(&mut self, result: Result<T, Error>, what: &str) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Error::Device(_)) => None,
            Err(error) => {
                self.bad.push(format!("{what}: {error}"));
                None
            }
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
        for (number, known) in self.paths.iter_mut().enumerate() {
            if self.last.contains(&number) || !known.in_flight.is_empty() {
                known.unclean.push((from, NEVER));
            }
        }
    }
}

/// Runs one schedule; returns what went wrong.
pub(super) fn run(seed: u64) -> Vec<String> {
    let mut world = World::new(seed);
    for _ in 0..2 + world.rng.below(6) {
        world.day += u32::try_from(world.rng.below(200)).unwrap();
        if !world.session() {
            world.crash();
        }
        world.last.clear();
    }
    for _ in 0..20 {
        world.read();
    }
    world.finish();
    world.bad
}

#[test]
fn no_life_loses_keeps_or_brings_back_a_receipt() {
    super::schedule_tests::assert_good(run, "no_life_loses", 200);
}
