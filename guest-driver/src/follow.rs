//! Following the store: new receipts and removals as they are acknowledged.

use crate::chain::{advance, place_before};
use crate::control::Control;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::log::Cursor;
use crate::path::ReceiptPath;
use crate::reader::{Reader, Stat};
use crate::record::Kind;
use crate::superblock::Superblock;
use crate::verify_life::Life;

/// A change that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What the record says.
    pub stat: Stat,
    /// The path was removed; otherwise it was stored.
    pub is_removal: bool,
}

/// Where somebody who follows the store stands.
#[derive(Clone, Debug)]
pub struct Follower {
    cursor: Cursor,
    /// Events before this sequence were seen.
    from_seq: u64,
    /// Segments that were retired meanwhile.
    retirements: u64,
}

impl Follower {
    /// The sequence to resume from.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.from_seq.max(self.cursor.seq + 1)
    }

    /// How many segments were retired since the beginning: their receipts have gone without an event each.
    #[must_use]
    pub fn retirements(&self) -> u64 {
        self.retirements
    }
}

impl<D: Device> Reader<D> {
    /// Begins to follow at the first change with sequence `from_seq` or later; `None` = after all that is acknowledged now.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn follow(&self, from_seq: Option<u64>) -> Result<Follower> {
        let superblock = &*self.superblock_now()?;
        let control = Control::read(self.device(), superblock)?;
        let replay = &control.head.replay;
        let from_seq = from_seq.unwrap_or(control.head.published_seq + 1);
        let cursor = if from_seq <= replay.seq {
            place_before(self, superblock, &control, from_seq)?
        } else {
            Cursor::at(replay, 0)
        };
        // Where the place was retired, it begins behind what has gone.
        let retirements = u64::from(cursor.seq + 1 > from_seq.max(1));
        Ok(Follower { cursor, from_seq, retirements })
    }

    /// Calls `visit` with every change that was acknowledged since the last call, in order: one device read of lease and head, and
    /// one a record.
    ///
    /// # Errors
    /// A device error, [`Error::Corrupt`], or what `visit` returns; the follower then stands before that record.
    pub fn poll(&self, follower: &mut Follower, mut visit: impl FnMut(Event) -> Result<()>) -> Result<()> {
        let known = self.superblock()?;
        match self.poll_in(&known, follower, &mut visit) {
            // What lies beyond the store as it was known is no damage.
            Err(Error::Corrupt(_)) if self.superblock_now()? != known => {
                self.poll_in(&*self.superblock()?, follower, &mut visit)
            }
            answer => answer,
        }
    }

    fn poll_in(
        &self,
        superblock: &Superblock,
        follower: &mut Follower,
        visit: &mut impl FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let published_seq = Control::read(self.device(), superblock)?.head.published_seq;
        while follower.cursor.seq < published_seq {
            let mut cursor = follower.cursor.clone();
            let Some(header) = advance(self, superblock, &mut cursor, &mut Life::default())? else {
                follower.cursor = cursor; // behind what was retired
                follower.retirements += 1;
                continue;
            };
            let is_new = header.seq >= follower.from_seq;
            follower.retirements += u64::from(header.kind == Kind::Retire && is_new);
            if header.changes_index() && is_new {
                let is_removal = header.kind != Kind::Put;
                let path = ReceiptPath::from_bytes(&header.meta)?;
                visit(Event { stat: Stat { path, header }, is_removal })?;
            }
            follower.cursor = cursor;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::chain::tests::{put, reader, store};
    use crate::{ReceiptPath, Writer, WriterOptions};

    #[test]
    fn following_from_any_sequence_sees_each_change_once_and_in_order() {
        let sim = store();
        put(&sim, 0..150);
        let last = reader(&sim).note().unwrap().seq;
        let mut all = Vec::new();
        let collect = |from, all: &mut Vec<(u64, String)>| {
            let reader = reader(&sim);
            let mut follower = reader.follow(from).unwrap();
            reader
                .poll(&mut follower, |event| {
                    all.push((event.stat.header.seq, event.stat.path.to_string()));
                    Ok(())
                })
                .unwrap();
            follower.next_seq()
        };
        assert_eq!(collect(Some(0), &mut all), last + 1);
        assert_eq!(all.len(), 150);
        assert!(all.iter().zip(0..).all(|((_, path), n)| *path == format!("n/{n}")));
        for from in 1..=last + 1 {
            let mut some = Vec::new();
            collect(Some(from), &mut some);
            let expected: Vec<_> = all.iter().filter(|(seq, _)| *seq >= from).cloned().collect();
            assert_eq!(some, expected, "from {from}");
        }
        let mut none = Vec::new();
        assert_eq!(collect(None, &mut none), last + 1);
        assert!(none.is_empty());
    }

    #[test]
    fn a_follower_sees_what_comes_and_what_goes() {
        let sim = store();
        let first = reader(&sim);
        let follower = first.follow(None).unwrap();
        put(&sim, 0..3);
        let device = sim.writer();
        let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        writer.remove(&ReceiptPath::new("n/1").unwrap()).unwrap();
        let mut seen = Vec::new();
        reader(&sim)
            .poll(&mut follower.clone(), |event| {
                seen.push((event.stat.path.to_string(), event.is_removal));
                Ok(())
            })
            .unwrap();
        assert_eq!(
            seen.iter().map(|(p, r)| (p.as_str(), *r)).collect::<Vec<_>>(),
            [("n/0", false), ("n/1", false), ("n/2", false), ("n/1", true)]
        );
    }
}
