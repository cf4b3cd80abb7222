//! How the backend works, not what it answers: when it looks, when it sleeps, when it tells the guest.

use std::fs;
use std::time::{Duration, Instant};

use receiptdisk_tests::raw::{RawGuest, Request, status};
use receiptdisk_tests::{Ctl, Scratch, Serve, Stand, until};

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
        guest.start(receiptdisk_tests::raw::Setup { size: 256, ..Default::default() });
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
