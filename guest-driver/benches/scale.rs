//! Gets of small receipts while the store grows from a thousand to a million, and the memory of a writer and a reader.
//! Run with `tests/bench.sh scale`; `RECEIPT_BENCH_DIR` says where the file lies (12 GiB are written), by default the folder for build results.

#![allow(clippy::unwrap_used, missing_docs)] // a failed step of a benchmark may panic anywhere

use receipt_store::{FormatOptions, Put, RawDevice, Reader, ReceiptPath, Writer, WriterOptions, format};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Sparse: room for an index of a million receipts that is not crowded.
const DISK_BYTES: u64 = 64 << 30;
const DATA_BYTES: usize = 1000;
const COMMIT_RECEIPTS: usize = 250;
const GETS: usize = 2000;
const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        ["grow", disk, from, to] => grow(Path::new(disk), from.parse().unwrap(), to.parse().unwrap()),
        ["read", disk, stored] => read(Path::new(disk), stored.parse().unwrap()),
        _ => all(),
    }
}

/// Each step is a process of its own, so that its peak of memory is its own.
fn all() {
    let dir = std::env::var_os("RECEIPT_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let disk = dir.join("receipt-bench-scale");
    std::fs::File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    let device = RawDevice::open_writer(&disk).unwrap();
    println!("direct IO: {}\n", device.is_direct());
    format(&device, &FormatOptions { force: true, ..FormatOptions::default() }).unwrap();
    drop(device);
    println!(
        "| receipts | puts/s, commits of {COMMIT_RECEIPTS} | writer MiB | get cold p50 / p99 us | warm | by locator | reader MiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut before = 0;
    for stored in SIZES {
        let (disk, from, to) = (disk.to_str().unwrap(), before.to_string(), stored.to_string());
        let written = step(&["grow", disk, &from, &to]);
        let read = step(&["read", disk, &to]);
        println!("| {stored} | {written} | {read} |");
        before = stored;
    }
    std::fs::remove_file(&disk).unwrap();
}

fn step(args: &[&str]) -> String {
    let output = Command::new(std::env::current_exe().unwrap()).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn grow(disk: &Path, from: usize, to: usize) {
    let device = RawDevice::open_writer(disk).unwrap();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    let began = Instant::now();
    for at in (from..to).step_by(COMMIT_RECEIPTS) {
        let numbers = at..to.min(at + COMMIT_RECEIPTS);
        let paths: Vec<ReceiptPath> = numbers.clone().map(path).collect();
        let data: Vec<Vec<u8>> = numbers.map(receipt).collect();
        let puts: Vec<Put<'_>> = paths.iter().zip(&data).map(|(path, data)| Put::new(path, data)).collect();
        for stored in writer.commit(&puts).unwrap() {
            stored.unwrap();
        }
    }
    println!("{:.0} | {}", (to - from) as f64 / began.elapsed().as_secs_f64(), memory_mib());
    writer.close().unwrap();
}

fn read(disk: &Path, stored: usize) {
    let device = RawDevice::open_reader(disk).unwrap();
    let warm = Reader::new(&device, "disk");
    let mut times: [Vec<f64>; 3] = Default::default();
    let mut at = 1;
    for _ in 0..GETS {
        at = (at * 48271 + 7) % stored;
        let (path, data) = (path(at), receipt(at));
        let locator = warm.stat(&path).unwrap().locator();
        times[0].push(micros(|| assert_eq!(Reader::new(&device, "disk").get(&path).unwrap().data(), data)));
        times[1].push(micros(|| assert_eq!(warm.get(&path).unwrap().data(), data)));
        times[2].push(micros(|| assert_eq!(warm.get_locator(&locator).unwrap().data(), data)));
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
        print!("{:.0} / {:.0} | ", times[GETS / 2], times[GETS * 99 / 100]);
    }
    println!("{}", memory_mib());
}

fn path(number: usize) -> ReceiptPath {
    ReceiptPath::new(&format!("2026/{number:07}.png")).unwrap()
}

fn receipt(number: usize) -> Vec<u8> {
    number.to_le_bytes().iter().copied().cycle().take(DATA_BYTES).collect()
}

fn micros(run: impl FnOnce()) -> f64 {
    let began = Instant::now();
    run();
    began.elapsed().as_secs_f64() * 1e6
}

/// Most memory that this process ever had.
fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}
