//! The clauses C1 to C5 of docs/ordering.md, in tests that bear their names; C6 is in `roles.rs`, C7 in `faults.rs`.
//!
//! C1 to C3 run wherever the host's own behaviour differs; C4 and C5 on a disk that tells what was synced.

use std::collections::HashMap;

use receiptdisk_tests::history::{History, Version};
use receiptdisk_tests::raw::{Outcome, RawGuest, Request, SegmentFlags, Setup, feature, status};
use receiptdisk_tests::recorder::{Client, Load, Mark, Recorder, marked, marks};
use receiptdisk_tests::rng::Rng;
use receiptdisk_tests::{DiskOp, FaultStand, SECTOR, Scratch, Serve, Stand, repository};

/// Queues that every guest uses.
const QUEUES: u16 = 2;

/// Where and how an image is served.
struct Place {
    name: &'static str,
    scratch: fn() -> Scratch,
    arguments: [&'static str; 4],
}

const PLACES: [Place; 4] = [
    Place {
        name: "tmpfs, inline",
        scratch: Scratch::on_tmpfs,
        arguments: ["--cache", "page", "--io-engine", "sync"],
    },
    Place {
        name: "tmpfs, io_uring",
        scratch: Scratch::on_tmpfs,
        arguments: ["--cache", "page", "--io-engine", "io_uring"],
    },
    Place {
        name: "disk, page cache, io_uring",
        scratch: Scratch::new,
        arguments: ["--cache", "page", "--io-engine", "io_uring"],
    },
    Place {
        name: "disk, direct, io_uring",
        scratch: Scratch::new,
        arguments: ["--cache", "direct", "--io-engine", "io_uring"],
    },
];

/// Guests `a` and `b` write, `c` and `d` only read.
fn four_guests(serve: Serve) -> Serve {
    serve.rw("a").rw("b").ro("c").ro("d").arg("--multi-writer")
}

/// Runs `check` in each place, with the guests connected.
fn everywhere(check: fn([RawGuest; 4], &str)) {
    for place in PLACES {
        let configure = |serve| place.arguments.iter().fold(four_guests(serve), Serve::arg);
        let stand = Stand::serve((place.scratch)(), configure);
        check(["a", "b", "c", "d"].map(|name| connect(&stand, name)), place.name);
    }
}

fn connect(stand: &Stand, name: &str) -> RawGuest {
    let mut guest = stand.raw(name);
    guest.start(Setup { queues: QUEUES, size: 64, ..Setup::default() });
    guest
}

/// Any address and any form of the chain: direct IO takes some as they are and must bounce others.
fn shaped(rng: &mut Rng, request: Request) -> Request {
    let request = request.skew(rng.pick(&[0, 0, 1, 8, 511]));
    if rng.below(2) == 0 { request.indirect() } else { request }
}

fn queue(rng: &mut Rng) -> usize {
    rng.index(usize::from(QUEUES))
}

#[track_caller]
fn done(outcome: &Outcome) {
    assert_eq!(outcome.status, status::OK);
}

/// Keeps two requests in flight on every queue of every guest until `answers` answers have come: `next` makes the requests of
/// a guest, `seen` gets what came back.
fn storm<T>(
    guests: &mut [RawGuest],
    answers: usize,
    mut next: impl FnMut(usize) -> (Request, T),
    mut seen: impl FnMut(usize, T, Outcome),
) {
    let mut in_flight: HashMap<(usize, usize, u16), T> = HashMap::new();
    let mut submit = |guests: &mut [RawGuest], guest: usize, queue: usize, in_flight: &mut HashMap<_, _>| {
        let (request, about) = next(guest);
        let head = guests[guest].submit(queue, &request);
        in_flight.insert((guest, queue, head), about);
    };
    let lanes: Vec<(usize, usize)> = (0..guests.len())
        .flat_map(|guest| (0..usize::from(QUEUES)).map(move |queue| (guest, queue)))
        .collect();
    for &(guest, queue) in lanes.iter().chain(&lanes) {
        submit(guests, guest, queue, &mut in_flight);
    }
    let mut count = 0;
    while !in_flight.is_empty() {
        // Blocks while there is nothing to do anywhere, so that a lost answer is found.
        let (guest, queue, _) = *in_flight.keys().next().unwrap();
        let mut used = Some((guest, queue, guests[guest].wait_used(queue)));
        let mut rest = lanes.iter();
        while let Some((guest, queue, (head, outcome))) = used {
            done(&outcome);
            let about = in_flight.remove(&(guest, queue, head)).expect("it was in flight");
            seen(guest, about, outcome);
            count += 1;
            if count < answers {
                submit(guests, guest, queue, &mut in_flight);
            }
            used = rest.find_map(|&(guest, queue)| Some((guest, queue, guests[guest].poll_used(queue)?)));
        }
    }
}

#[test]
fn c1_completed_write_is_seen_by_every_later_read() {
    const SECTORS: u64 = 12288;
    everywhere(|mut guests, place| {
        let mut rng = Rng::new(1);
        let mut model = vec![0; usize::try_from(SECTORS).unwrap() * SECTOR];
        for round in 1..=800 {
            let count = rng.pick(&[1, 1, 3, 8, 17, 129, 500, if round % 20 == 0 { 4096 } else { 2 }]);
            let first = rng.below(SECTORS - count);
            let at = usize::try_from(first).unwrap() * SECTOR;
            let len = usize::try_from(count).unwrap() * SECTOR;
            let writer = rng.index(2);
            let request = if rng.below(8) == 0 {
                model[at..at + len].fill(0);
                Request::write_zeroes(&[(first, u32::try_from(count).unwrap())], SegmentFlags::default())
            } else {
                let version = Version { writer: 1, sequence: round };
                model[at..at + len].copy_from_slice(&marked(version, first, len / SECTOR));
                Request::write(first, &model[at..at + len])
            };
            let request = shaped(&mut rng, request);
            done(&guests[writer].request_on(queue(&mut rng), &request));
            // Another range that overlaps it.
            let start = first.saturating_sub(rng.below(4)) + rng.below(count);
            let (from, to) = (usize::try_from(start).unwrap() * SECTOR, (at + len).min(model.len()));
            let read = shaped(&mut rng, Request::read(start, to - from));
            let outcome = guests[rng.index(4)].request_on(queue(&mut rng), &read);
            done(&outcome);
            assert!(outcome.data == model[from..to], "{place}, round {round}: {} bytes at {from}", to - from);
        }
    });
}

/// Two guests write all of the first `sectors` sectors again and again, two read them: returns the reads that held more than
/// one write within a piece of 2 MiB.
fn torn_reads(guests: &mut [RawGuest], sectors: usize, answers: usize) -> usize {
    let rng = std::cell::RefCell::new(Rng::new(2));
    let (mut sequence, mut torn) = (0, 0);
    done(&guests[0].request(&Request::write(0, &marked(Version::default(), 0, sectors))));
    let next = |guest: usize| {
        sequence += 1;
        let version = Version { writer: u32::try_from(guest).unwrap() + 1, sequence };
        let request = match guest {
            0 | 1 => Request::write(0, &marked(version, 0, sectors)),
            _ => Request::read(0, sectors * SECTOR),
        };
        (shaped(&mut rng.borrow_mut(), request), ())
    };
    let seen = |_, (), outcome: Outcome| {
        let found = marks(&outcome.data, 0);
        torn += usize::from(found.chunks(4096).any(|piece| piece.iter().any(|mark| *mark != piece[0])));
        torn += usize::from(found.contains(&Mark::Broken));
    };
    storm(guests, answers, next, seen);
    torn
}

#[test]
fn c2_reads_are_whole() {
    everywhere(|mut guests, place| {
        for (sectors, answers) in [(1, 1500), (7, 1500), (129, 1500), (1025, 300), (4096, 100)] {
            let torn = torn_reads(&mut guests, sectors, answers);
            assert_eq!(torn, 0, "{place}: reads of {sectors} sectors torn");
        }
    });
}

#[test]
fn c2_larger_requests_are_whole_in_pieces_of_2_mib() {
    everywhere(|mut guests, place| {
        assert_eq!(torn_reads(&mut guests, 3 * 4096, 24), 0, "{place}");
    });
}

#[test]
fn c2_all_ranges_of_a_write_zeroes_are_one_request() {
    everywhere(|mut guests, place| {
        let (mut sequence, mut rng) = (0, Rng::new(2));
        let next = |guest: usize| {
            sequence += 1;
            let version = Version { writer: 1, sequence };
            let ranges = [(0, 8), (40, 16), (20, 3)];
            // From 16 on they meet the second and the third range only.
            let first: u32 = rng.pick(&[0, 16]);
            let sectors = usize::try_from(64 - first).unwrap();
            let request = match guest {
                0 => Request::write(first.into(), &marked(version, first.into(), sectors)),
                1 => Request::write_zeroes(&ranges, SegmentFlags::default()),
                _ => Request::read(first.into(), sectors * SECTOR),
            };
            (request, (guest > 1).then_some(64 - sectors))
        };
        let seen = |_, read_from: Option<usize>, outcome: Outcome| {
            let Some(first) = read_from.filter(|_| outcome.data.iter().any(|byte| *byte != 0)) else {
                return;
            };
            let is_zero = |sector: usize| {
                let sector = &outcome.data[(sector - first) * SECTOR..][..SECTOR];
                sector.iter().all(|byte| *byte == 0)
            };
            let zeroes: Vec<bool> = (40..56).chain(20..23).map(is_zero).collect();
            assert!(zeroes.iter().all(|is_zero| *is_zero == zeroes[0]), "{place}: {zeroes:?}");
        };
        storm(&mut guests, 3000, next, seen);
    });
}

/// The disk's blocks have 4096 bytes here: a write of one sector is a read, a change and a write of eight.
#[test]
fn c2_neighbours_of_a_bounced_write_keep_their_bytes() {
    let stand = FaultStand::serve(|serve| serve.rw("a").rw("b").arg("--multi-writer"));
    let mut guests = ["a", "b"].map(|name| stand.guest(name, QUEUES));
    for sequence in 1..=300 {
        // Sector by sector in turns: guest, queue, guest, queue.
        let version = |sector: u32| Version { writer: sector, sequence };
        for sector in 0..8 {
            let data = marked(version(sector), sector.into(), 1);
            let guest = &mut guests[usize::try_from(sector).unwrap() % 2];
            guest.submit(usize::try_from(sector).unwrap() / 2 % 2, &Request::write(sector.into(), &data));
        }
        for sector in 0..8 {
            done(&guests[sector % 2].wait_used(sector / 2 % 2).1);
        }
        let read = guests[0].request(&Request::read(0, 8 * SECTOR));
        let expected: Vec<Mark> = (0..8).map(|sector| Mark::Of(version(sector))).collect();
        assert_eq!(marks(&read.data, 0), expected, "round {sequence}");
    }
}

#[test]
fn c3_overlapping_requests_of_one_queue_keep_ring_order() {
    const SECTORS: u64 = 4096;
    everywhere(|[mut guest, ..], place| {
        let mut rng = Rng::new(3);
        let mut model = vec![0; usize::try_from(SECTORS).unwrap() * SECTOR];
        let mut sequence = 0;
        for round in 0..80 {
            let mut expected = HashMap::new();
            let spread = rng.pick(&[16, 64, 300]);
            for _ in 0..20 {
                let count = if rng.below(60) == 0 { SECTORS } else { 1 + rng.below(spread) };
                let first = rng.below((SECTORS - count + 1).min(spread));
                let at = usize::try_from(first).unwrap() * SECTOR;
                let len = usize::try_from(count).unwrap() * SECTOR;
                sequence += 1;
                let choice = rng.below(5);
                let request = match choice {
                    0 | 1 => Request::read(first, len),
                    2 | 3 => {
                        let version = Version { writer: 1, sequence };
                        model[at..at + len].copy_from_slice(&marked(version, first, len / SECTOR));
                        Request::write(first, &model[at..at + len])
                    }
                    _ => {
                        model[at..at + len].fill(0);
                        Request::write_zeroes(&[(first, u32::try_from(count).unwrap())], SegmentFlags::UNMAP)
                    }
                };
                let head = guest.publish(0, &shaped(&mut rng, request).indirect());
                expected.insert(head, (choice < 2).then(|| model[at..at + len].to_vec()));
            }
            guest.kick(0);
            while !expected.is_empty() {
                let (head, outcome) = guest.wait_used(0);
                done(&outcome);
                let wanted = expected.remove(&head).unwrap();
                assert!(wanted.is_none_or(|wanted| wanted == outcome.data), "{place}, round {round}");
            }
        }
    });
}

/// A replay of requests that were in flight at a crash may repeat a write only while nothing that follows it has begun.
#[test]
fn c3_the_next_request_begins_after_the_answer_is_shown() {
    let stand = FaultStand::serve(|serve| serve.rw("a").arg("--io-engine").arg("sync"));
    let mut guest = stand.guest("a", 1);
    stand.disk().hold(DiskOp::Write);
    let heads = [1, 2, 3].map(|byte| guest.publish(0, &Request::write(0, &[byte; 4096])));
    guest.kick(0);
    for (at, head) in heads.into_iter().enumerate() {
        stand.disk().wait_for_held(DiskOp::Write, 1);
        let answered = (0..at).filter(|_| guest.poll_used(0).is_some()).count();
        assert!(at == 0 || answered == 1, "write {head} runs, and the one before it is not answered");
        assert!(guest.poll_used(0).is_none());
        stand.disk().let_held_pass(DiskOp::Write);
    }
    assert_eq!(guest.wait_used(0).0, heads[2]);
}

#[test]
fn c3_requests_of_several_guests_have_one_order() {
    everywhere(|guests, place| {
        let clients = guests.into_iter().enumerate();
        let client = |(index, guest)| Client { guest, queues: usize::from(QUEUES), writes: index < 2 };
        let mut recorder = Recorder::new(clients.map(client).collect(), 3);
        let large = Load { sectors: 4096, longest: 4096, requests: 12, depth: 2 };
        let small = Load { sectors: 200, longest: 160, requests: 40, depth: 2 };
        for (load, count) in [(large, 10), (small, 80)] {
            let histories: Vec<History> = (0..count).map(|_| recorder.record(0, load)).collect();
            let bad = histories.iter().find_map(|history| history.check().err());
            assert_eq!(bad, None, "{place}, {load:?}");
        }
    });
}

#[test]
fn c4_flush_covers_completed_writes_of_every_guest() {
    let stand = FaultStand::serve(four_guests);
    let mut guests = ["a", "b", "c", "d"].map(|name| stand.guest(name, QUEUES));
    let mut rng = Rng::new(4);
    for sequence in 1..=1000 {
        let first = rng.below(1500);
        let data = marked(Version { writer: 1, sequence }, first, 1 + rng.index(300));
        let write = shaped(&mut rng, Request::write(first, &data));
        done(&guests[rng.index(2)].request_on(queue(&mut rng), &write));
        done(&guests[rng.index(4)].request_on(queue(&mut rng), &Request::flush()));
        let at = usize::try_from(first).unwrap() * SECTOR;
        assert!(stand.disk().durable(at, data.len()) == data, "round {sequence}: flushed, but not synced");
    }
    assert_eq!(stand.ctl().ok(&["status"])["syncs"], stand.disk().syncs());
}

#[test]
fn c4_flushes_that_wait_share_one_sync_and_none_joins_a_running_one() {
    let stand = FaultStand::serve(four_guests);
    let mut guests = ["a", "b", "c", "d"].map(|name| stand.guest(name, QUEUES));
    let at_start = stand.disk().syncs();
    for round in 1..=20 {
        stand.disk().hold(DiskOp::Sync);
        let first = guests[0].submit(0, &Request::flush());
        stand.disk().wait_for_held(DiskOp::Sync, 1);
        // What is answered behind a flush on its queue tells that the flush was taken.
        for (guest, queue) in (0..4).flat_map(|guest| [(guest, 1), (guest, 1), (guest, 0)]) {
            guests[guest].submit(queue, &Request::flush());
            let barrier = guests[guest].submit(queue, &Request::get_id());
            assert_eq!(guests[guest].wait_used(queue).0, barrier);
        }
        stand.disk().let_held_pass(DiskOp::Sync);
        let (head, outcome) = guests[0].wait_used(0);
        assert_eq!((head, outcome.status), (first, status::OK));
        stand.disk().wait_for_held(DiskOp::Sync, 1);
        for guest in &mut guests {
            let early = (0..2).any(|queue| guest.poll_used(queue).is_some());
            assert!(!early, "round {round}: a flush joined a sync that ran already");
        }
        stand.disk().release(DiskOp::Sync);
        for guest in &mut guests {
            [1, 1, 0].iter().for_each(|queue| done(&guest.wait_used(*queue).1));
        }
        assert_eq!(stand.disk().syncs(), at_start + 2 * round, "13 flushes, two syncs");
    }
}

#[test]
fn c4_flush_never_stalls_reads() {
    let stand = FaultStand::serve(four_guests);
    let mut guests = ["a", "b", "c", "d"].map(|name| stand.guest(name, QUEUES));
    done(&guests[0].request(&Request::write(0, &marked(Version::default(), 0, 64))));
    stand.disk().hold(DiskOp::Sync);
    let flush = guests[0].submit(0, &Request::flush());
    stand.disk().wait_for_held(DiskOp::Sync, 1);
    let mut rng = Rng::new(4);
    for _ in 0..500 {
        let first = rng.below(64);
        let read = shaped(&mut rng, Request::read(first, 4096));
        let (guest, queue) = (rng.index(4), queue(&mut rng));
        let head = guests[guest].submit(queue, &read);
        let (used, outcome) = guests[guest].wait_used(queue);
        assert_eq!((used, outcome.status), (head, status::OK), "the flush is not answered, the read is");
    }
    assert_eq!(stand.disk().held(DiskOp::Sync), 1);
    stand.disk().release(DiskOp::Sync);
    assert_eq!(guests[0].wait_used(0).0, flush);
}

#[test]
fn c4_driver_without_flush_gets_durable_writes() {
    let stand = FaultStand::serve(four_guests);
    let mut guest = stand.raw("a");
    let features = !(feature::CONFIG_WCE | feature::FLUSH);
    guest.start(Setup { features, ..Setup::default() });
    let mut rng = Rng::new(4);
    for sequence in 1..=300 {
        let first = rng.below(1500);
        let data = marked(Version { writer: 1, sequence }, first, 1 + rng.index(100));
        done(&guest.request(&shaped(&mut rng, Request::write(first, &data))));
        let at = usize::try_from(first).unwrap() * SECTOR;
        assert!(stand.disk().durable(at, data.len()) == data, "round {sequence}: completed, but not synced");
    }
}

/// Its range is its own until it is answered.
#[test]
fn c4_write_that_waits_to_be_durable_keeps_its_range() {
    let stand = FaultStand::serve(four_guests);
    let mut writer = stand.raw("a");
    writer.start(Setup { features: !(feature::CONFIG_WCE | feature::FLUSH), ..Setup::default() });
    let mut reader = stand.guest("c", QUEUES);
    stand.disk().hold(DiskOp::Sync);
    let write = writer.submit(0, &Request::write(0, &[1; 4096]));
    stand.disk().wait_for_held(DiskOp::Sync, 1);
    let read = reader.submit(0, &Request::read(0, 4096));
    let beside = reader.submit(0, &Request::read(8, 4096));
    assert_eq!(reader.wait_used(0).0, beside);
    assert!(reader.poll_used(0).is_none(), "what is not written for good was read");
    stand.disk().release(DiskOp::Sync);
    assert_eq!(writer.wait_used(0).0, write);
    let (head, outcome) = reader.wait_used(0);
    assert_eq!((head, outcome.data), (read, vec![1; 4096]));
}

/// `a` writes, `c` reads what is completed, `d` only what is durable.
fn one_durable_reader(serve: Serve) -> Serve {
    serve.rw("a").ro("c").guest("d", "access=ro,reads=durable")
}

#[test]
fn c5_durable_read_waits_for_the_sync_of_what_it_read_and_for_nothing_else() {
    let stand = FaultStand::serve(one_durable_reader);
    let [mut writer, mut plain, mut durable] = ["a", "c", "d"].map(|name| stand.guest(name, QUEUES));
    let mut rng = Rng::new(5);
    for sequence in 1..=200 {
        let (first, count) = (8 * rng.below(64), 1 + rng.index(64));
        let data = marked(Version { writer: 1, sequence }, first, count);
        let zeroed = sequence % 3 == 0;
        let (data, write) = if zeroed {
            let ranges = [(first, u32::try_from(count).unwrap())];
            (vec![0; data.len()], Request::write_zeroes(&ranges, SegmentFlags::default()))
        } else {
            (data.clone(), Request::write(first, &data))
        };
        done(&writer.request(&write));
        stand.disk().hold(DiskOp::Sync);
        let read = shaped(&mut rng, Request::read(first, data.len()));
        let waiting = durable.submit(0, &read);
        // It starts the sync itself.
        stand.disk().wait_for_held(DiskOp::Sync, 1);
        let clean = durable.submit(0, &Request::read(1024, 4096));
        assert_eq!(durable.wait_used(0).0, clean, "round {sequence}: the clean range first");
        assert!(plain.request(&read).data == data, "round {sequence}: reads=completed does not wait");
        assert!(
            durable.poll_used(0).is_none(),
            "round {sequence}: what a crash could take back was returned"
        );
        stand.disk().release(DiskOp::Sync);
        let (head, outcome) = durable.wait_used(0);
        assert_eq!((head, outcome.status), (waiting, status::OK));
        assert!(outcome.data == data, "round {sequence}");
    }
}

#[test]
fn c5_durable_reads_never_return_what_a_crash_could_take_back() {
    let stand = FaultStand::serve(one_durable_reader);
    // One queue: its overlapping writes keep their order, so a later version is a higher one.
    let mut writer = stand.guest("a", 1);
    let mut reader = stand.guest("d", QUEUES);
    let mut rng = Rng::new(5);
    let (mut sequence, mut reads, mut dirty) = (0, 0, 0);
    let mut places = HashMap::new();
    let mut write = |writer: &mut RawGuest, rng: &mut Rng| {
        sequence += 1;
        let first = rng.below(60);
        let data = marked(Version { writer: 1, sequence }, first, 1 + rng.index(40));
        writer.submit(0, &shaped(rng, Request::write(first, &data)));
    };
    let read = |reader: &mut RawGuest, rng: &mut Rng, places: &mut HashMap<_, _>| {
        let (first, count, lane) = (rng.below(60), 1 + rng.index(40), queue(rng));
        let head = reader.submit(lane, &shaped(rng, Request::read(first, count * SECTOR)));
        places.insert((lane, head), first);
    };
    for _ in 0..4 {
        write(&mut writer, &mut rng);
        read(&mut reader, &mut rng, &mut places);
    }
    while reads < 3000 {
        while let Some((_, outcome)) = writer.poll_used(0) {
            done(&outcome);
            write(&mut writer, &mut rng);
        }
        for lane in 0..usize::from(QUEUES) {
            let Some((head, outcome)) = reader.poll_used(lane) else { continue };
            done(&outcome);
            let first = places.remove(&(lane, head)).unwrap();
            let at = usize::try_from(first).unwrap() * SECTOR;
            let kept = marks(&stand.disk().durable(at, outcome.data.len()), first);
            for (sector, (kept, found)) in kept.iter().zip(marks(&outcome.data, first)).enumerate() {
                let (Mark::Of(kept), Mark::Of(found)) = (kept, found) else { panic!("torn") };
                assert!(
                    kept.sequence >= found.sequence,
                    "sector {sector} of read {reads}: {kept:?} {found:?}"
                );
            }
            (reads, dirty) = (reads + 1, dirty + usize::from(outcome.data.iter().any(|byte| *byte != 0)));
            read(&mut reader, &mut rng, &mut places);
        }
        std::thread::yield_now();
    }
    assert!(dirty > reads / 2, "{dirty} of {reads} reads saw a write");
}

#[test]
fn c5_clean_reads_pay_nothing() {
    let stand = FaultStand::serve(one_durable_reader);
    let [mut writer, mut durable] = ["a", "d"].map(|name| stand.guest(name, QUEUES));
    done(&writer.request(&Request::write(0, &marked(Version::default(), 0, 1024))));
    done(&durable.request(&Request::flush()));
    // Not even the sync of another range is waited for.
    done(&writer.request(&Request::write(1536, &[1; 4096])));
    let syncs = stand.disk().syncs();
    for first in 0..1000 {
        done(&durable.request(&Request::read(first, 4096)));
    }
    assert_eq!(stand.disk().syncs(), syncs);
    assert_eq!(stand.ctl().stats("d")["waited_for_sync"], 0);
}

#[test]
fn page_of_the_contract_names_every_test_that_proves_it() {
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    let page = read("docs/ordering.md");
    let tests = ["contract", "roles", "faults", "linearizable", "crash", "guest_kills", "seals"]
        .map(|name| read(&format!("tests/{name}.rs")));
    let sources = [tests.concat(), read("backend/src/disk_tests.rs")].concat();
    let is_clause = |word: &&str| {
        let number = word.strip_prefix('c').and_then(|rest| rest.split_once('_'));
        number.is_some_and(|(digits, _)| digits.parse::<u8>().is_ok())
    };
    let named: Vec<&str> = page.split('`').filter(is_clause).filter(|word| !word.ends_with('*')).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        assert!(sources.contains(&format!("\nfn {name}() {{")), "{name} is no test");
    }
    for number in (1..=8).chain([10]) {
        let row = page.lines().find(|line| line.starts_with(&format!("| **C{number}** |")));
        let (_, proof) = row.unwrap().trim_end_matches(" |").rsplit_once('|').unwrap();
        let proofs: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        assert!(!proofs.is_empty(), "nothing proves C{number}");
        for name in proofs {
            let test = name.strip_suffix('*').map_or_else(|| format!("{name}() {{"), str::to_owned);
            assert!(sources.contains(&format!("\nfn {test}")), "C{number}: {name} is no test");
        }
    }
    for number in 1..=5 {
        let prefix = format!("\nfn c{number}_");
        let tests = sources.split(&prefix).skip(1).map(|rest| rest.split('(').next().unwrap());
        for test in tests {
            assert!(page.contains(&format!("`c{number}_{test}`")), "c{number}_{test} is not on the page");
        }
    }
}
