//! The changes that a writer makes in a life, each with what it does to what may be seen.

use super::{FILLERS, Located, NEVER, PATHS, World, run_expire};
use crate::policy::Term;
use crate::sim::{SimWriter, world::bytes_of};
use crate::{Error, Hold, Put, Writer};

impl World {
    pub(super) fn put(&mut self, writer: &mut Writer<SimWriter>) -> bool {
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
                let from = self.sim.tick();
                let located = Located { locator: stored.locator, value, from, erased: NEVER };
                self.paths[number].located.push(located);
                self.acknowledge(number);
                true
            }
        }
    }

    pub(super) fn remove(&mut self, writer: &mut Writer<SimWriter>) -> bool {
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

    pub(super) fn hold(&mut self, writer: &mut Writer<SimWriter>) -> bool {
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

    pub(super) fn change_policy(&mut self, writer: &mut Writer<SimWriter>) -> bool {
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

    pub(super) fn erase(&mut self, writer: &mut Writer<SimWriter>) -> bool {
        let number = self.below(PATHS);
        self.begin(number, 0);
        self.paths[number].was_erased = true;
        let path = self.paths[number].path.clone();
        let is_held = self.is_held(number, self.today());
        match writer.erase(&path, "order") {
            Ok(erased) if !is_held => {
                self.acknowledge(number);
                let now = self.sim.tick();
                for located in &mut self.paths[number].located {
                    if erased.iter().any(|one| one.locator == located.locator) {
                        located.erased = now;
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
    pub(super) fn grow(&mut self, writer: &mut Writer<SimWriter>) -> bool {
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

    pub(super) fn expire(&mut self, writer: &mut Writer<SimWriter>) -> bool {
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
}
