//! What readers of a schedule may see, and what has to be there at its end.

use super::{Located, PATHS, World, bytes_of, names, options};
use crate::sim::{Fate, SimReader};
use crate::{Error, Reader, Writer};

impl World {
    /// One reader somewhere in the past, until the next power failure, reading a few paths.
    pub(in crate::sim) fn read(&mut self) {
        let end = self.sim.tick();
        let start = self.first_tick + self.rng.below(end + 1 - self.first_tick);
        let end = self.host_crashes.iter().copied().filter(|crash| *crash >= start).min().unwrap_or(end);
        let step = [0, 1, 4, 40, 400][usize::try_from(self.rng.below(5)).unwrap()];
        let reader = Reader::new(self.sim.past(start, end, step, self.rng.number()), "sim");
        for _ in 0..=self.rng.below(3) {
            let number = usize::try_from(self.rng.below(PATHS as u64)).unwrap();
            let from = reader.device().tick();
            let result = reader.get(&self.path(number));
            self.judge(number, from, reader.device().tick(), result.map(|receipt| receipt.data().to_vec()));
        }
        let now = reader.device().tick();
        let choice = self.rng.number();
        let located: Vec<&Located> = self.located.iter().filter(|l| l.from <= now).collect();
        if let Some(located) =
            usize::try_from(choice).unwrap().checked_rem(located.len()).map(|at| located[at])
        {
            let expected = bytes_of(located.value, self.lens[&located.value]);
            match reader.get_locator(&located.locator) {
                Ok(receipt) if receipt.data() == expected => {}
                answer => self.bad.push(format!(
                    "locator {} of value {}: {:?}",
                    located.locator,
                    located.value,
                    answer.map(|receipt| receipt.data().len())
                )),
            }
        }
    }

    fn judge(&mut self, number: usize, from: u64, to: u64, result: Result<Vec<u8>, Error>) {
        let may: Vec<u64> = self.seen[number].iter().filter(|s| s.end >= from).map(|s| s.value).collect();
        let is_unclean =
            self.unclean.iter().any(|(n, start, end)| *n == number && *start <= to && *end >= from);
        let fault = match result {
            Ok(data) => match self.value_of(number, &data) {
                None => Some("foreign bytes".to_owned()),
                Some(value) if !may.contains(&value) && !is_unclean => {
                    Some(format!("stale value {value}, may be {may:?}"))
                }
                Some(_) => None,
            },
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

    /// Which value of a path these bytes are; `None` = they were never stored there.
    pub(in crate::sim) fn value_of(&self, number: usize, data: &[u8]) -> Option<u64> {
        let value = data.get(..8)?.try_into().map(u64::from_le_bytes).ok()?;
        let is_whole = self.lens.get(&value).is_some_and(|len| bytes_of(value, *len) == data);
        (is_whole && self.seen[number].iter().any(|s| s.value == value)).then_some(value)
    }

    /// After a last power failure a writer recovers; everything acknowledged must be there.
    pub(in crate::sim) fn finish(&mut self) {
        self.sim.crash_host(Fate::Random(&mut self.rng));
        let device = self.sim.writer();
        if let Err(error) = Writer::open(&device, &options()).and_then(Writer::close) {
            self.bad.push(format!("recovery failed: {error}"));
            return;
        }
        let reader = Reader::new(self.sim.reader(), "sim");
        let mut expected: Vec<String> =
            names(self.base).fillers.iter().map(|path| path.as_str().to_owned()).collect();
        for number in 0..PATHS {
            let value = match reader.get(&self.path(number)) {
                Ok(receipt) => {
                    expected.push(self.path(number).as_str().to_owned());
                    self.value_of(number, receipt.data())
                }
                Err(Error::NotFound { .. }) => Some(0),
                Err(error) => {
                    self.bad.push(format!("path {number} after recovery: {error}"));
                    continue;
                }
            };
            let is_right =
                value.is_some_and(|v| v == self.acked[number] || self.in_flight[number].contains(&v));
            if !is_right {
                self.bad.push(format!("path {number} has {value:?}, acknowledged {}", self.acked[number]));
            }
        }
        expected.sort();
        self.check_whole(&reader, &expected);
    }

    fn check_whole(&mut self, reader: &Reader<SimReader>, expected: &[String]) {
        let mut findings = Vec::new();
        let report = crate::verify::verify(reader, |finding| {
            findings.push(format!("{finding:?}"));
            Ok(())
        });
        match report {
            Ok(totals) if totals.entries == expected.len() as u64 => {}
            Ok(totals) => self.bad.push(format!("{} entries, {} paths", totals.entries, expected.len())),
            Err(error) => self.bad.push(format!("verify: {error}")),
        }
        self.bad.append(&mut findings);
        let mut listed = Vec::new();
        let result = reader.list("", |locator| {
            listed.push(locator.path.to_string());
            Ok(())
        });
        listed.sort();
        if result.is_err() || listed != expected {
            self.bad.push(format!("listing: {} paths of {}, {result:?}", listed.len(), expected.len()));
        }
    }
}
