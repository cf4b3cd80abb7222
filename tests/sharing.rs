//! Two guests, one disk: what one has written the other reads, whole and in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use receiptdisk_tests::raw::{RawGuest, Request, SegmentFlags, Setup, status};
use receiptdisk_tests::{SECTOR, Scratch, Serve, Stand, pattern};

/// Where and how an image is served. An `O_DIRECT` disk may hide what a page cache shows.
struct Place {
    name: &'static str,
    scratch: fn() -> Scratch,
    cache: &'static str,
}

const PLACES: [Place; 3] = [
    Place { name: "disk, direct", scratch: Scratch::new, cache: "direct" },
    Place { name: "disk, page cache", scratch: Scratch::new, cache: "page" },
    Place { name: "tmpfs, page cache", scratch: Scratch::on_tmpfs, cache: "page" },
];

/// Runs `check` once for each place.
fn everywhere(guests: fn(Serve) -> Serve, check: fn(&Stand, &str)) {
    for place in PLACES {
        let stand = Stand::serve((place.scratch)(), |serve| guests(serve).arg("--cache").arg(place.cache));
        check(&stand, place.name);
    }
}

fn writer_and_reader(serve: Serve) -> Serve {
    serve.rw("issuer").ro("front")
}

fn two_writers(serve: Serve) -> Serve {
    serve.rw("issuer").rw("front").arg("--multi-writer")
}

/// A guest with one queue of 256 entries.
fn guest(stand: &Stand, name: &str) -> RawGuest {
    let mut guest = stand.raw(name);
    guest.start(Setup { size: 256, ..Setup::default() });
    guest
}

/// `data` as a write in many pieces, as a guest's page cache sends it, but no more than every backend takes.
fn paged_write(sector: u64, data: &[u8]) -> Request {
    let cuts = [&[16][..], &pages(data.len())].concat();
    Request::write(sector, data).cut_readable(&cuts).indirect()
}

fn paged_read(sector: u64, len: usize) -> Request {
    Request::read(sector, len).cut_writable(&pages(len)).indirect()
}

fn pages(len: usize) -> Vec<usize> {
    let page = 4096 * len.div_ceil(4096 * 100);
    vec![page; len / page]
}

#[test]
fn what_is_written_is_read_at_once_1000_times() {
    everywhere(writer_and_reader, |stand, place| {
        let mut writer = guest(stand, "issuer");
        let mut reader = guest(stand, "front");
        let sizes = [512, 4096, 5 * 512, 65536, 200 * 512];
        for round in 0..1000_u64 {
            let len = sizes[usize::try_from(round % 5).unwrap()];
            let sector = (round * 7) % 64;
            let data = pattern(round + 1, 0, len);
            assert_eq!(writer.request(&Request::write(sector, &data)).status, status::OK);
            let read = reader.request(&Request::read(sector, len));
            assert_eq!(read.status, status::OK);
            assert!(read.data == data, "{place}, round {round}: stale, {len} bytes at sector {sector}");
        }
    });
}

#[test]
fn zeroes_and_discards_are_seen_at_once() {
    everywhere(writer_and_reader, |stand, place| {
        let mut writer = guest(stand, "issuer");
        let mut reader = guest(stand, "front");
        for round in 0..100_u32 {
            let sector = u64::from(round % 16);
            writer.request(&Request::write(sector, &[0xee; 8192]));
            let unmap = if round % 2 == 0 { SegmentFlags::UNMAP } else { SegmentFlags::default() };
            writer.request(&Request::write_zeroes(&[(sector + 3, 9)], unmap));
            let read = reader.request(&Request::read(sector, 8192));
            let mut expected = vec![0xee; 8192];
            expected[3 * SECTOR..12 * SECTOR].fill(0);
            assert!(read.data == expected, "{place}, round {round}");
        }
    });
}

/// A racing writer: keeps `depth` writes of one byte each over the same range in flight until told to stop.
fn race(mut writer: RawGuest, sector: u64, len: usize, first: u8, stop: &AtomicBool) -> u64 {
    let mut value = first;
    let mut written = 0;
    for _ in 0..4 {
        writer.submit(0, &paged_write(sector, &vec![value; len]));
    }
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(writer.wait_used(0).1.status, status::OK);
        value = if value == 0x7f { 1 } else { value + 1 };
        writer.submit(0, &paged_write(sector, &vec![value; len]));
        written += 1;
    }
    for _ in 0..4 {
        writer.wait_used(0);
    }
    written
}

/// Reads `rounds` times under a racing writer; returns how many reads held bytes of more than one write.
fn torn_reads(stand: &Stand, len: usize, rounds: usize) -> usize {
    let mut writer = guest(stand, "issuer");
    let mut reader = guest(stand, "front");
    assert_eq!(writer.request(&paged_write(0, &vec![1; len])).status, status::OK);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let racing = scope.spawn(|| race(writer, 0, len, 1, &stop));
        let mut torn = 0;
        for _ in 0..2 {
            reader.submit(0, &paged_read(0, len));
        }
        for _ in 0..rounds {
            let (_, outcome) = reader.wait_used(0);
            assert_eq!(outcome.status, status::OK);
            torn += usize::from(outcome.data.iter().any(|byte| *byte != outcome.data[0]));
            reader.submit(0, &paged_read(0, len));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(racing.join().unwrap() > 0, "the writer raced");
        torn
    })
}

#[test]
fn reads_under_a_racing_writer_are_never_torn() {
    everywhere(writer_and_reader, |stand, place| {
        for (len, rounds) in [(64 << 10, 3000), (4096, 2000), (2 << 20, 60)] {
            assert_eq!(torn_reads(stand, len, rounds), 0, "{place}: torn reads of {len} bytes in {rounds}");
        }
    });
}

#[test]
fn racing_writes_of_two_guests_never_mix() {
    everywhere(two_writers, |stand, place| {
        const LEN: usize = 64 << 10;
        let mut guests = [guest(stand, "issuer"), guest(stand, "front")];
        for round in 0..400_u32 {
            let value = u8::try_from(round % 100).unwrap();
            let requests = [paged_write(0, &[value; LEN]), paged_write(0, &[value + 100; LEN])];
            for (guest, request) in guests.iter_mut().zip(&requests) {
                guest.submit(0, request);
            }
            for guest in &mut guests {
                assert_eq!(guest.wait_used(0).1.status, status::OK);
            }
            let read = guests[0].request(&paged_read(0, LEN));
            let first = read.data[0];
            assert!(
                first % 100 == value && read.data.iter().all(|byte| *byte == first),
                "{place}, round {round}"
            );
        }
    });
}

#[test]
fn partly_overlapping_writes_of_two_guests_are_applied_in_one_order() {
    everywhere(two_writers, |stand, place| {
        let mut guests = [guest(stand, "issuer"), guest(stand, "front")];
        for round in 0..400_u32 {
            let low = paged_write(0, &[1; 64 << 10]);
            let high = paged_write(64, &[2; 64 << 10]);
            guests[0].request(&Request::write_zeroes(&[(0, 192)], SegmentFlags::default()));
            guests[0].submit(0, &low);
            guests[1].submit(0, &high);
            for guest in &mut guests {
                assert_eq!(guest.wait_used(0).1.status, status::OK);
            }
            let data = guests[1].request(&paged_read(0, 96 << 10)).data;
            let middle = &data[32 << 10..64 << 10];
            assert!(
                middle.iter().all(|byte| *byte == middle[0]) && middle[0] != 0,
                "{place}, round {round}: mixed"
            );
            assert!(data[..32 << 10].iter().all(|byte| *byte == 1), "{place}, round {round}: lower half");
            assert!(data[64 << 10..].iter().all(|byte| *byte == 2), "{place}, round {round}: upper half");
        }
    });
}

#[test]
fn overlapping_writes_on_one_queue_keep_ring_order() {
    everywhere(writer_and_reader, |stand, place| {
        let mut writer = guest(stand, "issuer");
        let mut reader = guest(stand, "front");
        for round in 0..200_u64 {
            let mut expected = vec![0; 64 << 10];
            writer.request(&Request::write(0, &expected));
            for index in 0..32_u64 {
                // Ranges of 1 to 32 sectors that begin anywhere: many overlap, some do not.
                let sector = (round * 31 + index * 17) % 96;
                let len = SECTOR * usize::try_from((round + index * 5) % 32 + 1).unwrap();
                let data = pattern(round * 32 + index, 0, len);
                let at = SECTOR * usize::try_from(sector).unwrap();
                expected[at..at + len].copy_from_slice(&data);
                writer.publish(0, &Request::write(sector, &data).indirect());
            }
            writer.kick(0);
            for _ in 0..32 {
                assert_eq!(writer.wait_used(0).1.status, status::OK);
            }
            assert!(
                reader.request(&Request::read(0, expected.len())).data == expected,
                "{place}, round {round}"
            );
        }
    });
}

#[test]
fn read_behind_a_write_in_one_ring_sees_it() {
    everywhere(writer_and_reader, |stand, place| {
        let mut writer = guest(stand, "issuer");
        for round in 1..300_u64 {
            let data = pattern(round, 0, 32 << 10);
            writer.publish(0, &paged_write(round % 8, &data));
            let read = writer.publish(0, &paged_read(round % 8, data.len()));
            writer.kick(0);
            let outcomes = [writer.wait_used(0), writer.wait_used(0)];
            let (_, outcome) = outcomes.iter().find(|(head, _)| *head == read).unwrap();
            assert!(outcome.data == data, "{place}, round {round}: a read overtook the write before it");
        }
    });
}

#[test]
fn ordinary_drivers_share_too() {
    let stand = Stand::pair();
    let mut writer = stand.driver("issuer");
    let mut reader = stand.driver("front");
    for round in 0..200_u64 {
        let data = pattern(round, 0, 8192);
        writer.write(round * 4096 % (1 << 20), &data).unwrap();
        assert!(reader.read(round * 4096 % (1 << 20), 8192).unwrap() == data, "round {round}");
    }
    assert_eq!(reader.write(0, &[0; 512]), Err(-libc::EIO));
}
