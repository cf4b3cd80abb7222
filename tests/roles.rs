//! C6 of docs/ordering.md: one guest writes at a time, and an operator says which.

use std::fs;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use receiptdisk_tests::raw::{RawGuest, Request, SegmentFlags, Setup, feature, status};
use receiptdisk_tests::{Ctl, DiskOp, FaultStand, SAFETY_NET, Serve, die_with_parent, until};
use rustix::process::Signal;

/// `a` writes, `b` stands by, `c` only reads.
fn writer_standby_reader(serve: Serve) -> Serve {
    serve.rw("a").guest("b", "access=standby").ro("c")
}

fn stand() -> FaultStand {
    FaultStand::serve(writer_standby_reader)
}

/// Every request that changes the disk; the disk's blocks have 4096 bytes.
fn changes(byte: u8) -> [Request; 4] {
    [
        Request::write(0, &[byte; 8192]),
        Request::write_zeroes(&[(0, 16)], SegmentFlags::default()),
        Request::write_zeroes(&[(0, 16)], SegmentFlags::UNMAP),
        Request::discard(&[(0, 16)]),
    ]
}

#[track_caller]
fn assert_may_write(guest: &mut RawGuest, byte: u8) {
    assert_eq!(guest.request(&Request::write(0, &[byte; 8192])).status, status::OK);
    assert!(guest.request(&Request::read(0, 8192)).data == [byte; 8192]);
}

/// Every change is an IOERR and changes nothing; reads, flushes and the serial work.
#[track_caller]
fn assert_may_only_read(stand: &FaultStand, guest: &mut RawGuest) {
    let before = stand.disk().now(0, 8192);
    for request in changes(0xbb) {
        assert_eq!(guest.request(&request).status, status::IOERR);
    }
    assert_eq!(stand.disk().now(0, 8192), before);
    assert_eq!(guest.request(&Request::flush()).status, status::OK);
    assert_eq!(guest.request(&Request::get_id()).status, status::OK);
    assert!(guest.request(&Request::read(0, 8192)).data == before);
}

#[track_caller]
fn assert_standing(ctl: &Ctl, name: &str, access: &str, fenced: bool) {
    let guest = ctl.guest(name);
    assert_eq!((guest["access"].as_str(), guest["fenced"].as_bool()), (Some(access), Some(fenced)), "{name}");
}

#[track_caller]
fn assert_ended_well(command: Child) {
    Ctl::answer(&command.wait_with_output().unwrap()).unwrap();
}

#[test]
fn c6_standby_looks_like_a_writer_and_is_refused() {
    let stand = stand();
    let offers = ["a", "b", "c"].map(|name| stand.raw(name).features());
    assert_eq!(offers.map(|offer| offer & feature::RO != 0), [false, false, true]);
    assert_eq!(offers[0], offers[1], "a standby's device is that of a writer");
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| stand.guest(name, 1));
    assert_may_write(&mut a, 1);
    assert_may_only_read(&stand, &mut b);
    assert_may_only_read(&stand, &mut c);
}

#[test]
fn c6_reader_that_denies_being_one_is_refused() {
    let stand = stand();
    let mut reader = stand.raw("c");
    reader.start(Setup { features: !(feature::CONFIG_WCE | feature::RO), ..Setup::default() });
    assert_may_only_read(&stand, &mut reader);
}

#[test]
fn c6_two_writers_are_refused_unless_they_are_asked_for() {
    let exit = {
        let stand = stand();
        stand.command().rw("x").rw("y").run_to_end()
    };
    assert_eq!(exit.code, Some(2), "{exit:?}");
    assert!(exit.stderr.contains("x and y both have access=rw"), "{}", exit.stderr);
    let stand = FaultStand::serve(|serve| serve.rw("a").rw("b").arg("--multi-writer"));
    let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 1));
    assert_may_write(&mut a, 1);
    assert_may_write(&mut b, 2);
}

#[test]
fn c6_takeover_changes_the_writer_and_a_restart_keeps_it() {
    let mut stand = stand();
    for (round, (old, new)) in (1..).zip([("a", "b"), ("b", "a"), ("a", "b")]) {
        let [mut from, mut to, mut c] = [old, new, "c"].map(|name| stand.guest(name, 1));
        assert_may_write(&mut from, 10 * round);
        assert_may_only_read(&stand, &mut to);
        stand.ctl().ok(&["takeover", new]);
        assert_may_only_read(&stand, &mut from);
        assert_may_write(&mut to, 10 * round + 1);
        assert_may_only_read(&stand, &mut c);
        assert_standing(&stand.ctl(), old, "standby", false);
        assert_standing(&stand.ctl(), new, "rw", false);
        drop([from, to, c]);
        // As an operator ends it, and as the host's killer does.
        let signal = if round == 1 { Signal::TERM } else { Signal::KILL };
        stand.backend().proc().signal(signal);
        stand.backend().proc().wait();
        stand.start_again(writer_standby_reader);
        assert_standing(&stand.ctl(), old, "standby", false);
        assert_standing(&stand.ctl(), new, "rw", false);
    }
}

#[test]
fn c6_fence_refuses_the_writer_and_a_restart_keeps_it() {
    let mut stand = stand();
    let mut a = stand.guest("a", 1);
    assert_may_write(&mut a, 1);
    stand.ctl().ok(&["fence", "a"]);
    assert!(
        stand.disk().durable(0, 8192) == [1; 8192],
        "what was accepted before a fence is durable after it"
    );
    assert_may_only_read(&stand, &mut a);
    assert_standing(&stand.ctl(), "a", "rw", true);
    drop(a);
    stand.backend().proc().signal(Signal::KILL);
    stand.backend().proc().wait();
    stand.start_again(writer_standby_reader);
    let mut a = stand.guest("a", 1);
    assert_may_only_read(&stand, &mut a);
    stand.ctl().ok(&["unfence", "a"]);
    assert_may_write(&mut a, 2);
    assert_standing(&stand.ctl(), "a", "rw", false);
    // A writer that was fenced and taken over comes back as a standby only.
    stand.ctl().ok(&["fence", "a"]);
    stand.ctl().ok(&["takeover", "b"]);
    stand.ctl().ok(&["unfence", "a"]);
    assert_may_only_read(&stand, &mut a);
    assert_may_write(&mut stand.guest("b", 1), 3);
    assert_standing(&stand.ctl(), "b", "rw", false);
}

#[test]
fn c6_what_cannot_be_is_refused_and_changes_nothing() {
    let stand = stand();
    let ctl = stand.ctl();
    for (command, words) in [
        (["takeover", "c"], "access=ro"),
        (["fence", "c"], "access=ro"),
        (["takeover", "nobody"], "no guest is named nobody"),
        (["fence", "nobody"], "no guest is named nobody"),
        (["unfence", "nobody"], "no guest is named nobody"),
    ] {
        let error = ctl.run(&command).unwrap_err();
        assert!(error.contains(words), "{command:?}: {error}");
    }
    assert!(!stand.state_file().exists(), "nothing was decided");
    assert_may_write(&mut stand.guest("a", 1), 1);
    assert_may_only_read(&stand, &mut stand.guest("b", 1));
}

#[test]
fn c6_takeover_waits_for_writes_in_flight_and_syncs_them() {
    let stand = stand();
    let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 2));
    stand.disk().hold(DiskOp::Write);
    let in_flight = a.submit(0, &Request::write(0, &[1; 8192]));
    // One more that waits for the first, admitted but not begun.
    let parked = a.submit(0, &Request::write(8, &[2; 8192]));
    stand.disk().wait_for_held(DiskOp::Write, 1);
    let barrier = a.submit(0, &Request::get_id());
    assert_eq!(a.wait_used(0).0, barrier);
    let mut takeover = stand.ctl().start(&["takeover", "b"]);
    // The old writer is refused at once; what it has in flight is waited for.
    until("the old writer to be refused", || {
        // It moves nothing, so it does not wait for the disk.
        let outcome = a.request_on(1, &Request::write(1024, &[]));
        (outcome.status == status::IOERR).then_some(())
    });
    stand.ctl().ok(&["stats"]);
    assert!(takeover.try_wait().unwrap().is_none(), "taken over while a write is in flight");
    assert_eq!(b.request(&Request::write(64, &[9; 4096])).status, status::IOERR);
    assert_standing(&stand.ctl(), "b", "standby", false);
    stand.disk().release(DiskOp::Write);
    assert_ended_well(takeover);
    let answers = [a.wait_used(0), a.wait_used(0)];
    assert_eq!(answers.map(|(head, outcome)| (head, outcome.status)), [(in_flight, 0), (parked, 0)]);
    let expected = [vec![1; 4096], vec![2; 8192]].concat();
    assert!(stand.disk().durable(0, 12288) == expected, "the old writer's last writes are synced");
    assert_may_write(&mut b, 3);
}

/// An old writer that does not know that it is one goes on as fast as it can, on two queues.
#[test]
fn c6_old_writer_that_goes_on_changes_nothing() {
    let stand = FaultStand::serve(|serve| writer_standby_reader(serve).arg("--cache").arg("page"));
    let mut guests = ["a", "b"].map(|name| stand.guest(name, 2));
    let [refused, accepted] = [(); 2].map(|()| AtomicU64::new(0));
    for round in 0..20_u8 {
        let names = if round % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
        let [a, b] = &mut guests;
        let (old, new) = if round % 2 == 0 { (a, b) } else { (b, a) };
        [&refused, &accepted].iter().for_each(|count| count.store(0, Ordering::SeqCst));
        std::thread::scope(|scope| {
            let rest = scope.spawn(|| {
                let (mut queue, start) = (0, Instant::now());
                // Until it has been refused long after the new writer wrote.
                while refused.load(Ordering::SeqCst) < 300 {
                    assert!(start.elapsed() < SAFETY_NET, "the old writer is never refused");
                    queue = 1 - queue;
                    match old.request_on(queue, &Request::write(0, &[100; 4096])).status {
                        status::OK if refused.load(Ordering::SeqCst) == 0 => {
                            accepted.fetch_add(1, Ordering::SeqCst);
                        }
                        status::IOERR => drop(refused.fetch_add(1, Ordering::SeqCst)),
                        other => panic!("status {other} after {accepted:?} accepted, {refused:?} refused"),
                    }
                }
            });
            until("the old writer to write", || (accepted.load(Ordering::SeqCst) > 0).then_some(()));
            stand.ctl().ok(&["takeover", names[1]]);
            assert_eq!(new.request(&Request::write(0, &[round; 4096])).status, status::OK);
            rest.join().unwrap();
        });
        assert!(new.request(&Request::read(0, 4096)).data == [round; 4096], "round {round}");
        assert!(stand.disk().now(0, 4096) == [round; 4096], "round {round}");
    }
}

#[test]
fn c6_takeover_without_a_sync_gives_the_right_to_nobody() {
    let stand = stand();
    let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 1));
    assert_may_write(&mut a, 1);
    stand.disk().fail(DiskOp::Sync, 0..u64::MAX, libc::EIO);
    let error = stand.ctl().run(&["takeover", "b"]).unwrap_err();
    assert!(error.contains("cannot be synced"), "{error}");
    for guest in [&mut a, &mut b] {
        assert_eq!(guest.request(&Request::write(0, &[2; 4096])).status, status::IOERR);
        assert!(guest.request(&Request::read(0, 4096)).data == [1; 4096]);
    }
    assert_eq!(stand.ctl().ok(&["status"])["poisoned"], true);
}

#[test]
fn c6_decision_that_cannot_be_kept_gives_nobody_a_right() {
    let stand = stand();
    let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 1));
    assert_may_write(&mut a, 1);
    // Nothing can be renamed onto a folder.
    fs::create_dir_all(stand.state_file().join("in the way")).unwrap();
    for command in [["takeover", "b"], ["fence", "a"], ["unfence", "a"], ["takeover", "a"]] {
        let error = stand.ctl().run(&command).unwrap_err();
        assert!(error.contains("disk.img.receiptdisk cannot be written"), "{command:?}: {error}");
        assert_may_only_read(&stand, &mut a);
        assert_may_only_read(&stand, &mut b);
    }
    fs::remove_dir_all(stand.state_file()).unwrap();
    stand.ctl().ok(&["takeover", "b"]);
    assert_may_write(&mut b, 2);
}

/// The old writer's end is kept, the new one's beginning is not.
#[test]
fn c6_right_that_cannot_be_kept_is_not_given() {
    let stand = stand();
    let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 1));
    assert_may_write(&mut a, 1);
    stand.disk().hold(DiskOp::Sync);
    let takeover = stand.ctl().start(&["takeover", "b"]);
    stand.disk().wait_for_held(DiskOp::Sync, 1);
    assert_standing(&stand.ctl(), "a", "standby", false);
    fs::remove_file(stand.state_file()).unwrap();
    fs::create_dir_all(stand.state_file().join("in the way")).unwrap();
    stand.disk().release(DiskOp::Sync);
    let error = Ctl::answer(&takeover.wait_with_output().unwrap()).unwrap_err();
    assert!(error.contains("cannot be written"), "{error}");
    assert_may_only_read(&stand, &mut a);
    assert_may_only_read(&stand, &mut b);
}

/// Seen from outside: the new file, its name and its folder are synced, and then the operator is answered.
#[test]
fn c6_decisions_are_on_disk_before_they_are_answered() {
    let mut stand = stand();
    let trace = stand.state_file().with_file_name("trace");
    let mut strace = std::process::Command::new("strace");
    let mut strace = die_with_parent(&mut strace)
        .args([
            "-f",
            "-y",
            "-qq",
            "-e",
            "trace=openat,fsync,fdatasync,rename,renameat,renameat2,write,sendto",
            "-o",
        ])
        .arg(&trace)
        .args(["-p", &stand.backend().proc().pid().to_string()])
        .spawn()
        .expect("strace is installed");
    let traced = || fs::read_to_string(&trace).unwrap_or_default();
    until("the backend to be traced", || {
        stand.ctl().ok(&["status"]);
        traced().contains("\\\"ok\\\":true").then_some(())
    });
    for command in [["fence", "a"], ["unfence", "a"], ["takeover", "b"]] {
        let before = traced().len();
        stand.ctl().ok(&command);
        let steps = until("the answer in the trace", || {
            let steps = traced().split_off(before);
            steps.contains("\\\"ok\\\":true").then_some(steps)
        });
        let mut rest = steps.as_str();
        for step in [
            " openat(",
            ".receiptdisk.new",
            "fsync(",
            ".receiptdisk.new>",
            "rename(",
            "fsync(",
            "\\\"ok\\\":true",
        ] {
            let at = rest.find(step).unwrap_or_else(|| panic!("{command:?}: no {step} in time: {steps}"));
            rest = &rest[at + step.len()..];
        }
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&strace), Signal::TERM).unwrap();
    strace.wait().unwrap();
}

#[test]
fn c6_corrupted_state_file_is_refused() {
    let mut stand = stand();
    stand.ctl().ok(&["takeover", "b"]);
    let good = fs::read_to_string(stand.state_file()).unwrap();
    stand.backend().terminate();
    let half = &good[..good.len() / 2];
    let other_version = good.replace("\"version\": 1", "\"version\": 3");
    let other_access = good.replace("\"standby\"", "\"writer\"");
    assert!(other_version != good && other_access != good, "{good}");
    for bad in ["", half, "null", "{}", &other_version, &other_access, "\u{0}\u{0}\u{0}\u{0}"] {
        fs::write(stand.state_file(), bad).unwrap();
        let exit = writer_standby_reader(stand.command()).run_to_end();
        assert_ne!(exit.code, Some(0), "{bad:?}");
        assert!(exit.stderr.contains("disk.img.receiptdisk"), "{bad:?}: {}", exit.stderr);
        assert_eq!(fs::read_to_string(stand.state_file()).unwrap(), bad, "it is left as it is");
    }
    fs::write(stand.state_file(), good).unwrap();
    stand.start_again(writer_standby_reader);
    assert_may_write(&mut stand.guest("b", 1), 1);
}

#[test]
fn c6_command_line_that_contradicts_the_state_file_is_refused() {
    let mut stand = stand();
    stand.ctl().ok(&["takeover", "b"]);
    stand.backend().terminate();
    let exit = stand.command().rw("new").guest("b", "access=standby").run_to_end();
    assert_ne!(exit.code, Some(0));
    assert!(exit.stderr.contains("new and b would both write"), "{}", exit.stderr);
}
