//! From many waiting requests to few group commits: one thread takes what has queued while the last commit ran.
//!
//! Invariant: every group that was taken is answered, or its sender is dropped, which its request takes for a failure.

use crate::answer::Fault;
use crate::limits::QUEUED_PUTS;
use receipt_store::layout::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use receipt_store::owned_change::HashedGroup;
use receipt_store::{RawDevice, Result, SharedWriter, Stored};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

type Answers = Vec<Result<Stored>>;

#[derive(Debug)]
struct Job {
    group: HashedGroup,
    answer: oneshot::Sender<Answers>,
    /// The memory of the group; given back when it is committed, also if its request has gone meanwhile.
    room: OwnedSemaphorePermit,
}

/// Where groups go. The thread ends when this is dropped and the queue is empty.
#[derive(Debug)]
pub struct Committer {
    jobs: mpsc::Sender<Job>,
    commits: watch::Receiver<u64>,
}

impl Committer {
    /// Starts the thread.
    pub fn start(shared: Arc<SharedWriter<RawDevice>>) -> (Self, JoinHandle<()>) {
        let (jobs, receiver) = mpsc::channel(QUEUED_PUTS);
        let (committed, commits) = watch::channel(0);
        let thread = std::thread::spawn(move || commit_all(&shared, receiver, &committed));
        (Self { jobs, commits }, thread)
    }

    /// Changes after every commit of this thread.
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.commits.clone()
    }

    /// Makes the changes of a group; returns when they are durable and visible.
    pub async fn commit(
        &self,
        group: HashedGroup,
        room: OwnedSemaphorePermit,
    ) -> std::result::Result<Answers, Fault> {
        let stopped = || Fault::unavailable("not_writable", "the writer has stopped");
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { group, answer, room }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())
    }
}

fn commit_all(
    shared: &SharedWriter<RawDevice>,
    mut jobs: mpsc::Receiver<Job>,
    committed: &watch::Sender<u64>,
) {
    while let Some(first) = jobs.blocking_recv() {
        let mut bytes = first.group.data_len();
        let (mut groups, mut waiting) = (vec![first.group], vec![(first.answer, first.room)]);
        while bytes < BATCH_BYTES_MAX && groups.len() < BATCH_RECORDS_MAX {
            let Ok(job) = jobs.try_recv() else { break };
            bytes += job.group.data_len();
            groups.push(job.group);
            waiting.push((job.answer, job.room));
        }
        for (answers, (waiting, _room)) in shared.change_hashed_groups(groups).into_iter().zip(waiting) {
            let _ = waiting.send(answers); // the request has gone: its change is made all the same
        }
        committed.send_modify(|count| *count += 1);
    }
}
