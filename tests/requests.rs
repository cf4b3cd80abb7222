//! Requests of one guest: what is answered, however the request is cut, whatever the ring looks like.

use receiptdisk_tests::raw::{Outcome, RawGuest, Request, SegmentFlags, Setup, feature, kind, status};
use receiptdisk_tests::{SECTOR, Scratch, Stand, pattern};

/// A request served without data coming back.
fn done() -> Outcome {
    Outcome { status: status::OK, used_len: 1, data: vec![] }
}

#[track_caller]
fn assert_reads(guest: &mut RawGuest, sector: u64, expected: &[u8]) {
    let outcome = guest.request(&Request::read(sector, expected.len()));
    assert_eq!(outcome.status, status::OK, "read of {} bytes at sector {sector}", expected.len());
    assert!(outcome.data == expected, "sector {sector}: the bytes differ");
}

fn capacity(guest: &RawGuest) -> u64 {
    guest.front().config().capacity
}

#[test]
fn ordinary_driver_reads_back_what_it_wrote() {
    let stand = Stand::pair();
    let mut driver = stand.driver("issuer");
    assert_eq!(driver.capacity(), Stand::SIZE / 512);
    for (round, len) in [512, 4096, 65536, 1 << 20].into_iter().enumerate() {
        let offset = 1 << (20 + round);
        let data = pattern(7, offset, len);
        driver.write(offset, &data).unwrap();
        driver.flush().unwrap();
        assert!(driver.read(offset, len).unwrap() == data, "{len} bytes at {offset}");
    }
    driver.write_zeroes(1 << 20, 4096, false).unwrap();
    assert!(driver.read(1 << 20, 4096).unwrap() == vec![0; 4096]);
    driver.discard(1 << 21, 4096).unwrap();
    assert_eq!(driver.read(Stand::SIZE, 512), Err(-libc::EIO));
}

#[test]
fn ordinary_driver_keeps_32_requests_in_flight_on_4_queues() {
    let stand = Stand::pair();
    let mut driver = receiptdisk_tests::Driver::connect_with(&stand.socket("issuer"), 4, 128, 32);
    for slot in 0..32_usize {
        let offset = (slot * 8192) as u64;
        driver.submit_write(slot % 4, slot, offset, &pattern(1, offset, 8192));
    }
    for queue in 0..4 {
        let mut finished = 0;
        while finished < 8 {
            let done = driver.wait(queue);
            assert!(done.iter().all(|(_, errno)| *errno == 0), "{done:?}");
            finished += done.len();
        }
    }
    assert!(driver.read(0, 32 * 8192).unwrap() == pattern(1, 0, 32 * 8192));
}

#[test]
fn each_request_type_answers_status_and_length() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    let data = pattern(1, 0, 4096);
    assert_eq!(guest.request(&Request::write(8, &data)), done());
    let read = guest.request(&Request::read(8, 4096));
    assert_eq!((read.status, read.used_len), (status::OK, 4097));
    assert!(read.data == data);
    assert_eq!(guest.request(&Request::flush()), done());
    let id = guest.request(&Request::get_id());
    assert_eq!((id.status, id.used_len), (status::OK, 21));
    assert_eq!(guest.request(&Request::write_zeroes(&[(8, 2)], SegmentFlags::default())), done());
    assert_reads(&mut guest, 8, &[vec![0; 1024], data[1024..].to_vec()].concat());
    assert_eq!(guest.request(&Request::discard(&[(10, 2)])), done());
    assert_reads(&mut guest, 12, &data[2048..]);
}

#[test]
fn write_zeroes_with_unmap_reads_as_zeroes() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    guest.request(&Request::write(0, &pattern(1, 0, 65536)));
    assert_eq!(guest.request(&Request::write_zeroes(&[(8, 64)], SegmentFlags::UNMAP)), done());
    let mut expected = pattern(1, 0, 65536);
    expected[8 * SECTOR..72 * SECTOR].fill(0);
    assert_reads(&mut guest, 0, &expected);
}

#[test]
fn several_segments_of_write_zeroes_are_all_done() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    let config = guest.front().config();
    assert!(config.max_write_zeroes_seg >= 1 && config.max_write_zeroes_sectors >= 2048, "{config:?}");
    let count = u64::from(config.max_write_zeroes_seg.min(16));
    guest.request(&Request::write(0, &pattern(1, 0, 65536)));
    let ranges: Vec<_> = (0..count).map(|index| (index * 8, 3)).collect();
    assert_eq!(guest.request(&Request::write_zeroes(&ranges, SegmentFlags::default())), done());
    let mut expected = pattern(1, 0, 65536);
    for (sector, count) in ranges {
        let at = usize::try_from(sector).unwrap() * SECTOR;
        expected[at..at + usize::try_from(count).unwrap() * SECTOR].fill(0);
    }
    assert_reads(&mut guest, 0, &expected);
}

#[test]
fn unknown_types_are_unsupported() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    for kind in [2, 3, 5, 9, 14, 16, 99, 0x8000_0000, u32::MAX] {
        let plain = guest.request(&Request::new(kind, 0, &[], 0));
        assert_eq!((plain.status, plain.used_len), (status::UNSUPP, 1), "type {kind}");
        let with_data = guest.request(&Request::new(kind, 0, &[1; 512], 512));
        assert_eq!(with_data.status, status::UNSUPP, "type {kind} with data both ways");
    }
}

#[test]
fn requests_outside_the_disk_fail_and_change_nothing() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    let end = capacity(&guest);
    let last = pattern(3, 0, 512);
    assert_eq!(guest.request(&Request::write(end - 1, &last)), done());
    let before = std::fs::metadata(stand.image()).unwrap().len();
    let cases = [(end, 512), (end - 1, 1024), (u64::MAX, 512), (1 << 55, 512), (u64::MAX - 1, 2048)];
    for (sector, len) in cases {
        let read = guest.request(&Request::read(sector, len));
        assert_eq!(read.status, status::IOERR, "read of {len} at {sector:#x}");
        let write = guest.request(&Request::write(sector, &vec![9; len]));
        assert_eq!((write.status, write.used_len), (status::IOERR, 1), "write of {len} at {sector:#x}");
    }
    assert_reads(&mut guest, end - 1, &last);
    assert_eq!(std::fs::metadata(stand.image()).unwrap().len(), before);
}

#[test]
fn ranges_outside_the_disk_fail_and_change_nothing() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    let end = capacity(&guest);
    let data = pattern(3, 0, 4096);
    guest.request(&Request::write(0, &data));
    for range in [(end, 1), (end - 1, 2), (u64::MAX, 1), (1 << 55, 8), (u64::MAX - 1, 4)] {
        for request in both_zeroing(&[range]) {
            assert_eq!(guest.request(&request).status, status::IOERR, "{range:?}");
        }
        // All segments of a request are one: a bad one spoils the good one before it.
        for request in both_zeroing(&[(0, 8), range]) {
            assert_ne!(guest.request(&request).status, status::OK, "good, then {range:?}");
        }
    }
    assert_reads(&mut guest, 0, &data);
}

fn both_zeroing(ranges: &[(u64, u32)]) -> [Request; 2] {
    [Request::discard(ranges), Request::write_zeroes(ranges, SegmentFlags::default())]
}

#[test]
fn malformed_segments_are_refused() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    let data = pattern(3, 0, 4096);
    guest.request(&Request::write(0, &data));
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        for len in [0, 1, 15, 17, 31] {
            let outcome = guest.request(&Request::new(kind, 0, &vec![0; len], 0));
            assert!(
                [status::IOERR, status::UNSUPP].contains(&outcome.status),
                "type {kind}, body of {len}: {outcome:?}"
            );
        }
    }
    let reserved = guest.request(&Request::write_zeroes(&[(0, 8)], SegmentFlags(2)));
    assert_eq!(reserved.status, status::UNSUPP, "reserved flag of write zeroes");
    let unmap = segment_with(kind::DISCARD, SegmentFlags::UNMAP);
    assert_eq!(guest.request(&unmap).status, status::UNSUPP, "unmap flag of discard");
    let reserved = segment_with(kind::DISCARD, SegmentFlags(0x8000_0000));
    assert_eq!(guest.request(&reserved).status, status::UNSUPP, "reserved flag of discard");
    assert_reads(&mut guest, 0, &data);
}

/// One segment over the first 8 sectors.
fn segment_with(kind: u32, flags: SegmentFlags) -> Request {
    let body = [0_u64.to_le_bytes().to_vec(), 8_u32.to_le_bytes().to_vec(), flags.0.to_le_bytes().to_vec()];
    Request::new(kind, 0, &body.concat(), 0)
}

#[test]
fn lengths_that_are_no_sectors_fail_and_change_nothing() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    let data = pattern(5, 0, 4096);
    guest.request(&Request::write(0, &data));
    for len in [1, 511, 513, 1023] {
        assert_eq!(guest.request(&Request::read(0, len)).status, status::IOERR, "read of {len}");
        let write = guest.request(&Request::write(0, &vec![1; len]));
        assert_eq!(write.status, status::IOERR, "write of {len}");
    }
    assert_reads(&mut guest, 0, &data);
}

#[test]
fn reads_and_writes_of_no_data_are_answered() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    let data = pattern(5, 0, 512);
    guest.request(&Request::write(0, &data));
    for request in [Request::read(0, 0), Request::write(0, &[])] {
        let outcome = guest.request(&request);
        assert!(outcome.status == status::OK || outcome.status == status::IOERR, "{outcome:?}");
        assert_eq!(outcome.used_len, 1);
    }
    assert_reads(&mut guest, 0, &data);
}

#[test]
fn flush_ignores_sector_and_data() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    assert_eq!(guest.request(&Request::new(kind::FLUSH, u64::MAX, &[], 0)), done());
    assert_eq!(guest.request(&Request::new(kind::FLUSH, 7, &[1; SECTOR], 0)), done());
    assert_eq!(guest.request(&Request::new(kind::FLUSH, 7, &[], SECTOR)).status, status::OK);
}

#[test]
fn get_id_fills_what_it_is_given_and_no_more() {
    let stand = Stand::pair();
    let mut guest = stand.started("front");
    let whole = guest.request(&Request::get_id()).data;
    let short = guest.request(&Request::new(kind::GET_ID, 0, &[], 8));
    assert_eq!((short.status, short.data.as_slice()), (status::OK, &whole[..8]));
    let long = guest.request(&Request::new(kind::GET_ID, 0, &[], 64));
    assert_eq!((long.status, long.used_len, &long.data[..20]), (status::OK, 21, &whole[..]));
    // For the device to read only: there is no room for the answer.
    assert_eq!(guest.request(&Request::new(kind::GET_ID, 0, &[0; 20], 0)).status, status::OK);
}

/// A way to cut a request of 8 sectors into descriptors.
struct Layout {
    name: &'static str,
    readable: &'static [usize],
    writable: &'static [usize],
    skew: usize,
}

const LAYOUTS: &[Layout] = &[
    Layout { name: "as Linux does", readable: &[16], writable: &[4096], skew: 0 },
    Layout { name: "data in odd places", readable: &[16], writable: &[4096], skew: 1 },
    Layout { name: "data at 512", readable: &[16], writable: &[4096], skew: 512 },
    Layout { name: "data as 1 + 511 + rest", readable: &[16, 1, 511], writable: &[1, 511, 3584], skew: 0 },
    Layout { name: "data as 1 + 4095, odd", readable: &[16, 1], writable: &[1, 4095], skew: 3 },
    Layout { name: "header as 8 + 8", readable: &[8, 8], writable: &[4096], skew: 0 },
    Layout { name: "header as 15 + 1", readable: &[15, 1], writable: &[4096], skew: 0 },
    Layout { name: "header as 16 x 1", readable: &[1; 16], writable: &[4096], skew: 0 },
    Layout { name: "header and data joined", readable: &[], writable: &[4096], skew: 0 },
    Layout { name: "header and first bytes joined", readable: &[20], writable: &[4096], skew: 0 },
    Layout { name: "data and status joined", readable: &[16], writable: &[], skew: 0 },
    Layout { name: "last bytes and status joined", readable: &[16], writable: &[4000], skew: 0 },
    Layout { name: "all joined, odd", readable: &[], writable: &[], skew: 7 },
    Layout {
        name: "8 segments",
        readable: &[16, 512, 512, 512, 512, 512, 512, 512],
        writable: &[512; 8],
        skew: 0,
    },
];

#[test]
fn every_layout_means_the_same() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    for indirect in [false, true] {
        for (index, layout) in (0_u64..).zip(LAYOUTS) {
            check_layout(&mut guest, layout, indirect, index);
        }
    }
}

fn check_layout(guest: &mut RawGuest, layout: &Layout, indirect: bool, seed: u64) {
    let name = format!("{}, indirect {indirect}", layout.name);
    let finish = |request: Request| if indirect { request.indirect() } else { request };
    let data = pattern(seed + 100, 0, 4096);
    let sector = seed * 16;
    let write = Request::write(sector, &data).cut_readable(layout.readable).skew(layout.skew);
    assert_eq!(guest.request(&finish(write)), done(), "write: {name}");
    let read = Request::read(sector, 4096).cut_writable(layout.writable).skew(layout.skew);
    let read = if layout.readable.iter().sum::<usize>() == 16 && layout.readable.len() > 1 {
        read.cut_readable(layout.readable)
    } else {
        read
    };
    let outcome = guest.request(&finish(read));
    assert_eq!((outcome.status, outcome.used_len), (status::OK, 4097), "read: {name}");
    assert!(outcome.data == data, "read: {name}");
    assert_reads(guest, sector, &data);
}

#[test]
fn get_id_and_write_zeroes_may_be_cut_too() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    let plain = guest.request(&Request::get_id());
    for cuts in [&[][..], &[1, 19][..], &[10][..]] {
        assert_eq!(guest.request(&Request::get_id().cut_writable(cuts)), plain, "cut at {cuts:?}");
    }
    guest.request(&Request::write(0, &[1; 512]));
    let zero = Request::write_zeroes(&[(0, 1)], SegmentFlags::default()).cut_readable(&[16, 1, 7]);
    assert_eq!(guest.request(&zero), done());
    assert_reads(&mut guest, 0, &[0; 512]);
}

#[test]
fn many_segments_work_up_to_what_is_told() {
    let stand = Stand::pair();
    let mut guest = stand.raw("issuer");
    guest.start(Setup { size: 256, ..Setup::default() });
    let seg_max = usize::try_from(guest.front().config().seg_max).unwrap();
    assert!(seg_max >= 126, "seg_max {seg_max}");
    for count in [100, 126, seg_max] {
        let data = pattern(count as u64, 0, count * SECTOR);
        let write = Request::write(0, &data).cut_readable(&[&[16][..], &vec![SECTOR; count - 1]].concat());
        assert_eq!(guest.request(&write.clone().indirect()), done(), "{count} segments");
        let read = Request::read(0, data.len()).cut_writable(&vec![SECTOR; count]);
        assert!(guest.request(&read.clone().indirect()).data == data, "{count} segments, indirect");
        if count + 2 <= 256 {
            assert_eq!(guest.request(&write), done());
            assert!(guest.request(&read).data == data, "{count} segments");
        }
    }
}

#[test]
fn more_segments_than_told_are_served_or_refused_as_a_whole() {
    let stand = Stand::pair();
    let mut guest = stand.raw("issuer");
    guest.start(Setup { size: 1024, ..Setup::default() });
    let seg_max = usize::try_from(guest.front().config().seg_max).unwrap();
    for count in [seg_max + 1, seg_max + 100, 1000, 1100, 2000] {
        let before = pattern(1, 0, count * SECTOR);
        for (sector, piece) in (0..).step_by(128).zip(before.chunks(65536)) {
            assert_eq!(guest.request(&Request::write(sector, piece)), done());
        }
        let data = pattern(count as u64, 0, count * SECTOR);
        let cuts = [&[16][..], &vec![SECTOR; count - 1]].concat();
        let status = guest.request(&Request::write(0, &data).cut_readable(&cuts).indirect()).status;
        assert!([status::OK, status::IOERR].contains(&status), "{count} segments: status {status}");
        let expected = if status == status::OK { data } else { before };
        for (sector, piece) in (0..).step_by(128).zip(expected.chunks(65536)) {
            assert_reads(&mut guest, sector, piece);
        }
    }
}

#[test]
fn large_requests_are_served_whole() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    let config = guest.front().config();
    assert!(config.size_max >= 4096, "{config:?}");
    let segment = usize::try_from(config.size_max).unwrap().min(1 << 20);
    for len in [2 << 20, (2 << 20) + 512, 5 << 20, 8 << 20] {
        let data = pattern(len as u64, 0, len);
        let cuts = vec![segment; len / segment];
        let write = Request::write(3, &data).cut_readable(&[&[16][..], &cuts].concat());
        assert_eq!(guest.request(&write.indirect()), done(), "{len} bytes");
        let outcome = guest.request(&Request::read(3, len).cut_writable(&cuts).indirect());
        assert_eq!(u64::from(outcome.used_len), len as u64 + 1);
        assert!(outcome.data == data, "{len} bytes");
    }
}

#[test]
fn segments_may_cross_memory_regions() {
    let stand = Stand::pair();
    let mut guest = stand.raw("issuer");
    // 32 regions of 8 MiB, rings in the first: a buffer of 8 MiB cannot but cross a border.
    guest.start(Setup { regions: 32, ..Setup::default() });
    let data = pattern(1, 0, 8 << 20);
    assert_eq!(guest.request(&Request::write(0, &data)), done());
    assert!(guest.request(&Request::read(0, data.len())).data == data);
}

#[test]
fn every_queue_works() {
    let stand = Stand::pair();
    for queues in [1_u16, 2, 7, 64] {
        let mut guest = stand.raw("issuer");
        guest.start(Setup { queues, size: 16, ..Setup::default() });
        for queue in 0..usize::from(queues) {
            let request = Request::write(queue as u64, &pattern(queue as u64, 0, SECTOR));
            assert_eq!(guest.request_on(queue, &request), done(), "queue {queue} of {queues}");
        }
        for queue in 0..usize::from(queues) {
            let outcome = guest.request_on(queue, &Request::read(queue as u64, SECTOR));
            assert!(outcome.data == pattern(queue as u64, 0, SECTOR), "queue {queue} of {queues}");
        }
    }
}

#[test]
fn every_queue_size_works_with_and_without_event_index() {
    let stand = Stand::pair();
    for size in (1..=10).map(|power| 1_u16 << power) {
        for without in
            [0, feature::EVENT_IDX, feature::INDIRECT_DESC, feature::EVENT_IDX | feature::INDIRECT_DESC]
        {
            let indirect = without & feature::INDIRECT_DESC == 0;
            if size < 4 && !indirect {
                continue;
            }
            let mut guest = stand.raw("issuer");
            guest.start(Setup { size, features: !(without | feature::CONFIG_WCE), ..Setup::default() });
            fill_ring(&mut guest, indirect, usize::from(size) * 3 + 5);
        }
    }
}

/// Keeps the ring as full as it goes until `count` requests are through; every one must come back.
fn fill_ring(guest: &mut RawGuest, indirect: bool, count: usize) {
    let needed = if indirect { 1 } else { 3 };
    let (mut submitted, mut finished) = (0, 0);
    while finished < count {
        let mut batch = 0;
        while submitted < count && guest.ring(0).free_descriptors() >= needed {
            let sector = submitted as u64 % 1000;
            let request = Request::write(sector, &pattern(sector, 0, SECTOR));
            guest.publish(0, &if indirect { request.indirect() } else { request });
            (submitted, batch) = (submitted + 1, batch + 1);
        }
        guest.kick_if_wanted(0, batch);
        assert_eq!(guest.wait_used(0).1, done());
        finished += 1;
    }
    let sector = (count as u64 - 1) % 1000;
    let read = Request::read(sector, SECTOR);
    let read = if indirect { read.indirect() } else { read };
    assert!(guest.request(&read).data == pattern(sector, 0, SECTOR));
}

#[test]
fn ring_indices_wrap_around() {
    let stand = Stand::pair();
    for (start, count) in [(65530, 300), (32767, 300), (0, 70_000)] {
        for features in [!feature::CONFIG_WCE, !(feature::CONFIG_WCE | feature::EVENT_IDX)] {
            let mut guest = stand.raw("issuer");
            guest.start(Setup { start, features, ..Setup::default() });
            fill_ring(&mut guest, false, count);
            let base = guest.stop_queue(0);
            assert_eq!(
                base as usize,
                (usize::from(start) + count + 1) % 65536,
                "next index of start {start}"
            );
        }
    }
}

#[test]
fn read_only_guest_cannot_change_anything() {
    let stand = Stand::pair();
    let data = pattern(1, 0, 4096);
    stand.driver("issuer").write(0, &data).unwrap();
    for features in [!feature::CONFIG_WCE, !(feature::CONFIG_WCE | feature::RO)] {
        let mut guest = stand.raw("front");
        guest.start(Setup { features, ..Setup::default() });
        let out = guest.request(&Request::write(0, &[1; 512]));
        assert_eq!((out.status, out.used_len), (status::IOERR, 1));
        for request in both_zeroing(&[(0, 1)]) {
            assert_eq!(guest.request(&request).status, status::IOERR);
        }
        let unmap = Request::write_zeroes(&[(0, 1)], SegmentFlags::UNMAP);
        assert_eq!(guest.request(&unmap).status, status::IOERR);
        assert_eq!(guest.request(&Request::flush()), done());
        assert_eq!(guest.request(&Request::get_id()).status, status::OK);
        assert_reads(&mut guest, 0, &data);
    }
    assert!(stand.driver("issuer").read(0, 4096).unwrap() == data);
}

#[test]
fn every_guest_has_its_own_serial() {
    let names = ["issuer", "front", "a", "a-long-name-of-a-front-end-1", "a-long-name-of-a-front-end-2"];
    let stand = Stand::serve(Scratch::new(), |serve| names.iter().fold(serve, |serve, name| serve.ro(name)));
    let mut serials = Vec::new();
    for name in names {
        let mut guest = stand.started(name);
        let outcome = guest.request(&Request::get_id());
        assert_eq!(outcome.status, status::OK);
        let end = outcome.data.iter().position(|byte| *byte == 0).unwrap_or(20);
        let serial = String::from_utf8(outcome.data[..end].to_vec()).unwrap();
        assert!(serial.starts_with("receiptdisk"), "serial of {name}: {serial:?}");
        assert!(outcome.data[end..].iter().all(|byte| *byte == 0), "rest of {name}'s serial");
        assert!(serial.chars().all(|c| c.is_ascii_graphic()), "serial of {name}: {serial:?}");
        serials.push(serial);
    }
    let count = serials.len();
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), count, "{serials:?}");
}
