//! One writer for many threads: changes that arrive while a group commit runs share the next one, its sequential write and its
//! flush.
//!
//! There is no thread of its own: of the callers that wait, one leads and commits for all. Invariants: at most one leads; an answer is
//! given once, to the caller of its change; a leader that panics stops the writer, nobody waits for ever.

use crate::checksum::DataSums;
use crate::device::Device;
use crate::error::{DeviceError, Error, Result};
use crate::layout::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::owned_change::{Group, HashedGroup, OwnedChange};
use crate::writer::{Change, Stored, Writer};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
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

impl CommitLimits {
    /// With at least one change, and no more than a commit can hold.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self {
            records: self.records.clamp(1, BATCH_RECORDS_MAX),
            bytes: self.bytes.min(BATCH_BYTES_MAX),
            wait: self.wait,
        }
    }
}

/// Changes that wait for a commit. Their caller has hashed them, so that callers hash while a commit runs.
#[derive(Debug)]
struct Queued {
    ticket: u64,
    group: HashedGroup,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Queued>,
    answers: HashMap<u64, Vec<Result<Stored>>>,
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
    commits: AtomicU64,
    /// Epoch of the writer: it changes when the store is opened again.
    epoch: AtomicU32,
    /// Why the writer has stopped.
    failure: Mutex<Option<Error>>,
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
            epoch: AtomicU32::new(writer.epoch()),
            writer: Mutex::new(Some(writer)),
            state: Mutex::default(),
            changed: Condvar::new(),
            limits: limits.bounded(),
            commits: AtomicU64::new(0),
            failure: Mutex::default(),
        }
    }

    /// Group commits so far.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Epoch of the writer.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Whether the writer has stopped after an error: nothing is stored until the store is opened again.
    pub fn has_failed(&self) -> bool {
        lock(&self.failure).is_some()
    }

    /// Why it has stopped.
    pub fn failure(&self) -> Option<Error> {
        lock(&self.failure).as_ref().map(copy_of)
    }

    /// Whether it was closed: nothing is stored through it any more.
    pub fn is_closed(&self) -> bool {
        lock(&self.state).is_stopped
    }

    /// Whether [`SharedWriter::reopen`] may help: it was the device that failed.
    pub fn may_reopen(&self) -> bool {
        lock(&self.failure).as_ref().is_some_and(may_pass)
    }

    /// Opens the store again after the device has failed, with all that an opening checks and recovers; what was acknowledged before is
    /// there. `open` is called when the failed writer is gone, with its locks. Changes wait meanwhile. False when there is nothing to mend:
    /// the writer works, is closed, or has stopped for a reason that no opening may mend, such as a fence.
    ///
    /// # Errors
    /// What `open` returns. After [`Error::Device`], [`Error::CannotOpen`] and [`Error::Busy`] it may be tried again, after no other.
    pub fn reopen(&self, open: impl FnOnce() -> Result<Writer<D>>) -> Result<bool> {
        let mut writer = lock(&self.writer);
        if !self.may_reopen() || lock(&self.state).is_stopped {
            return Ok(false);
        }
        drop(writer.take());
        match open() {
            Ok(opened) => {
                self.epoch.store(opened.epoch(), Ordering::Relaxed);
                *writer = Some(opened);
                *lock(&self.failure) = None;
                Ok(true)
            }
            Err(error) => {
                if !may_pass(&error) {
                    *lock(&self.failure) = Some(copy_of(&error));
                }
                Err(error)
            }
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
        let groups = changes.into_iter().map(|change| vec![change]).collect();
        self.change_groups(groups).into_iter().flatten().collect()
    }

    /// Makes groups of changes, in their order, in as few group commits as the limits allow. No group is divided between two
    /// commits; what a refusal does to the rest of its group says [`Writer::commit_groups`]. One answer a change.
    pub fn change_groups(&self, groups: Vec<Group>) -> Vec<Vec<Result<Stored>>> {
        self.change_hashed_groups(HashedGroup::hash_all(groups))
    }

    /// As [`SharedWriter::change_groups`], without hashing anything.
    pub fn change_hashed_groups(&self, groups: Vec<HashedGroup>) -> Vec<Vec<Result<Stored>>> {
        let sizes: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        let stopped = |size: &usize| (0..*size).map(|_| Err(Error::WriterStopped)).collect();
        let mut state = lock(&self.state);
        if state.is_stopped {
            return sizes.iter().map(stopped).collect();
        }
        let first = state.next_ticket;
        state.next_ticket += groups.len() as u64;
        state.queue.extend((first..).zip(groups).map(|(ticket, group)| Queued { ticket, group }));
        let mut answers = Vec::new();
        for (ticket, size) in (first..).zip(&sizes) {
            loop {
                if let Some(answer) = state.answers.remove(&ticket) {
                    answers.push(answer);
                    break;
                }
                if state.is_stopped && !state.has_leader {
                    answers.push(stopped(size));
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
        let groups: Vec<Vec<Change<'_>>> =
            batch.iter().map(|queued| queued.group.changes().collect()).collect();
        let groups: Vec<&[Change<'_>]> = groups.iter().map(Vec::as_slice).collect();
        let hashes: Vec<DataSums> = batch.iter().flat_map(|queued| queued.group.sums()).collect();
        let answers = match lock(&self.writer).as_mut() {
            Some(writer) => writer.commit_hashed(&groups, &hashes),
            None => Err(Error::WriterStopped),
        };
        self.commits.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = &answers {
            self.note(error);
        }
        let mut state = lock(&self.state);
        match answers {
            Ok(answers) => {
                let mut answers = answers.into_iter();
                for Queued { ticket, group } in &batch {
                    state.answers.insert(*ticket, answers.by_ref().take(group.len()).collect());
                }
            }
            Err(error) => {
                for Queued { ticket, group } in &batch {
                    state.answers.insert(*ticket, (0..group.len()).map(|_| Err(copy_of(&error))).collect());
                }
            }
        }
        drop(state);
        lead.is_done = true;
    }

    /// Remembers the first error that has stopped the writer.
    fn note(&self, error: &Error) {
        if !matches!(error, Error::Usage(_)) {
            lock(&self.failure).get_or_insert_with(|| copy_of(error));
        }
    }

    fn take_batch(&self) -> Vec<Queued> {
        let mut state = lock(&self.state);
        let mut batch = Vec::new();
        let (mut bytes, mut records) = (0, 0);
        while let Some(Queued { group, .. }) = state.queue.front() {
            let (len, count) = (group.data_len(), group.len());
            let is_full = bytes + len > self.limits.bytes || records + count > self.limits.records;
            if !batch.is_empty() && is_full {
                break;
            }
            bytes += len;
            records += count;
            batch.extend(state.queue.pop_front());
        }
        batch
    }

    /// Does something else with the writer while no commit runs; changes wait meanwhile.
    ///
    /// # Errors
    /// [`Error::WriterStopped`] after [`SharedWriter::close`], or what `work` returns.
    pub fn exclusively<T>(&self, work: impl FnOnce(&mut Writer<D>) -> Result<T>) -> Result<T> {
        let mut writer = lock(&self.writer);
        let Some(writer) = writer.as_mut() else { return Err(Error::WriterStopped) };
        let done = work(writer);
        if let (Err(error), true) = (&done, writer.is_stopped()) {
            self.note(error);
        }
        done
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
        match writer {
            Some(writer) => writer.close(),
            None if self.has_failed() => Err(Error::WriterStopped),
            None => Ok(()),
        }
    }
}

/// Whether what is wrong may be over some time later, with the store as it was.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Device(_) | Error::CannotOpen { .. } | Error::Busy { .. })
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
#[path = "shared_tests.rs"]
mod tests;
