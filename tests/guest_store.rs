//! What an operator of the host does to a store while two QEMU guests use it: the disk grows, segments are sealed.

use receipt_store::{RawDevice, Reader, ReceiptPath};
use receiptdisk_tests::{Ctl, Guest, Scratch, Stand};

/// Two machines on a disk with a store of 60 receipts of 250,000 bytes under `old/`. Guests before the stand, so that they end first.
struct Pair {
    issuer: Guest,
    front: Guest,
    stand: Stand,
    ctl: Ctl,
}

const RECEIPTS: usize = 60;

impl Pair {
    fn boot(more: &[&str]) -> Self {
        let scratch = Scratch::new();
        let control = scratch.join("ctl.sock");
        let stand = Stand::serve(scratch, |serve| {
            more.iter().fold(serve.rw("issuer").ro("front").arg("--control").arg(&control), |serve, arg| {
                serve.arg(arg)
            })
        });
        let run_dir = stand.image().parent().unwrap().to_owned();
        let [issuer, front] = ["issuer", "front"].map(|name| Guest::start(name, &run_dir));
        let (mut issuer, front) = (issuer.ready(), front.ready());
        issuer.ok(&format!(
            "receipt format && mkdir /tmp/in && for n in $(seq {RECEIPTS}); do head -c 250000 /dev/urandom > /tmp/in/$n.png; done && \
             receipt put --batch /tmp/in --prefix old/ > /tmp/log"
        ));
        Self { issuer, front, stand, ctl: Ctl::new(control) }
    }

    fn power_off(self) {
        for guest in [self.issuer, self.front] {
            assert_eq!(guest.power_off().code, Some(0));
        }
    }
}

/// One process in the reading guest, begun before the growth, goes on getting old receipts through it, and gets new ones beyond the old end.
#[test]
fn disk_grows_while_an_old_reader_in_the_other_guest_gets_throughout() {
    let mut pair = Pair::boot(&[]);
    let sizes = [Stand::SIZE, 2 * Stand::SIZE].map(|size_bytes| size_bytes / 512);
    for guest in [&mut pair.issuer, &mut pair.front] {
        assert_eq!(guest.ok("cat /sys/block/vda/size").trim(), sizes[0].to_string());
    }
    pair.front.type_line("receipt get --batch - --to /tmp/out < /dev/ttyS0 || echo failed");
    let get = |pair: &mut Pair, path: &str| {
        pair.front.type_line(path);
        assert_eq!(pair.front.line(), path, "an old reader");
    };
    (1..=5).for_each(|n| get(&mut pair, &format!("old/{n}.png")));
    let full = pair.issuer.run("receipt put --batch /tmp/in --prefix more/ > /tmp/log");
    assert_eq!(full.code, 6, "no room for as many: {}", full.text);

    pair.ctl.ok(&["resize", "64M"]);
    pair.issuer.type_line(&format!(
        "until [ $(cat /sys/block/vda/size) = {} ]; do sleep 0.1; done; receipt grow > /tmp/grown 2>&1 && \
         receipt put --batch /tmp/in --prefix new/ > /tmp/log 2> /tmp/said && wc -l < /tmp/log || echo failed",
        sizes[1]
    ));
    (1..=20).for_each(|n| get(&mut pair, &format!("old/{n}.png")));
    assert_eq!(pair.issuer.line().trim(), RECEIPTS.to_string(), "all of them fit now");
    for n in [1, 30, RECEIPTS] {
        get(&mut pair, &format!("new/{n}.png"));
        get(&mut pair, &format!("old/{n}.png"));
    }
    pair.front.end_of_input();
    assert_eq!(pair.front.ok("cat /sys/block/vda/size").trim(), sizes[1].to_string(), "told, too");
    let sums = |guest: &mut Guest, dir: &str| {
        guest.ok(&format!("cd {dir} && sha256sum 1.png 30.png {RECEIPTS}.png"))
    };
    let stored = sums(&mut pair.issuer, "/tmp/in");
    for dir in ["/tmp/out/old", "/tmp/out/new"] {
        assert_eq!(sums(&mut pair.front, dir), stored, "{dir}");
    }
    for guest in [&mut pair.issuer, &mut pair.front] {
        guest.ok("receipt verify");
    }
    pair.power_off();
}

/// Root in the writing guest overwrites a receipt as `dd` does: refused while its segment is sealed, and the reader gets the old bytes; once the host has
/// let go of it the same command destroys the receipt, which the reader notices.
#[test]
fn root_in_the_writing_guest_cannot_overwrite_what_the_host_has_sealed() {
    let mut pair = Pair::boot(&["--seal"]);
    let reader = Reader::new(RawDevice::open_reader(pair.stand.image()).unwrap(), "image");
    let block = reader.stat(&ReceiptPath::new("old/1.png").unwrap()).unwrap().header.block;
    let spans = reader.sealed_spans().unwrap();
    let span = spans.iter().find(|span| (span.start_bytes..span.end_bytes).contains(&(block * 4096)));
    let span = span.expect("the first receipt is in a closed segment").to_string();
    let all: Vec<String> = spans.iter().map(ToString::to_string).collect();
    let seal: Vec<&str> = std::iter::once("seal").chain(all.iter().map(String::as_str)).collect();
    pair.ctl.ok(&seal);

    let stored = pair.issuer.ok("sha256sum < /tmp/in/1.png");
    let overwrite = |how: &str| format!("dd if=/dev/urandom of=/dev/vda bs=4096 seek={block} count=60 {how}");
    for how in ["oflag=direct conv=notrunc", "conv=notrunc,fsync"] {
        let refused = pair.issuer.run(&overwrite(how));
        assert_ne!(refused.code, 0, "{how}: {}", refused.text);
        assert_eq!(pair.front.ok("receipt get old/1.png | sha256sum"), stored, "{how}");
    }
    for guest in [&mut pair.issuer, &mut pair.front] {
        guest.ok("receipt verify");
    }
    assert!(pair.ctl.stats("issuer")["refused_by_seal"].as_u64().unwrap() >= 2);
    pair.issuer.ok("receipt put later.png /tmp/in/2.png"); // the log goes on

    pair.ctl.ok(&["unseal", &span]);
    pair.issuer.ok(&overwrite("oflag=direct conv=notrunc"));
    assert_eq!(pair.front.run("receipt get old/1.png -o /tmp/r").code, 5, "corrupt, and not handed out");
    pair.power_off();
}
