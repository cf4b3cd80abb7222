//! Two QEMU guests on one disk: a receipt stored in one is read in the other, by its path, at once.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use receiptdisk_tests::{
    Guest, GuestImage, Scratch, Stand, static_gateway_binary, static_mount_binary, static_receipt_binary,
};

/// The pair of machines, the disk formatted. Guests before the stand, so that they end first.
struct Pair {
    issuer: Guest,
    front: Guest,
    stand: Stand,
}

impl Pair {
    fn boot() -> Self {
        Self::boot_by(Guest::start)
    }

    fn boot_by(start: impl Fn(&str, &Path) -> Guest) -> Self {
        let stand = Stand::serve(Scratch::new(), |serve| serve.rw("issuer").ro("front"));
        let run_dir = stand.image().parent().unwrap().to_owned();
        let [issuer, front] = ["issuer", "front"].map(|name| start(name, &run_dir));
        let (mut issuer, front) = (issuer.ready(), front.ready());
        issuer.ok("receipt format");
        Self { issuer, front, stand }
    }

    /// Asserts that both guests find nothing wrong, and that both end cleanly.
    #[track_caller]
    fn finish(mut self) {
        for guest in [&mut self.issuer, &mut self.front] {
            guest.ok("receipt verify");
        }
        for guest in [self.issuer, self.front] {
            assert_eq!(guest.power_off().code, Some(0));
        }
    }
}

#[test]
fn receipt_put_in_one_guest_is_read_in_the_other_at_once_1000_times() {
    let mut pair = Pair::boot();
    rewritten_paths(&mut pair, 200);
    streamed_paths(&mut pair, 800);
    pair.finish();
}

/// Ten paths get new versions again and again; after each put the other guest must get that very version.
fn rewritten_paths(pair: &mut Pair, rounds: u32) {
    // Each guest runs one loop that takes a word from the console and answers with one line.
    pair.issuer.type_line(
        "while read -r n && [ \"$n\" != end ]; do \
         { echo \"receipt $n\"; head -c $((n * 97 % 30000)) /dev/urandom; } > /tmp/r; \
         receipt put --new-version \"day/$((n % 10)).png\" /tmp/r > /tmp/path && \
         echo \"$(cat /tmp/path) $(sha256sum < /tmp/r)\" || echo failed; done < /dev/ttyS0",
    );
    pair.front.type_line(
        "while read -r p && [ \"$p\" != end ]; do receipt get \"$p\" -o /tmp/r && sha256sum < /tmp/r || echo failed; done < /dev/ttyS0",
    );
    for round in 0..rounds {
        pair.issuer.type_line(&round.to_string());
        let stored = pair.issuer.line();
        let (path, hash) = stored.split_once(' ').unwrap_or_else(|| panic!("round {round}: {stored}"));
        assert_eq!(path, format!("day/{}.png", round % 10), "round {round}: {stored}");
        pair.front.type_line(path);
        assert_eq!(pair.front.line(), hash, "round {round}: {path} is stale or wrong");
    }
    for guest in [&mut pair.issuer, &mut pair.front] {
        guest.type_line("end");
    }
}

/// One process stores, one process reads, and only paths go from one to the other, each as soon as it is durable.
fn streamed_paths(pair: &mut Pair, count: usize) {
    pair.issuer.ok(&format!(
        "mkdir /tmp/in && cd /tmp/in && for n in $(seq {count}); do \
         {{ echo \"receipt $n\"; head -c $((n * 131 % 9000)) /dev/urandom; }} > $n.png; done"
    ));
    let issued = pair.issuer.ok("cd /tmp/in && sha256sum *.png | sort");
    let Pair { issuer, front, .. } = pair;
    issuer.type_line("receipt put --batch /tmp/in --prefix stream/ || echo failed");
    front.type_line("receipt get --batch - --to /tmp/out < /dev/ttyS0 || echo failed");
    let mut answers = VecDeque::new();
    for _ in 0..count {
        let path = issuer.line();
        front.type_line(&path);
        answers.push_back(path);
        // A terminal holds only so much that nobody has read.
        if answers.len() > 16 {
            assert_eq!(Some(front.line()), answers.pop_front());
        }
    }
    front.end_of_input();
    answers.into_iter().for_each(|path| assert_eq!(front.line(), path));
    let received = front.ok("cd /tmp/out/stream && sha256sum *.png | sort");
    assert_eq!(received.lines().count(), count);
    assert_eq!(received, issued, "what is read is not what was stored");
}

/// Segments of receipts whose term is over become holes in the file on the host, and the other guest reads what is kept all the while.
#[test]
fn room_of_what_has_expired_goes_back_to_the_host_while_the_other_guest_reads() {
    let mut pair = Pair::boot();
    pair.issuer.ok("receipt policy set 1 1 && mkdir /tmp/old /tmp/kept && \
         for n in $(seq 80); do head -c 150000 /dev/urandom > /tmp/old/$n.png; done && \
         for n in $(seq 5); do head -c 50000 /dev/urandom > /tmp/kept/$n.png; done && \
         receipt put --batch /tmp/old --prefix old/ --class 1 --issued 2001-02-03 > /tmp/log && \
         receipt put --batch /tmp/kept --prefix kept/ > /tmp/log");
    let sums: Vec<String> = pair
        .issuer
        .ok("cd /tmp/kept && sha256sum 1.png 2.png 3.png 4.png 5.png")
        .lines()
        .map(Into::into)
        .collect();
    let allocated = |pair: &Pair| std::fs::metadata(pair.stand.image()).unwrap().blocks() * 512;
    let full = allocated(&pair);
    pair.front.type_line(
        "while read -r n && [ \"$n\" != end ]; do receipt get kept/$n.png -o /tmp/$n.png && \
         (cd /tmp && sha256sum $n.png) || echo failed; done < /dev/ttyS0",
    );
    pair.issuer.type_line("receipt expire > /tmp/gone 2> /tmp/said && grep -c old/ /tmp/gone");
    let get = |pair: &mut Pair, round: usize| {
        let number = round % sums.len();
        pair.front.type_line(&(number + 1).to_string());
        assert_eq!(pair.front.line(), sums[number], "round {round}");
    };
    (0..20).for_each(|round| get(&mut pair, round));
    assert_eq!(pair.issuer.line().trim(), "80");
    (20..25).for_each(|round| get(&mut pair, round));
    pair.front.type_line("end");
    let left = allocated(&pair);
    assert!(left + 8_000_000 < full, "the image has {left} bytes on the host, before {full}");
    println!("the image had {full} bytes on the host, and has {left}");
    pair.finish();
}

/// Seconds that writer and reader race; the long test has 60.
const RACE_SECONDS: &str = "RECEIPTDISK_RACE_SECONDS";

/// One path is rewritten at full speed while the other guest reads it at full speed: each get gives a whole version,
/// never an older one than the get before.
#[test]
fn reader_races_the_writer() {
    let seconds = std::env::var(RACE_SECONDS).unwrap_or_else(|_| "10".into());
    let mut pair = Pair::boot();
    pair.issuer.ok("printf 00000000 > /tmp/r && receipt put newest.png /tmp/r");
    let until = format!("now() {{ cut -d. -f1 /proc/uptime; }}; end=$(($(now) + {seconds})); n=0");
    pair.issuer.type_line(&format!(
        "{until}; while [ $(now) -lt $end ]; do n=$((n + 1)); \
         {{ printf %08d $n; head -c $((n * 977 % 90000)) /dev/zero; }} > /tmp/r; \
         receipt put --new-version newest.png /tmp/r > /dev/null || echo failed; done; echo $n"
    ));
    pair.front.type_line(&format!(
        "{until}; last=0; while [ $(now) -lt $end ]; do n=$((n + 1)); \
         receipt get newest.png -o /tmp/r || echo failed; v=$(head -c 8 /tmp/r); \
         [ \"$v\" -ge \"$last\" ] || echo stale; last=$v; done; echo $n"
    ));
    let [puts, gets] = [&mut pair.issuer, &mut pair.front].map(|guest| guest.line());
    println!("{puts} puts and {gets} gets in {seconds} s");
    assert!(puts.parse::<u32>().is_ok_and(|n| n > 0), "a put failed: {puts}");
    assert!(gets.parse::<u32>().is_ok_and(|n| n > 0), "a get failed or was stale: {gets}");
    let last = pair.front.ok("receipt get newest.png | head -c 8");
    assert_eq!(last.trim_start_matches('0'), puts, "the last put is what is there");
    pair.finish();
}

#[test]
fn reader_cannot_write_and_a_naive_reader_is_stale() {
    let mut pair = Pair::boot();
    naive_reader_is_stale(&mut pair);
    reader_cannot_write(&mut pair);
    pair.finish();
}

fn reader_cannot_write(pair: &mut Pair) {
    pair.issuer.ok("echo precious > /tmp/r && receipt put precious.txt /tmp/r");
    for how in ["oflag=direct", "conv=fsync"] {
        let output = pair.front.run(&format!("dd if=/dev/zero of=/dev/vda bs=4096 count=16 {how}"));
        assert_ne!(output.code, 0, "a reader wrote: {}", output.text);
    }
    let put = pair.front.run("echo x | receipt put forged.txt -");
    assert_eq!(put.code, 7, "busy or read-only: {}", put.text);
    assert_eq!(pair.front.run("receipt get forged.txt").code, 3, "not found");
    assert_eq!(pair.front.ok("receipt get precious.txt"), "precious\n");
}

/// A reader that goes through its page cache does not see what `receipt get` sees.
fn naive_reader_is_stale(pair: &mut Pair) {
    // The shell holds the disk open: with the last close the kernel would forget the cache.
    pair.front.ok("exec 9< /dev/vda; cat /dev/vda > /dev/null");
    pair.issuer.ok("echo 'brand new receipt' > /tmp/r && receipt put new.txt /tmp/r");
    assert_eq!(pair.front.ok("receipt get new.txt"), "brand new receipt\n");
    let look = "grep -a -c 'brand new receipt'";
    let naive = pair.front.run(&format!("{look} /dev/vda"));
    assert_eq!(naive.text.trim(), "0", "a buffered read is expected to be stale");
    let direct = pair.front.ok(&format!("dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | {look}"));
    assert_ne!(direct.trim(), "0", "the receipt is on the disk as it is");
    pair.front.ok("exec 9<&-");
}

/// Programs that know only files: `cat`, `find`, a web server that uses sendfile.
#[test]
fn programs_in_the_front_guest_read_receipts_as_files() {
    let image = GuestImage::make(&[static_mount_binary()], &["fuse"]);
    let mut pair = Pair::boot_by(|name, run_dir| Guest::boot(name, run_dir, &image, &["--memory", "192M"]));
    let put = "head -c 70000 /dev/urandom > /tmp/r && receipt put --new-version day/a.png /tmp/r && sha256sum < /tmp/r";
    pair.issuer.ok(put);
    pair.front.ok(
        "mkdir /tmp/m && { receipt mount /tmp/m > /tmp/mounted & } && \
         until grep -q /tmp/m /tmp/mounted; do [ -d /proc/$! ] || break; sleep 0.05; done; httpd -p 127.0.0.1:80 -h /tmp/m",
    );
    for _ in 0..20 {
        let stored = pair.issuer.ok(put);
        let hash = stored.lines().last().unwrap();
        assert_eq!(pair.front.ok("sha256sum < /tmp/m/day/a.png").trim_end(), hash, "stale or wrong");
        let fetched = pair.front.ok("wget -q -O - http://127.0.0.1/day/a.png | sha256sum");
        assert_eq!(fetched.trim_end(), hash, "by HTTP");
    }
    pair.issuer.ok(
        "mkdir /tmp/in && cd /tmp/in && for n in $(seq 300); do head -c $((n * 37)) /dev/urandom > $n.png; done; \
         receipt put --batch /tmp/in --prefix many/",
    );
    let stored = pair.issuer.ok("cd /tmp/in && find . -type f | sort | xargs sha256sum");
    assert_eq!(pair.front.ok("cd /tmp/m/many && find . -type f | sort | xargs sha256sum"), stored);
    pair.issuer.ok("receipt rm day/a.png");
    assert_ne!(pair.front.run("cat /tmp/m/day/a.png").code, 0, "a removed receipt is shown");
    pair.front
        .ok("cd /; kill $(pidof httpd); until umount /tmp/m; do sleep 0.1; done; [ -z \"$(ls /tmp/m)\" ]");
    pair.finish();
}

#[test]
fn guest_programs_are_small() {
    // That they need no libraries is shown by every guest here: there are none.
    for (program, limit) in [(static_receipt_binary(), 2 << 20), (static_gateway_binary(), 12 << 20)] {
        let bytes = std::fs::metadata(&program).unwrap().len();
        assert!(bytes < limit, "{}: {bytes} bytes", program.display());
    }
}
