//! C10 of docs/ordering.md: what an operator has sealed is written by nobody, until an operator unseals it.

use std::fs;

use receiptdisk_tests::raw::{RawGuest, Request, SegmentFlags, Setup, status};
use receiptdisk_tests::{Ctl, DiskOp, FaultStand, SECTOR, Scratch, Serve, Stand, until};
use rustix::process::Signal;

const UNIT: u64 = 4096;
const SECTORS: u32 = 8;

fn sealing(serve: Serve) -> Serve {
    serve.rw("a").guest("b", "access=standby").ro("c").arg("--seal")
}

fn stand() -> FaultStand {
    FaultStand::serve(sealing)
}

/// Every request that changes `units` units from `first` on.
fn changes(first: u64, units: u32) -> [Request; 4] {
    let ranges = [(first * u64::from(SECTORS), units * SECTORS)];
    [
        Request::write(ranges[0].0, &vec![0xbb; units as usize * 4096]),
        Request::write_zeroes(&ranges, SegmentFlags::default()),
        Request::write_zeroes(&ranges, SegmentFlags::UNMAP),
        Request::discard(&ranges),
    ]
}

/// Everything that touches the third and fourth unit is refused and changes nothing; what lies beside them is written.
#[track_caller]
fn assert_sealed_2_to_4(stand: &FaultStand, guest: &mut RawGuest) {
    let before = stand.disk().now(0, 10 * 4096);
    // Inside, all of it, over either end, around it.
    for (first, units) in [(2, 1), (3, 1), (2, 2), (1, 2), (3, 2), (0, 8)] {
        for request in changes(first, units) {
            assert_eq!(guest.request(&request).status, status::IOERR, "{first} {units} {request:?}");
        }
    }
    // One sector of it, and the last one before it together with its first.
    for (sector, len) in [(16, SECTOR), (31, SECTOR), (15, 2 * SECTOR), (31, 2 * SECTOR)] {
        assert_eq!(guest.request(&Request::write(sector, &vec![7; len])).status, status::IOERR, "{sector}");
    }
    // Good ranges beside a sealed one in the same request are not touched either.
    let several = [(0, SECTORS), (24, SECTORS), (40, SECTORS)];
    for request in [Request::discard(&several), Request::write_zeroes(&several, SegmentFlags::default())] {
        assert_eq!(guest.request(&request).status, status::IOERR);
    }
    assert!(stand.disk().now(0, 10 * 4096) == before, "a refused request changed something");
    assert!(guest.request(&Request::read(0, 10 * 4096)).data == before);
    assert_eq!(guest.request(&Request::flush()).status, status::OK);
    // Its neighbours, to the sector, also where direct IO must write the rest of a block again.
    for (first, units) in [(0, 2), (4, 3)] {
        for request in changes(first, units) {
            assert_eq!(guest.request(&request).status, status::OK, "{first} {units}");
        }
    }
    for sector in [15, 32] {
        assert_eq!(guest.request(&Request::write(sector, &[9; SECTOR])).status, status::OK);
    }
    assert!(stand.disk().now(2 * 4096, 2 * 4096) == before[2 * 4096..4 * 4096]);
}

#[track_caller]
fn fill(guest: &mut RawGuest) {
    assert_eq!(guest.request(&Request::write(0, &[1; 10 * 4096])).status, status::OK);
}

#[test]
fn c10_every_change_of_a_sealed_range_is_refused() {
    let stand = stand();
    let mut a = stand.guest("a", 1);
    fill(&mut a);
    stand.ctl().ok(&["seal", "8K-16K"]);
    assert!(stand.disk().durable(0, 10 * 4096) == [1; 10 * 4096], "what is sealed is durable");
    assert_sealed_2_to_4(&stand, &mut a);
    let status = stand.ctl().ok(&["status"]);
    assert_eq!((&status["sealed_ranges"], &status["sealed_bytes"]), (&1.into(), &(2 * UNIT).into()));
    assert!(stand.ctl().stats("a")["refused_by_seal"].as_u64().unwrap() >= 30);
    // No guest gets around it by becoming the writer.
    drop(a);
    stand.ctl().ok(&["takeover", "b"]);
    assert_sealed_2_to_4(&stand, &mut stand.guest("b", 1));
}

#[test]
fn c10_seals_outlive_the_backend_and_hold_without_the_option() {
    let mut stand = stand();
    fill(&mut stand.guest("a", 1));
    stand.ctl().ok(&["seal", "8K-12K", "12K-16K"]);
    for signal in [Signal::TERM, Signal::KILL] {
        stand.backend().proc().signal(signal);
        stand.backend().proc().wait();
        stand.start_again(|serve| serve.rw("a").guest("b", "access=standby").ro("c"));
        assert_eq!(stand.ctl().ok(&["seals"]), serde_json::json!(["8192-16384"]));
        assert_sealed_2_to_4(&stand, &mut stand.guest("a", 1));
    }
    assert!(stand.ctl().run(&["seal", "0-4K"]).unwrap_err().contains("--seal"));
    stand.ctl().ok(&["unseal", "12K-16K"]);
    let mut a = stand.guest("a", 1);
    assert_eq!(a.request(&Request::write(24, &[3; 4096])).status, status::OK);
    assert_eq!(a.request(&Request::write(16, &[3; 4096])).status, status::IOERR);
    drop(a);
    stand.backend().proc().signal(Signal::KILL);
    stand.backend().proc().wait();
    stand.start_again(sealing);
    assert_eq!(stand.ctl().ok(&["seals"]), serde_json::json!(["8192-12288"]));
}

/// One write is on its way, one waits for it, one comes after the seal: the first lands whole, the others not at all.
#[test]
fn c10_seal_waits_for_writes_in_flight_and_lets_none_slip_through() {
    let stand = stand();
    let mut a = stand.guest("a", 2);
    fill(&mut a);
    stand.disk().hold(DiskOp::Write);
    let in_flight = a.submit(0, &Request::write(16, &[2; 8192]));
    let parked = a.submit(0, &Request::write(24, &[3; 8192]));
    let elsewhere = a.submit(0, &Request::write(64, &[4; 4096]));
    stand.disk().wait_for_held(DiskOp::Write, 2);
    let mut seal = stand.ctl().start(&["seal", "8K-24K"]);
    until("later writes to be refused", || {
        // A discard beside them waits for neither.
        let outcome = a.request_on(1, &Request::discard(&[(40, SECTORS)]));
        (outcome.status == status::IOERR).then_some(())
    });
    assert!(seal.try_wait().unwrap().is_none(), "sealed while a write is in flight");
    assert!(!stand.state_file().exists(), "kept while a write is in flight");
    stand.disk().release(DiskOp::Write);
    Ctl::answer(&seal.wait_with_output().unwrap()).unwrap();
    let mut answers: Vec<_> =
        (0..3).map(|_| a.wait_used(0)).map(|(head, outcome)| (head, outcome.status)).collect();
    answers.sort_unstable();
    let mut expected = vec![(in_flight, status::OK), (parked, status::IOERR), (elsewhere, status::OK)];
    expected.sort_unstable();
    assert_eq!(answers, expected);
    assert!(stand.disk().durable(8192, 8192) == [2; 8192], "what was in flight is there, and synced");
    assert!(stand.disk().now(16384, 4096) == [1; 4096], "nothing of what was parked");
}

#[test]
fn c10_what_cannot_be_sealed_is_refused_and_changes_nothing() {
    let stand = stand();
    for (range, words) in [
        ("0-512", "multiples of 4096"),
        ("4K-1M", ""),
        ("512-4096", "multiples of 4096"),
        ("1M-2M", "beyond the disk's end"),
    ] {
        let answer = stand.ctl().run(&["seal", range]);
        match answer {
            Ok(_) => assert_eq!(words, "", "{range}"),
            Err(error) => assert!(!words.is_empty() && error.contains(words), "{range}: {error}"),
        }
    }
    assert_eq!(stand.ctl().ok(&["seals"]), serde_json::json!(["4096-1048576"]));
    // All or nothing.
    stand.ctl().run(&["seal", "0-4096", "1M-2M"]).unwrap_err();
    assert_eq!(stand.ctl().ok(&["seals"]), serde_json::json!(["4096-1048576"]));
    stand.ctl().ok(&["unseal", "0-1M"]);
    assert_eq!(stand.ctl().ok(&["seals"]), serde_json::json!([]));
}

#[test]
fn c10_seal_that_cannot_be_kept_or_synced_is_none() {
    let stand = stand();
    let mut a = stand.guest("a", 1);
    fill(&mut a);
    fs::create_dir_all(stand.state_file().join("in the way")).unwrap();
    assert!(stand.ctl().run(&["seal", "8K-16K"]).unwrap_err().contains("cannot be written"));
    assert_eq!(stand.ctl().ok(&["seals"]), serde_json::json!([]));
    assert_eq!(a.request(&Request::write(16, &[5; 4096])).status, status::OK);
    fs::remove_dir_all(stand.state_file()).unwrap();
    stand.ctl().ok(&["seal", "8K-16K"]);
    fs::remove_file(stand.state_file()).unwrap();
    fs::create_dir_all(stand.state_file().join("in the way")).unwrap();
    assert!(stand.ctl().run(&["unseal", "8K-16K"]).unwrap_err().contains("cannot be written"));
    assert_eq!(a.request(&Request::write(16, &[6; 4096])).status, status::IOERR, "still sealed");
    fs::remove_dir_all(stand.state_file()).unwrap();
    stand.disk().fail(DiskOp::Sync, 0..u64::MAX, libc::EIO);
    assert!(stand.ctl().run(&["seal", "0-8K"]).unwrap_err().contains("cannot be synced"));
    assert_eq!(stand.ctl().ok(&["seals"]), serde_json::json!(["8192-16384"]));
}

#[test]
fn c10_seals_stay_when_the_disk_grows_and_many_are_told_at_once() {
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let serve = Serve::image(&scratch.join("disk.img")).arg("--control").arg(scratch.join("ctl.sock"));
    let backend = serve.rw("a").arg("--seal").start();
    let ctl = Ctl::new(scratch.join("ctl.sock"));
    let many: Vec<String> = (0..200).map(|at| format!("{}-{}", 2 * at * UNIT, (2 * at + 1) * UNIT)).collect();
    let mut command = vec!["seal"];
    command.extend(many.iter().map(String::as_str));
    let output = ctl.start(&command).wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    ctl.ok(&["resize", "64M"]);
    assert_eq!(ctl.ok(&["seals"]), serde_json::json!(many));
    let mut a = RawGuest::connect(&backend.socket("a"));
    a.start(Setup::default());
    let write = |unit: u64| Request::write(unit * u64::from(SECTORS), &[1; 4096]);
    assert_eq!([0, 1, 398, 399].map(|unit| a.request(&write(unit)).status), [1, 0, 1, 0]);
    ctl.ok(&["seal", "32M-64M"]);
    assert_eq!(a.request(&write(8192)).status, status::IOERR);
}
