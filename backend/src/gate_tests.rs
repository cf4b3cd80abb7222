//! The real gate under random thread schedules: RUSTFLAGS="--cfg shuttle" cargo test -p receiptdisk-backend gate

use std::sync::Arc;

use shuttle::rand::Rng;
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::{rand, thread};

use super::*;

const WORKERS: usize = 3;
const REQUESTS: usize = 6;
const BLOCKS: usize = 4;

/// Who is on each block at the moment: readers, or 100 for a writer.
#[derive(Default)]
struct Disk {
    users: [AtomicUsize; BLOCKS],
}

impl Disk {
    fn enter(&self, range: ByteRange, access: Access) {
        for block in range.start..range.end {
            let weight = if access == Access::Exclusive { 100 } else { 1 };
            let before = self.users[usize::try_from(block).unwrap()].fetch_add(weight, Ordering::SeqCst);
            assert!(
                before == 0 || (before < 100 && access == Access::Shared),
                "two conflicting requests run at once"
            );
        }
    }

    fn leave(&self, range: ByteRange, access: Access) {
        for block in range.start..range.end {
            let weight = if access == Access::Exclusive { 100 } else { 1 };
            self.users[usize::try_from(block).unwrap()].fetch_sub(weight, Ordering::SeqCst);
        }
    }
}

/// A worker that admits all its requests first, as a ring is drained, and then runs what it is told to.
fn work(worker: usize, gate: &Gate, disk: &Disk) {
    let mut parked = Vec::new();
    let mut ready = Vec::new();
    for token in 0..REQUESTS {
        let start = rand::thread_rng().gen_range(0..BLOCKS as u64);
        let end = rand::thread_rng().gen_range(start + 1..=BLOCKS as u64);
        let access = if rand::thread_rng().gen_bool(0.5) { Access::Exclusive } else { Access::Shared };
        let range = ByteRange { start, end };
        let admission = gate.enter().admit(&[range], access, Waiter { worker, token });
        match admission {
            Admission::Now(ticket) => ready.push((ticket, range, access)),
            Admission::Parked(ticket) => parked.push((token, ticket, range, access)),
        }
        if rand::thread_rng().gen_bool(0.5) {
            run(worker, gate, disk, &mut ready, &mut parked);
        }
    }
    while !(parked.is_empty() && ready.is_empty()) {
        run(worker, gate, disk, &mut ready, &mut parked);
        while let Some(Mail::Granted(granted)) = gate.mailbox(worker).receive() {
            ready.push(take(&mut parked, granted));
        }
        thread::yield_now();
    }
}

type Granted = (Ticket, ByteRange, Access);
type Parked = (usize, Ticket, ByteRange, Access);

fn take(parked: &mut Vec<Parked>, granted: usize) -> Granted {
    let at =
        parked.iter().position(|(token, ..)| *token == granted).expect("granted twice, or to the wrong one");
    let (_, ticket, range, access) = parked.swap_remove(at);
    (ticket, range, access)
}

/// Carries out what is ready and releases it as a batch.
fn run(worker: usize, gate: &Gate, disk: &Disk, ready: &mut Vec<Granted>, parked: &mut Vec<Parked>) {
    let (mut tickets, mut granted) = (Vec::new(), Vec::new());
    for (ticket, range, access) in ready.drain(..) {
        disk.enter(range, access);
        thread::yield_now();
        disk.leave(range, access);
        tickets.push(ticket);
    }
    gate.release(worker, &mut tickets, &mut granted);
    ready.extend(granted.into_iter().map(|waiter| take(parked, waiter.token)));
}

fn schedule(is_open: bool) {
    let gate = Arc::new(Gate::new(WORKERS, is_open).unwrap());
    let disk = Arc::new(Disk::default());
    let start = |worker| {
        let (gate, disk) = (Arc::clone(&gate), Arc::clone(&disk));
        thread::spawn(move || work(worker, &gate, &disk))
    };
    let workers: Vec<_> = (0..WORKERS).map(start).collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert!(gate.mailboxes.iter().all(|mailbox| mailbox.receive().is_none()), "a grant nobody waits for");
}

/// A lost grant is a worker that never ends: shuttle stops at its step limit and says so.
#[test]
fn gate_excludes_conflicts_and_loses_no_grant() {
    shuttle::check_random(|| schedule(false), 2_000);
    shuttle::check_pct(|| schedule(false), 2_000, 3);
}

#[test]
#[should_panic(expected = "two conflicting requests run at once")]
fn gate_without_an_order_is_caught() {
    shuttle::check_random(|| schedule(true), 2_000);
}
