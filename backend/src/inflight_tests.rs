//! A backend that dies after any of its stores, and again in its recovery: every request is carried out, and answered once.

use std::cell::Cell;

use proptest::prelude::*;

use super::*;

const QUEUE_SIZE: u16 = 4;
const ENDLESS: usize = usize::MAX;

thread_local! {
    /// Stores that the process may still make; a dead one makes none.
    static STORES_LEFT: Cell<usize> = const { Cell::new(ENDLESS) };
}

pub(super) fn may_store() -> bool {
    let left = STORES_LEFT.get();
    if left != ENDLESS {
        STORES_LEFT.set(left.saturating_sub(1));
    }
    left > 0
}

fn is_alive() -> bool {
    STORES_LEFT.get() > 0
}

fn region() -> Arc<Region> {
    let (fd, bytes) = Region::create(2, QUEUE_SIZE).unwrap();
    Region::map(fd, 0, bytes, 2, QUEUE_SIZE).unwrap()
}

/// What outlives a process: the region, the ring, and what the guest knows.
struct World {
    region: Arc<Region>,
    /// Head of each request, in ring order.
    available: Vec<u16>,
    /// Heads that the used index shows.
    used: Vec<u16>,
    /// Request that each head stands for at the moment.
    outstanding: [Option<usize>; QUEUE_SIZE as usize],
    carried_out: Vec<u32>,
    requests: usize,
}

impl World {
    fn new(requests: usize) -> Self {
        let (available, used, carried_out) = (Vec::new(), Vec::new(), vec![0; requests]);
        let mut world =
            Self { region: region(), available, used, outstanding: [None; 4], carried_out, requests };
        // Not in the order of the heads.
        for head in [2, 0, 3, 1] {
            world.submit(head);
        }
        world
    }

    fn submit(&mut self, head: u16) {
        if self.available.len() < self.requests {
            let before = self.outstanding[usize::from(head)].replace(self.available.len());
            assert_eq!(before, None, "a head is used again only after it came back");
            self.available.push(head);
        }
    }

    fn index(&self) -> u16 {
        u16::try_from(self.used.len()).unwrap()
    }

    fn show(&mut self, batch: &[u16]) {
        for &head in batch {
            let request = self.outstanding[usize::from(head)].take();
            let request = request.unwrap_or_else(|| panic!("head {head} comes back twice"));
            assert!(self.carried_out[request] > 0, "request {request} comes back undone");
            self.used.push(head);
        }
        batch.iter().for_each(|&head| self.submit(head));
    }

    /// One process with so many stores to live, which ends its requests in batches of `batch`, the latest first.
    fn live(&mut self, stores: usize, batch: usize) {
        STORES_LEFT.set(stores);
        let region = Arc::clone(&self.region);
        let (mut tracker, recovered) = region.recover(1, QUEUE_SIZE, self.index()).unwrap();
        if !is_alive() {
            return;
        }
        for list in [&recovered.started, &recovered.waiting] {
            let requests: Vec<_> = list.iter().map(|&head| self.outstanding[usize::from(head)]).collect();
            assert!(
                requests.is_sorted() && requests.iter().all(Option::is_some),
                "{recovered:?}: {requests:?}"
            );
        }
        let mut next = self.used.len() + recovered.count();
        let mut taken = [recovered.started, recovered.waiting].concat();
        while is_alive() && self.used.len() < self.requests {
            for &head in &self.available[next..] {
                tracker.take(head);
                taken.push(head);
            }
            next = self.available.len();
            let done = taken.split_off(taken.len().saturating_sub(batch));
            for &head in &done {
                tracker.note_started(head);
                if is_alive() {
                    self.carried_out[self.outstanding[usize::from(head)].unwrap()] += 1;
                }
                tracker.give_back(head);
            }
            if may_store() {
                self.show(&done);
            }
            tracker.published(self.index());
        }
    }
}

#[test]
fn every_request_is_answered_once_whenever_two_processes_die() {
    const REQUESTS: usize = 7;
    for batch in 1..=3 {
        for first in 0.. {
            let mut longest = 0;
            for second in 0.. {
                let mut world = World::new(REQUESTS);
                world.live(first, batch);
                if world.used.len() == REQUESTS && is_alive() {
                    break;
                }
                world.live(second, 4 - batch);
                longest = second;
                let second_lived = is_alive();
                world.live(ENDLESS, batch);
                assert_eq!(world.used.len(), REQUESTS);
                assert!(world.carried_out.iter().all(|&times| times > 0));
                if second_lived {
                    break;
                }
            }
            if longest == 0 {
                assert!(first > 6 * REQUESTS, "{first} stores are not a whole life");
                break;
            }
        }
    }
}

#[test]
fn started_writes_come_first_and_in_order() {
    let region = region();
    let (mut tracker, _) = region.recover(0, QUEUE_SIZE, 0).unwrap();
    for head in [3, 1, 0, 2] {
        tracker.take(head);
    }
    for head in [0, 3] {
        tracker.note_started(head);
    }
    drop(tracker);
    assert_eq!(region.marked_queues(), [0]);
    let (mut tracker, recovered) = region.recover(0, QUEUE_SIZE, 0).unwrap();
    assert_eq!(recovered, Recovered { started: vec![3, 0], waiting: vec![1, 2] });
    // What comes now is behind all of them.
    for head in [3, 0] {
        tracker.give_back(head);
    }
    tracker.published(2);
    tracker.take(0);
    let (_, recovered) = region.recover(0, QUEUE_SIZE, 2).unwrap();
    assert_eq!(recovered, Recovered { started: vec![], waiting: vec![1, 2, 0] });
}

#[test]
fn fresh_region_begins_with_the_index_of_the_ring() {
    let region = region();
    let (mut tracker, _) = region.recover(0, QUEUE_SIZE, 7).unwrap();
    tracker.take(0);
    let (_, recovered) = region.recover(0, QUEUE_SIZE, 7).unwrap();
    assert_eq!(recovered.waiting, [0], "head 0 is in flight");
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let map = |offset, size, queues, queue_size| {
        let (fd, _) = Region::create(2, QUEUE_SIZE).unwrap();
        Region::map(fd, offset, size, queues, queue_size).map(drop)
    };
    let whole = region_bytes(2, QUEUE_SIZE) as u64;
    map(0, whole, 2, QUEUE_SIZE).unwrap();
    map(0, u64::MAX, 1, QUEUE_SIZE).unwrap();
    for (offset, size, queues, queue_size) in [
        (0, whole, 0, QUEUE_SIZE),
        (0, whole, 2, 0),
        (0, whole, 3, QUEUE_SIZE),
        (0, whole - 1, 2, QUEUE_SIZE),
        (0, 1 << 40, u16::MAX, u16::MAX),
        (1, whole, 1, 1),
        (4096, whole, 1, 1),
        (u64::MAX, whole, 1, 1),
    ] {
        assert!(map(offset, size, queues, queue_size).is_err(), "{offset} {size} {queues} {queue_size}");
    }
    let no_file = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    assert!(Region::map(no_file, 0, whole, 2, QUEUE_SIZE).is_err());
}

proptest! {
    /// Whatever a front end puts there: an error, or heads of the ring, each once.
    #[test]
    fn any_content_is_survived(bytes in prop::collection::vec(0u8..6, region_bytes(2, QUEUE_SIZE)), used in 0u16..8) {
        let region = region();
        for (at, byte) in bytes.iter().enumerate() {
            region.store(at, *byte);
        }
        let _ = region.marked_queues();
        for queue in 0..3 {
            if let Ok((mut tracker, recovered)) = region.recover(queue, QUEUE_SIZE, used) {
                let mut heads = [recovered.started, recovered.waiting].concat();
                heads.iter().for_each(|&head| tracker.give_back(head));
                tracker.published(used.wrapping_add(u16::try_from(heads.len()).unwrap()));
                heads.sort_unstable();
                let count = heads.len();
                heads.dedup();
                prop_assert!(heads.len() == count && heads.iter().all(|&head| head < QUEUE_SIZE));
            }
        }
    }
}
