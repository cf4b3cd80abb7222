//! `serve --replace`: a new process takes the place of a running one, and its guests only pause.
//!
//! `RECEIPTDISK_REPLACEMENTS` says how often the tests under load replace; the long run has several hundred.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::{SealFlags, fcntl_add_seals, ftruncate};

use receiptdisk_tests::history::History;
use receiptdisk_tests::raw::{Message, RawGuest, Request, Setup, Wire, code, status};
use receiptdisk_tests::recorder::{Client, Load, Recorder};
use receiptdisk_tests::rng::Rng;
use receiptdisk_tests::{Backend, Ctl, Driver, Exit, Polite, SECTOR, Scratch, Serve, Stand, pattern, until};

const REPLACEMENTS: &str = "RECEIPTDISK_REPLACEMENTS";

fn replacements(in_every_run: usize) -> usize {
    std::env::var(REPLACEMENTS).map_or(in_every_run, |text| text.parse().expect("a number of replacements"))
}

/// A backend and what it was started with. Files go after the process.
struct Line {
    backend: Backend,
    options: &'static [&'static str],
    scratch: Scratch,
}

impl Line {
    fn new(scratch: Scratch, options: &'static [&'static str]) -> Self {
        scratch.image(Stand::SIZE);
        let backend = serve(&scratch, options).start();
        Self { backend, options, scratch }
    }

    fn guest(&self, name: &str, setup: Setup) -> RawGuest {
        let mut guest = RawGuest::connect(&self.backend.socket(name));
        guest.start(setup);
        guest
    }

    fn ctl(&self) -> Ctl {
        Ctl::new(self.scratch.join("ctl.sock"))
    }

    fn pid(&self) -> serde_json::Value {
        self.ctl().ok(&["status"])["pid"].clone()
    }

    fn successor(&self) -> Serve {
        serve(&self.scratch, self.options).arg("--replace")
    }

    /// Replaces the backend and waits until it is gone.
    #[track_caller]
    fn replace(&mut self) {
        let fresh = self.successor().spawn();
        let exit = self.backend.proc().wait();
        assert_eq!(exit.code, Some(0), "{exit:?}; the new one: {}", fresh.log());
        self.backend = fresh;
    }

    /// One that dies at `point`.
    fn doomed_successor(&self, point: &str) -> Backend {
        self.successor().run_by(&["env", &format!("RECEIPTDISK_CRASH_AT={point}:1")]).spawn()
    }

    /// Arguments with which it cannot be replaced, and what is said then.
    #[track_caller]
    fn refuses(&self, serve: Serve, why: &str) {
        let Exit { code, stderr, .. } = serve.run_to_end();
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("goes on") && stderr.contains(why), "{why}: {stderr}");
    }
}

fn base(scratch: &Scratch) -> Serve {
    Serve::image(&scratch.join("disk.img")).arg("--control").arg(scratch.join("ctl.sock"))
}

fn serve(scratch: &Scratch, options: &[&str]) -> Serve {
    let serve = base(scratch).arg("--multi-writer").rw("a").rw("b");
    options.iter().fold(serve, Serve::arg)
}

const TRACKED: Setup = Setup { queues: 2, size: 256, is_tracked: true, ..Setup::USUAL };

#[test]
fn guests_of_all_kinds_go_on_where_they_were() {
    let mut line = Line::new(Scratch::new(), &[]);
    let mut tracked = line.guest("a", Setup { regions: 4, ..TRACKED });
    let mut plain = line.guest("b", Setup::default());
    for round in 0..20 {
        tracked.assert_works();
        plain.assert_works();
        let before = line.pid();
        line.replace();
        assert_ne!(line.pid(), before);
        let status = line.ctl().ok(&["status"]);
        assert_eq!(status["recovery"]["guests"], serde_json::json!([]), "{status}");
        for queue in 0..2 {
            tracked.submit(queue, &Request::write(0, &pattern(round, 0, SECTOR)));
            assert_eq!(tracked.wait_used(queue).1.status, status::OK);
        }
        assert!(plain.request(&Request::read(0, SECTOR)).data == pattern(round, 0, SECTOR));
    }
    // Features, memory and rings are still this front end's to change.
    tracked.stop_queue(1);
    tracked.assert_works();
    assert_eq!(line.backend.terminate().code, Some(0));
    assert!(!line.backend.socket("a").exists(), "the sockets are the last process's to remove");
}

#[test]
fn whoever_connects_later_finds_the_same_sockets() {
    let mut line = Line::new(Scratch::new(), &[]);
    line.replace();
    let mut driver = Driver::connect(&line.backend.socket("a"));
    driver.write(4096, &pattern(3, 0, 4096)).unwrap();
    let front = line.guest("b", TRACKED);
    line.replace();
    assert!(driver.read(4096, 4096).unwrap() == pattern(3, 0, 4096));
    drop((driver, front));
    line.guest("a", Setup::default()).assert_works();
    // A kill is what it always was.
    let mut guest = line.guest("b", TRACKED);
    line.replace();
    line.backend.kill();
    line.backend = serve(&line.scratch, &[]).start();
    guest.reconnect(&line.backend.socket("b"));
    guest.assert_works();
}

#[test]
fn backend_that_connects_stays_connected() {
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let socket = scratch.join("qemu.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let line = || base(&scratch).arg("--guest").arg(format!("name=a,connect={}", socket.display()));
    let mut backend = line().start();
    let mut guest = RawGuest::over(listener.accept().unwrap().0);
    guest.start(TRACKED);
    for _ in 0..3 {
        let fresh = line().arg("--replace").spawn();
        assert_eq!(backend.proc().wait().code, Some(0), "{}", fresh.log());
        backend = fresh;
        guest.assert_works();
    }
    drop(guest);
    RawGuest::over(listener.accept().unwrap().0).start(TRACKED);
}

/// Few requests at a time: one order must explain all of them.
const DENSE: Load = Load { sectors: 12, longest: 8, requests: 24, depth: 2 };

/// Many requests at a time: each sector must have had one order.
const DEEP: Load = Load { sectors: 96, longest: 24, requests: 400, depth: 40 };

/// Guests at work; the backend is replaced at random, at times by one that dies, and all that they see must have one order.
fn replace_at_random(scratch: Scratch, options: &'static [&'static str], load: Load, check: fn(&History)) {
    let wanted = replacements(12);
    let mut line = Line::new(scratch, options);
    let client = |name| Client { guest: line.guest(name, TRACKED), queues: 2, writes: true };
    let mut recorder = Recorder::new(["a", "b"].map(client).into(), 1);
    let mut rng = Rng::new(11);
    let (mut done, mut failed, mut histories, mut rounds_left) = (0, 0, 0, rng.below(200));
    let mut coming: Option<(Backend, bool)> = None;
    let places = Stand::SIZE / SECTOR as u64 / load.sectors as u64;
    while done < wanted || coming.is_some() {
        let sector = histories % places * load.sectors as u64;
        let history = recorder.record_while(sector, load, |_| match coming.take() {
            None => {
                rounds_left = u64::saturating_sub(rounds_left, 1);
                if rounds_left == 0 && done < wanted {
                    rounds_left = 1 + rng.below(200);
                    let point = rng.pick(&[None, None, Some("Offered"), Some("Given"), Some("Restored")]);
                    let fresh = match point {
                        None => line.successor().spawn(),
                        Some(point) => line.doomed_successor(point),
                    };
                    coming = Some((fresh, point.is_some()));
                }
            }
            Some((mut fresh, is_doomed)) => {
                if !fresh.proc().is_running() {
                    assert!(is_doomed, "{}", fresh.log());
                    failed += 1;
                } else if !line.backend.proc().is_running() {
                    assert!(!is_doomed);
                    line.backend = fresh;
                    done += 1;
                } else {
                    coming = Some((fresh, is_doomed));
                }
            }
        });
        check(&history);
        histories += 1;
    }
    println!("{done} replacements and {failed} that failed during {histories} histories");
    assert!(failed > 0);
    assert_eq!(line.backend.terminate().code, Some(0));
    assert!(!line.scratch.join("disk.img.receiptdisk.running").exists());
}

#[test]
fn requests_have_one_order_across_replacements() {
    replace_at_random(Scratch::new(), &[], DENSE, |history| {
        assert_eq!(history.check(), Ok(()), "{history:?}")
    });
}

#[test]
fn sectors_have_one_order_across_replacements() {
    replace_at_random(Scratch::on_tmpfs(), &[], DEEP, |history| assert_eq!(history.check_sectors(), Ok(())));
}

#[test]
fn decisions_are_handed_over() {
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let serve = || base(&scratch).arg("--seal").rw("a").guest("b", "access=standby").ro("c");
    let mut backend = serve().start();
    let ctl = Ctl::new(scratch.join("ctl.sock"));
    ctl.ok(&["takeover", "b"]);
    ctl.ok(&["fence", "a"]);
    ctl.ok(&["seal", "8K-16K"]);
    ctl.ok(&["resize", &(Stand::SIZE + (1 << 20)).to_string()]);
    let mut guest = RawGuest::connect(&backend.socket("b"));
    guest.start(TRACKED);
    let fresh = serve().arg("--replace").spawn();
    assert_eq!(backend.proc().wait().code, Some(0), "{}", fresh.log());
    backend = fresh;
    assert_eq!(ctl.guest("b")["access"], "rw");
    assert_eq!((&ctl.guest("a")["access"], &ctl.guest("a")["fenced"]), (&"standby".into(), &true.into()));
    assert_eq!(ctl.ok(&["status"])["capacity_bytes"], Stand::SIZE + (1 << 20));
    guest.assert_works();
    assert_eq!(
        guest.request(&Request::write(16, &[0; 4096])).status,
        status::IOERR,
        "what is sealed stays so"
    );
    let last = Stand::SIZE / SECTOR as u64 + 1;
    assert_eq!(guest.request(&Request::write(last, &pattern(1, 0, SECTOR))).status, status::OK);
    assert_eq!(backend.terminate().code, Some(0));
}

#[test]
fn death_of_the_new_process_at_any_step_changes_nothing() {
    let mut line = Line::new(Scratch::new(), &[]);
    let mut guests = [line.guest("a", TRACKED), line.guest("b", Setup::default())];
    let pid = line.pid();
    let mut before = None;
    for round in 0..5 {
        for point in ["Offered", "Prepared", "Given", "Restored"] {
            guests.iter_mut().for_each(RawGuest::assert_works);
            let head = guests[0].submit(0, &Request::write(0, &pattern(round, 0, 4096)));
            let exit = line.doomed_successor(point).proc().wait();
            assert_eq!(exit.signal, Some(9), "{point}: {exit:?}");
            assert_eq!(guests[0].wait_used(0).0, head);
            guests.iter_mut().for_each(RawGuest::assert_works);
            assert_eq!(line.pid(), pid, "{point}");
            assert!(line.backend.socket("a").exists() && line.scratch.join("ctl.sock").exists());
        }
        // Threads and descriptors of the first round's connections have gone by the second.
        let now = until("descriptors to settle", || {
            let now = line.backend.proc().open_fds();
            (before.is_none_or(|before| now <= before)).then_some(now)
        });
        before = Some(now);
    }
    // After the last step it has taken over, and its death is a kill like any other.
    let mut fresh = line.doomed_successor("Taken");
    assert_eq!(line.backend.proc().wait().code, Some(0));
    assert_eq!(fresh.proc().wait().signal, Some(9));
    line.backend = serve(&line.scratch, &[]).start();
    guests[0].reconnect(&line.backend.socket("a"));
    guests[0].assert_works();
}

#[test]
fn arguments_that_guests_cannot_be_told_of_are_refused() {
    let line = Line::new(Scratch::new(), &[]);
    let mut guest = line.guest("a", TRACKED);
    let pid = line.pid();
    let replace = || base(&line.scratch).arg("--replace").arg("--multi-writer");
    line.refuses(replace().rw("a"), "guest b is served");
    line.refuses(replace().rw("a").rw("b").rw("c"), "guest c is not served yet");
    line.refuses(replace().rw("b").rw("a"), "guest a comes where");
    line.refuses(replace().rw("a").ro("b"), "access=rw, not ro");
    line.refuses(replace().rw("a").rw("b").arg("--cache").arg("page"), "--cache");
    line.refuses(replace().rw("a").rw("b").arg("--state").arg(line.scratch.join("other")), "state file");
    line.refuses(replace().rw("a").rw("b").arg("--record").arg(line.scratch.join("log")), "--record");
    line.refuses(line.successor().arg("--queues").arg("1"), "ring 1 is beyond the 1 offered");
    line.refuses(line.successor().arg("--queue-size").arg("64"), "ring size 256");
    let elsewhere = format!("name=b,socket={},access=rw", line.scratch.join("x.sock").display());
    line.refuses(replace().rw("a").arg("--guest").arg(elsewhere), "guest b has socket=");
    let other = line.scratch.join("other.img");
    std::fs::copy(line.scratch.join("disk.img"), &other).unwrap();
    let control = line.scratch.join("ctl.sock");
    let state = line.scratch.join("disk.img.receiptdisk");
    let serve = Serve::image(&other).arg("--control").arg(&control).arg("--state").arg(state);
    line.refuses(
        serve.arg("--replace").arg("--multi-writer").rw("a").rw("b"),
        "is not the one that is served",
    );
    let nobody = Serve::image(&other).arg("--control").arg(line.scratch.join("no.sock"));
    let exit = nobody.arg("--replace").rw("a").run_to_end();
    assert!(exit.code == Some(2) && exit.stderr.contains("no backend to replace"), "{exit:?}");
    let exit = Serve::image(&other).arg("--replace").rw("a").run_to_end();
    assert!(exit.code == Some(2) && exit.stderr.contains("--control"), "{exit:?}");
    guest.assert_works();
    assert_eq!(line.pid(), pid);
}

/// A process that wants to take over and is not what it says.
struct Impostor(UnixStream);

impl Impostor {
    fn ask(line: &Line, protocol: u32) -> (Self, String) {
        let mut stream = UnixStream::connect(line.scratch.join("ctl.sock")).unwrap();
        stream.set_read_timeout(Some(receiptdisk_tests::SAFETY_NET)).unwrap();
        writeln!(stream, "{{\"command\":\"replace\",\"protocol\":{protocol}}}").unwrap();
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        (Self(stream), String::from_utf8(answer).unwrap())
    }

    /// The next message, without its descriptors.
    fn receive(&mut self) -> String {
        let mut header = [0; 8];
        self.0.read_exact(&mut header).unwrap();
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()) as usize;
        let mut body = vec![0; number(4).div_ceil(253) + number(0)];
        self.0.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }

    fn send(&mut self, body: &str) -> std::io::Result<()> {
        let bytes = u32::try_from(body.len()).unwrap().to_le_bytes();
        self.0.write_all(&[&bytes[..], &[0; 4], body.as_bytes()].concat())
    }
}

#[test]
fn processes_that_do_not_keep_to_the_conversation_take_nothing() {
    let line = Line::new(Scratch::new(), &[]);
    let mut guest = line.guest("a", TRACKED);
    let pid = line.pid();
    for protocol in [0, 2, u32::MAX] {
        let (_, answer) = Impostor::ask(&line, protocol);
        assert!(answer.contains("version 1 of the hand-over"), "{answer}");
    }
    // Says nothing more, or nonsense, or goes away.
    for then in ["", "nonsense"] {
        let (mut impostor, _) = Impostor::ask(&line, 1);
        impostor.receive();
        if !then.is_empty() {
            impostor.send(then).unwrap();
        }
        drop(impostor);
        guest.assert_works();
    }
    // Has everything, and does not go on: the old one does, and what comes later is too late.
    let (mut impostor, _) = Impostor::ask(&line, 1);
    impostor.receive();
    impostor.send("{}").unwrap();
    let given = impostor.receive();
    assert!(given.contains("\"rings\""), "{given}");
    guest.assert_works();
    assert!(impostor.send("{}").is_err(), "a second process would have the guests");
    assert_eq!(line.pid(), pid);
}

#[test]
fn front_end_amid_a_message_holds_up_no_replacement() {
    let mut line = Line::new(Scratch::new(), &[]);
    let mut guest = line.guest("a", TRACKED);
    let stalled = Wire::connect(&line.backend.socket("b")).unwrap();
    stalled.send_bytes(&Message::new(code::GET_FEATURES, &[]).bytes()[..5], &[]).unwrap();
    line.ctl().ok(&["status"]);
    line.replace();
    guest.assert_works();
    drop(stalled);
    line.guest("b", Setup::default()).assert_works();
}

/// What a front end does to its own files keeps nobody else with the old process.
#[test]
fn front_end_that_spoils_its_files_holds_up_no_replacement() {
    type Spoil = (&'static str, fn(&mut RawGuest));
    let spoils: [Spoil; 5] = [
        ("memory that is cut off", |guest| ftruncate(guest.memory().fd(), 0).unwrap()),
        ("memory that may not be mapped again", |guest| {
            fcntl_add_seals(guest.memory().fd(), SealFlags::FUTURE_WRITE).unwrap();
        }),
        ("an in-flight region that is cut off", |guest| guest.inflight().file().set_len(0).unwrap()),
        ("an in-flight region of another version", |guest| guest.inflight().write(0, 8, &[7, 0])),
        ("an in-flight region of another ring", |guest| guest.inflight().write(1, 14, &[0, 0x80])),
    ];
    let mut line = Line::new(Scratch::new(), &[]);
    let polite = Polite::start(line.guest("a", TRACKED), Stand::SIZE / 2 / SECTOR as u64);
    for (what, spoil) in spoils {
        let mut guest = line.guest("b", TRACKED);
        guest.use_own_region();
        guest.assert_works();
        spoil(&mut guest);
        line.replace();
        polite.assert_goes_on();
        assert!(guest.front().wire().hung_up(), "{what}");
        let log = line.backend.log();
        assert!(log.contains("guest=b event=connection-dropped"), "{what}: {log}");
        line.guest("b", TRACKED).assert_works();
    }
    // Where nobody could be taken over, the fault may be the new process's: the old one goes on.
    drop(polite);
    let mut guest = line.guest("b", TRACKED);
    ftruncate(guest.memory().fd(), 0).unwrap();
    line.refuses(line.successor(), "memory region");
    line.guest("a", TRACKED).assert_works();
    drop(guest);
    line.replace();
}

#[test]
fn supervisor_is_told_of_the_new_process() {
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let path = scratch.join("notify.sock");
    let supervisor = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let mut backend = serve(&scratch, &[]).run_by(&["env", &variable]).start();
    // Only the first is told where the supervisor listens; the others hear it from the one before.
    for _ in 0..3 {
        let mut fresh = serve(&scratch, &[]).arg("--replace").spawn();
        assert_eq!(backend.proc().wait().code, Some(0), "{}", fresh.log());
        assert!(receiptdisk_tests::readable(&supervisor), "nothing is told");
        let mut message = [0; 64];
        let bytes = supervisor.recv(&mut message).unwrap();
        assert_eq!(
            std::str::from_utf8(&message[..bytes]).unwrap(),
            format!("MAINPID={}", fresh.proc().pid())
        );
        backend = fresh;
    }
}

/// Seconds of silence between two answers to a guest that always has requests in flight: the longest while the backend was
/// replaced.
#[test]
fn pause_of_guests_under_load() {
    const DEPTH: usize = 16;
    let mut line = Line::new(Scratch::new(), &[]);
    let [mut a, mut b] = ["a", "b"].map(|name| line.guest(name, Setup { size: 128, queues: 1, ..TRACKED }));
    let is_over = AtomicBool::new(false);
    let [longest, answers] = [(); 2].map(|()| [(); 2].map(|()| AtomicU64::new(0)));
    let mut pauses = Vec::new();
    std::thread::scope(|scope| {
        for ((guest, longest), answers) in [&mut a, &mut b].into_iter().zip(&longest).zip(&answers) {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut rng = Rng::new(5);
                let mut submit = |guest: &mut RawGuest| {
                    let sector = 8 * rng.below(Stand::SIZE / 4096);
                    let write = rng.below(2) == 0;
                    let data =
                        if write { Request::write(sector, &[7; 4096]) } else { Request::read(sector, 4096) };
                    guest.submit(0, &data);
                };
                (0..DEPTH).for_each(|_| submit(guest));
                let mut last = Instant::now();
                while !is_over.load(Ordering::Acquire) {
                    assert_eq!(guest.wait_used(0).1.status, status::OK);
                    let silence = u64::try_from(last.elapsed().as_micros()).unwrap();
                    longest.fetch_max(silence, Ordering::AcqRel);
                    answers.fetch_add(1, Ordering::AcqRel);
                    last = Instant::now();
                    submit(guest);
                }
            });
        }
        let take = || longest.iter().map(|longest| longest.swap(0, Ordering::AcqRel)).max().unwrap();
        let wait_for_answers = || {
            let seen = answers.each_ref().map(|answers| answers.load(Ordering::Acquire));
            until("both guests to get on", || {
                let got_on = |(answers, seen): (&AtomicU64, u64)| answers.load(Ordering::Acquire) > seen + 1;
                answers.iter().zip(seen).all(got_on).then_some(())
            });
        };
        for _ in 0..replacements(10) {
            wait_for_answers();
            take();
            line.replace();
            // The first answer of the new process ends the silence.
            wait_for_answers();
            pauses.push(take());
        }
        is_over.store(true, Ordering::Release);
    });
    pauses.sort_unstable();
    let at = |percent: usize| pauses[(pauses.len() * percent / 100).min(pauses.len() - 1)];
    println!(
        "{} replacements; longest silence in us: p50 {}, p90 {}, p99 {}, longest {}",
        pauses.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
}
