//! One writing guest and eight reading ones, as userspace drivers: every get is whole, right and never stale.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use receipt_store::{FormatOptions, Put, Reader, ReceiptPath, Writer, WriterOptions, format};
use receiptdisk_tests::guest_disk::GuestDisk;
use receiptdisk_tests::{Driver, Scratch, Stand, pattern};

const READERS: usize = 8;
const PATHS: u64 = 16;
const PUTS: u64 = 400;

fn path(number: u64) -> ReceiptPath {
    ReceiptPath::new(&format!("r/{}.png", number % PATHS)).unwrap()
}

/// Version `number` says so in its first bytes.
fn receipt(number: u64) -> Vec<u8> {
    let mut data = pattern(number, 0, 8 + usize::try_from(number * 977 % 50_000).unwrap());
    data[..8].copy_from_slice(&number.to_le_bytes());
    data
}

fn disk(socket: &Path) -> GuestDisk {
    GuestDisk::new(Driver::connect(socket))
}

/// Gets receipts until the writer has ended; returns their number.
fn read(socket: &Path, number: u64, acknowledged: &AtomicU64) -> u64 {
    let reader = Reader::new(disk(socket), "disk");
    let mut gets = 0;
    for wanted in (number..).step_by(3) {
        let newest = acknowledged.load(Ordering::SeqCst);
        if newest == PUTS - 1 && gets > 0 {
            break;
        }
        let oldest_allowed = newest - (newest - wanted % PATHS) % PATHS;
        let data = reader.get(&path(wanted)).unwrap();
        let seen = u64::from_le_bytes(data.data()[..8].try_into().unwrap());
        assert!(data.data() == receipt(seen), "a get is not version {seen}");
        assert!(
            seen >= oldest_allowed && seen % PATHS == wanted % PATHS,
            "{seen}, not {oldest_allowed} or newer"
        );
        gets += 1;
    }
    gets
}

#[test]
fn eight_readers_follow_one_writer() {
    let names: Vec<String> = (0..READERS).map(|number| format!("front{number}")).collect();
    let stand = Stand::serve(Scratch::new(), |serve| {
        names.iter().fold(serve.rw("issuer"), |serve, name| serve.ro(name))
    });
    let disk = disk(&stand.socket("issuer"));
    format(&disk, &FormatOptions::default()).unwrap();
    let mut writer = Writer::open(&disk, &WriterOptions::default()).unwrap();
    let mut put = |number| {
        let (path, data) = (path(number), receipt(number));
        writer.put(&Put { is_new_version: true, ..Put::new(&path, &data) }).unwrap();
    };
    (0..PATHS).for_each(&mut put);
    let acknowledged = AtomicU64::new(PATHS - 1);
    let gets: Vec<u64> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..)
            .zip(&names)
            .map(|(number, name)| {
                let (socket, acknowledged) = (stand.socket(name), &acknowledged);
                scope.spawn(move || read(&socket, number, acknowledged))
            })
            .collect();
        for number in PATHS..PUTS {
            put(number);
            acknowledged.store(number, Ordering::SeqCst);
        }
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    println!("gets of each reader: {gets:?}");
    assert!(gets.iter().all(|gets| *gets > 0));
}
