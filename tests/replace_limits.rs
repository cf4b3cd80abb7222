//! `serve --replace` where something runs out, comes too late, or is done to the guests meanwhile.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use receiptdisk_tests::raw::{Message, RawGuest, Request, Setup, Wire, code, status};
use receiptdisk_tests::{Backend, Ctl, Polite, SECTOR, Scratch, Serve, Stand, pattern, until};

const TRACKED: Setup = Setup { queues: 2, size: 256, is_tracked: true, ..Setup::USUAL };

fn serve(scratch: &Scratch) -> Serve {
    let serve = Serve::image(&scratch.join("disk.img")).arg("--control").arg(scratch.join("ctl.sock"));
    serve.arg("--multi-writer").arg("--seal").rw("a").rw("b")
}

fn guest(backend: &Backend, name: &str, setup: Setup) -> RawGuest {
    let mut guest = RawGuest::connect(&backend.socket(name));
    guest.start(setup);
    guest
}

/// Puts a new process in the place of `backend`, which must work.
#[track_caller]
fn replace(backend: &mut Backend, successor: Serve) {
    let fresh = successor.arg("--replace").spawn();
    let exit = backend.proc().wait();
    assert_eq!(exit.code, Some(0), "{exit:?}; the new one: {}", fresh.log());
    *backend = fresh;
}

/// Has a new process fail to take the place of the running one.
#[track_caller]
fn fail_to_replace(successor: Serve, why: &str) {
    let exit = successor.arg("--replace").spawn().proc().wait();
    assert_eq!(exit.code, Some(2), "{exit:?}");
    assert!(exit.stderr.contains(why), "{why}: {}", exit.stderr);
}

/// A process that has the guests and goes on only after the old one has given it up: what it did to their rings then would
/// be lost kicks and lost marks.
#[test]
fn process_that_comes_too_late_changes_nothing_of_the_guests() {
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let backend = serve(&scratch).start();
    let mut guest = guest(&backend, "a", TRACKED);
    guest.assert_works();
    let stop = ["env", "RECEIPTDISK_CRASH_AT=Given:1:stop"];
    let mut late = serve(&scratch).arg("--replace").run_by(&stop).spawn();
    until("the old process to give it up", || backend.log().contains("event=not-replaced").then_some(()));
    guest.assert_works();
    until("the ring to be idle", || guest.wants_kick(0).then_some(()));
    let nonsense = guest.kick_event(0).wrapping_add(0x4000);
    guest.set_kick_event(0, nonsense);
    let region = |guest: &RawGuest| {
        let mut bytes = vec![0; 2 * (16 + 16 * 256)];
        guest.inflight().file().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    // A mark that only the process that runs the ring may clear: the region looks as between two steps of an answer.
    let used = guest.used_index(0);
    guest.inflight().write(0, 14, &used.wrapping_sub(1).to_ne_bytes());
    (0..256).for_each(|head| guest.inflight().mark(0, head, 1, false));
    let before = region(&guest);
    late.proc().signal(Signal::CONT);
    let exit = late.proc().wait();
    assert_eq!(exit.code, Some(2), "{exit:?}");
    assert_eq!(guest.kick_event(0), nonsense, "a kick could be lost");
    assert!(region(&guest) == before, "a mark could be lost");
}

/// Memory of 256 regions takes more descriptors than either process may have, or than may be on their way at once.
#[test]
fn processes_short_of_descriptors_change_nothing() {
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let mut backend = serve(&scratch).run_by(&["prlimit", "--nofile=4096:4096"]).start();
    let large = guest(&backend, "b", Setup { regions: 256, ..TRACKED });
    let polite = Polite::start(guest(&backend, "a", Setup::default()), Stand::SIZE / 2 / SECTOR as u64);
    let settled = backend.proc().open_fds();
    let pid = Ctl::new(scratch.join("ctl.sock")).ok(&["status"])["pid"].clone();
    let old = Pid::from_raw(backend.proc().pid().cast_signed());
    let limit = |most| {
        let limit = Rlimit { current: Some(most), maximum: Some(4096) };
        prlimit(old, Resource::Nofile, limit).unwrap();
    };
    // The old process has no descriptor for each of them twice.
    limit(400);
    fail_to_replace(serve(&scratch), "the other process has gone");
    polite.assert_goes_on();
    let log = backend.log();
    assert!(
        log.contains("event=not-replaced") && log.contains("guest b: descriptor cannot be used"),
        "{log}"
    );
    until("what was meant for the other to be closed", || {
        (backend.proc().open_fds() <= settled).then_some(())
    });
    // The new one has none for all of them.
    limit(4096);
    fail_to_replace(serve(&scratch).run_by(&["prlimit", "--nofile=200:200"]), "no descriptor is left");
    polite.assert_goes_on();
    assert_eq!(Ctl::new(scratch.join("ctl.sock")).ok(&["status"])["pid"], pid);
    until("what was meant for the other to be closed", || {
        (backend.proc().open_fds() <= settled).then_some(())
    });
    // With enough of them it works.
    replace(&mut backend, serve(&scratch));
    polite.assert_goes_on();
    drop(polite);
    let mut large = large;
    large.assert_works();
}

/// Sockets in sockets in sockets, left unread in those that a front end shares.
#[test]
fn sockets_that_hold_sockets_hold_up_no_replacement() {
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let mut backend = serve(&scratch).start();
    let polite = Polite::start(guest(&backend, "a", TRACKED), Stand::SIZE / 2 / SECTOR as u64);
    let mut nesting = guest(&backend, "b", TRACKED);
    let channel = nesting.front().open_channel();
    let mut innermost = UnixStream::pair().unwrap();
    for _ in 0..10 {
        let (outer, other) = UnixStream::pair().unwrap();
        Wire::over(outer.try_clone().unwrap()).send_bytes(b"x", &[innermost.0.as_fd()]).unwrap();
        innermost = (other, outer);
    }
    channel.send_bytes(b"x", &[innermost.0.as_fd()]).unwrap();
    for _ in 0..3 {
        replace(&mut backend, serve(&scratch));
        polite.assert_goes_on();
        nesting.assert_works();
    }
    // A message with descriptors that nobody has read yet belongs to the next process.
    let message = Message::new(code::SET_BACKEND_REQ_FD, &[]);
    let (_own, other) = UnixStream::pair().unwrap();
    let mut fresh = serve(&scratch).arg("--replace").spawn();
    while backend.proc().is_running() {
        nesting.front().wire().send(&message, &[other.as_fd()]).unwrap();
        nesting.front().config();
    }
    assert!(fresh.proc().is_running(), "{}", fresh.log());
    backend = fresh;
    nesting.assert_works();
    polite.assert_goes_on();
    drop((polite, nesting));
    assert_eq!(backend.terminate().code, Some(0));
}

/// What was decided holds at every moment of a replacement, for guests that try to get round it all the while.
#[test]
fn seals_and_roles_hold_under_load_across_replacements() {
    const REPLACEMENTS: usize = 6;
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let with_standby = || {
        let serve = Serve::image(&scratch.join("disk.img")).arg("--control").arg(scratch.join("ctl.sock"));
        serve.arg("--seal").rw("a").guest("b", "access=standby").ro("c")
    };
    let mut backend = with_standby().start();
    let ctl = Ctl::new(scratch.join("ctl.sock"));
    let [mut writer, mut standby, mut reader] = ["a", "b", "c"].map(|name| guest(&backend, name, TRACKED));
    // Sectors 0 to 63 are sealed with this in them; 64 to 127 are written by the writer alone.
    let kept = pattern(9, 0, 64 * SECTOR);
    assert_eq!(writer.request(&Request::write(0, &kept)).status, status::OK);
    ctl.ok(&["seal", "0-32K"]);
    let (is_over, rounds) = (AtomicBool::new(false), [(); 3].map(|()| AtomicU64::new(0)));
    std::thread::scope(|scope| {
        let is_over = &is_over;
        let work = |guest: &mut RawGuest, count: &AtomicU64, at: u64, may: bool| {
            let mut round = 0;
            while !is_over.load(Ordering::Acquire) {
                round += 1;
                let sealed = guest.request(&Request::write(round % 57, &[0xee; 8 * SECTOR]));
                assert_eq!(sealed.status, status::IOERR, "a sealed range is written");
                let other = guest.request(&Request::write(at, &pattern(round, 0, SECTOR)));
                assert_eq!(other.status, if may { status::OK } else { status::IOERR });
                assert!(guest.request(&Request::read(0, 64 * SECTOR)).data == kept);
                count.fetch_add(1, Ordering::AcqRel);
            }
        };
        let [by_writer, by_standby, by_reader] = &rounds;
        let (writer, standby, reader) = (&mut writer, &mut standby, &mut reader);
        scope.spawn(move || work(writer, by_writer, 64, true));
        scope.spawn(move || work(standby, by_standby, 65, false));
        scope.spawn(move || work(reader, by_reader, 66, false));
        for _ in 0..REPLACEMENTS {
            let seen = rounds.each_ref().map(|count| count.load(Ordering::Acquire));
            until("all guests to try", || {
                let tried = |(count, seen): (&AtomicU64, u64)| count.load(Ordering::Acquire) > seen + 1;
                rounds.iter().zip(seen).all(tried).then_some(())
            });
            replace(&mut backend, with_standby());
        }
        is_over.store(true, Ordering::Release);
    });
    // And what is decided between two replacements is what the next process goes by.
    ctl.ok(&["takeover", "b"]);
    ctl.ok(&["unseal", "0-4K"]);
    replace(&mut backend, with_standby());
    assert_eq!(writer.request(&Request::write(64, &kept[..SECTOR])).status, status::IOERR);
    assert_eq!(standby.request(&Request::write(0, &kept[..SECTOR])).status, status::OK);
    assert_eq!(standby.request(&Request::write(8, &kept[..SECTOR])).status, status::IOERR);
    let disk = std::fs::read(scratch.join("disk.img")).unwrap();
    assert!(disk[..64 * SECTOR] == kept && disk[65 * SECTOR..128 * SECTOR].iter().all(|byte| *byte == 0));
    assert_eq!(backend.terminate().code, Some(0));
}
