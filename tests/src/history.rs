//! Histories of requests on a disk, and two checks whether one order explains them. Pure.
//!
//! Every sector is a register; every write has a [`Version`] of its own, so a read tells which write each of its sectors
//! comes from. A history is linearizable when all requests can be put into one order in which every read
//! returns the last writes before it, whole, and in which a request that was answered before another was submitted
//! comes first.
//!
//! * [`History::check_sectors`] looks at each sector alone, in O(n log n) (Gibbons and Korach, "Testing shared memories"). It
//!   says which sector is wrong and how, but does not see a request that is torn between two sectors.
//! * [`History::check_requests`] is exact for whole requests: it keeps every state that the disk may be in (Lowe, "Testing
//!   for linearizability": a request is put into the order no earlier than an answer demands it). Its cost grows with
//!   the writes in flight at once, not with the length of the history.

use std::collections::{HashMap, HashSet};

/// Position of an event in the one order in which the recorder saw them; no two are equal.
pub type Stamp = u64;

/// The answer that never came.
pub const OPEN: Stamp = Stamp::MAX;

/// Which write a sector's bytes come from. The default is what was there before any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Version {
    /// Who wrote.
    pub writer: u32,
    /// Its how many-th write.
    pub sequence: u32,
}

/// What a request did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Gave all its sectors this version, `count` of them.
    Write {
        /// No other write has it.
        version: Version,
        /// Sectors written.
        count: usize,
    },
    /// Found these versions.
    Read(Vec<Version>),
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// Its first sector.
    pub first: usize,
    /// What it did.
    pub action: Action,
    /// When it was submitted.
    pub invoked: Stamp,
    /// When it was seen to be answered, or [`OPEN`].
    pub answered: Stamp,
}

/// Requests on a disk that holds `initial` at first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Version of every sector before the first request.
    pub initial: Vec<Version>,
    /// The requests, in any order.
    pub ops: Vec<Op>,
}

/// Why no order explains a history. Requests are named by their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A read returned what nobody wrote to that sector.
    Unwritten {
        /// The read.
        read: usize,
        /// The sector.
        sector: usize,
    },
    /// A read was answered before the write that it saw was submitted.
    FromTheFuture {
        /// The read.
        read: usize,
        /// The sector.
        sector: usize,
    },
    /// Two versions were each there after the other: a read was stale, or a write got lost.
    TwoOrders {
        /// The sector.
        sector: usize,
        /// The versions.
        versions: [Version; 2],
    },
    /// No order of the requests answered until here explains this answer: torn, stale, or out of order.
    NoOrder {
        /// The request.
        op: usize,
    },
}

impl Op {
    /// Sectors it touches.
    pub fn sectors(&self) -> std::ops::Range<usize> {
        let count = match &self.action {
            Action::Write { count, .. } => *count,
            Action::Read(versions) => versions.len(),
        };
        self.first..self.first + count
    }

    /// Whether it found versions of more than one write. Not wrong by itself: several writes may make up what it covers.
    pub fn found_several(&self) -> bool {
        matches!(&self.action, Action::Read(versions) if versions.iter().any(|version| *version != versions[0]))
    }
}

/// One version of one sector: its write and the reads that saw it, in time.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    version: Version,
    write_invoked: Stamp,
    /// The first answer that proves that it was there.
    first_answer: Stamp,
    /// The last submission after which it was there.
    last_invocation: Stamp,
}

impl History {
    /// Both checks.
    ///
    /// # Errors
    /// The first violation found.
    pub fn check(&self) -> Result<(), Violation> {
        self.check_sectors()?;
        self.check_requests()
    }

    /// Checks every sector by itself.
    ///
    /// # Errors
    /// The first violation found.
    pub fn check_sectors(&self) -> Result<(), Violation> {
        (0..self.initial.len()).try_for_each(|sector| check_clusters(sector, &self.clusters(sector)?))
    }

    fn clusters(&self, sector: usize) -> Result<Vec<Cluster>, Violation> {
        let at_first =
            Cluster { version: self.initial[sector], write_invoked: 0, first_answer: 0, last_invocation: 0 };
        let mut clusters = HashMap::from([(at_first.version, at_first)]);
        let touching = || self.ops.iter().enumerate().filter(|(_, op)| op.sectors().contains(&sector));
        for (_, op) in touching() {
            if let Action::Write { version, .. } = op.action {
                let (write_invoked, first_answer) = (op.invoked, op.answered);
                let cluster =
                    Cluster { version, write_invoked, first_answer, last_invocation: write_invoked };
                let twice = clusters.insert(version, cluster);
                assert!(twice.is_none(), "two writes have {version:?}");
            }
        }
        for (read, op) in touching() {
            let Action::Read(versions) = &op.action else { continue };
            // A read without an answer has seen nothing.
            if op.answered == OPEN {
                continue;
            }
            let cluster = clusters.get_mut(&versions[sector - op.first]);
            let cluster = cluster.ok_or(Violation::Unwritten { read, sector })?;
            if op.answered < cluster.write_invoked {
                return Err(Violation::FromTheFuture { read, sector });
            }
            cluster.first_answer = cluster.first_answer.min(op.answered);
            cluster.last_invocation = cluster.last_invocation.max(op.invoked);
        }
        Ok(clusters.into_values().collect())
    }

    /// Checks that one order explains all requests, each as a whole.
    ///
    /// # Errors
    /// The first answer that no order explains.
    pub fn check_requests(&self) -> Result<(), Violation> {
        let mut search = Search::new(self)?;
        let mut events: Vec<(Stamp, usize)> = Vec::with_capacity(2 * self.ops.len());
        for (index, op) in self.ops.iter().enumerate() {
            assert!(op.invoked < op.answered, "an answer comes after its request");
            events.push((op.invoked, index));
            events.extend((op.answered != OPEN).then_some((op.answered, index)));
        }
        events.sort_unstable();
        for (stamp, op) in events {
            if stamp == self.ops[op].invoked {
                search.submit(op);
            } else {
                search.answer(op)?;
            }
        }
        Ok(())
    }
}

/// Gibbons and Korach: the time in which a version must have been there begins with the first answer that proves it and
/// ends with the last submission that proves it. Two such times must not overlap, and a version that was there only within
/// one request's duration must not have had to be inside another's time.
fn check_clusters(sector: usize, clusters: &[Cluster]) -> Result<(), Violation> {
    let two_orders =
        |a: &Cluster, b: &Cluster| Violation::TwoOrders { sector, versions: [a.version, b.version] };
    let (mut forward, backward): (Vec<&Cluster>, Vec<&Cluster>) =
        clusters.iter().partition(|cluster| cluster.first_answer < cluster.last_invocation);
    forward.sort_unstable_by_key(|cluster| cluster.first_answer);
    for pair in forward.windows(2) {
        if pair[1].first_answer < pair[0].last_invocation {
            return Err(two_orders(pair[0], pair[1]));
        }
    }
    for cluster in backward {
        let before = forward.partition_point(|other| other.first_answer < cluster.last_invocation);
        let around = before.checked_sub(1).map(|index| forward[index]);
        if let Some(around) = around.filter(|around| cluster.first_answer < around.last_invocation) {
            return Err(two_orders(around, cluster));
        }
    }
    Ok(())
}

/// A state that the disk may be in: which write each sector holds, and which requests in flight are in the order already.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Possible {
    /// Index of the write plus one, 0 for what was there at first.
    sectors: Vec<u32>,
    /// Bit by slot.
    placed: u64,
}

#[derive(Debug)]
struct Search<'h> {
    history: &'h History,
    /// What each read found, in the terms of [`Possible::sectors`].
    found: Vec<Vec<u32>>,
    /// Request in flight in each slot.
    slots: Vec<Option<usize>>,
    possible: HashSet<Possible>,
}

impl<'h> Search<'h> {
    fn new(history: &'h History) -> Result<Self, Violation> {
        let mut writes = HashMap::new();
        for (index, op) in history.ops.iter().enumerate() {
            if let Action::Write { version, .. } = op.action {
                writes.insert(version, (u32::try_from(index).unwrap() + 1, op.sectors()));
            }
        }
        let origin = |read: usize, sector: usize, version: &Version| match writes.get(version) {
            Some((write, sectors)) if sectors.contains(&sector) => Ok(*write),
            None if *version == history.initial[sector] => Ok(0),
            _ => Err(Violation::Unwritten { read, sector }),
        };
        let found = |(read, op): (usize, &Op)| match &op.action {
            Action::Write { .. } => Ok(Vec::new()),
            Action::Read(_) if op.answered == OPEN => Ok(Vec::new()),
            Action::Read(versions) => {
                op.sectors().zip(versions).map(|(sector, version)| origin(read, sector, version)).collect()
            }
        };
        let found = history.ops.iter().enumerate().map(found).collect::<Result<_, _>>()?;
        let at_first = Possible { sectors: vec![0; history.initial.len()], placed: 0 };
        Ok(Self { history, found, slots: Vec::new(), possible: HashSet::from([at_first]) })
    }

    fn submit(&mut self, op: usize) {
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            assert!(self.slots.len() < 64, "at most 64 requests in flight");
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(op);
        if matches!(self.history.ops[op].action, Action::Read(_)) {
            let possible = std::mem::take(&mut self.possible);
            self.possible = possible.into_iter().map(|state| self.with_reads(state)).collect();
        }
    }

    /// Keeps the states in which `op` is in the order, or can come next after some writes in flight.
    fn answer(&mut self, op: usize) -> Result<(), Violation> {
        let slot = self.slots.iter().position(|other| *other == Some(op)).expect("it is in flight");
        let mut open: Vec<Possible> = std::mem::take(&mut self.possible).into_iter().collect();
        let mut seen: HashSet<Possible> = HashSet::new();
        while let Some(state) = open.pop() {
            assert!(seen.len() < 1 << 20, "too many writes in flight at once");
            if state.placed & 1 << slot != 0 {
                self.possible.insert(Possible { placed: state.placed & !(1 << slot), ..state });
                continue;
            }
            for (next, write) in self.slots.iter().enumerate() {
                let Some(write) = write.filter(|_| state.placed & 1 << next == 0) else { continue };
                if matches!(self.history.ops[write].action, Action::Write { .. }) {
                    let mut after = state.clone();
                    after.sectors[self.history.ops[write].sectors()].fill(u32::try_from(write).unwrap() + 1);
                    after.placed |= 1 << next;
                    let after = self.with_reads(after);
                    if seen.insert(after.clone()) {
                        open.push(after);
                    }
                }
            }
        }
        self.slots[slot] = None;
        if self.possible.is_empty() { Err(Violation::NoOrder { op }) } else { Ok(()) }
    }

    /// Puts every read in flight that finds what it found into the order: to wait longer could not help.
    fn with_reads(&self, mut state: Possible) -> Possible {
        for (slot, op) in self.slots.iter().enumerate() {
            let Some(op) = *op else { continue };
            let found = &self.found[op];
            if !found.is_empty() && state.sectors[self.history.ops[op].sectors()] == **found {
                state.placed |= 1 << slot;
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const NONE: Version = Version { writer: 0, sequence: 0 };

    fn version(sequence: u32) -> Version {
        Version { writer: 1, sequence }
    }

    fn write(sequence: u32, first: usize, count: usize, invoked: Stamp, answered: Stamp) -> Op {
        Op { first, action: Action::Write { version: version(sequence), count }, invoked, answered }
    }

    fn read(first: usize, versions: &[u32], invoked: Stamp, answered: Stamp) -> Op {
        let versions = versions.iter().map(|&v| if v == 0 { NONE } else { version(v) }).collect();
        Op { first, action: Action::Read(versions), invoked, answered }
    }

    fn history(sectors: usize, ops: &[Op]) -> History {
        History { initial: vec![NONE; sectors], ops: ops.to_vec() }
    }

    #[test]
    fn what_one_order_explains_is_accepted() {
        let ops = [
            write(1, 0, 2, 1, 10),
            read(0, &[0, 0], 2, 4),
            read(0, &[1, 1], 3, 11),
            write(2, 1, 2, 5, 12),
            read(0, &[1, 2, 2], 6, 13),
            read(0, &[1, 2, 2], 14, 15),
        ];
        assert_eq!(history(3, &ops).check(), Ok(()));
    }

    #[test]
    fn stale_read_is_found() {
        let ops = [write(1, 0, 1, 1, 2), read(0, &[0], 3, 4)];
        assert!(matches!(history(1, &ops).check_sectors(), Err(Violation::TwoOrders { sector: 0, .. })));
        assert_eq!(history(1, &ops).check_requests(), Err(Violation::NoOrder { op: 1 }));
    }

    #[test]
    fn value_that_goes_back_is_found() {
        // Both writes are in flight for the whole time: only the reads tell the order, and they disagree.
        let ops = [
            write(1, 0, 1, 1, 20),
            write(2, 0, 1, 2, 21),
            read(0, &[1], 3, 4),
            read(0, &[2], 5, 6),
            read(0, &[1], 7, 8),
        ];
        assert!(matches!(history(1, &ops).check_sectors(), Err(Violation::TwoOrders { .. })));
        assert_eq!(history(1, &ops).check_requests(), Err(Violation::NoOrder { op: 4 }));
    }

    #[test]
    fn lost_write_is_found() {
        let ops = [write(1, 0, 1, 1, 2), write(2, 0, 1, 3, 4), read(0, &[1], 5, 6)];
        assert!(matches!(history(1, &ops).check_sectors(), Err(Violation::TwoOrders { .. })));
        assert_eq!(history(1, &ops).check_requests(), Err(Violation::NoOrder { op: 2 }));
    }

    #[test]
    fn read_from_the_future_is_found() {
        let ops = [read(0, &[1], 1, 2), write(1, 0, 1, 3, 4)];
        assert_eq!(history(1, &ops).check_sectors(), Err(Violation::FromTheFuture { read: 0, sector: 0 }));
        assert_eq!(history(1, &ops).check_requests(), Err(Violation::NoOrder { op: 0 }));
    }

    #[test]
    fn unwritten_value_is_found() {
        let unwritten = Err(Violation::Unwritten { read: 0, sector: 0 });
        let nobody = [read(0, &[9], 1, 2)];
        assert_eq!(history(1, &nobody).check_sectors(), unwritten);
        assert_eq!(history(1, &nobody).check_requests(), unwritten);
        // Written, but to another sector: misdirected.
        let elsewhere = [read(0, &[1], 3, 4), write(1, 1, 1, 1, 2)];
        assert_eq!(history(2, &elsewhere).check_sectors(), unwritten);
        assert_eq!(history(2, &elsewhere).check_requests(), unwritten);
    }

    #[test]
    fn torn_read_is_found_only_by_the_check_of_requests() {
        let ops = [write(1, 0, 2, 1, 5), read(0, &[1, 0], 2, 6)];
        assert_eq!(history(2, &ops).check_sectors(), Ok(()));
        assert_eq!(history(2, &ops).check_requests(), Err(Violation::NoOrder { op: 1 }));
    }

    #[test]
    fn two_writes_that_mix_are_found_only_by_the_check_of_requests() {
        let ops = [write(1, 0, 2, 1, 5), write(2, 0, 2, 2, 6), read(0, &[1, 2], 7, 8)];
        assert_eq!(history(2, &ops).check_sectors(), Ok(()));
        assert_eq!(history(2, &ops).check_requests(), Err(Violation::NoOrder { op: 2 }));
    }

    #[test]
    fn two_readers_that_see_two_orders_are_found_only_by_the_check_of_requests() {
        // One sees the first write without the second, the other the second without the first.
        let ops =
            [write(1, 0, 1, 1, 20), write(2, 1, 1, 2, 21), read(0, &[1, 0], 3, 10), read(0, &[0, 2], 4, 11)];
        assert_eq!(history(2, &ops).check_sectors(), Ok(()));
        assert_eq!(history(2, &ops).check_requests(), Err(Violation::NoOrder { op: 3 }));
    }

    #[test]
    fn request_without_an_answer_may_have_happened_or_not() {
        let seen = [write(1, 0, 1, 1, OPEN), read(0, &[0], 2, 3), read(0, &[1], 4, 5)];
        assert_eq!(history(1, &seen).check(), Ok(()));
        let unseen = [write(1, 0, 1, 1, OPEN), read(0, &[0], 2, 3), read(0, &[0], 4, OPEN)];
        assert_eq!(history(1, &unseen).check(), Ok(()));
        let gone = [write(1, 0, 1, 1, OPEN), read(0, &[1], 2, 3), read(0, &[0], 4, 5)];
        assert!(gone_is_found(&history(1, &gone)));
    }

    fn gone_is_found(history: &History) -> bool {
        history.check_sectors().is_err() && history.check_requests().is_err()
    }

    /// Requests with random durations, carried out one after the other by a model of one sector; then a read may be falsified.
    fn random_history(rng: &mut Rng, falsify: bool) -> History {
        let (mut ops, mut now) = (Vec::new(), NONE);
        for index in 0..12 {
            let at = 100 * u64::from(index) + 1000;
            let (invoked, answered) = (at - rng.below(400), at + 1 + rng.below(400));
            let is_write = rng.below(2) == 0;
            now = if is_write { version(index + 1) } else { now };
            let action =
                if is_write { Action::Write { version: now, count: 1 } } else { Action::Read(vec![now]) };
            ops.push(Op { first: 0, action, invoked, answered });
        }
        let written = rng.below(12);
        let other = version(u32::try_from(written).unwrap() + 1);
        let read = ops.iter_mut().filter_map(|op| match &mut op.action {
            Action::Read(found) => Some(found),
            Action::Write { .. } => None,
        });
        if falsify && let Some(found) = read.last() {
            found[0] = other;
        }
        // Stamps are unique: time a hundredfold, then the index.
        for (index, op) in (0..).zip(&mut ops) {
            (op.invoked, op.answered) = (op.invoked * 100 + index, op.answered * 100 + 50 + index);
        }
        history(1, &ops)
    }

    #[test]
    fn both_checks_agree_about_single_sectors() {
        let mut rng = Rng::new(1);
        let mut bad = 0;
        for round in 0..20_000 {
            let history = random_history(&mut rng, round % 2 == 1);
            let verdicts = [history.check_sectors().is_ok(), history.check_requests().is_ok()];
            assert_eq!(verdicts[0], verdicts[1], "round {round}: {history:?}");
            assert!(verdicts[0] || round % 2 == 1, "round {round}: a good one is refused: {history:?}");
            bad += usize::from(!verdicts[0]);
        }
        assert!((3_000..10_000).contains(&bad), "{bad} bad ones: the histories are too easy or too hard");
    }
}
