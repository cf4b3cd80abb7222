//! Two QEMU guests at work while the backend, or one of them, is killed again and again.
//!
//! `RECEIPTDISK_GUEST_KILLS` says how often; the long run has 200 kills of the backend. `RECEIPTDISK_REPLACEMENTS` says how
//! often it is replaced instead.

use receiptdisk_tests::rng::Rng;
use receiptdisk_tests::{
    Backend, Ctl, DiskOp, FaultDisk, Guest, GuestImage, Scratch, Serve, Stand, exercise_binary,
    pauses_binary, until,
};

const KILLS: &str = "RECEIPTDISK_GUEST_KILLS";
const REPLACEMENTS: &str = "RECEIPTDISK_REPLACEMENTS";

/// Puts versions of seven paths as fast as it can until it is told to stop. A version says its number, and its length
/// follows from that.
const WRITER: &str = "n=0; while [ ! -e /tmp/stop ]; do n=$((n + 1)); \
     { printf %08d $n; head -c $((n * 977 % 90000)) /dev/zero; } > /tmp/r; \
     receipt put --new-version day/$((n % 7)).png /tmp/r > /dev/null || echo put $n failed; \
     echo $n > /tmp/acknowledged.$((n % 7)); done";

/// Gets them as fast as it can: each get gives a whole version, and none older than the one before.
const READER: &str = "n=0; while [ ! -e /tmp/stop ]; do n=$((n + 1)); k=$((n % 7)); \
     receipt get day/$k.png -o /tmp/r || echo get $k failed; v=$(head -c 8 /tmp/r); \
     [ \"$v\" -ge \"$(cat /tmp/seen.$k)\" ] || echo $k is stale; echo $v > /tmp/seen.$k; \
     m=$(echo $v | sed 's/^0*//'); [ $(wc -c < /tmp/r) = $((m * 977 % 90000 + 8)) ] || echo $k is not whole; done";

/// Large reads past the page cache, so that there is always something in flight.
const SCAN: &str = "while [ ! -e /tmp/stop ]; do \
     dd if=/dev/vda of=/dev/null bs=1M iflag=direct 2> /tmp/dd || { echo scan failed; cat /tmp/dd; }; done";

/// Guests, disk and backend. Guests before the backend, and that before its files.
struct Pair {
    issuer: Guest,
    front: Guest,
    backend: Backend,
    scratch: Scratch,
}

fn kills(in_every_run: u32) -> u32 {
    number(KILLS, in_every_run)
}

fn number(variable: &str, in_every_run: u32) -> u32 {
    std::env::var(variable).map_or(in_every_run, |text| text.parse().expect("a number"))
}

fn command(scratch: &Scratch) -> Serve {
    let serve = Serve::image(&scratch.join("disk.img"));
    serve.arg("--control").arg(scratch.join("ctl.sock")).rw("issuer").ro("front")
}

fn serve(scratch: &Scratch) -> Backend {
    command(scratch).start()
}

impl Pair {
    fn boot() -> Self {
        let scratch = Scratch::new();
        scratch.image(Stand::SIZE);
        let backend = serve(&scratch);
        let [issuer, front] = ["issuer", "front"].map(|name| Guest::start(name, scratch.path()));
        let (mut issuer, mut front) = (issuer.ready(), front.ready());
        issuer.ok("receipt format --segment-size 1M");
        issuer.ok("for k in $(seq 0 6); do echo 00000000 | head -c 8 | receipt put day/$k.png -; done");
        front.ok("for k in $(seq 0 6); do echo 0 > /tmp/seen.$k; done");
        Self { issuer, front, backend, scratch }
    }

    fn ctl(&self) -> Ctl {
        Ctl::new(self.scratch.join("ctl.sock"))
    }

    fn work(&mut self) {
        start_work(&mut self.issuer, &[WRITER, SCAN]);
        start_work(&mut self.front, &[READER, SCAN, SCAN]);
    }

    /// Waits until each guest has had so many answers of the kind that shows its progress.
    fn wait_for_progress(&self, writes: u64, reads: u64) {
        let ctl = self.ctl();
        until("both guests to get on", || {
            let count = |name, what: &str| ctl.stats(name)[what].as_u64().unwrap();
            (count("issuer", "writes") >= writes && count("front", "reads") >= reads).then_some(())
        });
    }

    /// Ends all work and asserts that nothing went wrong: no error, nothing lost, nothing stale.
    #[track_caller]
    fn finish(mut self) {
        for guest in [&mut self.issuer, &mut self.front] {
            stop_work(guest);
        }
        for k in 0..7 {
            let last = self.issuer.ok(&format!("cat /tmp/acknowledged.{k}"));
            let kept = self.front.ok(&format!("receipt get day/{k}.png | head -c 8"));
            assert_eq!(kept.trim_start_matches('0'), last.trim(), "an acknowledged version of {k} is lost");
        }
        for mut guest in [self.issuer, self.front] {
            guest.ok("receipt verify");
            assert_eq!(guest.power_off().code, Some(0));
        }
    }
}

fn start_work(guest: &mut Guest, loops: &[&str]) {
    guest.ok("rm -f /tmp/stop /tmp/log");
    for work in loops {
        guest.ok(&format!("( {work} ) >> /tmp/log 2>&1 &"));
    }
}

fn stop(guest: &mut Guest) {
    guest.ok("touch /tmp/stop; wait");
}

#[track_caller]
fn stop_work(guest: &mut Guest) {
    stop(guest);
    let log = guest.ok("cat /tmp/log");
    assert_eq!(log, "", "something went wrong in a guest");
    let errors = guest.run("dmesg | grep -iE 'i/o error|blocked for more|reset'");
    assert_eq!(errors.text, "", "the kernel of a guest noticed something");
}

/// Most of these kills meet an idle backend, as most kills do; the next test sees to the others.
#[test]
fn c8_guests_notice_nothing_of_killed_backends() {
    let kills = kills(8);
    let mut pair = Pair::boot();
    let mut rng = Rng::new(3);
    let mut replayed = Vec::new();
    pair.work();
    for _ in 0..kills {
        pair.wait_for_progress(1 + rng.below(30), 1 + rng.below(60));
        pair.backend.kill();
        replayed.push(in_flight(&pair.backend.proc().stderr()));
        pair.backend = serve(&pair.scratch);
    }
    pair.wait_for_progress(1, 1);
    replayed.push(in_flight(&pair.backend.proc().stderr()));
    let sum: u64 = replayed.iter().sum();
    println!("{kills} kills; requests in flight at them: {:?}, {sum} in all", &replayed[1..]);
    pair.finish();
}

/// Each guest checks every byte that it reads, four requests at a time; each kill cuts off requests that are on their way
/// to the disk, some of them land after it, and the next backend finds all of them in flight.
#[test]
fn c8_guests_lose_nothing_of_what_a_kill_cuts_off() {
    let scratch = Scratch::new();
    let bytes = usize::try_from(Stand::SIZE).unwrap();
    let disk = FaultDisk::new(&scratch.join("disk.img"), bytes);
    let ctl = Ctl::new(scratch.join("ctl.sock"));
    let serve = || {
        let serve = Serve::image(&scratch.join("disk.img")).arg("--control").arg(scratch.join("ctl.sock"));
        serve.arg("--multi-writer").rw("issuer").rw("front").start()
    };
    let mut backend = serve();
    let image = GuestImage::make(&[exercise_binary()], &[]);
    let boot = |name| Guest::boot(name, scratch.path(), &image, &["--memory", "192M"]);
    let mut guests = ["issuer", "front"].map(boot).map(Guest::ready);
    for (guest, first_byte) in guests.iter_mut().zip([0, bytes / 2]) {
        let exercise =
            format!("exercise /dev/vda {first_byte} {} 4 {first_byte} /tmp/stop direct", bytes / 2);
        guest.ok(&format!("( {exercise} ) > /tmp/log 2>&1 &"));
    }
    let mut rng = Rng::new(9);
    let (wanted, mut held, mut replayed) = (kills(20), 0, 0);
    for _ in 0..wanted {
        let (op, least) = (rng.pick(&[DiskOp::Write, DiskOp::Write, DiskOp::Read]), 1 + rng.below(20));
        // Past the handshake, in which QEMU 7.2 takes a kill badly.
        until("both guests to have got on", || {
            let got_on = |name| ctl.stats(name)["reads"].as_u64().unwrap() > least;
            ["issuer", "front"].into_iter().all(got_on).then_some(())
        });
        disk.hold(op);
        until("a request on its way to the disk", || (disk.held(op) > 0).then_some(()));
        if rng.below(4) > 0 {
            // Sooner or later every thread of both guests has a request that is held, or waits behind one.
            let mut before = None;
            until("both guests to wait for the disk", || {
                let now = ["issuer", "front"].map(|name| ctl.stats(name));
                let is_stuck = before.as_ref() == Some(&now);
                before = Some(now);
                is_stuck.then_some(())
            });
        }
        held += disk.held(op);
        // It cannot end before the disk has answered.
        backend.proc().signal(rustix::process::Signal::KILL);
        disk.let_go();
        assert_eq!(backend.proc().wait().signal, Some(9));
        let before = backend.log();
        backend = serve();
        replayed += in_flight(&before);
    }
    // Both are back, and none of what they find is wrong.
    for guest in &mut guests {
        stop(guest);
        let log = guest.ok("cat /tmp/log");
        assert!(log.trim().parse::<u64>().is_ok_and(|operations| operations > 100), "{log}");
        let errors = guest.run("dmesg | grep -iE 'i/o error|blocked for more|reset'");
        assert_eq!(errors.text, "", "the kernel of a guest noticed something");
    }
    replayed += in_flight(&backend.log());
    println!("{wanted} kills with {held} operations of the disk held; {replayed} requests found in flight");
    assert!(
        held >= wanted as usize && replayed >= u64::from(wanted),
        "kills of an idle backend show nothing"
    );
    for guest in guests {
        assert_eq!(guest.power_off().code, Some(0));
    }
}

#[test]
fn guests_notice_nothing_of_replaced_backends() {
    let mut pair = Pair::boot();
    let mut rng = Rng::new(4);
    pair.work();
    for _ in 0..number(REPLACEMENTS, 10) {
        pair.wait_for_progress(1 + rng.below(30), 1 + rng.below(60));
        let fresh = command(&pair.scratch).arg("--replace").spawn();
        let exit = pair.backend.proc().wait();
        assert_eq!(exit.code, Some(0), "{exit:?}; the new one: {}", fresh.log());
        assert!(!exit.stderr.contains("event=disconnected"), "{}", exit.stderr);
        pair.backend = fresh;
    }
    pair.wait_for_progress(1, 1);
    pair.finish();
}

/// The longest time that a guest has no answer although it always has four requests in flight, while the backend is replaced and,
/// to compare, while it is not.
#[test]
fn pause_that_guests_see() {
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let mut backend = serve(&scratch);
    let image = GuestImage::make(&[pauses_binary()], &[]);
    let boot = |name| Guest::boot(name, scratch.path(), &image, &["--memory", "192M"]);
    let mut guests = ["issuer", "front"].map(boot).map(Guest::ready);
    for (guest, mode) in guests.iter_mut().zip(["both", "read"]) {
        guest.type_line(&format!("pauses /dev/vda 0 {} 4 {mode} < /dev/ttyS0", Stand::SIZE));
    }
    let mut longest = || {
        guests.iter_mut().for_each(|guest| guest.type_line("longest"));
        let said = guests.iter_mut().map(Guest::line);
        said.map(|line| line.trim().parse::<u64>().unwrap_or_else(|_| panic!("{line}"))).max().unwrap()
    };
    let ctl = Ctl::new(scratch.join("ctl.sock"));
    let wait_for_answers = || {
        let count = || ["issuer", "front"].map(|name| ctl.stats(name)["reads"].as_u64().unwrap());
        let before = count();
        until("both guests to get on", || {
            count().iter().zip(before).all(|(now, before)| *now > before + 10).then_some(())
        });
    };
    let (mut pauses, mut quiet) = (Vec::new(), Vec::new());
    for _ in 0..number(REPLACEMENTS, 3) {
        longest();
        wait_for_answers();
        quiet.push(longest());
        let fresh = command(&scratch).arg("--replace").spawn();
        assert_eq!(backend.proc().wait().code, Some(0), "{}", fresh.log());
        assert!(!backend.log().contains("event=disconnected"), "{}", backend.log());
        backend = fresh;
        wait_for_answers();
        pauses.push(longest());
    }
    for (what, mut all) in [("replaced", pauses), ("not replaced", quiet)] {
        all.sort_unstable();
        let at = |percent: usize| all[(all.len() * percent / 100).min(all.len() - 1)];
        let [p50, p90, p99, most] = [50, 90, 99, 100].map(at);
        println!(
            "{} times {what}; longest silence in us: p50 {p50}, p90 {p90}, p99 {p99}, longest {most}",
            all.len()
        );
    }
}

/// Requests that the backend says it found in flight.
fn in_flight(log: &str) -> u64 {
    let replays = log.lines().filter(|line| line.contains("event=replay"));
    replays.filter_map(|line| line.rsplit_once("in_flight=")?.1.parse::<u64>().ok()).sum()
}

#[test]
fn killed_guest_finds_its_receipts_and_the_other_notices_nothing() {
    let mut pair = Pair::boot();
    pair.work();
    let mut rng = Rng::new(5);
    for round in 0..kills(2) {
        pair.wait_for_progress(pair.ctl().stats("issuer")["writes"].as_u64().unwrap() + 5 + rng.below(20), 1);
        let acknowledged = until("a put of this machine", || {
            Some(pair.issuer.run("cat /tmp/acknowledged.*"))
                .filter(|puts| puts.code == 0)
                .map(|puts| puts.text)
        });
        let kept = "for k in $(seq 0 6); do receipt get day/$k.png | head -c 8; echo; done";
        pair.issuer.kill();
        pair.issuer = Guest::start("issuer", pair.scratch.path()).ready();
        pair.issuer.ok("receipt verify");
        let kept = pair.issuer.ok(kept);
        let number = |text: &str| text.trim().trim_start_matches('0').parse::<u64>().unwrap_or(0);
        let highest = |text: &str| text.lines().map(number).max().unwrap();
        assert!(
            highest(&kept) >= highest(&acknowledged),
            "round {round}: {kept} is older than {acknowledged}"
        );
        // The writer goes on where it was, so that no version gets another content.
        let next = highest(&kept);
        start_work(&mut pair.issuer, &[&WRITER.replacen("n=0", &format!("n={next}"), 1), SCAN]);
    }
    pair.wait_for_progress(pair.ctl().stats("issuer")["writes"].as_u64().unwrap() + 40, 1);
    // Every path has been put since the last kill, so that all of them were acknowledged to this machine.
    until("seven puts", || (pair.issuer.ok("ls /tmp/acknowledged.* | wc -l").trim() == "7").then_some(()));
    pair.finish();
}
