//! C7 of docs/ordering.md: a request is carried out whole or is an error, and nothing is believed after a failed sync.

use std::fs::{File, OpenOptions};

use receiptdisk_tests::raw::{RawGuest, Request, SegmentFlags, status};
use receiptdisk_tests::{DiskOp, FaultStand, SECTOR, Scratch, Serve, SmallTmpfs, Stand, pattern};
use rustix::process::Signal;

/// The two engines; each takes the errors of the host in its own way.
const ENGINES: [&str; 2] = ["io_uring", "sync"];

fn serve_with(engine: &str) -> impl Fn(Serve) -> Serve {
    move |serve| serve.rw("a").ro("b").arg("--io-engine").arg(engine)
}

fn both_engines(check: fn(&mut FaultStand, &str)) {
    for engine in ENGINES {
        check(&mut FaultStand::serve(serve_with(engine)), engine);
    }
}

#[track_caller]
fn status_of(guest: &mut RawGuest, request: &Request) -> u8 {
    guest.request(request).status
}

fn write(sector: u64, byte: u8) -> Request {
    Request::write(sector, &[byte; 8192])
}

#[test]
fn c7_failed_read_is_an_error_for_that_request_alone() {
    both_engines(|stand, engine| {
        let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 1));
        assert_eq!(status_of(&mut a, &Request::write(0, &pattern(1, 0, 65536))), status::OK);
        stand.disk().fail(DiskOp::Read, 8192..12288, libc::EIO);
        for guest in [&mut a, &mut b] {
            assert_eq!(status_of(guest, &Request::read(16, 4096)), status::IOERR, "{engine}");
            assert_eq!(status_of(guest, &Request::read(8, 16384)), status::IOERR, "{engine}: a part of it");
            // Bounced.
            assert_eq!(status_of(guest, &Request::read(16, 4096).skew(1)), status::IOERR, "{engine}");
            let beside = guest.request(&Request::read(24, 4096));
            assert_eq!((beside.status, beside.used_len), (status::OK, 4097), "{engine}");
        }
        stand.disk().heal();
        assert!(b.request(&Request::read(0, 65536)).data == pattern(1, 0, 65536), "{engine}");
        assert_eq!(stand.ctl().ok(&["status"])["poisoned"], false, "a failed read poisons nothing");
    });
}

#[test]
fn c7_failed_write_is_an_error_for_that_request_alone() {
    both_engines(|stand, engine| {
        let mut a = stand.guest("a", 1);
        stand.disk().fail(DiskOp::Write, 8192..12288, libc::EIO);
        assert_eq!(status_of(&mut a, &write(16, 1)), status::IOERR, "{engine}");
        assert_eq!(status_of(&mut a, &write(8, 1).skew(8)), status::IOERR, "{engine}: bounced");
        let zeroes = Request::write_zeroes(&[(0, 8), (16, 8)], SegmentFlags::default());
        assert_eq!(status_of(&mut a, &zeroes), status::IOERR, "{engine}");
        assert_eq!(status_of(&mut a, &write(32, 2)), status::OK, "{engine}");
        assert_eq!(status_of(&mut a, &Request::flush()), status::OK, "{engine}");
        stand.disk().heal();
        assert_eq!(status_of(&mut a, &write(16, 3)), status::OK, "{engine}");
        assert!(a.request(&Request::read(16, 8192)).data == [3; 8192], "{engine}");
        assert_eq!(stand.ctl().ok(&["status"])["poisoned"], false, "a failed write poisons nothing");
    });
}

/// Writes and reads in pieces of odd lengths and at odd addresses, all of them carried out `step` bytes at a time.
fn check_short(cache: &str, op: DiskOp) {
    for (engine, step) in [("io_uring", 4096), ("sync", 4096), ("io_uring", 12288), ("sync", 12288)] {
        let stand = FaultStand::serve(|serve| serve_with(engine)(serve).arg("--cache").arg(cache));
        let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 1));
        stand.disk().cut_short(op, step);
        for (round, skew) in [(1, 0), (2, 1)] {
            let data = pattern(round, 0, 20 * 4096);
            let cut = Request::write(8, &data).cut_readable(&[16, 8192, 4096]).skew(skew);
            assert_eq!(status_of(&mut a, &cut), status::OK, "{engine}, {step} bytes at once");
            assert!(stand.disk().now(4096, data.len()) == data, "{engine}, {step} bytes at once");
            let read = b.request(&Request::read(8, data.len()).cut_writable(&[4096, 32768]).skew(skew));
            assert_eq!(read.status, status::OK);
            assert!(read.data == data, "{engine}, {step} bytes at once");
        }
    }
}

#[test]
fn c7_short_writes_are_completed() {
    check_short("page", DiskOp::Write);
}

#[test]
fn c7_short_reads_are_completed() {
    check_short("direct", DiskOp::Read);
}

#[test]
fn c7_io_that_moves_nothing_is_an_error() {
    both_engines(|stand, engine| {
        let mut a = stand.guest("a", 1);
        stand.disk().cut_short(DiskOp::Read, 0);
        assert_eq!(status_of(&mut a, &Request::read(0, 4096)), status::IOERR, "{engine}");
        stand.disk().heal();
        stand.disk().cut_short(DiskOp::Write, 0);
        assert_eq!(status_of(&mut a, &write(0, 1)), status::IOERR, "{engine}");
        stand.disk().heal();
        assert_eq!(status_of(&mut a, &write(0, 1)), status::OK, "{engine}");
    });
}

/// A disk that says "try again" for ever. (With io_uring the kernel itself tries for ever and tells nobody.)
#[test]
fn c7_disk_that_is_busy_for_ever_is_an_error() {
    let stand = FaultStand::serve(serve_with("sync"));
    let mut a = stand.guest("a", 1);
    for (op, request) in [(DiskOp::Read, Request::read(0, 4096)), (DiskOp::Write, write(0, 1))] {
        stand.disk().fail(op, 0..u64::MAX, libc::EAGAIN);
        assert_eq!(status_of(&mut a, &request), status::IOERR);
        stand.disk().heal();
        assert_eq!(status_of(&mut a, &request), status::OK);
    }
}

#[test]
fn c7_image_truncated_behind_our_back_is_an_error_and_no_crash() {
    for (engine, cache) in
        [("io_uring", "direct"), ("io_uring", "page"), ("sync", "direct"), ("sync", "page")]
    {
        let configure = |serve| serve_with(engine)(serve).arg("--cache").arg(cache);
        let mut stand = Stand::serve(Scratch::new(), configure);
        let [mut a, mut b] = ["a", "b"].map(|name| stand.started(name));
        assert_eq!(status_of(&mut a, &write(0, 1)), status::OK);
        assert_eq!(status_of(&mut a, &write(2048, 2)), status::OK);
        OpenOptions::new().write(true).open(stand.image()).unwrap().set_len(1 << 20).unwrap();
        for guest in [&mut a, &mut b] {
            assert_eq!(status_of(guest, &Request::read(2048, 8192)), status::IOERR, "{engine}, {cache}");
            // The first half of it is there, the second is not.
            assert_eq!(status_of(guest, &Request::read(2040, 8192)), status::IOERR, "{engine}, {cache}");
            assert!(guest.request(&Request::read(0, 8192)).data == [1; 8192], "{engine}, {cache}");
        }
        assert!(stand.backend().proc().is_running());
        // A write makes the file longer again; what was cut off in between is gone, and reads of it work.
        assert_eq!(status_of(&mut a, &write(4096, 3)), status::OK, "{engine}, {cache}");
        assert!(b.request(&Request::read(4096, 8192)).data == [3; 8192], "{engine}, {cache}");
        // That a write made it longer again hides nothing: what was cut off is lost, and nothing is promised any more.
        assert_eq!(status_of(&mut a, &Request::flush()), status::IOERR, "{engine}, {cache}");
        assert_eq!(status_of(&mut a, &write(0, 4)), status::IOERR, "{engine}, {cache}");
    }
}

#[test]
fn c7_full_host_is_an_error_for_the_request_that_needs_space() {
    for engine in ENGINES {
        let scratch = Scratch::new();
        let small = scratch.join("small");
        std::fs::create_dir(&small).unwrap();
        let _mounted = SmallTmpfs::mount(&small, 2 << 20);
        let image = small.join("disk.img");
        File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let mut backend = serve_with(engine)(Serve::image(&image)).start();
        let mut a = RawGuest::connect(&backend.socket("a"));
        a.start_queues(1);
        let statuses: Vec<u8> =
            (0..8).map(|mib| status_of(&mut a, &Request::write(mib * 2048, &[7; 512 << 10]))).collect();
        assert_eq!(statuses[0], status::OK, "{engine}: {statuses:?}");
        assert_eq!(statuses[7], status::IOERR, "{engine}: {statuses:?}");
        // What needs no new space is carried out, and so is the rest once there is some.
        assert_eq!(status_of(&mut a, &Request::write(0, &[8; 512 << 10])), status::OK, "{engine}");
        assert!(a.request(&Request::read(0, 512 << 10)).data == [8; 512 << 10], "{engine}");
        assert_eq!(status_of(&mut a, &Request::flush()), status::OK, "{engine}");
        assert_eq!(status_of(&mut a, &Request::discard(&[(0, 1024)])), status::OK, "{engine}");
        assert_eq!(status_of(&mut a, &Request::write(7 * 2048, &[9; 256 << 10])), status::OK, "{engine}");
        assert!(a.request(&Request::read(7 * 2048, 256 << 10)).data == [9; 256 << 10], "{engine}");
        assert_eq!(backend.terminate().code, Some(0), "{engine}");
    }
}

/// Reads go on, and whatever would change the disk or promise durability is refused.
#[track_caller]
fn assert_poisoned(stand: &FaultStand, expected: &[u8]) {
    let before = stand.disk().now(0, FaultStand::SIZE);
    let syncs = stand.disk().syncs();
    let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 1));
    let zeroes = Request::write_zeroes(&[(0, 8)], SegmentFlags::default());
    for request in [write(0, 9), zeroes, Request::discard(&[(0, 8)]), Request::flush()] {
        assert_eq!(status_of(&mut a, &request), status::IOERR);
    }
    assert_eq!(status_of(&mut b, &Request::flush()), status::IOERR, "no flush of any guest is answered well");
    for guest in [&mut a, &mut b] {
        let read = guest.request(&Request::read(0, expected.len()));
        assert_eq!(read.status, status::OK);
        assert!(read.data == expected);
    }
    assert!(stand.disk().now(0, FaultStand::SIZE) == before);
    assert_eq!(stand.disk().syncs(), syncs, "the sync is not tried again");
    assert_eq!(stand.ctl().ok(&["status"])["poisoned"], true);
}

#[test]
fn c7_failed_sync_poisons_until_an_operator_clears_it() {
    both_engines(|stand, engine| {
        let mut a = stand.guest("a", 2);
        assert_eq!(status_of(&mut a, &write(0, 1)), status::OK, "{engine}");
        stand.disk().fail(DiskOp::Sync, 0..u64::MAX, libc::EIO);
        assert_eq!(status_of(&mut a, &Request::flush()), status::IOERR, "{engine}");
        drop(a);
        // The disk is well again, but what it lost is lost.
        stand.disk().heal();
        assert_poisoned(stand, &[1; 8192]);
        for signal in [Signal::TERM, Signal::KILL] {
            stand.backend().proc().signal(signal);
            stand.backend().proc().wait();
            stand.start_again(serve_with(engine));
            assert_poisoned(stand, &[1; 8192]);
        }
        let mut a = stand.guest("a", 1);
        stand.ctl().ok(&["clear-poison"]);
        assert_eq!(stand.ctl().ok(&["status"])["poisoned"], false, "{engine}");
        assert_eq!(status_of(&mut a, &write(0, 2)), status::OK, "{engine}");
        assert_eq!(status_of(&mut a, &Request::flush()), status::OK, "{engine}");
        assert!(stand.disk().durable(0, 8192) == [2; 8192], "{engine}");
        drop(a);
        stand.backend().terminate();
        stand.start_again(serve_with(engine));
        assert_eq!(stand.ctl().ok(&["status"])["poisoned"], false, "{engine}: cleared for good");
        assert_eq!(status_of(&mut stand.guest("a", 1), &write(0, 3)), status::OK, "{engine}");
    });
}

/// Poison is on disk before a flush is answered by it: a kill right after the answer loses nothing.
#[test]
fn c7_poison_survives_a_kill_right_after_the_answer() {
    let mut stand = FaultStand::serve(serve_with("io_uring"));
    for round in 0..10 {
        let mut a = stand.guest("a", 1);
        assert_eq!(status_of(&mut a, &write(0, 1)), status::OK);
        stand.disk().fail(DiskOp::Sync, 0..u64::MAX, libc::EIO);
        assert_eq!(status_of(&mut a, &Request::flush()), status::IOERR);
        stand.backend().proc().signal(Signal::KILL);
        stand.backend().proc().wait();
        stand.disk().heal();
        stand.start_again(serve_with("io_uring"));
        assert_eq!(stand.ctl().ok(&["status"])["poisoned"], true, "round {round}");
        stand.ctl().ok(&["clear-poison"]);
    }
}

/// A write that was admitted before the sync failed, and waited for another request, is not begun after it.
#[test]
fn c7_write_that_waited_while_the_image_was_poisoned_is_refused() {
    both_engines(|stand, engine| {
        let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 2));
        assert_eq!(status_of(&mut a, &write(0, 1)), status::OK, "{engine}");
        stand.disk().hold(DiskOp::Read);
        let read = b.submit(0, &Request::read(0, 8192));
        stand.disk().wait_for_held(DiskOp::Read, 1);
        a.submit(0, &write(0, 2));
        let barrier = a.submit(0, &Request::get_id());
        assert_eq!(a.wait_used(0).0, barrier);
        stand.disk().fail(DiskOp::Sync, 0..u64::MAX, libc::EIO);
        assert_eq!(a.request_on(1, &Request::flush()).status, status::IOERR, "{engine}");
        stand.disk().release(DiskOp::Read);
        let (head, outcome) = b.wait_used(0);
        assert_eq!((head, outcome.status), (read, status::OK), "{engine}");
        assert_eq!(a.wait_used(0).1.status, status::IOERR, "{engine}");
        assert!(stand.disk().now(0, 8192) == [1; 8192], "{engine}");
    });
}

/// Writes and flushes that wait while the sync fails are not answered as if it had not.
#[test]
fn c7_everything_that_waits_for_a_failing_sync_fails() {
    let stand = FaultStand::serve(|serve| serve.rw("a").guest("b", "access=ro,reads=durable"));
    let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 2));
    assert_eq!(status_of(&mut a, &write(0, 1)), status::OK);
    stand.disk().hold(DiskOp::Sync);
    a.submit(0, &Request::flush());
    stand.disk().wait_for_held(DiskOp::Sync, 1);
    a.submit(1, &Request::flush());
    b.submit(1, &Request::flush());
    b.submit(0, &Request::read(0, 8192));
    stand.disk().fail(DiskOp::Sync, 0..u64::MAX, libc::EIO);
    stand.disk().release(DiskOp::Sync);
    let answers = [a.wait_used(0), a.wait_used(1), b.wait_used(1), b.wait_used(0)];
    assert_eq!(answers.map(|(_, outcome)| outcome.status), [status::IOERR; 4]);
    stand.disk().heal();
    // What was never synced is not durable, however often it is asked for; the rest is.
    assert_eq!(status_of(&mut b, &Request::read(0, 8192)), status::IOERR);
    assert_eq!(status_of(&mut b, &Request::read(64, SECTOR * 8)), status::OK);
}

#[test]
fn c5_durable_read_after_a_kill_is_durable() {
    let conf = |serve: Serve| serve.rw("a").guest("b", "access=ro,reads=durable");
    let mut stand = FaultStand::serve(conf);
    assert_eq!(status_of(&mut stand.guest("a", 1), &write(0, 1)), status::OK);
    stand.backend().proc().signal(Signal::KILL);
    stand.backend().proc().wait();
    stand.start_again(conf);
    let read = stand.guest("b", 1).request(&Request::read(0, 8192));
    assert_eq!(read.status, status::OK);
    assert!(stand.disk().durable(0, 8192) == read.data);
}

/// A write that failed may be there in part, and that part is as unsynced as any.
#[test]
fn c5_durable_read_of_a_write_that_failed_waits_too() {
    let stand = FaultStand::serve(|serve| serve.rw("a").guest("b", "access=ro,reads=durable"));
    let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 1));
    stand.disk().fail(DiskOp::Write, 512 << 10..516 << 10, libc::EIO);
    // Bounced, so in several pieces.
    assert_eq!(status_of(&mut a, &Request::write(0, &[1; 768 << 10]).skew(1)), status::IOERR);
    assert!(stand.disk().now(0, 4096) == [1; 4096], "the first part is there");
    let read = b.request(&Request::read(0, 4096));
    assert_eq!((read.status, read.data[0]), (status::OK, 1));
    assert!(stand.disk().durable(0, 4096) == read.data);
}

#[test]
fn c5_durable_read_of_a_poisoned_image_after_a_restart_is_refused() {
    let conf = |serve: Serve| serve.rw("a").guest("b", "access=ro,reads=durable");
    let mut stand = FaultStand::serve(conf);
    let mut a = stand.guest("a", 1);
    assert_eq!(status_of(&mut a, &write(0, 1)), status::OK);
    stand.disk().fail(DiskOp::Sync, 0..u64::MAX, libc::EIO);
    assert_eq!(status_of(&mut a, &Request::flush()), status::IOERR);
    assert_eq!(status_of(&mut stand.guest("b", 1), &Request::read(0, 8192)), status::IOERR);
    drop(a);
    stand.backend().terminate();
    stand.start_again(conf);
    let read = stand.guest("b", 1).request(&Request::read(0, 8192));
    assert!(read.status == status::IOERR || stand.disk().durable(0, 8192) == read.data);
}

#[test]
fn c6_status_tells_the_truth_after_a_failed_takeover() {
    let stand = FaultStand::serve(|s| s.rw("a").guest("b", "access=standby"));
    let mut a = stand.guest("a", 1);
    assert_eq!(status_of(&mut a, &write(0, 1)), status::OK);
    stand.disk().fail(DiskOp::Sync, 0..u64::MAX, libc::EIO);
    stand.ctl().run(&["takeover", "b"]).unwrap_err();
    stand.disk().heal();
    stand.ctl().ok(&["clear-poison"]);
    let said = stand.ctl().guest("a");
    let may = status_of(&mut a, &write(0, 2)) == status::OK;
    assert_eq!(may, said["access"] == "rw" && said["fenced"] == false, "{said}, may write: {may}");
}

#[test]
fn c6_poisoned_image_can_be_fenced() {
    let stand = FaultStand::serve(|s| s.rw("a").guest("b", "access=standby"));
    let mut a = stand.guest("a", 1);
    assert_eq!(status_of(&mut a, &write(0, 1)), status::OK);
    stand.disk().fail(DiskOp::Sync, 0..u64::MAX, libc::EIO);
    assert_eq!(status_of(&mut a, &Request::flush()), status::IOERR);
    let _ = stand.ctl().run(&["fence", "a"]);
    assert_eq!(stand.ctl().guest("a")["fenced"], true);
}
