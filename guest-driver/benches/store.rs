//! Put and get of receipts of 100 KiB on a file with direct IO, in turns with `fio` moving the same bytes.
//! Run with `tests/bench.sh store`; `RECEIPT_BENCH_DIR` says where the files lie (4 GiB), by default the folder for build results.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)] // a failed step of a benchmark may panic anywhere

use receipt_store::{
    Device, FormatOptions, Locator, Put, RawDevice, Reader, ReceiptPath, Writer, WriterOptions, format,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const DATA_BYTES: usize = 100 << 10;
/// A record of that much data and a short path.
const RECORD_BYTES: usize = 26 * 4096;
const ROUNDS: usize = 5;
const PUTS_PER_ROUND: usize = 256;
const GETS: usize = 1000;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("read") => read_only(Path::new(&args[2])),
        _ => all(),
    }
}

fn all() {
    let dir = std::env::var_os("RECEIPT_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let (disk, raw) = (dir.join("receipt-bench-store"), dir.join("receipt-bench-fio"));
    for file in [&disk, &raw] {
        fill(file);
    }
    let stored = put_all(&disk, &raw);
    get_all(&disk, &raw, &stored);
    println!("\nmost memory of the writing process: {} MiB", memory_mib());
    let output = Command::new(std::env::current_exe().unwrap()).arg("read").arg(&disk).output().unwrap();
    println!("most memory of a reading process: {}", String::from_utf8_lossy(&output.stdout).trim());
    for file in [&disk, &raw] {
        std::fs::remove_file(file).unwrap();
    }
}

/// Zeroes that are really on the disk: neither side allocates blocks while it is measured.
fn fill(file: &Path) {
    std::fs::write(file, b"").unwrap();
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(1 << 30).unwrap();
    let status = Command::new("dd")
        .args(["if=/dev/zero", "bs=8M", "count=128", "oflag=direct", "conv=notrunc,fsync", "status=none"])
        .arg(format!("of={}", file.display()))
        .status();
    assert!(status.unwrap().success());
}

fn put_all(disk: &Path, raw: &Path) -> Vec<Locator> {
    let device = RawDevice::open_writer(disk).unwrap();
    println!("direct IO: {}", device.is_direct());
    format(&device, &FormatOptions { force: true, ..FormatOptions::default() }).unwrap();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    let mut stored = Vec::new();
    println!(
        "\n| receipts in a commit | receipts/s | MB/s | fio MB/s, same writes and flushes | store / fio |"
    );
    println!("|---|---|---|---|---|");
    for batch in [1, 8, 32, 80] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let puts = if batch == 1 { PUTS_PER_ROUND / 4 } else { PUTS_PER_ROUND / batch * batch };
            let data: Vec<Vec<u8>> = (0..puts).map(|n| receipt(stored.len() + n)).collect();
            let paths: Vec<ReceiptPath> = (0..puts).map(|n| path(stored.len() + n)).collect();
            let began = Instant::now();
            for at in (0..puts).step_by(batch) {
                let commit: Vec<Put<'_>> = (at..at + batch).map(|n| Put::new(&paths[n], &data[n])).collect();
                stored.extend(writer.commit(&commit).unwrap().into_iter().map(|put| put.unwrap().locator));
            }
            ours.push(puts as f64 / began.elapsed().as_secs_f64());
            theirs.push(fio(raw, "write", batch * RECORD_BYTES, puts * RECORD_BYTES).0);
        }
        let (rate, fio_mb) = (median(&mut ours), median(&mut theirs) / 1e6);
        let mb = rate * RECORD_BYTES as f64 / 1e6;
        println!("| {batch} | {rate:.0} | {mb:.0} | {fio_mb:.0} | {:.2} |", mb / fio_mb);
    }
    writer.close().unwrap();
    stored
}

fn get_all(disk: &Path, raw: &Path, stored: &[Locator]) {
    let device = RawDevice::open_reader(disk).unwrap();
    let warm = Reader::new(&device, "disk");
    warm.superblock().unwrap();
    let mut page = receipt_store::device::AlignedBuf::zeroed(2);
    let mut record = receipt_store::device::AlignedBuf::zeroed(RECORD_BYTES / 4096);
    let mut times: [Vec<f64>; 4] = Default::default();
    let mut at = 1;
    for _ in 0..GETS {
        at = (at * 48271 + 7) % stored.len();
        let locator = &stored[at];
        times[0].push(micros(|| drop(Reader::new(&device, "disk").get(&locator.path).unwrap())));
        times[1].push(micros(|| drop(warm.get(&locator.path).unwrap())));
        times[2].push(micros(|| drop(warm.get_locator(locator).unwrap())));
        times[3].push(micros(|| {
            device.read((at as u64 % 1024) * 8192, page.as_mut_slice()).unwrap();
            device.read(locator.block * 4096, record.as_mut_slice()).unwrap();
        }));
    }
    println!("\n| get of 100 KiB | p50 us | p99 us |\n|---|---|---|");
    for (name, times) in
        ["cold (3 reads)", "warm (2 reads)", "by locator (1 read)", "raw reads of 8 + 104 KiB, same program"]
            .iter()
            .zip(&mut times)
    {
        times.sort_by(f64::total_cmp);
        println!("| {name} | {:.0} | {:.0} |", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
    let (_, p50, p99) = fio(raw, "randread", RECORD_BYTES, GETS * RECORD_BYTES);
    println!("| fio, random reads of 104 KiB | {p50:.0} | {p99:.0} |");
    println!("\nwarm get / two raw reads: {:.2}", times[1][GETS / 2] / times[3][GETS / 2]);
}

/// Gets a thousand receipts and says how much memory that took at most.
fn read_only(disk: &Path) {
    let reader = Reader::new(RawDevice::open_reader(disk).unwrap(), "disk");
    for number in 0..GETS {
        assert_eq!(reader.get(&path(number)).unwrap().data(), receipt(number));
    }
    println!("{} MiB", memory_mib());
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

/// Bytes per second, p50 and p99 in microseconds of the same transfers by `fio`.
fn fio(file: &Path, rw: &str, block_bytes: usize, size_bytes: usize) -> (f64, f64, f64) {
    let mut command = Command::new("fio");
    command.args(["--name=same", "--ioengine=psync", "--direct=1", "--output-format=json"]);
    command.arg(format!("--filename={}", file.display())).arg(format!("--rw={rw}"));
    command.arg(format!("--bs={block_bytes}")).arg("--overwrite=1").arg("--allow_file_create=0");
    if rw == "write" {
        command.arg(format!("--size={size_bytes}")).arg("--fdatasync=1");
    } else {
        command.args(["--size=512m", "--number_ios=1000"]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let part = &json["jobs"][0][if rw == "write" { "write" } else { "read" }];
    let percentile = |name: &str| part["clat_ns"]["percentile"][name].as_f64().unwrap_or_default() / 1e3;
    let seconds = json["jobs"][0]["job_runtime"].as_f64().unwrap() / 1e3;
    (part["io_bytes"].as_f64().unwrap() / seconds, percentile("50.000000"), percentile("99.000000"))
}
