//! Put and get of receipts of 100 KiB on a file with direct IO, in turns with `fio` moving the same bytes.
//! Run with `tests/bench.sh store`; `RECEIPT_BENCH_DIR` says where the files lie (4 GiB), by default the folder for build results.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)] // a failed step of a benchmark may panic anywhere

mod fio;
mod gets;
mod puts;
mod timed;

use receipt_store::ReceiptPath;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const DATA_BYTES: usize = 100 << 10;
/// A record of that much data and a short path.
const RECORD_BYTES: usize = 26 * 4096;
const ROUNDS: usize = 5;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("read") => gets::read_only(Path::new(&args[2])),
        _ => all(),
    }
}

fn all() {
    let dir = std::env::var_os("RECEIPT_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let (disk, raw) = (dir.join("receipt-bench-store"), dir.join("receipt-bench-fio"));
    for (file, gib) in [(&disk, 2), (&raw, 1)] {
        fill(file, gib);
    }
    let stored = puts::put_all(&disk, &raw);
    println!("\nmost memory of the writing process: {} MiB", memory_mib());
    gets::get_all(&disk, &raw, &stored);
    let output = Command::new(std::env::current_exe().unwrap()).arg("read").arg(&disk).output().unwrap();
    println!("most memory of a reading process: {}", String::from_utf8_lossy(&output.stdout).trim());
    for file in [&disk, &raw] {
        std::fs::remove_file(file).unwrap();
    }
}

/// Zeroes that are really on the disk: neither side allocates blocks while it is measured.
fn fill(file: &Path, gib: u64) {
    std::fs::write(file, b"").unwrap();
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(gib << 30).unwrap();
    let status = Command::new("dd")
        .args(["if=/dev/zero", "bs=8M", "oflag=direct", "conv=notrunc,fsync", "status=none"])
        .arg(format!("count={}", gib * 128))
        .arg(format!("of={}", file.display()))
        .status();
    assert!(status.unwrap().success());
}

fn path(number: usize) -> ReceiptPath {
    ReceiptPath::new(&format!("2026/{number:07}.png")).unwrap()
}

fn receipt(number: usize) -> Vec<u8> {
    let seed = blake3::hash(&number.to_le_bytes());
    seed.as_bytes().iter().copied().cycle().take(DATA_BYTES).collect()
}

fn micros(run: impl FnOnce()) -> f64 {
    let began = Instant::now();
    run();
    began.elapsed().as_secs_f64() * 1e6
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}
