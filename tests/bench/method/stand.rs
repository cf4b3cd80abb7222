//! The two guests with everything between them.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use receiptdisk_tests::{Backend, Guest, GuestImage, Proc, Scratch, Serve, static_binary};

use crate::folders::{Folder, make_disk, virtiofsd};
use crate::measure::{Measured, Phase};
use crate::options::Options;
use crate::peers::{Peer, SHOW};

const IMAGE_BYTES: u64 = 8 << 30;
const MEMORY: &str = "384M";

/// Guests first, so that they end first.
pub struct Stand {
    issuer: Guest,
    front: Guest,
    backend: Backend,
    daemons: Vec<Proc>,
    /// What is mounted already.
    mounted: Vec<Folder>,
    /// First ids of the receipts that the puts of `stored_by` have stored: one at a time, and concurrently.
    stored: Vec<u64>,
    stored_by: &'static str,
    _scratch: Scratch,
}

impl Stand {
    /// Boots both.
    pub fn boot(options: &Options) -> Self {
        let program = |name: &str, variable: &str| static_binary(name, variable, "tests/bench.sh method");
        let load = program("examples/method-load", "METHOD_LOAD");
        let gateway = program("receipt-gateway", "RECEIPT_GATEWAY");
        let files = GuestImage::make(&[load, gateway], &["virtiofs", "nfsd", "nfsv4"]);
        let scratch = Scratch::in_folder(&options.folder);
        let image = scratch.image(IMAGE_BYTES);
        let backend =
            Serve::image(&image).rw("issuer").ro("front").arg("--cache").arg(&options.cache).start();
        let shared = scratch.join("shared");
        fs::create_dir(&shared).unwrap();
        let own_disk = format!("{},own", make_disk(&scratch.join("own.img")).display());
        let mut daemons = Vec::new();
        let [mut issuer, front] = ["issuer", "front"]
            .map(|name| {
                let socket = scratch.join(&format!("{name}-fs.sock"));
                daemons.push(virtiofsd(&shared, &socket));
                let chardev = format!("socket,id=fs,path={}", socket.display());
                let extra =
                    ["--", "-chardev", &chardev, "-device", "vhost-user-fs-pci,chardev=fs,tag=shared"];
                let own = if name == "issuer" { vec!["--raw", &own_disk] } else { Vec::new() };
                let args: Vec<&str> =
                    ["--memory", MEMORY, "--net", "pair"].into_iter().chain(own).chain(extra).collect();
                Guest::boot(name, scratch.path(), &files, &args)
            })
            .map(Guest::ready);
        issuer.ok("receipt format");
        Self {
            issuer,
            front,
            backend,
            daemons,
            mounted: Vec::new(),
            stored: Vec::new(),
            stored_by: "",
            _scratch: scratch,
        }
    }

    /// Starts the servers of a peer.
    pub fn begin(&mut self, peer: &Peer) {
        if self.stored_by != peer.key {
            self.stored.clear();
            self.stored_by = peer.key;
        }
        if let Some(folder) = Folder::of(peer.key).filter(|folder| !self.mounted.contains(folder)) {
            folder.mount(&mut self.issuer, &mut self.front);
            self.mounted.push(folder);
        }
        for (guest, server) in [(&mut self.issuer, &peer.issuer), (&mut self.front, &peer.front)] {
            if let Some(command) = server {
                start_server(guest, command);
            }
        }
    }

    /// Ends the servers.
    pub fn end(&mut self) {
        for guest in [&mut self.issuer, &mut self.front] {
            guest.ok(
                "for pid in $(cat /tmp/servers 2>/dev/null); do kill $pid; done; rm -f /tmp/servers; wait",
            );
        }
    }

    /// One measurement. Gets read what the puts of this kind of peer have stored.
    pub fn measure(&mut self, peer: &Peer, phase: Phase, next_id: &mut u64, options: &Options) -> Measured {
        let (count, bytes) = (options.count, options.bytes);
        let first = match phase {
            Phase::Get(threads) | Phase::Customer(threads) => {
                self.stored.get(usize::from(threads > 1)).copied()
            }
            Phase::Put(_) | Phase::Issue => None,
        };
        let first = first.unwrap_or_else(|| {
            *next_id += count;
            *next_id - count
        });
        let work = |verb: &str, (name, place): &(&str, String), threads: u64| {
            let threads = if threads == 1 { 1 } else { options.threads };
            format!("method-load {verb} {name} {place} {first} {count} {bytes} {threads}")
        };
        match phase {
            Phase::Put(threads) => {
                self.stored.push(first);
                self.run(true, &work("put", peer.put.as_ref().expect("a peer that stores"), threads))
            }
            Phase::Get(threads) => self.run(false, &work("get", peer.get.as_ref().expect("a peer"), threads)),
            Phase::Customer(threads) => {
                self.run(false, &work("get", peer.customer.as_ref().expect("a front end"), threads))
            }
            Phase::Issue => {
                let [(put, put_place), (get, get_place)] = peer.issue.as_ref().expect("two ends");
                start_server(
                    &mut self.front,
                    &format!("method-load show {get} {get_place} {SHOW} {count} {bytes}"),
                );
                self.run(true, &format!("method-load issue {put} {put_place} {SHOW} {first} {count} {bytes}"))
            }
        }
    }

    /// Runs the load program in the issuer guest or in the front guest.
    fn run(&mut self, in_issuer: bool, command: &str) -> Measured {
        // Nobody reads what an earlier measurement has left in a guest's memory.
        self.front.ok("echo 3 > /proc/sys/vm/drop_caches");
        let host_before = self.host_cpu_ticks();
        let (guest, other) =
            if in_issuer { (&mut self.issuer, &mut self.front) } else { (&mut self.front, &mut self.issuer) };
        let other_before = cpu_ticks(other);
        let line = guest.ok(command);
        let other_ticks = cpu_ticks(other) - other_before;
        Measured::from_line(line.trim(), other_ticks, self.host_cpu_ticks() - host_before)
    }

    fn host_cpu_ticks(&mut self) -> u64 {
        let guests = self.issuer.proc().cpu_ticks() + self.front.proc().cpu_ticks();
        let daemons: u64 = self.daemons.iter().map(Proc::cpu_ticks).sum();
        guests + daemons + self.backend.proc().cpu_ticks()
    }
}

/// Starts a program that says where it listens, and waits for that.
fn start_server(guest: &mut Guest, command: &str) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let log = format!("/tmp/server-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    guest.ok(&format!(
        "{command} > {log} 2>&1 & echo $! >> /tmp/servers; until grep -qE '^(listening|http:)' {log}; do \
         [ -d /proc/$! ] || {{ cat {log}; false; break; }}; sleep 0.05; done"
    ));
}

/// Ticks of the whole guest that were not idle, read by the shell itself.
fn cpu_ticks(guest: &mut Guest) -> u64 {
    let line = guest.ok("read -r cpu user nice system idle iowait irq softirq steal rest < /proc/stat; echo $((user + nice + system + irq + softirq + steal))");
    line.trim().parse().unwrap_or_else(|_| panic!("no number of ticks: {line}"))
}
