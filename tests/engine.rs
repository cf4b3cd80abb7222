//! How the backend works, not what it answers: when it looks, when it sleeps, when it tells the guest.

use std::fs;
use std::time::{Duration, Instant};

use receiptdisk_tests::raw::{RawGuest, Request, Setup, status};
use receiptdisk_tests::{Ctl, DiskOp, FaultStand, Scratch, Serve, Stand, until};

/// Every way that IO is done: options of `serve`, on tmpfs or not.
const WAYS: [(&[&str], bool); 5] = [
    (&["--cache", "direct"], false),
    (&["--cache", "page"], false),
    (&["--cache", "page"], true),
    (&["--io-engine", "sync"], false),
    (&["--io-engine", "io_uring"], true),
];

fn stand(options: &[&str], on_tmpfs: bool) -> Stand {
    let scratch = if on_tmpfs { Scratch::on_tmpfs() } else { Scratch::new() };
    let configure = |serve: Serve| options.iter().fold(serve.rw("issuer").ro("front"), Serve::arg);
    Stand::serve(scratch, configure)
}

/// A few requests, so that every thread has had something to do.
fn work(guest: &mut RawGuest) {
    for sector in 0..64 {
        assert_eq!(guest.request(&Request::write(8 * sector, &[7; 4096])).status, status::OK);
        assert_eq!(guest.request(&Request::read(8 * sector, 4096)).status, status::OK);
    }
    assert_eq!(guest.request(&Request::flush()).status, status::OK);
}

/// Whoever wakes up, if only to look, has left a processor once more.
#[test]
fn idle_backend_sleeps_and_is_not_woken() {
    for (options, on_tmpfs) in WAYS {
        let mut stand = stand(options, on_tmpfs);
        let mut guests = ["issuer", "front"].map(|name| stand.started(name));
        work(&mut guests[0]);
        let proc = stand.backend().proc();
        let mut before = proc.context_switches();
        until("the backend to fall asleep", || {
            std::thread::sleep(Duration::from_millis(20));
            let now = proc.context_switches();
            let is_asleep = now == before;
            before = now;
            is_asleep.then_some(())
        });
        let ticks = proc.cpu_ticks();
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!((proc.context_switches(), proc.cpu_ticks()), (before, ticks), "{options:?}");
        guests.iter_mut().for_each(|guest| drop(guest.request(&Request::read(0, 4096))));
    }
}

#[test]
fn polling_backend_sees_requests_without_a_kick() {
    for (options, on_tmpfs) in WAYS {
        let stand = stand(&[options, &["--poll-us", "1000000"]].concat(), on_tmpfs);
        let mut guest = stand.started("issuer");
        until("a request to be seen that nobody told of", || {
            work(&mut guest);
            // The worker sleeps while there is only the flush at its end; it looks around after what it does itself.
            assert_eq!(guest.request(&Request::read(0, 4096)).status, status::OK);
            let was_wanted = guest.wants_kick(0);
            let head = guest.publish(0, &Request::read(0, 4096));
            if was_wanted {
                guest.kick(0);
            }
            let (used, outcome) = until("the answer", || guest.poll_used(0));
            assert_eq!((used, outcome.status), (head, status::OK));
            (!was_wanted).then_some(())
        });
    }
}

/// The thread that syncs may need the processor. Whoever asks for a kick is about to sleep.
#[test]
fn worker_does_not_look_around_while_only_a_flush_is_under_way() {
    for engine in ["io_uring", "sync"] {
        let options = ["--poll-us", "100000", "--io-engine", engine];
        let stand = FaultStand::serve(|serve| options.iter().fold(serve.rw("a"), Serve::arg));
        let mut guest = stand.guest("a", 1);
        assert_eq!(guest.request(&Request::write(0, &[7; 4096])).status, status::OK);
        until("the worker to sleep", || guest.wants_kick(0).then_some(()));
        let looked = || stand.ctl().stats("a")["looked_around"].as_u64().unwrap();
        let before = looked();
        assert!(before > 0, "it may look around");
        stand.disk().hold(DiskOp::Sync);
        let flush = guest.submit(0, &Request::flush());
        stand.disk().wait_for_held(DiskOp::Sync, 1);
        until("the worker to ask for a kick", || guest.wants_kick(0).then_some(()));
        assert_eq!(looked(), before, "{engine}: with a flush under way");
        stand.disk().release(DiskOp::Sync);
        assert_eq!(guest.wait_used(0).0, flush);
        until("the worker to look around again", || (looked() > before).then_some(()));
    }
}

#[test]
fn backend_that_must_not_poll_wants_a_kick() {
    for (options, on_tmpfs) in WAYS {
        let stand = stand(&[options, &["--poll-us", "0"]].concat(), on_tmpfs);
        let mut guest = stand.started("issuer");
        work(&mut guest);
        until("the backend to ask for a kick", || guest.wants_kick(0).then_some(()));
    }
}

/// The guest asks to be called for the last of many requests: one call, and none before.
#[test]
fn calls_are_made_exactly_as_the_event_index_asks() {
    const COUNT: u16 = 64;
    for (options, on_tmpfs) in WAYS {
        let stand = stand(options, on_tmpfs);
        let mut guest = stand.raw("issuer");
        guest.start(Setup { size: 256, ..Default::default() });
        for round in 0..50 {
            guest.take_calls(0);
            guest.ask_for_call_after(0, COUNT - 1);
            for sector in 0..u64::from(COUNT) {
                guest.publish(0, &Request::read(8 * sector, 4096));
            }
            guest.kick(0);
            for _ in 0..COUNT {
                let (_, outcome) = until("an answer", || guest.poll_used(0));
                assert_eq!(outcome.status, status::OK);
            }
            let calls = until("the call", || Some(guest.take_calls(0)).filter(|calls| *calls > 0));
            // When this one is answered, all calls for those before it have been made.
            guest.submit(0, &Request::read(0, 4096));
            until("an answer", || guest.poll_used(0));
            assert_eq!(calls + guest.take_calls(0), 1, "round {round} of {options:?}");
        }
    }
}

/// Processors that each worker may run on, by its guest's name.
fn worker_cpus(stand: &mut Stand, guest: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", stand.backend().proc().pid())).unwrap().flatten();
    let is_worker = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).unwrap().trim() == format!("worker-{guest}")
    };
    let worker = tasks.into_iter().find(is_worker).unwrap();
    let status = fs::read_to_string(worker.path().join("status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
}

#[test]
fn workers_run_on_their_processors_in_turns() {
    let configure = |serve: Serve| serve.rw("a").ro("b").ro("c").arg("--cpus").arg("1,0");
    let mut stand = Stand::serve(Scratch::new(), configure);
    for (guest, cpu) in [("a", "1"), ("b", "0"), ("c", "1")] {
        stand.started(guest).assert_readable();
        assert_eq!(worker_cpus(&mut stand, guest), cpu, "{guest}");
    }
}

#[test]
fn processor_that_is_not_there_is_refused() {
    let scratch = Scratch::new();
    let exit = Serve::image(&scratch.image(1 << 20)).ro("a").arg("--cpus").arg("1023").run_to_end();
    assert_eq!(exit.code, Some(2), "{exit:?}");
    assert!(exit.stderr.contains("processor 1023 is not there"), "{exit:?}");
}

/// Nobody can be faster than the limits allow, however slow the machine is.
#[test]
fn limited_guest_gets_its_share_and_the_other_is_not_held_back() {
    for (limits, len, least) in [("iops=500:50", 512, 400), ("bps=1M:64K", 4096, 200)] {
        let scratch = Scratch::new();
        let control = scratch.join("ctl.sock");
        let configure = |serve: Serve| {
            serve.guest("slow", &format!("access=rw,{limits}")).ro("free").arg("--control").arg(&control)
        };
        let stand = Stand::serve(scratch, configure);
        let [mut slow, mut free] = ["slow", "free"].map(|name| stand.started(name));
        let began = Instant::now();
        let mut last = None;
        for sector in 0..(least + 50) {
            last = Some(slow.request(&Request::read(8 * (sector % 1000), len)));
            assert_eq!(free.request(&Request::read(8 * (sector % 1000), len)).status, status::OK);
        }
        assert_eq!(last.unwrap().status, status::OK);
        // 450 requests: 50 at once, the rest at 500 a second. 250 of 4 KiB: 16 at once, the rest at 256 a second.
        assert!(began.elapsed() >= Duration::from_millis(750), "{limits}: {:?}", began.elapsed());
        let ctl = Ctl::new(control);
        assert!(ctl.stats("slow")["held_back"].as_u64().unwrap() > 0, "{limits}");
        assert_eq!(ctl.stats("free")["held_back"], 0, "{limits}");
    }
}

/// Sandboxes, and kernels without memory for it: what is asked, and what they answer.
const WITHOUT_IO_URING: [(i64, i32); 4] = [
    (libc::SYS_io_uring_setup, libc::EPERM),
    (libc::SYS_io_uring_setup, libc::ENOMEM),
    (libc::SYS_io_uring_register, libc::ENOSYS),
    (libc::SYS_io_uring_enter, libc::EPERM),
];

#[test]
fn without_io_uring_the_disk_is_served_all_the_same() {
    for (call, errno) in WITHOUT_IO_URING {
        for cache in ["direct", "page"] {
            let scratch = Scratch::new();
            let control = scratch.join("ctl.sock");
            let configure = |serve: Serve| {
                let serve = serve.forbid(call, errno).rw("issuer").ro("front");
                serve.arg("--cache").arg(cache).arg("--control").arg(&control)
            };
            let stand = Stand::serve(scratch, configure);
            let [mut issuer, mut front] = ["issuer", "front"].map(|name| stand.started(name));
            work(&mut issuer);
            // Nothing of it is aligned: it must bounce.
            let odd = issuer.request(&Request::write(3, &[9; 512 * 5]).cut_readable(&[16, 100, 7]).skew(3));
            assert_eq!(odd.status, status::OK);
            let read = front.request(&Request::read(2, 512 * 7).skew(5));
            assert_eq!(read.data, [vec![7; 512], vec![9; 512 * 5], vec![7; 512]].concat());
            assert_eq!(Ctl::new(control).ok(&["status"])["io_engine"], "sync", "{call} {errno} {cache}");
        }
    }
}

#[test]
fn io_uring_that_was_asked_for_and_cannot_be_had_is_refused() {
    for (call, errno) in WITHOUT_IO_URING {
        let scratch = Scratch::new();
        let serve = Serve::image(&scratch.image(1 << 20)).ro("a").forbid(call, errno);
        let exit = serve.arg("--io-engine").arg("io_uring").run_to_end();
        assert_eq!(exit.code, Some(2), "{exit:?}");
        assert!(exit.stderr.contains("--io-engine sync"), "{exit:?}");
    }
}

/// A worker that blocks in a system call is its own guest's alone.
#[test]
fn guest_whose_read_hangs_does_not_hold_up_another() {
    for engine in ["io_uring", "sync"] {
        let stand = FaultStand::serve(|serve| serve.rw("a").ro("b").arg("--io-engine").arg(engine));
        let [mut a, mut b] = ["a", "b"].map(|name| stand.guest(name, 1));
        assert_eq!(b.request(&Request::read(0, 4096)).status, status::OK);
        stand.disk().hold(DiskOp::Read);
        let hanging = a.submit(0, &Request::read(0, 4096));
        stand.disk().wait_for_held(DiskOp::Read, 1);
        for _ in 0..100 {
            assert_eq!(b.request(&Request::get_id()).status, status::OK, "{engine}");
        }
        assert!(a.poll_used(0).is_none());
        stand.disk().release(DiskOp::Read);
        let (head, outcome) = a.wait_used(0);
        assert_eq!((head, outcome.status), (hanging, status::OK));
    }
}

/// The first queue is full before the worker takes from it at all; a request comes to the second while the first read runs.
#[test]
fn full_queue_does_not_keep_another_waiting() {
    const FULL: u64 = 120;
    const MANY: usize = 40;
    let stand = FaultStand::serve(|serve| serve.rw("a").ro("b").arg("--io-engine").arg("sync"));
    let mut guest = stand.raw("a");
    guest.start(Setup { queues: 2, size: 512, ..Setup::default() });
    stand.disk().hold(DiskOp::Read);
    for sector in 0..FULL {
        guest.publish(0, &Request::read(8 * sector, 4096));
    }
    guest.kick(0);
    stand.disk().wait_for_held(DiskOp::Read, 1);
    let other = guest.submit(1, &Request::read(8 * FULL, 4096));
    let mut passed = 0;
    while guest.poll_used(1).is_none_or(|(head, _)| head != other) {
        if stand.disk().held(DiskOp::Read) > 0 {
            stand.disk().let_held_pass(DiskOp::Read);
            passed += 1;
        }
        assert!(passed <= MANY, "the second queue waits for the first");
    }
    stand.disk().release(DiskOp::Read);
    (0..FULL).for_each(|_| drop(guest.wait_used(0)));
}

/// 16 MiB and one for each queue, whatever the guests do.
#[test]
fn memory_of_the_backend_is_bounded() {
    const GUESTS: [&str; 2] = ["issuer", "front"];
    const QUEUES: u16 = 2;
    for (options, on_tmpfs) in WAYS {
        let mut stand = stand(options, on_tmpfs);
        let mut guests = GUESTS.map(|name| stand.raw(name));
        for guest in &mut guests {
            guest.start(Setup { queues: QUEUES, size: 256, ..Setup::default() });
        }
        for (guest, queue) in (0..GUESTS.len()).flat_map(|guest| (0..QUEUES).map(move |queue| (guest, queue)))
        {
            fill(&mut guests[guest], queue.into());
        }
        for (guest, queue) in (0..GUESTS.len()).flat_map(|guest| (0..QUEUES).map(move |queue| (guest, queue)))
        {
            (0..REQUESTS).for_each(|_| drop(guests[guest].wait_used(queue.into())));
        }
        let mib = stand.backend().proc().memory_bytes() >> 20;
        let queues = u64::from(QUEUES) * GUESTS.len() as u64;
        assert!(mib <= 16 + queues, "{mib} MiB for {queues} queues with {options:?}");
    }
}

/// A thousand requests that cannot go on, each with as many pieces as a chain has: lists of 16 bytes a piece.
#[test]
fn memory_for_lists_of_pieces_is_bounded() {
    const PIECES: usize = 1000;
    const MANY: u64 = 1000;
    let mut stand = FaultStand::serve(|serve| serve.rw("a").arg("--io-engine").arg("io_uring"));
    let mut guest = stand.raw("a");
    guest.start(Setup { size: 1024, ..Setup::default() });
    stand.disk().hold(DiskOp::Write);
    let blocker = guest.submit(0, &Request::write(0, &[1; 512]));
    stand.disk().wait_for_held(DiskOp::Write, 1);
    let at_start = stand.backend().proc().memory_bytes();
    // They read what the write holds, so all that are taken wait for it.
    for _ in 0..MANY {
        guest.publish(0, &Request::read(0, 1024).cut_writable(&[1; PIECES]).indirect());
    }
    guest.kick(0);
    until("the requests that have room to be taken", || {
        let parked = |stand: &FaultStand| stand.ctl().stats("a")["parked"].as_u64().unwrap();
        let before = parked(&stand);
        stand.backend().proc().wait_until_idle();
        (parked(&stand) == before && before > 0).then_some(())
    });
    let mib = stand.backend().proc().memory_bytes().saturating_sub(at_start) >> 20;
    assert!(mib < 8, "{mib} MiB for lists of pieces; all of them would take 16");
    stand.disk().release(DiskOp::Write);
    let heads: Vec<u16> = (0..=MANY)
        .map(|_| guest.wait_used(0))
        .map(|(head, outcome)| {
            assert_eq!(outcome.status, status::OK);
            head
        })
        .collect();
    assert_eq!(heads.len(), 1 + usize::try_from(MANY).unwrap());
    assert!(heads.contains(&blocker));
}

const REQUESTS: u64 = 100;

/// The ring full of reads that need as much memory as they can: as many pieces as a chain has, none of them aligned.
fn fill(guest: &mut RawGuest, queue: usize) {
    for sector in 0..REQUESTS {
        let request = Request::read(sector, 1024).cut_writable(&[1; 1000]).indirect().skew(1);
        guest.submit(queue, &request);
    }
}
