//! What readers of a life may see, and what has to be there at its end.

use super::{Located, PATHS, World, name, options};
use crate::sim::{Fate, world::bytes_of};
use crate::{Error, Reader, Writer};

impl World {
    /// One reader somewhere in the past, until the next power failure.
    pub(super) fn read(&mut self) {
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
        let Located { locator, value, from: stored, erased } = located[at].clone();
        let from = reader.device().tick();
        let found = reader.get_locator(&locator).map(|receipt| receipt.data().to_vec());
        match found {
            Ok(data) if self.value_of(number, &data) == Some(value) && from > erased => {
                self.bad.push(format!("{locator} was erased"));
            }
            Ok(data) if self.value_of(number, &data).is_none() => {
                self.bad.push(format!("{locator}: foreign bytes"))
            }
            // Room that is given back, in pieces, is no damage.
            Err(error @ (Error::CorruptReceipt { .. } | Error::Corrupt(_)))
                if from > stored && !self.paths[number].was_erased =>
            {
                self.bad.push(format!("{locator}: {error}"));
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

    pub(super) fn value_of(&self, number: usize, data: &[u8]) -> Option<u64> {
        let value = data.get(..8)?.try_into().map(u64::from_le_bytes).ok()?;
        let is_whole = self.values.get(&value).is_some_and(|(len, _)| bytes_of(value, *len) == data);
        (is_whole && self.paths[number].seen.iter().any(|seen| seen.value == value)).then_some(value)
    }

    /// After a last power failure a writer recovers: everything acknowledged is there, nothing else, and the whole store verifies.
    pub(super) fn finish(&mut self) {
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
