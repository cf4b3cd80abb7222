//! A backend that is killed at any moment and started again: its guests go on as if nothing had happened (clause C8).
//!
//! `RECEIPTDISK_KILLS` says how often each test of random kills kills; the long run has 1,000.

use std::path::Path;

use receiptdisk_tests::history::History;
use receiptdisk_tests::raw::{RawGuest, Request, Setup, status};
use receiptdisk_tests::recorder::{Client, Load, Recorder};
use receiptdisk_tests::rng::Rng;
use receiptdisk_tests::{Backend, Ctl, SECTOR, Scratch, Serve, Stand, pattern, until};

const KILLS: &str = "RECEIPTDISK_KILLS";

fn kills() -> u64 {
    std::env::var(KILLS).map_or(15, |text| text.parse().expect("a number of kills"))
}

/// A backend that is killed and started again with the same arguments. Files go after the process.
struct Mortal {
    backend: Backend,
    options: &'static [&'static str],
    guests: &'static [(&'static str, &'static str)],
    scratch: Scratch,
}

const WRITER_AND_READER: &[(&str, &str)] = &[("a", "rw"), ("b", "ro")];
const TWO_WRITERS: &[(&str, &str)] = &[("a", "rw"), ("b", "rw")];

impl Mortal {
    fn new(
        scratch: Scratch,
        options: &'static [&'static str],
        guests: &'static [(&'static str, &'static str)],
    ) -> Self {
        scratch.image(Stand::SIZE);
        let backend = serve(&scratch, options, guests).start();
        Self { backend, options, guests, scratch }
    }

    /// One that dies when it is at `point` for the `count`-th time.
    fn doomed(point: &str, count: u32, image: &[u8]) -> Self {
        let (scratch, options, guests) = (Scratch::new(), &[] as &[_], WRITER_AND_READER);
        std::fs::write(scratch.join("disk.img"), image).unwrap();
        let serve = serve(&scratch, options, guests)
            .run_by(&["env", &format!("RECEIPTDISK_CRASH_AT={point}:{count}")]);
        let backend = serve.start();
        Self { backend, options, guests, scratch }
    }

    fn socket(&self, name: &str) -> std::path::PathBuf {
        self.backend.socket(name)
    }

    fn guest(&self, name: &str, setup: Setup) -> RawGuest {
        let mut guest = RawGuest::connect(&self.socket(name));
        guest.start(Setup { is_tracked: true, ..setup });
        guest
    }

    fn ctl(&self) -> Ctl {
        Ctl::new(self.scratch.join("ctl.sock"))
    }

    #[track_caller]
    fn kill(&mut self) {
        self.backend.kill();
    }

    /// Waits until it has died by itself.
    #[track_caller]
    fn wait_for_death(&mut self) {
        let exit = self.backend.proc().wait();
        assert_eq!(exit.signal, Some(9), "{exit:?}");
    }

    #[track_caller]
    fn start_again(&mut self) {
        self.backend = serve(&self.scratch, self.options, self.guests).start();
    }
}

fn serve(scratch: &Scratch, options: &[&str], guests: &[(&str, &str)]) -> Serve {
    let serve = Serve::image(&scratch.join("disk.img"));
    let serve = serve.arg("--control").arg(scratch.join("ctl.sock")).arg("--multi-writer");
    let serve = options.iter().fold(serve, Serve::arg);
    guests.iter().fold(serve, |serve, (name, access)| serve.guest(name, &format!("access={access}")))
}

/// Long enough that half of it can be there: direct IO of memory that is not aligned goes in pieces of 256 KiB.
const LONG: usize = 1 << 20;

fn long_write(seed: u64) -> Request {
    Request::write(0, &pattern(seed, 0, LONG)).skew(1)
}

fn long_read() -> Request {
    Request::read(0, LONG)
}

/// Requests that all overlap, so that their order shows, and one that is on its own. Each with what a read must find.
fn batch() -> Vec<(Request, Option<Vec<u8>>)> {
    let write = |seed| (Request::write(8, &pattern(seed, 0, 8 * SECTOR)).skew(1), None);
    let read = |seed| (Request::read(8, 8 * SECTOR), Some(pattern(seed, 0, 8 * SECTOR)));
    let aside = Request::write(2000, &pattern(9, 0, SECTOR));
    let flush = Request::flush();
    vec![write(1), read(1), write(2), write(3), (aside, None), read(3), (flush, None), write(4), read(4)]
}

/// Submits a batch to a backend that dies at `point`; the next one must answer what is left.
fn die_amid_a_batch(point: &str, count: u32) {
    let mut mortal = Mortal::doomed(point, count, &pattern(0, 0, LONG));
    let mut guest = mortal.guest("a", Setup::default());
    guest.ring(0).turn_round();
    let submitted: Vec<_> =
        batch().into_iter().map(|(request, expected)| (guest.publish(0, &request), expected)).collect();
    guest.kick(0);
    mortal.wait_for_death();
    mortal.start_again();
    guest.take_calls(0);
    guest.reconnect(&mortal.socket("a"));
    // Whatever the last process has shown, its signal may have died with it.
    guest.wait_for_call(0);
    for _ in 0..submitted.len() {
        let (head, outcome) = guest.wait_used(0);
        let (_, expected) = submitted.iter().find(|(submitted, _)| *submitted == head).unwrap();
        assert_eq!(outcome.status, status::OK, "{point}:{count}");
        if let Some(expected) = expected {
            assert!(outcome.data == *expected, "{point}:{count}: a read is out of order");
        }
    }
    assert!(
        guest.request(&Request::read(8, 8 * SECTOR)).data == pattern(4, 0, 8 * SECTOR),
        "{point}:{count}"
    );
    assert!(guest.request(&Request::read(2000, SECTOR)).data == pattern(9, 0, SECTOR), "{point}:{count}");
    guest.assert_works();
    assert_eq!(mortal.backend.terminate().code, Some(0));
}

#[test]
fn c8_death_between_any_two_steps_changes_nothing() {
    for point in
        ["Marked", "Granted", "Submitted", "IoDone", "UsedEntry", "UsedIndex", "Cleared", "Published"]
    {
        for count in [1, 2, 4] {
            // A batch may be taken, shown and handed over in fewer steps.
            if count == 1 || !["Marked", "UsedIndex", "Cleared", "Published"].contains(&point) {
                die_amid_a_batch(point, count);
            }
        }
    }
}

#[test]
fn c8_death_amid_the_recovery_changes_nothing() {
    let mut mortal = Mortal::doomed("IoDone", 1, &pattern(0, 0, LONG));
    let (mut writer, mut reader) = (mortal.guest("a", Setup::default()), mortal.guest("b", Setup::default()));
    writer.submit(0, &long_write(1));
    mortal.wait_for_death();
    for (point, count) in [("Replayed", 1), ("IoDone", 2), ("UsedEntry", 1)] {
        let at = format!("RECEIPTDISK_CRASH_AT={point}:{count}");
        mortal.backend = serve(&mortal.scratch, &[], WRITER_AND_READER).run_by(&["env", &at]).start();
        reader.reconnect(&mortal.socket("b"));
        writer.greet_again(&mortal.socket("a"));
        // The answer to the last message may die with the process.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.start_again(0)));
        mortal.wait_for_death();
    }
    mortal.start_again();
    reader.reconnect(&mortal.socket("b"));
    reader.submit(0, &long_read());
    writer.reconnect(&mortal.socket("a"));
    assert_eq!(writer.wait_used(0).1.status, status::OK);
    assert!(reader.wait_used(0).1.data == pattern(1, 0, LONG));
}

#[test]
fn c8_half_a_write_is_seen_by_nobody() {
    let mut mortal = Mortal::doomed("IoDone", 1, &pattern(0, 0, LONG));
    let (mut writer, mut reader) = (mortal.guest("a", Setup::default()), mortal.guest("b", Setup::default()));
    writer.submit(0, &long_write(1));
    mortal.wait_for_death();
    let image = std::fs::read(mortal.scratch.join("disk.img")).unwrap();
    assert!(image != pattern(0, 0, LONG) && image != pattern(1, 0, LONG), "half of the write is there");

    mortal.start_again();
    reader.reconnect(&mortal.socket("b"));
    reader.submit(0, &long_read());
    let status = mortal.ctl().ok(&["status"]);
    assert_eq!(status["recovery"]["awaited"], serde_json::json!(["a"]), "{status}");
    writer.reconnect(&mortal.socket("a"));
    assert!(reader.wait_used(0).1.data == pattern(1, 0, LONG), "the reader saw a part of the write");
    assert_eq!(writer.wait_used(0).1.status, status::OK);
    let status = mortal.ctl().ok(&["status"]);
    assert_eq!(status["recovery"]["guests"], serde_json::json!(["a"]), "{status}");
    assert_eq!(status["recovery"]["missed"], serde_json::json!([]), "{status}");
}

#[test]
fn c8_guest_that_never_comes_back_holds_up_nobody_for_ever() {
    let mut mortal = Mortal::doomed("IoDone", 1, &pattern(0, 0, LONG));
    let (mut writer, mut reader) = (mortal.guest("a", Setup::default()), mortal.guest("b", Setup::default()));
    writer.submit(0, &long_write(1));
    mortal.wait_for_death();
    mortal.start_again();
    reader.reconnect(&mortal.socket("b"));
    reader.assert_readable();
    let status = mortal.ctl().ok(&["status"]);
    assert_eq!(status["recovery"]["missed"], serde_json::json!(["a"]), "{status}");
    assert!(status["recovery"]["wait_ms"].as_u64().is_some_and(|ms| ms >= 9_000), "{status}");
    // Late is better than never.
    writer.reconnect(&mortal.socket("a"));
    assert_eq!(writer.wait_used(0).1.status, status::OK);
    assert!(reader.request(&long_read()).data == pattern(1, 0, LONG));
    // And nobody waits for it again.
    drop(writer);
    until("the guest to be gone", || (mortal.ctl().guest("a")["connected"] == false).then_some(()));
    mortal.kill();
    mortal.start_again();
    assert_eq!(mortal.ctl().ok(&["status"])["recovery"]["guests"], serde_json::json!([]));
}

/// Reads of other queues, taken again before the queue with the write that it must not see in part.
#[test]
fn c8_started_writes_come_before_all_else() {
    let mut mortal = Mortal::new(Scratch::new(), &[], WRITER_AND_READER);
    let mut guest = mortal.guest("a", Setup { queues: 8, ..Setup::default() });
    guest.assert_works();
    mortal.kill();
    let half = [pattern(1, 0, LONG / 2), pattern(0, LONG as u64 / 2, LONG / 2)].concat();
    let image = std::fs::OpenOptions::new().write(true).open(mortal.scratch.join("disk.img")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&image, &half, 0).unwrap();
    // As if all of it had been taken, and the write begun.
    let last = 7;
    for queue in 0..last {
        let read = guest.publish(queue, &long_read());
        guest.inflight().mark(u16::try_from(queue).unwrap(), read, 7, false);
    }
    let write = guest.publish(last, &long_write(1));
    guest.inflight().mark(u16::try_from(last).unwrap(), write, 3, true);
    mortal.start_again();
    guest.greet_again(&mortal.socket("a"));
    (0..=last).for_each(|queue| guest.start_again(queue));
    for queue in 0..last {
        let read = guest.wait_used(queue).1.data;
        assert!(read == pattern(1, 0, LONG), "the read of queue {queue} saw a part of the write");
    }
    assert_eq!(guest.wait_used(last).1.status, status::OK);
}

#[test]
fn c8_overlapping_writes_are_replayed_in_their_order() {
    let mut mortal = Mortal::new(Scratch::new(), &[], WRITER_AND_READER);
    let mut guest = mortal.guest("a", Setup::default());
    guest.assert_works();
    mortal.kill();
    let last = 12;
    for seed in 0..=last {
        // Every second one takes its head from the other end.
        guest.ring(0).turn_round();
        let head = guest.publish(0, &Request::write(0, &pattern(seed, 0, 4096)));
        guest.inflight().mark(0, head, 100 + seed, false);
    }
    mortal.start_again();
    guest.reconnect(&mortal.socket("a"));
    (0..=last).for_each(|_| assert_eq!(guest.wait_used(0).1.status, status::OK));
    assert!(guest.request(&Request::read(0, 4096)).data == pattern(last, 0, 4096), "another write came last");
}

#[test]
fn c8_connection_that_breaks_changes_nothing() {
    let mut mortal = Mortal::new(Scratch::new(), &[], WRITER_AND_READER);
    let mut guest = mortal.guest("a", Setup { queues: 2, ..Setup::default() });
    for round in 0..100_u64 {
        let writes = (0..16).map(|index| Request::write(64 * index, &pattern(round + index, 0, 32768)));
        for (index, write) in writes.enumerate() {
            guest.publish(index % 2, &write);
        }
        guest.kick(0);
        guest.kick(1);
        guest.reconnect(&mortal.socket("a"));
        for index in 0..16 {
            assert_eq!(guest.wait_used(index % 2).1.status, status::OK);
        }
        guest.assert_works();
    }
    // Whoever connects anew has nothing in flight.
    drop(guest);
    mortal.guest("a", Setup::default()).assert_works();
    assert_eq!(mortal.backend.terminate().code, Some(0));
}

#[test]
fn c8_queues_may_be_others_after_a_restart() {
    let mut mortal = Mortal::new(Scratch::new(), &["--queues", "4"], WRITER_AND_READER);
    let mut guest = mortal.guest("a", Setup { queues: 4, ..Setup::default() });
    for (options, is_enough) in
        [(&["--queues", "8"], true), (&["--queues", "2"], false), (&["--queues", "4"], true)]
    {
        guest.assert_works();
        mortal.kill();
        mortal.options = options;
        mortal.start_again();
        let again = std::panic::AssertUnwindSafe(|| guest.reconnect(&mortal.socket("a")));
        assert_eq!(std::panic::catch_unwind(again).is_ok(), is_enough, "{options:?}");
        if !is_enough {
            // Nobody else is touched, and with enough of them it goes on.
            mortal.guest("b", Setup::default()).assert_readable();
            mortal.kill();
            mortal.options = &["--queues", "4"];
            mortal.start_again();
            guest.reconnect(&mortal.socket("a"));
        }
    }
    guest.request_on(3, &Request::read(0, SECTOR));
}

/// Guests at work; the backend is killed at random, and all that they see must have one order.
fn kill_at_random(
    scratch: Scratch,
    options: &'static [&'static str],
    guests: &'static [(&'static str, &'static str)],
    load: Load,
    check: fn(&History),
) {
    let mut mortal = Mortal::new(scratch, options, guests);
    let client = |(name, access): &(&str, &str)| {
        let guest = mortal.guest(name, Setup { queues: 2, size: 256, ..Setup::default() });
        Client { guest, queues: 2, writes: *access == "rw" }
    };
    let mut recorder = Recorder::new(guests.iter().map(client).collect(), 1);
    let mut rng = Rng::new(7);
    let (mut done, mut histories) = (0, 0);
    let mut in_flight_at_kills = Vec::new();
    let mut rounds_left = rng.below(200);
    let places = Stand::SIZE / SECTOR as u64 / load.sectors as u64;
    while done < kills() {
        let base = histories % places * load.sectors as u64;
        let history = recorder.record_while(base, load, |clients| {
            rounds_left = rounds_left.saturating_sub(1);
            if rounds_left > 0 || done == kills() {
                return;
            }
            in_flight_at_kills.push(clients.iter().map(|client| client.guest.in_flight()).sum::<usize>());
            mortal.kill();
            mortal.start_again();
            for (client, (name, _)) in clients.iter_mut().zip(guests) {
                client.guest.reconnect(&mortal.socket(name));
            }
            done += 1;
            rounds_left = 1 + rng.below(200);
        });
        check(&history);
        histories += 1;
    }
    in_flight_at_kills.sort_unstable();
    let sum: usize = in_flight_at_kills.iter().sum();
    println!(
        "{done} kills during {histories} histories; requests in flight at a kill: {} to {}, {sum} in all, none in {}",
        in_flight_at_kills[0],
        in_flight_at_kills[in_flight_at_kills.len() - 1],
        in_flight_at_kills.iter().filter(|count| **count == 0).count(),
    );
    assert!(sum > in_flight_at_kills.len(), "kills of an idle backend show nothing");
    assert_eq!(mortal.backend.terminate().code, Some(0));
    assert!(!mortal.scratch.join("disk.img.receiptdisk.running").exists());
}

/// Few requests at a time: one order must explain all of them.
const DENSE: Load = Load { sectors: 12, longest: 8, requests: 24, depth: 2 };

fn check_requests(history: &History) {
    assert_eq!(history.check(), Ok(()), "{history:?}");
}

/// Many requests at a time: each sector must have had one order.
const DEEP: Load = Load { sectors: 96, longest: 24, requests: 400, depth: 40 };

fn check_sectors(history: &History) {
    assert_eq!(history.check_sectors(), Ok(()));
}

#[test]
fn c8_random_kills_on_tmpfs() {
    const OPTIONS: &[&str] = &["--cache", "page", "--io-engine", "sync"];
    kill_at_random(Scratch::on_tmpfs(), OPTIONS, WRITER_AND_READER, DENSE, check_requests);
}

#[test]
fn c8_random_kills_of_two_writers() {
    const OPTIONS: &[&str] = &["--cache", "page", "--io-engine", "io_uring"];
    kill_at_random(Scratch::on_tmpfs(), OPTIONS, TWO_WRITERS, DENSE, check_requests);
}

#[test]
fn c8_random_kills_under_deep_queues() {
    kill_at_random(Scratch::new(), &["--cache", "direct"], TWO_WRITERS, DEEP, check_sectors);
}

#[test]
fn c8_random_kills_on_the_page_cache() {
    kill_at_random(Scratch::new(), &["--cache", "page"], TWO_WRITERS, DEEP, check_sectors);
}

#[test]
fn note_of_who_writes_is_there_while_somebody_may() {
    let mut mortal = Mortal::new(Scratch::new(), &[], WRITER_AND_READER);
    let note = mortal.scratch.join("disk.img.receiptdisk.running");
    let noted = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let _reader = mortal.guest("b", Setup::default());
    assert_eq!(noted(&note), "", "a reader leaves nothing half done");
    let mut writer = mortal.guest("a", Setup::default());
    assert!(noted(&note).contains("\"a\""), "{}", noted(&note));
    writer.stop_queue(0);
    assert_eq!(noted(&note), "");
    writer.restart_queue(0, 0);
    assert!(noted(&note).contains("\"a\""));
    assert_eq!(mortal.backend.terminate().code, Some(0));
    assert_eq!(noted(&note), "");
}
