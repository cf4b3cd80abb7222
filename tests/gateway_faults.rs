//! Both gateways under load and under faults: no wrong image, ever.
//!
//! The gateways are processes of this host; each has its guest's disk as a file behind a driver of its own, so no virtual machine is needed and a
//! million requests take minutes. Clients put and get receipts while gateways are stopped and killed, the backend is killed, and the disk is full
//! until it grows. Every answer 200 must be a whole version of the receipt that was asked for, and none older than the last one acknowledged
//! before the question.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use receipt_store::{FormatOptions, RawDevice, format};
use receiptdisk_tests::rng::Rng;
use receiptdisk_tests::{
    Backend, Client as Connection, Ctl, Gateway, GuestFile, Scratch, Serve, pattern, receipt_binary, until,
};
use rustix::process::Signal;

/// Requests in all; the long test has 1000000.
const REQUESTS: &str = "RECEIPTDISK_GATEWAY_REQUESTS";
const CLIENTS: u64 = 16;
/// Receipts of each client.
const RECEIPTS: u64 = 20;
/// Pause of a client that got no receipt.
const PAUSE: Duration = Duration::from_millis(20);
/// Kinds of faults beside a full disk, in turns.
const FAULTS: [&str; 5] =
    ["issuer stopped", "backend killed", "issuer killed", "front end killed", "backend killed"];

const OK: u16 = 200;
const CREATED: u16 = 201;
const NOT_FOUND: u16 = 404;
const INSUFFICIENT_STORAGE: u16 = 507;

/// In this order they end: gateways, their disks, the backend.
struct World {
    issuer: Gateway,
    front: Gateway,
    disks: [GuestFile; 2],
    backend: Backend,
    serve: Serve,
    backends: u64,
    image_bytes: u64,
    scratch: Scratch,
}

impl World {
    fn start(image_bytes: u64) -> Self {
        let scratch = Scratch::new();
        let serve = Serve::image(&scratch.image(image_bytes)).rw("issuer").ro("front");
        let serve = serve.arg("--control").arg(scratch.join("ctl.sock"));
        let backend = serve.clone().start();
        let disks = ["issuer", "front"]
            .map(|name| GuestFile::new(&scratch.join(&format!("{name}.disk")), &backend.socket(name)));
        format(&RawDevice::open_writer(&scratch.join("issuer.disk")).unwrap(), &FormatOptions::default())
            .unwrap();
        let issuer = start_issuer(&scratch, None);
        let front = start_front(&scratch, issuer.address(), None);
        Self { issuer, front, disks, backend, serve, backends: 1, image_bytes, scratch }
    }

    /// One fault, and the end of it.
    fn strike(&mut self, fault: &str) {
        match fault {
            "issuer stopped" => self.restart_issuer(Signal::TERM),
            "issuer killed" => self.restart_issuer(Signal::KILL),
            "front end killed" => {
                let address = self.front.address();
                end(&mut self.front, Signal::KILL);
                self.front = start_front(&self.scratch, self.issuer.address(), Some(address));
            }
            "backend killed" => {
                // A guest whose handshake a death cuts short is lost with QEMU, too: docs say so.
                self.disks.iter().for_each(|disk| disk.wait_for_connection(self.backends));
                self.backend.kill();
                self.backend = self.serve.clone().start();
                self.backends += 1;
            }
            _ => panic!("unknown fault {fault}"),
        }
    }

    fn restart_issuer(&mut self, signal: Signal) {
        let address = self.issuer.address();
        end(&mut self.issuer, signal);
        self.issuer = start_issuer(&self.scratch, Some(address));
    }

    /// Makes the disk that is full larger by `bytes`. The issuer takes that over when it opens the store.
    fn grow(&mut self, bytes: u64) {
        self.image_bytes += bytes;
        Ctl::new(self.scratch.join("ctl.sock")).ok(&["resize", &self.image_bytes.to_string()]);
        self.restart_issuer(Signal::TERM);
    }

    fn verify(&self, disk: &str) {
        let mut verify = Command::new(receipt_binary());
        let output = verify.arg("--device").arg(self.scratch.join(disk)).arg("verify").output().unwrap();
        assert!(output.status.success(), "verify {disk}: {output:?}");
    }
}

fn log(scratch: &Scratch) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    scratch.join(&format!("gateway-{}.log", NUMBER.fetch_add(1, Ordering::Relaxed)))
}

fn start_issuer(scratch: &Scratch, address: Option<SocketAddr>) -> Gateway {
    let listen = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))).to_string();
    let socket = scratch.join("receipt.sock");
    let args = ["--listen", &listen, "--socket", socket.to_str().unwrap()];
    Gateway::start("issuer", &scratch.join("issuer.disk"), &args, &log(scratch))
}

fn start_front(scratch: &Scratch, issuer: SocketAddr, address: Option<SocketAddr>) -> Gateway {
    let listen = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))).to_string();
    let args = ["--listen", &listen, "--issuer", &format!("http://{issuer}")];
    Gateway::start("front", &scratch.join("front.disk"), &args, &log(scratch))
}

fn end(gateway: &mut Gateway, signal: Signal) {
    gateway.proc().signal(signal);
    let exit = gateway.proc().wait();
    assert!(signal == Signal::KILL || exit.code == Some(0), "{exit:?}");
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
    issuer: Connection,
    front: Connection,
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
    fn new(number: u64, world: &World) -> Self {
        let known = (0..RECEIPTS).map(|_| Known::default()).collect();
        let (issuer, front) =
            (Connection::new(world.issuer.address()), Connection::new(world.front.address()));
        Self { number, known, issuer, front, rng: Rng::new(number + 1), answers: Answers::new() }
    }

    fn step(&mut self) -> u16 {
        let at = self.rng.below(RECEIPTS);
        let status = if self.rng.below(10) < 3 { self.put(at) } else { self.get(at, false) };
        *self.answers.entry(status).or_default() += 1;
        status
    }

    fn id(&self, at: u64) -> u64 {
        self.number * 1000 + at
    }

    fn put(&mut self, at: u64) -> u16 {
        let id = self.id(at);
        let known = &mut self.known[usize::try_from(at).unwrap()];
        known.sent += 1;
        let target = format!("/receipts/client/{id}.png?id=HT{id}&new_version=1");
        match self.issuer.try_send("PUT", &target, &[], &content(id, known.sent)) {
            Ok(answer) => {
                if [OK, CREATED].contains(&answer.status) {
                    known.acknowledged = known.sent;
                }
                answer.status
            }
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
        let answer = match self.front.try_send("GET", &target, &[], b"") {
            Ok(answer) => answer,
            Err(error) => {
                assert!(!must_be_there, "{target}: {error}");
                return 0;
            }
        };
        match answer.status {
            OK => {
                let data = &answer.body;
                let number = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
                let (seen_id, seen) = (number(0), number(8));
                assert_eq!(seen_id, id, "another receipt under {target}");
                assert!(*data == content(id, seen), "version {seen} of {target} is damaged");
                assert!(
                    seen >= known.acknowledged && seen <= known.sent,
                    "{target} is version {seen}; {} was acknowledged, {} sent",
                    known.acknowledged,
                    known.sent
                );
            }
            NOT_FOUND => assert_eq!(known.acknowledged, 0, "{target} was acknowledged and is not found"),
            status => assert!(!must_be_there, "{target}: {status} {}", answer.text()),
        }
        answer.status
    }
}

/// What the clients share.
#[derive(Default)]
struct Run {
    done: AtomicU64,
    /// Puts for which there was no room since the disk grew last.
    refused: AtomicU64,
    is_over: AtomicBool,
}

impl Run {
    fn of_client(&self, client: &mut Client, requests: u64) {
        // A client that fails its test must not leave the others waiting for its requests.
        let _over = SetOnDrop(&self.is_over);
        while self.done.fetch_add(1, Ordering::Relaxed) < requests && !self.is_over.load(Ordering::Relaxed) {
            let status = client.step();
            self.refused.fetch_add(u64::from(status == INSUFFICIENT_STORAGE), Ordering::Relaxed);
            if ![OK, CREATED, NOT_FOUND].contains(&status) {
                std::thread::sleep(PAUSE); // or most requests would be those that meet nobody
            }
        }
    }

    /// Waits until so many were made: as long as it takes, but not if none ends any more.
    fn wait_for(&self, requests: u64) {
        let done = || self.done.load(Ordering::Relaxed);
        while done() < requests && !self.is_over.load(Ordering::Relaxed) {
            let before = done();
            until("a request to end", || {
                (done() > before || self.is_over.load(Ordering::Relaxed)).then_some(())
            });
        }
    }
}

#[test]
fn no_wrong_image_whatever_fails() {
    let requests: u64 = std::env::var(REQUESTS).map_or(12_000, |text| text.parse().unwrap());
    let growth_bytes = (requests << 10).next_multiple_of(1 << 20).max(16 << 20);
    let fault_every = (requests / 1000).max(250);
    let mut world = World::start(growth_bytes);
    let run = Run::default();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|number| Client::new(number, &world)).collect();
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| run.of_client(client, requests));
        }
        let _over = SetOnDrop(&run.is_over);
        for (number, fault) in (0..requests / fault_every).zip(FAULTS.iter().cycle()) {
            run.wait_for(number * fault_every);
            world.strike(fault);
            *faults.entry(fault).or_default() += 1;
            if run.refused.swap(0, Ordering::Relaxed) > 0 {
                world.grow(growth_bytes);
                run.refused.store(0, Ordering::Relaxed);
                *faults.entry("disk full").or_default() += 1;
            }
            if number % 100 == 99 {
                println!("{} requests so far, no image was wrong; faults: {faults:?}", number * fault_every);
            }
        }
        run.wait_for(requests);
    });
    let seconds = start.elapsed().as_secs();
    let mut answers = Answers::new();
    for (status, count) in clients.iter().flat_map(|client| &client.answers) {
        *answers.entry(*status).or_default() += count;
    }
    println!(
        "{requests} requests in {seconds} s; answers by status (0 = connection broken): {answers:?}; faults: {faults:?}"
    );
    assert!(answers[&OK] + answers[&CREATED] > requests / 4, "{answers:?}");
    assert!(faults.contains_key("disk full"), "the disk was never full: {faults:?}");
    // All that was acknowledged is there, whole.
    for client in &mut clients {
        client.front = Connection::new(world.front.address()); // the kept one may have been idle too long
        (0..RECEIPTS).for_each(|at| _ = client.get(at, true));
    }
    end(&mut world.issuer, Signal::TERM);
    end(&mut world.front, Signal::TERM);
    world.verify("issuer.disk");
    world.verify("front.disk");
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
