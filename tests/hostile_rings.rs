//! Rings and chains that no driver makes: each may cost its own guest the connection, and nobody else anything.

use receiptdisk_tests::raw::{Buffer, Desc, GUEST_BASE, RawGuest, Request, Setup, desc_flags, feature, kind};
use receiptdisk_tests::{Stand, pattern};

/// Something a hostile guest does with its queue 0.
struct Case {
    name: &'static str,
    act: fn(&mut RawGuest),
}

/// An address far outside guest memory.
const NOWHERE: u64 = 1 << 50;

/// Runs each case with and without event index, beside a polite guest.
fn run(cases: &[Case]) {
    let mut stand = Stand::pair();
    let secret = pattern(77, 0, 4096);
    stand.driver("issuer").write(1 << 20, &secret).unwrap();
    let mut polite = stand.started("front");
    for without in [0, feature::EVENT_IDX] {
        for case in cases {
            let mut guest = stand.raw("issuer");
            guest.start(Setup { features: !(without | feature::CONFIG_WCE), ..Setup::default() });
            (case.act)(&mut guest);
            polite.assert_readable();
            stand.backend().proc().wait_until_idle();
            drop(guest);
            assert!(stand.backend().proc().is_running(), "{}: the backend ended", case.name);
            let mut next = stand.started("issuer");
            next.assert_works();
            let read = next.request(&Request::read(2048, 4096));
            assert!(read.data == secret, "{}: the disk was changed", case.name);
        }
    }
}

/// A write of one sector over the secret, in descriptors 0 (header), 1 (data) and 2 (status), changed by `change`.
fn write_chain(guest: &mut RawGuest, change: fn(&mut [Desc; 3])) {
    let [header, data, status] = [16, 512, 1].map(|len| guest.memory().take(len));
    guest.memory().write(header, &header_of(kind::OUT, 2048));
    let flags = desc_flags::NEXT;
    let mut descs = [
        Desc { addr: header, len: 16, flags, next: 1 },
        Desc { addr: data, len: 512, flags, next: 2 },
        Desc { addr: status, len: 1, flags: desc_flags::WRITE, next: 0 },
    ];
    change(&mut descs);
    for (index, desc) in (0..).zip(descs) {
        guest.write_desc(0, index, desc);
    }
    guest.submit_head(0, 0);
}

fn header_of(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

#[test]
fn chains_that_do_not_end_or_lead_nowhere() {
    run(&[
        Case { name: "loop of one", act: |guest| write_chain(guest, |descs| descs[0].next = 0) },
        Case { name: "loop of two", act: |guest| write_chain(guest, |descs| descs[1].next = 0) },
        Case {
            name: "loop at the status",
            act: |guest| write_chain(guest, |descs| descs[2].flags |= desc_flags::NEXT),
        },
        Case { name: "next out of the table", act: |guest| write_chain(guest, |descs| descs[0].next = 128) },
        Case { name: "next far out", act: |guest| write_chain(guest, |descs| descs[1].next = u16::MAX) },
        Case { name: "no status", act: |guest| write_chain(guest, |descs| descs[1].flags = 0) },
        Case { name: "header only", act: |guest| write_chain(guest, |descs| descs[0].flags = 0) },
        Case { name: "head out of the table", act: |guest| guest.submit_head(0, 128) },
        Case { name: "head 65535", act: |guest| guest.submit_head(0, u16::MAX) },
    ]);
}

#[test]
fn buffers_that_are_not_there() {
    run(&[
        Case { name: "header nowhere", act: |guest| write_chain(guest, |descs| descs[0].addr = NOWHERE) },
        Case { name: "data nowhere", act: |guest| write_chain(guest, |descs| descs[1].addr = NOWHERE) },
        Case { name: "status nowhere", act: |guest| write_chain(guest, |descs| descs[2].addr = NOWHERE) },
        Case {
            name: "data across the end",
            act: |guest| write_chain(guest, |descs| descs[1].addr = GUEST_BASE + (256 << 20) - 256),
        },
        Case {
            name: "data before memory",
            act: |guest| write_chain(guest, |descs| descs[1].addr = GUEST_BASE - 256),
        },
        Case {
            name: "address wraps",
            act: |guest| write_chain(guest, |descs| descs[1].addr = u64::MAX - 255),
        },
        Case { name: "length 2^32-1", act: |guest| write_chain(guest, |descs| descs[1].len = u32::MAX) },
        Case {
            name: "all lengths 0",
            act: |guest| write_chain(guest, |descs| descs.iter_mut().for_each(|desc| desc.len = 0)),
        },
        Case {
            name: "header of 15",
            act: |guest| {
                write_chain(guest, |descs| {
                    (descs[0].len, descs[1].flags) = (15, desc_flags::NEXT | desc_flags::WRITE)
                })
            },
        },
        Case {
            name: "header of 0",
            act: |guest| write_chain(guest, |descs| (descs[0].len, descs[1].len) = (0, 0)),
        },
        Case { name: "status of 0", act: |guest| write_chain(guest, |descs| descs[2].len = 0) },
    ]);
}

#[test]
fn lengths_that_sum_past_what_a_number_holds() {
    run(&[
        Case { name: "past 2^32", act: |guest| long_chain(guest, 1 << 27) },
        Case { name: "past 32 MiB", act: |guest| long_chain(guest, 1 << 19) },
    ]);
}

/// A read of 126 buffers of `len` bytes, all of them the same memory.
fn long_chain(guest: &mut RawGuest, len: u32) {
    let at = guest.memory().take(1024);
    guest.memory().write(at, &header_of(kind::IN, 0));
    let header = Buffer { addr: at, len: 16, writable: false };
    let data = Buffer { addr: GUEST_BASE + (1 << 27), len, writable: true };
    let status = Buffer { addr: at + 512, len: 1, writable: true };
    guest.submit_chain(0, &[vec![header], vec![data; 126], vec![status]].concat());
    let (_, outcome) = guest.wait_used(0);
    assert_eq!(
        (outcome.used_len, guest.memory().read(at + 512, 1)),
        (1, vec![1]),
        "an IOERR and nothing else"
    );
}

#[test]
fn directions_that_are_wrong() {
    run(&[
        Case {
            name: "header writable",
            act: |guest| write_chain(guest, |descs| descs[0].flags |= desc_flags::WRITE),
        },
        Case {
            name: "data writable in a write",
            act: |guest| write_chain(guest, |descs| descs[1].flags |= desc_flags::WRITE),
        },
        Case { name: "status readable", act: |guest| write_chain(guest, |descs| descs[2].flags = 0) },
        Case { name: "readable after writable", act: readable_after_writable },
        Case { name: "read into readable", act: read_into_readable },
    ]);
}

fn readable_after_writable(guest: &mut RawGuest) {
    let at = guest.memory().take(1024);
    guest.memory().write(at, &header_of(kind::OUT, 2048));
    let buffer = |offset, len, writable| Buffer { addr: at + offset, len, writable };
    guest.submit_chain(0, &[buffer(512, 1, true), buffer(0, 16, false), buffer(0, 512, false)]);
}

fn read_into_readable(guest: &mut RawGuest) {
    let at = guest.memory().take(1024);
    guest.memory().write(at, &header_of(kind::IN, 0));
    let buffer = |offset, len, writable| Buffer { addr: at + offset, len, writable };
    guest.submit_chain(0, &[buffer(0, 16, false), buffer(16, 512, false), buffer(1000, 1, true)]);
}

/// One descriptor that leads to a table of `len` bytes, which holds `table`.
fn indirect(guest: &mut RawGuest, flags: u16, len: u32, table: &[Desc]) {
    let at = guest.memory().take(4096);
    let bytes: Vec<u8> = table.iter().flat_map(Desc::bytes).collect();
    guest.memory().write(at, &bytes);
    guest.write_desc(0, 0, Desc { addr: at, len, flags: desc_flags::INDIRECT | flags, next: 1 });
    guest.submit_head(0, 0);
}

const LOOP: Desc = Desc { addr: GUEST_BASE, len: 16, flags: desc_flags::NEXT, next: 0 };

#[test]
fn indirect_tables_that_are_wrong() {
    run(&[
        Case { name: "table of 0 bytes", act: |guest| indirect(guest, 0, 0, &[]) },
        Case { name: "table of 17 bytes", act: |guest| indirect(guest, 0, 17, &[]) },
        Case { name: "table of 2^32-16 bytes", act: |guest| indirect(guest, 0, u32::MAX - 15, &[LOOP]) },
        Case { name: "table of 65535 entries", act: |guest| indirect(guest, 0, 65535 * 16, &[LOOP]) },
        Case { name: "table in a loop", act: |guest| indirect(guest, 0, 16, &[LOOP]) },
        Case {
            name: "next out of the table",
            act: |guest| indirect(guest, 0, 16, &[Desc { next: 1, ..LOOP }]),
        },
        Case {
            name: "table and next",
            act: |guest| indirect(guest, desc_flags::NEXT, 16, &[Desc { flags: 0, ..LOOP }]),
        },
        Case {
            name: "writable table",
            act: |guest| indirect(guest, desc_flags::WRITE, 16, &[Desc { flags: 0, ..LOOP }]),
        },
        Case {
            name: "table in a table",
            act: |guest| indirect(guest, 0, 16, &[Desc { flags: desc_flags::INDIRECT, ..LOOP }]),
        },
        Case {
            name: "table nowhere",
            act: |guest| {
                write_chain(guest, |descs| {
                    descs[0] = Desc { addr: NOWHERE, len: 64, flags: desc_flags::INDIRECT, next: 0 }
                })
            },
        },
    ]);
}

#[test]
fn ring_indices_that_jump() {
    run(&[
        Case { name: "129 ahead", act: |guest| guest.submit_index(0, 129) },
        Case { name: "32768 ahead", act: |guest| guest.submit_index(0, 32768) },
        Case { name: "one back", act: |guest| guest.submit_index(0, u16::MAX) },
        Case { name: "one head 128 times", act: one_head_128_times },
    ]);
}

fn one_head_128_times(guest: &mut RawGuest) {
    write_chain(guest, |descs| descs[1].len = 511);
    for _ in 1..128 {
        guest.submit_head(0, 0);
    }
}

/// A guest breaks its ring and resets it, as fast as it can.
#[test]
fn broken_rings_do_not_fill_the_log() {
    let mut stand = Stand::pair();
    let mut guest = stand.started("issuer");
    for round in 0..1000 {
        guest.submit_index(0, 32768);
        guest.stop_queue(0);
        guest.restart_queue(0, round);
    }
    guest.assert_works();
    let log = stand.backend().log();
    let lines = log.matches("guest=issuer event=broken-ring").count();
    assert!((1..100).contains(&lines), "{lines} lines");
}

#[test]
fn kicks_without_work_are_harmless() {
    let mut stand = Stand::pair();
    let mut guest = stand.started("issuer");
    for _ in 0..3000 {
        guest.kick(0);
    }
    guest.assert_works();
    stand.backend().proc().wait_until_idle();
}

/// Regions that say what is in flight belong to the front end, which may write anything there at any time.
#[test]
fn inflight_regions_that_lie_or_vanish_cost_nobody_else() {
    let mut stand = Stand::pair();
    let secret = pattern(77, 0, 4096);
    stand.driver("issuer").write(1 << 20, &secret).unwrap();
    let mut polite = stand.started("front");
    let all_in_flight = |guest: &mut RawGuest, is_started| {
        for head in 0..128 {
            guest.inflight().mark(0, head, u64::MAX - u64::from(head % 3), is_started);
        }
    };
    let acts: [&dyn Fn(&mut RawGuest); 6] = [
        &|guest| all_in_flight(guest, false),
        &|guest| all_in_flight(guest, true),
        &|guest| guest.inflight().write(0, 16, &[0xff; 2048]),
        &|guest| guest.inflight().write(0, 16, &[1; 2048]),
        &|guest| rustix::fs::ftruncate(guest.inflight().file(), 0).unwrap(),
        &|guest| {
            for _ in 0..3 {
                guest.submit(0, &Request::read(0, 65_536));
            }
            rustix::fs::ftruncate(guest.inflight().file(), 0).unwrap();
        },
    ];
    for act in acts {
        let mut guest = stand.raw("issuer");
        guest.start(Setup { is_tracked: true, ..Setup::default() });
        guest.use_own_region();
        guest.assert_works();
        act(&mut guest);
        // While it runs the region is not looked at, so it works on.
        guest.submit(0, &Request::read(0, 65_536));
        polite.assert_readable();
        let _ = guest.front().wire().stream().shutdown(std::net::Shutdown::Both);
        // What is taken again is what stands in the table: nothing, or what was there last.
        if guest.inflight().file().metadata().unwrap().len() > 0 {
            guest.reconnect(&stand.socket("issuer"));
        }
        polite.assert_readable();
        drop(guest);
        let mut next = stand.started("issuer");
        next.assert_works();
        assert!(next.request(&Request::read(2048, 4096)).data == secret, "the disk was changed");
        assert!(stand.backend().proc().is_running());
        stand.backend().proc().wait_until_idle();
    }
}

#[test]
fn memory_that_vanishes_costs_nobody_else() {
    run(&[
        Case {
            name: "memory truncated, then a kick",
            act: |guest| {
                rustix::fs::ftruncate(guest.memory().fd(), 0).unwrap();
                guest.kick(0);
            },
        },
        Case {
            name: "only the data is gone",
            act: |guest| {
                let far = GUEST_BASE + (128 << 20);
                rustix::fs::ftruncate(guest.memory().fd(), 64 << 20).unwrap();
                for (addr, kind) in [(far, kind::OUT), (far, kind::IN), (far + 1, kind::OUT)] {
                    let at = guest.memory().take(1024);
                    guest.memory().write(at, &header_of(kind, 0));
                    let writable = kind == kind::IN;
                    let buffers = [(at, 16, false), (addr, 512, writable), (at + 512, 1, true)];
                    let chain = buffers.map(|(addr, len, writable)| Buffer { addr, len, writable });
                    guest.submit_chain(0, &chain);
                }
            },
        },
        Case {
            name: "memory truncated under a request",
            act: |guest| {
                guest.submit(0, &Request::read(0, 65_536));
                rustix::fs::ftruncate(guest.memory().fd(), 0).unwrap();
                guest.kick(0);
            },
        },
    ]);
}
