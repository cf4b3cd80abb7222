//! Both gateways in two QEMU guests: what is put over HTTP in one is shown over HTTP by the other, and only paths cross the cable.

use std::net::SocketAddr;
use std::path::Path;

use receiptdisk_tests::{Client, Guest, GuestImage, Scratch, Stand, free_port, static_gateway_binary};

const RECEIPT_BYTES: usize = 100_000;
/// A frame without content: Ethernet, IP, TCP without time stamps.
const ACK_BYTES: u64 = 14 + 20 + 20;

/// The two machines with a gateway each, and where this host reaches them. Guests before the stand, so that they end first.
struct Gateways {
    issuer: Guest,
    front: Guest,
    addresses: [SocketAddr; 2],
    _stand: Stand,
}

impl Gateways {
    fn boot() -> Self {
        let stand = Stand::serve(Scratch::new(), |serve| serve.rw("issuer").ro("front"));
        let run_dir = stand.image().parent().unwrap().to_owned();
        let image = GuestImage::make(&[static_gateway_binary()], &[]);
        let ports = [free_port(), free_port()];
        let start = |name: &str, port: u16| {
            let forward = format!("{port}:8080");
            let args = ["--memory", "192M", "--net", "pair", "--net", "user", "--forward", &forward];
            Guest::boot(name, Path::new(&run_dir), &image, &args)
        };
        let (issuer, front) = (start("issuer", ports[0]), start("front", ports[1]));
        let (mut issuer, mut front) = (issuer.ready(), front.ready());
        issuer.ok("receipt format");
        run(&mut issuer, "issuer");
        run(&mut front, "front --issuer http://192.168.77.1:8080");
        let addresses = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Self { issuer, front, addresses, _stand: stand }
    }
}

/// Starts a gateway in a guest and waits until it listens.
fn run(guest: &mut Guest, args: &str) {
    guest.ok(&format!(
        "rm -f /tmp/out; receipt-gateway {args} --listen 0.0.0.0:8080 > /tmp/out 2> /tmp/err < /dev/null & echo $! > /tmp/pid"
    ));
    guest.ok("n=0; until grep -q http /tmp/out; do n=$((n + 1)); [ $n -lt 300 ] || { cat /tmp/err; exit 1; }; sleep 0.1; done");
}

/// Bytes and frames of the cable between the guests, both ways.
fn cable(front: &mut Guest) -> [u64; 2] {
    ["bytes", "packets"].map(|what| {
        let text = front.ok(&format!("cat /sys/class/net/eth0/statistics/[rt]x_{what}"));
        text.lines().map(|line| line.trim().parse::<u64>().unwrap()).sum()
    })
}

/// A receipt that begins as a PNG does and compresses badly.
fn receipt(number: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut state = number.wrapping_mul(2_654_435_761) | 1;
    while bytes.len() < RECEIPT_BYTES {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[test]
fn what_is_put_over_http_in_one_guest_is_shown_by_the_other() {
    const COUNT: u32 = 20;
    let mut gateways = Gateways::boot();
    let [issuer, front] = gateways.addresses;
    let (mut put, mut get) = (Client::connect(issuer), Client::connect(front));
    // Each is asked for as soon as it is acknowledged.
    for number in 0..COUNT {
        let target = format!("/receipts/2026/11/23/{number}.png?id=HT20261123000000{number:02}");
        put.send("PUT", &target, &[], &receipt(number)).expect(201);
        let answer = get.send("GET", &format!("/receipts?id=HT20261123000000{number:02}"), &[], b"");
        assert!(answer.expect(200).body == receipt(number), "receipt {number} is another one");
    }
    let before = cable(&mut gateways.front);
    for number in 0..COUNT {
        let answer = get.send("GET", &format!("/receipts?id=HT20261123000000{number:02}"), &[], b"");
        assert!(answer.expect(200).body == receipt(number), "receipt {number} is another one");
    }
    let after = cable(&mut gateways.front);
    let [bytes, frames] = [0, 1].map(|at| after[at] - before[at]);
    println!(
        "{COUNT} receipts: {bytes} bytes and {frames} frames on the cable, Ethernet, IP and TCP included"
    );
    // Where an answer takes 40 ms, as on a busy machine, its question is acknowledged by a frame of its own.
    let late = frames - 2 * u64::from(COUNT);
    let per_receipt = (bytes - late * ACK_BYTES) / u64::from(COUNT);
    assert!(per_receipt <= 200, "{per_receipt} bytes on the cable a receipt");
    by_command_and_without_the_issuer(&mut gateways, &mut get);
    for guest in [&mut gateways.issuer, &mut gateways.front] {
        guest.ok("kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid) 2> /dev/null; do sleep 0.1; done");
        guest.ok("receipt verify");
    }
    for guest in [gateways.issuer, gateways.front] {
        assert_eq!(guest.power_off().code, Some(0));
    }
}

/// `receipt put` in the issuer guest goes through the gateway; a dead issuer costs the front end the ids and nothing else.
fn by_command_and_without_the_issuer(gateways: &mut Gateways, get: &mut Client) {
    gateways.issuer.ok("echo by command > /tmp/r && receipt put by/command /tmp/r");
    assert_eq!(get.send("GET", "/receipts/by/command", &[], b"").expect(200).text(), "by command\n");
    gateways.issuer.ok("kill -9 $(cat /tmp/pid)");
    let by_path = get.send("GET", "/receipts/2026/11/23/7.png", &[], b"").expect(200);
    assert!(by_path.body == receipt(7));
    let by_id = get.send("GET", "/receipts?id=HT2026112300000007", &[], b"");
    assert_eq!(by_id.expect(502).code(), "issuer_down");
    run(&mut gateways.issuer, "issuer");
    let again = get.send("GET", "/receipts?id=HT2026112300000007", &[], b"").expect(200);
    assert!(again.body == receipt(7));
}
