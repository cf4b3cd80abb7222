//! One writer for many threads: changes that arrive while a group commit runs share the next one, its sequential write and its
//! flush.
//!
//! There is no thread of its own: of the callers that wait, one leads and commits for all. Invariants: at most one leads; an answer is
//! given once, to the caller of its change; a leader that panics stops the writer, nobody waits for ever.

use crate::device::Device;
use crate::error::{DeviceError, Error, Result};
use crate::layout::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::path::ReceiptPath;
use crate::writer::{Change, Put, Stored, Writer};
use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Limits of a group commit.
#[derive(Clone, Copy, Debug)]
pub struct CommitLimits {
    /// Most changes, at most 256.
    pub records: usize,
    /// Most bytes of data, at most 8 MiB; one larger receipt is a commit of its own.
    pub bytes: u64,
    /// How long a commit waits for more changes. Zero by default: what arrives during a commit shares the next one anyway.
    pub wait: Duration,
}

impl Default for CommitLimits {
    fn default() -> Self {
        Self { records: BATCH_RECORDS_MAX, bytes: BATCH_BYTES_MAX, wait: Duration::ZERO }
    }
}

/// A change with its own bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedChange {
    /// Stores a receipt.
    Put {
        /// Path.
        path: ReceiptPath,
        /// Bytes.
        data: Vec<u8>,
        /// Other data under the same path becomes its next version instead of being refused.
        is_new_version: bool,
    },
    /// Removes a path.
    Remove {
        /// Path.
        path: ReceiptPath,
    },
}

impl OwnedChange {
    /// A receipt issued today whose path must be new.
    #[must_use]
    pub fn put(path: ReceiptPath, data: Vec<u8>) -> Self {
        Self::Put { path, data, is_new_version: false }
    }

    /// Bytes of data.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        match self {
            Self::Put { data, .. } => data.len() as u64,
            Self::Remove { .. } => 0,
        }
    }

    /// The change, borrowed.
    #[must_use]
    pub fn borrow(&self) -> Change<'_> {
        match self {
            Self::Put { path, data, is_new_version } => {
                Change::Put(Put { is_new_version: *is_new_version, ..Put::new(path, data) })
            }
            Self::Remove { path } => Change::Remove(path),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<(u64, OwnedChange)>,
    answers: HashMap<u64, Result<Stored>>,
    next_ticket: u64,
    has_leader: bool,
    is_stopped: bool,
}

/// A writer that threads share.
#[derive(Debug)]
pub struct SharedWriter<D> {
    writer: Mutex<Option<Writer<D>>>,
    state: Mutex<State>,
    changed: Condvar,
    limits: CommitLimits,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the lead back, also when the leader panics.
struct Lead<'a, D> {
    shared: &'a SharedWriter<D>,
    is_done: bool,
}

impl<D> Drop for Lead<'_, D> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.has_leader = false;
        state.is_stopped |= !self.is_done;
        self.shared.changed.notify_all();
    }
}

impl<D: Device> SharedWriter<D> {
    /// Shares `writer`.
    #[must_use]
    pub fn new(writer: Writer<D>, limits: CommitLimits) -> Self {
        Self {
            writer: Mutex::new(Some(writer)),
            state: Mutex::default(),
            changed: Condvar::new(),
            limits: CommitLimits {
                records: limits.records.clamp(1, BATCH_RECORDS_MAX),
                bytes: limits.bytes.min(BATCH_BYTES_MAX),
                wait: limits.wait,
            },
        }
    }

    /// Makes one change; returns when it is durable and visible.
    ///
    /// # Errors
    /// As [`Writer::commit_changes`].
    pub fn change(&self, change: OwnedChange) -> Result<Stored> {
        self.change_all(vec![change]).pop().unwrap_or(Err(Error::WriterStopped))
    }

    /// Makes several changes, in their order, in as few group commits as the limits allow; each has its own answer.
    pub fn change_all(&self, changes: Vec<OwnedChange>) -> Vec<Result<Stored>> {
        let count = changes.len() as u64;
        let mut state = lock(&self.state);
        if state.is_stopped {
            return changes.iter().map(|_| Err(Error::WriterStopped)).collect();
        }
        let first = state.next_ticket;
        state.next_ticket += count;
        state.queue.extend((first..).zip(changes));
        let mut answers = Vec::new();
        for ticket in first..first + count {
            loop {
                if let Some(answer) = state.answers.remove(&ticket) {
                    answers.push(answer);
                    break;
                }
                if state.is_stopped && !state.has_leader {
                    answers.push(Err(Error::WriterStopped));
                    break;
                }
                if state.has_leader {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                } else {
                    state.has_leader = true;
                    drop(state);
                    self.lead();
                    state = lock(&self.state);
                }
            }
        }
        answers
    }

    /// Commits what has queued, once.
    fn lead(&self) {
        let mut lead = Lead { shared: self, is_done: false };
        if !self.limits.wait.is_zero() {
            std::thread::sleep(self.limits.wait);
        }
        let batch = self.take_batch();
        let changes: Vec<Change<'_>> = batch.iter().map(|(_, change)| change.borrow()).collect();
        let answers = match lock(&self.writer).as_mut() {
            Some(writer) => writer.commit_changes(&changes),
            None => Err(Error::WriterStopped),
        };
        let mut state = lock(&self.state);
        match answers {
            Ok(answers) => {
                state.answers.extend(batch.iter().map(|(ticket, _)| *ticket).zip(answers));
            }
            Err(error) => {
                state.answers.extend(batch.iter().map(|(ticket, _)| (*ticket, Err(copy_of(&error)))));
            }
        }
        drop(state);
        lead.is_done = true;
    }

    fn take_batch(&self) -> Vec<(u64, OwnedChange)> {
        let mut state = lock(&self.state);
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some((_, change)) = state.queue.front() {
            let len = change.data_len();
            if !batch.is_empty() && (bytes + len > self.limits.bytes || batch.len() == self.limits.records) {
                break;
            }
            bytes += len;
            batch.extend(state.queue.pop_front());
        }
        batch
    }

    /// Waits for the commit that runs and ends the writer, so that the next opening has nothing to recover. Changes that were
    /// not acknowledged get [`Error::WriterStopped`].
    ///
    /// # Errors
    /// As [`Writer::close`].
    pub fn close(&self) -> Result<()> {
        let writer = lock(&self.writer).take();
        let mut state = lock(&self.state);
        state.is_stopped = true;
        state.queue.clear();
        self.changed.notify_all();
        drop(state);
        writer.map_or(Ok(()), Writer::close)
    }
}

/// The same error for each change of a commit that failed.
fn copy_of(error: &Error) -> Error {
    match error {
        Error::Device(DeviceError { op, offset_bytes, len_bytes, source }) => {
            let source = match source.raw_os_error() {
                Some(code) => std::io::Error::from_raw_os_error(code),
                None => std::io::Error::new(source.kind(), source.to_string()),
            };
            DeviceError { op: *op, offset_bytes: *offset_bytes, len_bytes: *len_bytes, source }.into()
        }
        Error::Fenced { epoch } => Error::Fenced { epoch: *epoch },
        Error::Corrupt(fact) => Error::Corrupt(fact.clone()),
        Error::Usage(text) => Error::Usage(text.clone()),
        _ => Error::WriterStopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceResult;
    use crate::sim::Sim;
    use crate::{FormatOptions, Reader, WriterOptions, format};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A disk whose flushes take a while and are counted.
    struct Slow {
        inner: crate::sim::SimWriter,
        flushes: AtomicU64,
    }

    impl Device for Slow {
        fn size_bytes(&self) -> u64 {
            self.inner.size_bytes()
        }
        fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
            self.inner.read(offset_bytes, buf)
        }
        fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
            self.inner.write(offset_bytes, buf)
        }
        fn flush(&self) -> DeviceResult<()> {
            std::thread::sleep(Duration::from_millis(5));
            self.flushes.fetch_add(1, Ordering::Relaxed);
            self.inner.flush()
        }
    }

    fn store(sim: &Sim) -> Slow {
        format(&sim.writer(), &FormatOptions { segment_bytes: Some(1 << 20), ..FormatOptions::default() })
            .unwrap();
        Slow { inner: sim.writer(), flushes: AtomicU64::new(0) }
    }

    fn path(text: &str) -> ReceiptPath {
        ReceiptPath::new(text).unwrap()
    }

    #[test]
    fn puts_of_many_threads_share_flushes_and_one_error_hides_no_other_answer() {
        let sim = Sim::new(16 << 20);
        let device = store(&sim);
        let writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        let shared = SharedWriter::new(writer, CommitLimits::default());
        let start = Barrier::new(16);
        std::thread::scope(|scope| {
            for thread in 0..16_u8 {
                let (shared, start) = (&shared, &start);
                scope.spawn(move || {
                    start.wait();
                    for number in 0..10 {
                        let name = path(&format!("{thread}/{number}"));
                        shared.change(OwnedChange::put(name.clone(), vec![thread; 3000])).unwrap();
                        let again = shared.change(OwnedChange::put(name, b"other".to_vec()));
                        assert!(matches!(again, Err(Error::Exists { .. })), "{again:?}");
                        let missing =
                            shared.change(OwnedChange::Remove { path: path(&format!("no/{thread}")) });
                        assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
                    }
                });
            }
        });
        let flushes = device.flushes.load(Ordering::Relaxed);
        assert!(flushes < 80, "160 puts took {flushes} flushes");
        shared.close().unwrap();
        let after = shared.change(OwnedChange::put(path("late"), Vec::new()));
        assert!(matches!(after, Err(Error::WriterStopped)));
        let reader = Reader::new(sim.reader(), "sim");
        for thread in 0..16_u8 {
            for number in 0..10 {
                assert_eq!(reader.get(&path(&format!("{thread}/{number}"))).unwrap().data(), [thread; 3000]);
            }
        }
    }

    #[test]
    fn limits_cut_commits_and_a_failing_device_answers_everybody() {
        let sim = Sim::new(16 << 20);
        let device = store(&sim);
        let writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        let limits = CommitLimits { records: 3, bytes: 10_000, wait: Duration::from_millis(1) };
        let shared = SharedWriter::new(writer, limits);
        let before = device.flushes.load(Ordering::Relaxed);
        let puts = |round: u32, len: usize| {
            (0..6).map(|n| OwnedChange::put(path(&format!("{round}/{n}")), vec![1; len])).collect::<Vec<_>>()
        };
        assert!(shared.change_all(puts(0, 10)).iter().all(Result::is_ok));
        assert_eq!(device.flushes.load(Ordering::Relaxed) - before, 2, "three records a commit");
        assert!(shared.change_all(puts(1, 9000)).iter().all(Result::is_ok));
        assert_eq!(device.flushes.load(Ordering::Relaxed) - before, 8, "one record a commit");
        let versions: Vec<OwnedChange> = puts(0, 20)
            .into_iter()
            .map(|change| match change {
                OwnedChange::Put { path, data, .. } => OwnedChange::Put { path, data, is_new_version: true },
                other => other,
            })
            .collect();
        sim.fail_at(sim.ops() + 3); // after three headers were read: the write of the records
        let answers = shared.change_all(versions);
        let (first, second) = answers.split_at(3);
        assert!(first.iter().all(|answer| matches!(answer, Err(Error::Device(_)))), "{first:?}");
        assert!(second.iter().all(|answer| matches!(answer, Err(Error::WriterStopped))), "{second:?}");
        assert!(matches!(shared.close(), Err(Error::WriterStopped)));
    }
}
