//! The whole way down to the image: receipts are put and read through the real backend, which records every write and sync; then
//! every moment at which the host could have crashed is made from the log, and the store opened on it.
//!
//! What must hold at each: a receipt that was acknowledged, or that any reader was given, is there and right.

use std::collections::BTreeMap;

use receipt_store::{Error, FormatOptions, Put, Reader, ReceiptPath, Writer, WriterOptions, format};
use receiptdisk_tests::crash_log::{CrashedDisk, Event, logged_entries, read_log};
use receiptdisk_tests::guest_disk::GuestDisk;
use receiptdisk_tests::rng::Rng;
use receiptdisk_tests::{Driver, SECTOR, Scratch, Serve};

const IMAGE_BYTES: u64 = 32 << 20;
const COMMITS: u64 = 60;
const PATHS: u64 = 40;
/// Random crash states at each prefix of the log, besides the prefix itself and what was flushed of it.
const STATES_PER_PREFIX: u64 = 24;

/// Who was promised what, and how much of the log stood by then.
#[derive(Debug)]
struct Promise {
    path: ReceiptPath,
    data: Vec<u8>,
    entries: u64,
}

#[test]
fn no_crash_takes_back_what_a_guest_was_told() {
    let seed = 20_261_123;
    let scratch = Scratch::new();
    let image = scratch.image(IMAGE_BYTES);
    let log = scratch.join("writes.log");
    let (promises, formatted) = {
        let serve = Serve::image(&image).arg("--record").arg(&log).rw("issuer").ro("front");
        let mut backend = serve.start();
        let issuer = GuestDisk::new(Driver::connect(&backend.socket("issuer")));
        let front = GuestDisk::new(Driver::connect(&backend.socket("front")));
        let options = FormatOptions { segment_bytes: Some(1 << 20), ..FormatOptions::default() };
        format(&issuer, &options).unwrap();
        let formatted = logged_entries(&log);
        let promises = live(&issuer, front, &log, seed);
        drop(issuer);
        assert_eq!(backend.terminate().code, Some(0));
        (promises, formatted)
    };
    let events = read_log(&log);
    let states = check_every_crash(&events, usize::try_from(formatted).unwrap(), &promises, seed);
    assert!(states >= 10_000, "only {states} crash states");
    println!("{} log entries, {} promises, {states} crash states", events.len(), promises.len());
}

/// Puts, new versions and gets, with every promise noted.
fn live(issuer: &GuestDisk, front: GuestDisk, log: &std::path::Path, seed: u64) -> Vec<Promise> {
    let mut rng = Rng::new(seed);
    let mut promises = Vec::new();
    let mut writer = Writer::open(issuer, &WriterOptions::default()).unwrap();
    let reader = Reader::new(front, "front");
    for commit in 0..COMMITS {
        let paths: Vec<ReceiptPath> = (0..=rng.below(4))
            .map(|at| ReceiptPath::new(&format!("2026/11/{}.png", (commit * 7 + at) % PATHS)).unwrap())
            .collect();
        let data: Vec<Vec<u8>> = paths
            .iter()
            .map(|path| {
                let len = rng.index(60_000);
                [path.as_str().as_bytes(), &commit.to_le_bytes(), &vec![0x5a; len]].concat()
            })
            .collect();
        let puts: Vec<Put<'_>> = paths
            .iter()
            .zip(&data)
            .map(|(path, data)| Put { is_new_version: true, ..Put::new(path, data) })
            .collect();
        let stored = writer.commit(&puts).unwrap();
        let entries = logged_entries(log);
        for ((path, data), stored) in paths.iter().zip(&data).zip(stored) {
            stored.unwrap();
            promises.push(Promise { path: path.clone(), data: data.clone(), entries });
        }
        let seen = &paths[rng.index(paths.len())];
        let given = reader.get(seen).unwrap().data().to_vec();
        promises.push(Promise { path: seen.clone(), data: given, entries: logged_entries(log) });
        if rng.below(10) == 0 {
            writer.close().unwrap();
            writer = Writer::open(issuer, &WriterOptions::default()).unwrap();
        }
    }
    promises
}

/// Opens the store on every crash state after the format and returns their number.
fn check_every_crash(events: &[Event], formatted: usize, promises: &[Promise], seed: u64) -> u64 {
    let mut rng = Rng::new(seed);
    let mut durable = CrashedDisk::new(IMAGE_BYTES);
    let mut unflushed: Vec<Event> = Vec::new();
    let (mut flushed_entries, mut states) = (0, 0);
    for (at, event) in events.iter().enumerate() {
        if *event == Event::Flush {
            unflushed.drain(..).for_each(|event| durable.keep(&event));
            flushed_entries = at + 1;
        } else {
            unflushed.push(event.clone());
        }
        if flushed_entries < formatted {
            continue;
        }
        let exact = [durable.clone(), durable.prefix(&unflushed)];
        let random = (0..STATES_PER_PREFIX).map(|_| durable.crash(&unflushed, &mut rng));
        for crashed in exact.into_iter().chain(random) {
            let place = format!("seed {seed}, crash after entry {at}, state {states}");
            check_state(crashed, flushed_entries as u64, promises, &place);
            states += 1;
        }
    }
    states
}

/// What the promises made by then demand: for each path, the newest of them or anything put later.
fn check_state(crashed: CrashedDisk, flushed_entries: u64, promises: &[Promise], place: &str) {
    Writer::open(&crashed, &WriterOptions::default())
        .unwrap_or_else(|error| panic!("{place}: recovery: {error}"))
        .close()
        .unwrap();
    let reader = Reader::new(crashed, "crashed");
    let mut wanted: BTreeMap<&str, (Option<usize>, Vec<usize>)> = BTreeMap::new();
    for (at, promise) in promises.iter().enumerate() {
        let (newest, later) = wanted.entry(promise.path.as_str()).or_default();
        if promise.entries <= flushed_entries {
            (*newest, *later) = (Some(at), Vec::new());
        } else {
            later.push(at);
        }
    }
    for (path, (newest, later)) in wanted {
        match reader.get(&ReceiptPath::new(path).unwrap()) {
            Ok(receipt) => {
                let may_be = newest.iter().chain(&later).any(|&at| promises[at].data == receipt.data());
                assert!(may_be, "{place}: {path} holds what nobody could expect");
            }
            Err(Error::NotFound { .. }) => assert!(newest.is_none(), "{place}: {path} is lost"),
            Err(error) => panic!("{place}: {path}: {error}"),
        }
    }
}

const BLOCKS: usize = 8;
const STEPS: u64 = 400;

/// What a guest was told of a block: no crash from then on may leave an older value.
#[derive(Debug, Clone, Copy)]
struct BlockPromise {
    block: u64,
    value: u64,
    entries: u64,
}

#[test]
fn no_crash_takes_back_what_a_durable_read_returned() {
    let (broken, states) = raw_blocks("durable");
    assert!(states >= 10_000, "only {states} crash states");
    assert_eq!(broken, 0, "values that a durable read returned are gone");
}

/// The same with ordinary reads: they do return what a crash can take back, so the test above can fail.
#[test]
fn crashes_do_take_back_what_an_ordinary_read_returned() {
    assert!(raw_blocks("completed").0 > 0);
}

/// One guest writes single sectors and sometimes flushes, another reads them with `reads=MODE`. Returns the promises
/// that crash states break, and the number of states.
fn raw_blocks(reads: &str) -> (u64, u64) {
    let seed = 4_711;
    let scratch = Scratch::new();
    let image = scratch.image(1 << 20);
    let log = scratch.join("writes.log");
    let serve = Serve::image(&image).arg("--record").arg(&log).rw("issuer");
    let mut backend = serve.guest("front", &format!("access=ro,reads={reads}")).start();
    let mut writer = Driver::connect(&backend.socket("issuer"));
    let mut reader = Driver::connect(&backend.socket("front"));
    let mut rng = Rng::new(seed);
    let mut promises = Vec::new();
    let mut written = [0; BLOCKS];
    for value in 1..=STEPS {
        let block = rng.below(BLOCKS as u64);
        let offset = block * SECTOR as u64;
        match rng.below(10) {
            0 => {
                writer.flush().unwrap();
                let entries = logged_entries(&log);
                promises.extend((0..).zip(written).map(|(block, value)| BlockPromise {
                    block,
                    value,
                    entries,
                }));
            }
            1..6 => {
                let mut data = vec![0; SECTOR];
                data[..8].copy_from_slice(&value.to_le_bytes());
                writer.write(offset, &data).unwrap();
                written[usize::try_from(block).unwrap()] = value;
            }
            _ => {
                let value = value_of(&reader.read(offset, SECTOR).unwrap());
                promises.push(BlockPromise { block, value, entries: logged_entries(&log) });
            }
        }
    }
    drop((writer, reader));
    assert_eq!(backend.terminate().code, Some(0));
    broken_promises(&read_log(&log), &promises, &mut rng)
}

fn broken_promises(events: &[Event], promises: &[BlockPromise], rng: &mut Rng) -> (u64, u64) {
    let mut durable = CrashedDisk::new(1 << 20);
    let mut unflushed: Vec<Event> = Vec::new();
    let (mut flushed_entries, mut states, mut broken) = (0, 0, 0);
    for (entries, event) in (1..).zip(events) {
        if *event == Event::Flush {
            unflushed.drain(..).for_each(|event| durable.keep(&event));
            flushed_entries = entries;
        } else {
            unflushed.push(event.clone());
        }
        let exact = [durable.clone(), durable.prefix(&unflushed)];
        let random = (0..STATES_PER_PREFIX * 2).map(|_| durable.crash(&unflushed, rng));
        for crashed in exact.into_iter().chain(random) {
            states += 1;
            let kept = promises.iter().filter(|promise| promise.entries <= flushed_entries);
            broken += kept
                .filter(|promise| value_of(&crashed.sector(promise.block)) < promise.value)
                .map(|_| 1)
                .sum::<u64>();
        }
    }
    (broken, states)
}

fn value_of(sector: &[u8]) -> u64 {
    u64::from_le_bytes(sector[..8].try_into().unwrap())
}
