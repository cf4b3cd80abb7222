//! How the backend works, not what it answers: when it looks, when it sleeps, when it tells the guest.

use std::time::Duration;

use receiptdisk_tests::raw::{RawGuest, Request, status};
use receiptdisk_tests::{Scratch, Serve, Stand, until};

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
