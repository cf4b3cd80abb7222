//! One seeded life: receipts of three classes are stored, replaced, removed, held, erased and expire while days pass, the policy changes and the disk
//! grows; writers crash anywhere, readers run at any speed through the past. What each may see is judged as in [`super::world`].

use super::life_tests::{options, path, run_expire, store};
use super::world::bytes_of;
use super::{Fate, Rng, Sim, SimWriter};
use crate::policy::{Kept, Policy, Term};
use crate::{Error, Hold, Locator, Put, Reader, ReceiptPath, Writer};
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
    /// Locators with their values, and when they were erased.
    located: Vec<(Locator, u64, u64)>,
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

    fn put(&mut self, writer: &mut Writer<SimWriter>) -> bool {
        let number =
            if self.rng.chance(30) { self.below(PATHS) } else { FILLERS + self.below(PATHS - FILLERS) };
        self.next_value += 1;
        let (value, len) = (self.next_value, [20, 20_000, 60_000][self.below(3)]);
        self.values.insert(value, (len, self.day));
        self.begin(number, value);
        let known = &self.paths[number];
        let data = bytes_of(value, len);
        let put = Put { is_new_version: true, class: Some(known.class), ..Put::new(&known.path, &data) };
        match writer.put(&put) {
            Err(Error::NoSpace { .. }) => {
                self.take_back(number);
                true
            }
            // The law was taken back: nothing can be stored in this class.
            Err(Error::Usage(_)) if self.policy.term(self.paths[number].class) == Term::None => {
                self.take_back(number);
                true
            }
            result => {
                let Some(stored) = self.is_stopped(result, "put") else { return false };
                self.paths[number].located.push((stored.locator, value, NEVER));
                self.acknowledge(number);
                true
            }
        }
    }

    fn remove(&mut self, writer: &mut Writer<SimWriter>) -> bool {
        let number = self.below(PATHS);
        let today = self.today();
        let may = !self.is_held(number, today) && self.is_over(number, today) != Some(false);
        let is_there = self.paths[number].acked != 0;
        self.begin(number, 0);
        let path = self.paths[number].path.clone();
        let refusal = match writer.remove(&path) {
            Ok(_) if may && is_there => {
                self.acknowledge(number);
                return true;
            }
            Ok(_) => "removed what was to be kept".to_owned(),
            Err(Error::Device(_)) => return false,
            Err(Error::NotFound { .. }) if !is_there => String::new(),
            Err(Error::NoSpace { .. }) => String::new(),
            Err(Error::Kept { .. } | Error::Held { .. }) if !may => String::new(),
            Err(error) => error.to_string(),
        };
        if !refusal.is_empty() {
            self.bad.push(format!("remove {path}: {refusal}"));
        }
        self.take_back(number);
        true
    }

    fn hold(&mut self, writer: &mut Writer<SimWriter>) -> bool {
        let prefix = ["a/", "b/old/1", "c/new"][self.below(3)].as_bytes().to_vec();
        self.is_retention_in_flight = true;
        let done = self.hold_or_release(writer, prefix);
        self.is_retention_in_flight = !done;
        done
    }

    fn hold_or_release(&mut self, writer: &mut Writer<SimWriter>, prefix: Vec<u8>) -> bool {
        if self.holds.contains_key(&prefix) {
            let released = writer.release(&prefix);
            if matches!(released, Err(Error::NoSpace { .. })) {
                return true;
            }
            let Some(()) = self.is_stopped(released, "release") else { return false };
            self.holds.remove(&prefix);
            return true;
        }
        let until_day = self.rng.chance(50).then_some(self.day + 100);
        let held = writer.hold(&Hold { prefix: prefix.clone(), until_day });
        if matches!(held, Err(Error::NoSpace { .. })) {
            return true;
        }
        let Some(()) = self.is_stopped(held, "hold") else { return false };
        self.holds.insert(prefix, until_day);
        true
    }

    fn change_policy(&mut self, writer: &mut Writer<SimWriter>) -> bool {
        let term = [Term::Years(1), Term::Years(2), Term::YearEnd(1), Term::Forever][self.below(4)];
        self.is_retention_in_flight = true;
        let changed = writer.change_policy(|policy| {
            policy.terms[1] = term;
            Ok(())
        });
        self.is_retention_in_flight = matches!(changed, Err(Error::Device(_)));
        if matches!(changed, Err(Error::NoSpace { .. })) {
            return true;
        }
        let Some(policy) = self.is_stopped(changed, "policy") else { return false };
        self.policy = policy;
        true
    }

    fn erase(&mut self, writer: &mut Writer<SimWriter>) -> bool {
        let number = self.below(PATHS);
        self.begin(number, 0);
        let path = self.paths[number].path.clone();
        let is_held = self.is_held(number, self.today());
        match writer.erase(&path, "order") {
            Ok(erased) if !is_held => {
                self.acknowledge(number);
                let now = self.sim.tick();
                for (locator, _, end) in &mut self.paths[number].located {
                    if erased.iter().any(|one| one.locator == *locator) {
                        *end = now;
                    }
                }
                true
            }
            Err(Error::Held { .. }) if is_held => {
                self.take_back(number);
                true
            }
            Err(Error::NotFound { .. }) if self.paths[number].acked == 0 => {
                self.take_back(number);
                true
            }
            Err(Error::NoSpace { .. }) => {
                self.take_back(number);
                true
            }
            result => self.is_stopped(result, "erase").is_some_and(|_| {
                self.bad.push(format!("erased {path} on hold"));
                false
            }),
        }
    }

    /// The disk gets larger, by less or more than a segment; the writer takes it over now or at the next opening.
    fn grow(&mut self, writer: &mut Writer<SimWriter>) -> bool {
        let size_bytes = self.sim.size_bytes() + [100 << 10, 300 << 10, 1 << 20][self.below(3)];
        if size_bytes <= 12 << 20 {
            self.sim.resize(size_bytes);
        }
        if self.rng.chance(30) {
            return true;
        }
        let grown = writer.grow();
        self.is_stopped(grown, "grow").is_some()
    }

    fn expire(&mut self, writer: &mut Writer<SimWriter>) -> bool {
        let may: Vec<usize> = (0..PATHS)
            .filter(|n| {
                self.paths[*n].acked != 0
                    && !self.is_held(*n, self.day)
                    && self.is_over(*n, self.day) == Some(true)
            })
            .collect();
        may.iter().for_each(|number| self.begin(*number, 0));
        self.is_retention_in_flight = true;
        let percent = [0, 30, 60][self.below(3)];
        let sim = self.sim.clone();
        let result = match run_expire(&sim, writer, Some(self.day), percent, false) {
            Err(Error::NoSpace { .. }) => return false,
            result => self.is_stopped(result, "expire"),
        };
        let Some((_, gone)) = result else { return false };
        self.is_retention_in_flight = false;
        self.policy.confirmed_day = self.policy.confirmed_day.max(self.day);
        for number in may {
            if gone.contains(&self.paths[number].path.to_string()) {
                self.acknowledge(number);
            } else {
                self.take_back(number);
            }
        }
        for name in gone {
            if self.paths.iter().any(|known| known.path.as_str() == name && known.acked != 0) {
                self.bad.push(format!("{name} expired, but was to be kept"));
            }
        }
        true
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

    /// One reader somewhere in the past, until the next power failure.
    fn read(&mut self) {
        let end = self.sim.tick();
        let start = self.first_tick + self.rng.below(end + 1 - self.first_tick);
        let end = self.host_crashes.iter().copied().filter(|crash| *crash >= start).min().unwrap_or(end);
        let step = [0, 1, 4, 40, 400, 4000][self.below(6)];
        let reader = Reader::new(self.sim.past(start, end, step, self.rng.number()), "sim");
        for _ in 0..=self.rng.below(3) {
            let number = self.below(PATHS);
            let from = reader.device().tick();
            let result = reader.get(&self.paths[number].path).map(|receipt| receipt.data().to_vec());
            self.judge(number, from, reader.device().tick(), result);
        }
        let number = self.below(PATHS);
        let choice = self.rng.number();
        let located = &self.paths[number].located;
        let Some(at) = usize::try_from(choice).unwrap().checked_rem(located.len()) else { return };
        let (locator, value, erased) = located[at].clone();
        let from = reader.device().tick();
        let found = reader.get_locator(&locator).map(|receipt| receipt.data().to_vec());
        match found {
            Ok(data) if self.value_of(number, &data) == Some(value) && from > erased => {
                self.bad.push(format!("{locator} was erased"));
            }
            Ok(data) if self.value_of(number, &data).is_none() => {
                self.bad.push(format!("{locator}: foreign bytes"))
            }
            _ => {}
        }
    }

    fn judge(&mut self, number: usize, from: u64, to: u64, result: Result<Vec<u8>, Error>) {
        let known = &self.paths[number];
        let may: Vec<u64> =
            known.seen.iter().filter(|seen| seen.end >= from).map(|seen| seen.value).collect();
        let is_unclean = known.unclean.iter().any(|(start, end)| *start <= to && *end >= from);
        let fault = match result {
            Ok(data) => match self.value_of(number, &data) {
                None => Some("foreign bytes".to_owned()),
                Some(value) if !may.contains(&value) && !is_unclean => {
                    Some(format!("stale {value}, may be {may:?}"))
                }
                Some(_) => None,
            },
            Err(Error::NotFound { .. }) if !may.contains(&0) => Some("acknowledged put not found".to_owned()),
            Err(Error::NotFound { .. } | Error::Pending { .. }) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(fault) = fault {
            self.bad.push(format!("{} from {from} to {to}: {fault}", name(number)));
        }
    }

    fn value_of(&self, number: usize, data: &[u8]) -> Option<u64> {
        let value = data.get(..8)?.try_into().map(u64::from_le_bytes).ok()?;
        let is_whole = self.values.get(&value).is_some_and(|(len, _)| bytes_of(value, *len) == data);
        (is_whole && self.paths[number].seen.iter().any(|seen| seen.value == value)).then_some(value)
    }

    /// After a last power failure a writer recovers: everything acknowledged is there, nothing else, and the whole store verifies.
    fn finish(&mut self) {
        self.sim.crash_host(Fate::Random(&mut self.rng));
        if let Err(error) = Writer::open(self.sim.writer(), &options(self.day)).and_then(Writer::close) {
            self.bad.push(format!("recovery failed: {error}"));
            return;
        }
        let reader = Reader::new(self.sim.reader(), "sim");
        let mut expected = Vec::new();
        for number in 0..PATHS {
            let value = match reader.get(&self.paths[number].path) {
                Ok(receipt) => {
                    expected.push(name(number));
                    self.value_of(number, receipt.data())
                }
                Err(Error::NotFound { .. }) => Some(0),
                Err(error) => {
                    self.bad.push(format!("{} after recovery: {error}", name(number)));
                    continue;
                }
            };
            let known = &self.paths[number];
            if !value.is_some_and(|value| value == known.acked || known.in_flight.contains(&value)) {
                self.bad.push(format!("{} has {value:?}, acknowledged {}", name(number), known.acked));
            }
        }
        let report = crate::verify::verify(&reader, |finding| {
            self.bad.push(format!("{finding:?}"));
            Ok(())
        });
        match report {
            Ok(totals) if totals.entries == expected.len() as u64 => {}
            Ok(totals) => self.bad.push(format!("{} entries, {} paths", totals.entries, expected.len())),
            Err(error) => self.bad.push(format!("verify: {error}")),
        }
        let mut listed = Vec::new();
        let result = reader.list("", |locator| {
            listed.push(locator.path.to_string());
            Ok(())
        });
        listed.sort();
        expected.sort();
        if result.is_err() || listed != expected {
            self.bad.push(format!("listing: {} paths of {}, {result:?}", listed.len(), expected.len()));
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
