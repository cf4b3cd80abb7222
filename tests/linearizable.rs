//! Random histories of several guests, checked: one order of whole requests explains all that any guest saw.

use std::process::Command;

use receiptdisk_tests::history::{History, Version, Violation};
use receiptdisk_tests::raw::{RawGuest, Request, Setup, status};
use receiptdisk_tests::recorder::{Client, Load, Mark, Recorder, marked, marks};
use receiptdisk_tests::{Proc, SECTOR, Scratch, Serve, Stand, StorageDaemon, backend_binary};

/// Few sectors and long requests: nearly all overlap.
const DENSE: Load = Load { sectors: 12, longest: 8, requests: 24, depth: 2 };

fn client(guest: RawGuest, queues: usize, writes: bool) -> Client {
    Client { guest, queues, writes }
}

fn started(mut guest: RawGuest, queues: u16) -> RawGuest {
    guest.start(Setup { queues, size: 64, ..Setup::default() });
    guest
}

/// Two to four guests on one backend: the first two write, the others read.
fn clients(stand: &Stand, count: usize) -> Vec<Client> {
    let names = ["a", "b", "c", "d"];
    let connect = |(index, name): (usize, &&str)| client(started(stand.raw(name), 2), 2, index < 2);
    names[..count].iter().enumerate().map(connect).collect()
}

fn two_writers_two_readers(serve: Serve) -> Serve {
    serve.rw("a").rw("b").ro("c").ro("d").arg("--multi-writer")
}

/// Every violation in `count` histories, each on sectors of its own as long as there are some.
fn violations(recorder: &mut Recorder, count: u64, load: Load, capacity: u64) -> Vec<(History, Violation)> {
    let places = capacity / load.sectors as u64;
    let history = |index| recorder.record(index % places * load.sectors as u64, load);
    let bad = |history: History| history.check().err().map(|violation| (history, violation));
    (0..count).map(history).filter_map(bad).collect()
}

/// `count` histories; the four settings together see 10,000.
fn check_backend(scratch: Scratch, guests: usize, count: u64, arguments: &[&str]) {
    let stand =
        Stand::serve(scratch, |serve| arguments.iter().fold(two_writers_two_readers(serve), Serve::arg));
    let mut recorder = Recorder::new(clients(&stand, guests), 1);
    let bad = violations(&mut recorder, count, DENSE, Stand::SIZE / SECTOR as u64);
    assert!(bad.is_empty(), "{} of {count} histories have no order; the first: {:?}", bad.len(), bad[0]);
}

#[test]
fn histories_on_tmpfs_inline() {
    check_backend(Scratch::on_tmpfs(), 2, 3500, &["--cache", "page", "--io-engine", "sync"]);
}

#[test]
fn histories_on_tmpfs_uring() {
    check_backend(Scratch::on_tmpfs(), 4, 3000, &["--cache", "page", "--io-engine", "io_uring"]);
}

#[test]
fn histories_on_disk_page_cache() {
    check_backend(Scratch::new(), 3, 2500, &["--cache", "page"]);
}

#[test]
fn histories_on_disk_direct() {
    check_backend(Scratch::new(), 3, 1000, &["--cache", "direct"]);
}

/// What a race gave.
struct Race {
    reads: u64,
    torn: u64,
    writes: u32,
}

/// Sectors of each request of a race: 64 KiB.
const RACE_SECTORS: usize = 128;

/// Requests of a race that each of the two guests has in flight.
const RACE_DEPTH: usize = 4;

/// Writes and reads of the same range, always some of both in flight, until `reads` reads have come back.
fn race(writer: &mut RawGuest, reader: &mut RawGuest, reads: u64) -> Race {
    let mut race = Race { reads: 0, torn: 0, writes: 0 };
    let write = |writer: &mut RawGuest, race: &mut Race| {
        race.writes += 1;
        let data = marked(Version { writer: 1, sequence: race.writes }, 0, RACE_SECTORS);
        writer.submit(0, &Request::write(0, &data).cut_readable(&[16, data.len() / 2]));
    };
    let read = |reader: &mut RawGuest| reader.submit(0, &Request::read(0, RACE_SECTORS * SECTOR));
    write(writer, &mut race);
    assert_eq!(writer.wait_used(0).1.status, status::OK);
    for _ in 0..RACE_DEPTH {
        write(writer, &mut race);
        read(reader);
    }
    while race.reads < reads {
        while let Some((_, outcome)) = writer.poll_used(0) {
            assert_eq!(outcome.status, status::OK);
            write(writer, &mut race);
        }
        let Some((_, outcome)) = reader.poll_used(0) else {
            std::thread::yield_now();
            continue;
        };
        assert_eq!(outcome.status, status::OK);
        race.reads += 1;
        race.torn += u64::from(is_torn(&marks(&outcome.data, 0)));
        read(reader);
    }
    for _ in 0..RACE_DEPTH {
        writer.wait_used(0);
        reader.wait_used(0);
    }
    race
}

/// All requests cover the same sectors: what is not one version is torn.
fn is_torn(marks: &[Mark]) -> bool {
    marks.iter().any(|mark| *mark != marks[0] || *mark == Mark::Broken)
}

#[test]
fn reads_in_a_race_are_whole() {
    let stand = Stand::serve(Scratch::on_tmpfs(), |serve| serve.rw("a").ro("b").arg("--cache").arg("page"));
    let (mut writer, mut reader) = (started(stand.raw("a"), 1), started(stand.raw("b"), 1));
    let Race { reads, torn, writes } = race(&mut writer, &mut reader, 10_000);
    println!("receiptdisk-backend: {torn} of {reads} reads of 64 KiB torn during {writes} writes");
    assert_eq!(torn, 0);
}

/// Both measures must see what is served in no order. A race may end well by luck: then it goes on.
fn assert_tears(name: &str, mut writer: RawGuest, mut reader: RawGuest) {
    let mut races = (0..100).map(|_| race(&mut writer, &mut reader, 10_000));
    let Race { reads, torn, writes } = races.find(|race| race.torn > 0).expect("a torn read in 1,000,000");
    println!("{name}: {torn} of {reads} reads of 64 KiB torn during {writes} writes");

    let load = Load { sectors: RACE_SECTORS, longest: RACE_SECTORS, requests: 24, depth: RACE_DEPTH };
    let mut recorder = Recorder::new(vec![client(writer, 1, true), client(reader, 1, false)], 1);
    let capacity = Stand::SIZE / SECTOR as u64;
    let mut rounds = (0..40).map(|_| violations(&mut recorder, 500, load, capacity));
    let bad = rounds.find(|bad| !bad.is_empty()).expect("a history without an order in 20,000");
    println!("{name}: {} of 500 histories have no order", bad.len());
}

/// QEMU's own storage daemon serves two guests in no order.
#[test]
fn qemu_storage_daemon_tears() {
    let scratch = Scratch::on_tmpfs();
    let image = scratch.image(Stand::SIZE);
    let sockets = [scratch.join("a.sock"), scratch.join("b.sock")];
    let daemon = StorageDaemon::spawn(&image, &sockets[0], Some(&sockets[1]));
    let _daemon = daemon.wait_until_serving(&sockets);
    let connect = |index: usize| started(RawGuest::connect(&sockets[index]), 1);
    assert_tears("qemu-storage-daemon", connect(0), connect(1));
}

/// The backend itself, once it lets overlapping requests run at once.
#[test]
fn backend_without_its_order_tears() {
    let scratch = Scratch::on_tmpfs();
    let image = scratch.image(Stand::SIZE);
    let sockets = [scratch.join("a.sock"), scratch.join("b.sock")];
    let mut command = Command::new(backend_binary());
    command.env("RECEIPTDISK_UNORDERED", "1").args(["serve", "--cache", "page", "--image"]).arg(&image);
    command.arg("--guest").arg(format!("name=a,socket={},access=rw", sockets[0].display()));
    command.arg("--guest").arg(format!("name=b,socket={},access=ro", sockets[1].display()));
    let _backend = Proc::spawn(&mut command, &scratch.join("backend.log"));
    let connect = |index: usize| started(RawGuest::connect(&sockets[index]), 1);
    assert_tears("receiptdisk-backend, RECEIPTDISK_UNORDERED=1", connect(0), connect(1));
}
