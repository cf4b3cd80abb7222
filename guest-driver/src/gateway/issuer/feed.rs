//! `GET /paths?since=SEQ`: the changes of the store in their order, read from its log.

use super::Issuer;
use crate::answer::{Fault, Reply, json_reply};
use crate::disk::Outcome;
use crate::ids::is_reserved;
use crate::limits::{FEED_CHANGES, FEED_PLACES, FEED_POLL, FEED_RECORDS, FEED_WAIT, FEED_WAITERS};
use crate::server::{Asked, only_get};
use crate::target::Query;
use hyper::StatusCode;
use receipt_store::control::Control;
use receipt_store::follow::{Event, Follower};
use receipt_store::{Error, RawDevice, Reader, Result, hex};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Who waits, and places in the log for those who come back.
#[derive(Debug)]
pub struct Feed {
    commits: watch::Receiver<u64>,
    stopped: watch::Receiver<bool>,
    waiters: Semaphore,
    places: Arc<Mutex<VecDeque<Follower>>>,
}

/// Changes and where the next ones begin.
#[derive(Debug)]
struct Page {
    changes: Vec<Value>,
    next_seq: u64,
    /// The last sequence that there is.
    published_seq: u64,
    /// Segments were retired: receipts have gone without a change of their own.
    has_gap: bool,
    /// The log goes on: nothing to wait for.
    is_cut: bool,
}

impl Feed {
    /// A feed that looks again after each of `commits`, and waits no more once it is `stopped`.
    pub fn new(commits: watch::Receiver<u64>, stopped: watch::Receiver<bool>) -> Self {
        Self { commits, stopped, waiters: Semaphore::new(FEED_WAITERS), places: Arc::default() }
    }
}

impl Issuer {
    /// `since` is the last sequence that was seen, `limit` the most changes, `wait` the seconds to wait for the first one.
    pub async fn changes(&self, asked: &Asked) -> std::result::Result<Reply, Fault> {
        only_get(asked)?;
        let query = Query::strict(asked.uri.query(), &["since", "limit", "wait"])?;
        let from_seq = query.number("since")?.unwrap_or_default().saturating_add(1);
        let limit = query.number("limit")?.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(FEED_CHANGES).clamp(1, FEED_CHANGES);
        let wait = Duration::from_secs(query.number("wait")?.unwrap_or_default()).min(FEED_WAIT);
        let deadline =
            Instant::now() + wait.min(self.request_time.saturating_sub(Duration::from_millis(500)));
        let (mut commits, mut stopped) = (self.feed.commits.clone(), self.feed.stopped.clone());
        let (mut place, mut has_gap) = (None, false);
        let page = loop {
            commits.borrow_and_update();
            let page = self.read_changes(place.unwrap_or(from_seq), limit).await?;
            if from_seq > page.published_seq + 1 {
                let message = format!(
                    "the log ends at sequence {}: this is another store, or an older copy of it; list it anew",
                    page.published_seq
                );
                return Err(Fault::new(StatusCode::GONE, "beyond_the_end", message));
            }
            has_gap |= page.has_gap;
            let is_over = Instant::now() >= deadline || *stopped.borrow();
            if !page.changes.is_empty() || page.is_cut || is_over || has_gap {
                break page;
            }
            place = Some(page.next_seq);
            let Ok(_waiter) = self.feed.waiters.try_acquire() else {
                return Err(Fault::unavailable("too_many_waiters", "too many requests wait for changes"));
            };
            // Its own commits wake it; those that came by the socket are looked for.
            let look = deadline.min(Instant::now() + FEED_POLL);
            tokio::select! {
                () = tokio::time::sleep_until(look.into()) => {}
                _ = commits.changed() => {}
                _ = stopped.changed() => {}
            }
        };
        let body = json!({
            "store": self.store, "changes": page.changes, "next": page.next_seq - 1, "more": page.is_cut, "gap": has_gap,
        });
        Ok(json_reply(StatusCode::OK, &body))
    }

    async fn read_changes(&self, from_seq: u64, limit: usize) -> Outcome<Page> {
        let places = self.feed.places.clone();
        self.disk.run(move |reader| read(reader, &places, from_seq, limit)).await
    }
}

fn read(
    reader: &Reader<RawDevice>,
    places: &Mutex<VecDeque<Follower>>,
    from_seq: u64,
    limit: usize,
) -> Result<Page> {
    let known = {
        let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
        let at = places.iter().position(|place| place.next_seq() == from_seq);
        at.and_then(|at| places.remove(at))
    };
    let is_known = known.is_some();
    let mut follower = known.map_or_else(|| reader.follow(Some(from_seq)), Ok)?;
    // A place that is taken up again has told its gaps; a new one may begin behind what was retired.
    let retirements = if is_known { follower.retirements() } else { 0 };
    let mut page =
        Page { changes: Vec::new(), next_seq: from_seq, published_seq: 0, has_gap: false, is_cut: false };
    let mut records = 0;
    let polled = reader.poll(&mut follower, |event| {
        if page.changes.len() == limit || records == FEED_RECORDS {
            page.is_cut = true;
            return Err(Error::NotReached); // the follower stays before this one
        }
        records += 1;
        if !is_reserved(&event.stat.path) {
            page.changes.push(change(&event));
        }
        Ok(())
    });
    match polled {
        Err(Error::NotReached) if page.is_cut => {}
        done => done?,
    }
    page.next_seq = follower.next_seq();
    page.has_gap = follower.retirements() > retirements;
    page.published_seq = Control::read(reader.device(), &*reader.superblock()?)?.head.published_seq;
    let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
    places.push_back(follower);
    if places.len() > FEED_PLACES {
        places.pop_front();
    }
    Ok(page)
}

fn change(event: &Event) -> Value {
    let (stat, header) = (&event.stat, &event.stat.header);
    if event.is_removal {
        return json!({ "seq": header.seq, "path": stat.path.as_str(), "removed": true });
    }
    json!({
        "seq": header.seq, "path": stat.path.as_str(), "locator": stat.locator().to_string(),
        "hash": hex(&header.data_hash), "bytes": header.data_len, "version": header.version,
        "recorded_at_ms": header.recorded_at_ms,
    })
}
