//! One writing guest and more and more reading ones, as userspace drivers: this machine has no room for so many QEMUs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use receipt_store::{FormatOptions, Put, Reader, ReceiptPath, Writer, WriterOptions, format};
use receiptdisk_tests::guest_disk::GuestDisk;
use receiptdisk_tests::rng::Rng;
use receiptdisk_tests::{Driver, Scratch, Serve, pattern};

use crate::options::Options;

const READERS: [usize; 4] = [1, 2, 4, 8];
const RECEIPTS: u64 = 500;
const TIME: Duration = Duration::from_secs(3);

/// Gets and puts a second with so many readers.
pub struct Scaled {
    pub readers: usize,
    pub gets: f64,
    pub puts: f64,
}

fn path(number: u64) -> ReceiptPath {
    ReceiptPath::new(&format!("r/{number}.png")).unwrap()
}

/// Every get is checked; a wrong or failed one ends the benchmark.
pub fn measure(options: &Options) -> Vec<Scaled> {
    let scratch = Scratch::in_folder(&options.folder);
    let names: Vec<String> = (0..READERS[3]).map(|number| format!("front{number}")).collect();
    let serve = Serve::image(&scratch.image(8 << 30)).rw("issuer").arg("--cache").arg(&options.cache);
    let backend = names.iter().fold(serve, |serve, name| serve.ro(name)).start();
    let disk = |name: &str| GuestDisk::new(Driver::connect(&backend.socket(name)));
    let issuer = disk("issuer");
    format(&issuer, &FormatOptions::default()).unwrap();
    let mut writer = Writer::open(&issuer, &WriterOptions::default()).unwrap();
    let data = |number: u64| pattern(number % 16, 0, usize::try_from(options.bytes).unwrap());
    let contents: Vec<Vec<u8>> = (0..16).map(data).collect();
    let content = |number: u64| &contents[usize::try_from(number % 16).unwrap()];
    let mut next = 0;
    let mut put = || {
        writer.put(&Put::new(&path(next), content(next))).unwrap();
        next += 1;
    };
    (0..RECEIPTS).for_each(|_| put());
    READERS
        .into_iter()
        .map(|readers| {
            let (gets, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
            let mut puts = 0_u32;
            let start = Instant::now();
            std::thread::scope(|scope| {
                for (seed, name) in (0..).zip(&names[..readers]) {
                    let (gets, is_over) = (&gets, &is_over);
                    scope.spawn(move || {
                        let reader = Reader::new(disk(name), name);
                        let mut rng = Rng::new(seed);
                        while !is_over.load(Ordering::Relaxed) {
                            let number = rng.below(RECEIPTS);
                            let receipt = reader.get(&path(number)).unwrap();
                            assert!(receipt.data() == content(number), "receipt {number} is wrong");
                            gets.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                while start.elapsed() < TIME {
                    put();
                    puts += 1;
                }
                is_over.store(true, Ordering::Relaxed);
            });
            let seconds = start.elapsed().as_secs_f64();
            let gets = f64::from(u32::try_from(gets.into_inner()).unwrap()) / seconds;
            Scaled { readers, gets, puts: f64::from(puts) / seconds }
        })
        .collect()
}
