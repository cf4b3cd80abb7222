//! Both gateways in their guests, under load and under faults: no wrong image, ever.
//!
//! Clients on the host put and get receipts while gateways are stopped and killed, and the backend is killed, and all are started again. Every answer 200
//! must be a whole version of the receipt that was asked for, and none older than the last one acknowledged before the question.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use receiptdisk_tests::rng::Rng;
use receiptdisk_tests::{
    Backend, Guest, GuestImage, HttpClient, Scratch, Serve, free_port, pattern, static_gateway_binary, until,
};

/// Requests in all; the long test has 1000000.
const REQUESTS: &str = "RECEIPTDISK_GATEWAY_REQUESTS";
const CLIENTS: u64 = 6;
/// Receipts of each client.
const RECEIPTS: u64 = 20;
/// A fault comes after so many requests.
const FAULT_EVERY: u64 = 250;

const OK: u16 = 200;
const CREATED: u16 = 201;
const NOT_FOUND: u16 = 404;
const INSUFFICIENT_STORAGE: u16 = 507;

/// Guests first, so that they end first.
struct World {
    issuer: Guest,
    front: Guest,
    backend: Backend,
    serve: Serve,
    /// Ports of this host that lead to the gateways: issuer, front end.
    ports: [u16; 2],
    _scratch: Scratch,
}

const ISSUER: &str = "receipt-gateway issuer --listen 0.0.0.0:8080";
const FRONT: &str = "receipt-gateway front --listen 0.0.0.0:8080 --issuer http://192.168.77.1:8080";

impl World {
    fn boot(image_bytes: u64) -> Self {
        let files = GuestImage::make(&[static_gateway_binary()], &[]);
        let scratch = Scratch::new();
        let serve = Serve::image(&scratch.image(image_bytes)).rw("issuer").ro("front");
        let backend = serve.clone().start();
        let ports = [free_port(), free_port()];
        let boot = |name: &str, port: u16, run_dir: &Path| {
            let forward = format!("{port}:8080");
            let args = ["--memory", "256M", "--net", "pair", "--net", "user", "--forward", &forward];
            Guest::boot(name, run_dir, &files, &args)
        };
        let guests =
            [("issuer", ports[0]), ("front", ports[1])].map(|(name, port)| boot(name, port, scratch.path()));
        let [mut issuer, front] = guests.map(Guest::ready);
        issuer.ok("receipt format");
        let mut world = Self { issuer, front, backend, serve, ports, _scratch: scratch };
        start(&mut world.issuer, ISSUER);
        start(&mut world.front, FRONT);
        world
    }

    /// One fault after the other, in turns.
    fn strike(&mut self, number: u64) {
        match number % 5 {
            0 => restart(&mut self.issuer, "TERM", ISSUER),
            1 | 4 => {
                self.backend.kill();
                self.backend = self.serve.clone().start();
            }
            2 => restart(&mut self.issuer, "KILL", ISSUER),
            _ => restart(&mut self.front, "KILL", FRONT),
        }
    }
}

fn start(guest: &mut Guest, command: &str) {
    guest.ok(&format!(
        "{command} --no-access-log > /tmp/log 2>&1 & echo $! > /tmp/pid; \
         until grep -q ^http: /tmp/log; do [ -d /proc/$! ] || {{ cat /tmp/log; false; break; }}; sleep 0.05; done"
    ));
}

fn restart(guest: &mut Guest, signal: &str, command: &str) {
    guest.run(&format!("kill -{signal} $(cat /tmp/pid); wait"));
    start(guest, command);
}

/// What a client knows of one of its receipts.
#[derive(Default)]
struct Known {
    /// The last version that was acknowledged; 0 = none.
    acknowledged: u64,
    /// The last one that was sent.
    sent: u64,
}

/// Counts of answers by status; 0 = the connection broke.
type Answers = BTreeMap<u16, u64>;

struct Client {
    number: u64,
    known: Vec<Known>,
    issuer: HttpClient,
    front: HttpClient,
    rng: Rng,
    answers: Answers,
}

fn content(id: u64, version: u64) -> Vec<u8> {
    let mut data = pattern(
        id * 1_000_000 + version,
        0,
        usize::try_from(16 + (id * 37 + version * 977) % 12_000).unwrap(),
    );
    data[..8].copy_from_slice(&id.to_le_bytes());
    data[8..16].copy_from_slice(&version.to_le_bytes());
    data
}

impl Client {
    fn new(number: u64, [issuer, front]: [u16; 2]) -> Self {
        let known = (0..RECEIPTS).map(|_| Known::default()).collect();
        let (issuer, front) = (HttpClient::new(issuer), HttpClient::new(front));
        Self { number, known, issuer, front, rng: Rng::new(number + 1), answers: Answers::new() }
    }

    fn step(&mut self) {
        let at = self.rng.below(RECEIPTS);
        let status = if self.rng.below(10) < 3 { self.put(at) } else { self.get(at, false) };
        *self.answers.entry(status).or_default() += 1;
    }

    fn id(&self, at: u64) -> u64 {
        self.number * 1000 + at
    }

    fn put(&mut self, at: u64) -> u16 {
        let id = self.id(at);
        let known = &mut self.known[usize::try_from(at).unwrap()];
        known.sent += 1;
        let target = format!("/receipts/client/{id}.png?id=HT{id}&new_version=1");
        match self.issuer.request("PUT", &target, &content(id, known.sent)) {
            Ok((status @ (OK | CREATED), _)) => {
                known.acknowledged = known.sent;
                status
            }
            Ok((status, _)) => status,
            Err(_) => 0,
        }
    }

    /// Gets by path or by id. With `must_be_there` nothing but the receipt will do where one was acknowledged.
    fn get(&mut self, at: u64, must_be_there: bool) -> u16 {
        let id = self.id(at);
        let by_id = !must_be_there && self.rng.below(2) == 0;
        let target =
            if by_id { format!("/receipts?id=HT{id}") } else { format!("/receipts/client/{id}.png") };
        let known = &self.known[usize::try_from(at).unwrap()];
        match self.front.request("GET", &target, &[]) {
            Ok((OK, data)) => {
                let number = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
                let (seen_id, seen) = (number(0), number(8));
                assert_eq!(seen_id, id, "another receipt under {target}");
                assert!(data == content(id, seen), "version {seen} of {target} is damaged");
                assert!(
                    seen >= known.acknowledged && seen <= known.sent,
                    "{target} is version {seen}; {} was acknowledged, {} sent",
                    known.acknowledged,
                    known.sent
                );
                OK
            }
            Ok((NOT_FOUND, _)) => {
                assert_eq!(known.acknowledged, 0, "{target} was acknowledged and is not found");
                NOT_FOUND
            }
            Ok((status, body)) => {
                assert!(!must_be_there, "{target}: {status} {}", String::from_utf8_lossy(&body));
                status
            }
            Err(error) => {
                assert!(!must_be_there, "{target}: {error}");
                0
            }
        }
    }
}

#[test]
fn no_wrong_image_whatever_fails() {
    let requests: u64 = std::env::var(REQUESTS).map_or(1500, |text| text.parse().unwrap());
    let mut world = World::boot((64 << 20) + requests * (6 << 10));
    let (done, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut clients: Vec<Client> = (0..CLIENTS).map(|number| Client::new(number, world.ports)).collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            let (done, is_over) = (&done, &is_over);
            scope.spawn(move || {
                // A client that fails its test must not leave the others waiting for its requests.
                let _over = SetOnDrop(is_over);
                while done.fetch_add(1, Ordering::Relaxed) < requests && !is_over.load(Ordering::Relaxed) {
                    client.step();
                }
            });
        }
        for fault in 0..requests / FAULT_EVERY {
            let is_due =
                || done.load(Ordering::Relaxed) >= fault * FAULT_EVERY || is_over.load(Ordering::Relaxed);
            until("the next fault", || is_due().then_some(()));
            world.strike(fault);
        }
    });
    let mut answers = Answers::new();
    for (status, count) in clients.iter().flat_map(|client| &client.answers) {
        *answers.entry(*status).or_default() += count;
    }
    println!("answers by status (0 = connection broken): {answers:?}");
    assert!(answers[&OK] + answers[&CREATED] > requests / 4, "{answers:?}");
    fill_the_disk(&mut world, &mut clients);
    for guest in [&mut world.issuer, &mut world.front] {
        guest.ok("kill $(cat /tmp/pid); wait; receipt verify");
    }
    for guest in [world.issuer, world.front] {
        assert_eq!(guest.power_off().code, Some(0));
    }
}

/// A full disk refuses puts and shows everything that it holds.
fn fill_the_disk(world: &mut World, clients: &mut [Client]) {
    const BYTES: usize = 700_000;
    let mut issuer = HttpClient::new(world.ports[0]);
    world.issuer.ok(&format!(
        "head -c {BYTES} /dev/urandom > /tmp/big; n=0; while receipt put fill/$n /tmp/big > /dev/null 2>&1; do n=$((n + 1)); done"
    ));
    let refused = issuer.request("PUT", "/receipts/too-much", &pattern(1, 0, BYTES)).unwrap();
    assert_eq!(refused.0, INSUFFICIENT_STORAGE, "{}", String::from_utf8_lossy(&refused.1));
    for client in clients {
        client.front = HttpClient::new(world.ports[1]); // the kept one may have been idle too long
        for at in 0..RECEIPTS {
            client.get(at, true);
        }
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
