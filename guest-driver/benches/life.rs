//! Gets while receipts are stored and expiry frees the segments of older ones, against gets while receipts are stored and nothing expires.
//! Run with `tests/bench.sh life`; `RECEIPT_BENCH_PACE` is the pace of expiry in percent, `RECEIPT_BENCH_DIR` says where the file lies (1 GiB), by default the folder for build results.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)] // a failed step of a benchmark may panic anywhere

use receipt_store::expire::{ExpireOptions, ExpireTotals, WORK_PERCENT, expire};
use receipt_store::pace::Pace;
use receipt_store::{
    CommitLimits, FormatOptions, OwnedChange, RawDevice, Reader, ReceiptPath, SharedWriter, Term, Writer,
    WriterOptions, day, format,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const DATA_BYTES: usize = 100 << 10;
const ROUNDS: u32 = 3;
/// Receipts that expire in a round, and as many that stay among them.
const OLD_RECEIPTS: u64 = 800;

fn main() {
    let dir = std::env::var_os("RECEIPT_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let file = dir.join("receipt-bench-life");
    std::fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let device = RawDevice::open_writer(&file).unwrap();
    let options = FormatOptions { segment_bytes: Some(8 << 20), force: true, ..FormatOptions::default() };
    format(&device, &options).unwrap();
    let mut writer = Writer::open(device, &WriterOptions::default()).unwrap();
    writer
        .change_policy(|policy| {
            policy.terms[1] = Term::Years(1);
            Ok(())
        })
        .unwrap();
    let shared = SharedWriter::new(writer, CommitLimits::default());
    println!(
        "| round | | gets | get p50, us | get p99, us | puts | put p50, us | put p99, us | freed | steps with the writer | step p99, us | longest step, us |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for round in 0..ROUNDS {
        fill(&shared, round);
        let quiet = measure(&shared, &file, &format!("{round}/quiet"), false);
        say(round, "quiet", &quiet);
        let busy = measure(&shared, &file, &format!("{round}/expiry"), true);
        say(round, "expiry", &busy);
        println!("get p99 with expiry: {:.2} x the quiet one", busy.get(99) / quiet.get(99));
    }
    shared.close().unwrap();
    std::fs::remove_file(&file).unwrap();
}

/// Percent of the time that expiry works.
fn pace() -> u8 {
    std::env::var("RECEIPT_BENCH_PACE").map_or(WORK_PERCENT, |percent| percent.parse().unwrap())
}

fn path(text: &str) -> ReceiptPath {
    ReceiptPath::new(text).unwrap()
}

/// Receipts past their term, and one in four that stays, so that expiry copies, too.
fn fill(shared: &SharedWriter<RawDevice>, round: u32) {
    for number in 0..OLD_RECEIPTS {
        let is_old = number % 4 != 0;
        let data = vec![u8::try_from(number % 251).unwrap(); DATA_BYTES];
        let change = OwnedChange::Put {
            path: path(&format!("{round}/{}/{number}", if is_old { "old" } else { "kept" })),
            data,
            is_new_version: false,
            class: Some(u8::from(is_old)),
            issued_day: Some(if is_old { day::day_of(2020, 1, 1) } else { day::day_of(2026, 1, 1) }),
            version: None,
        };
        shared.change(change).unwrap();
    }
}

struct Measured {
    elapsed: Duration,
    gets: Vec<Duration>,
    puts: Vec<Duration>,
    /// How long puts had to wait for each step of expiry.
    steps: Vec<Duration>,
    totals: ExpireTotals,
}

impl Measured {
    fn get(&self, percent: usize) -> f64 {
        percentile(&self.gets, percent)
    }
}

fn percentile(times: &[Duration], percent: usize) -> f64 {
    times.get(times.len().saturating_sub(1) * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

/// Gets and puts go on for four seconds, or as long as expiry takes.
fn measure(shared: &SharedWriter<RawDevice>, file: &Path, tag: &str, has_expiry: bool) -> Measured {
    let is_over = AtomicBool::new(false);
    let stored = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let puts = scope.spawn(|| {
            let mut times = Vec::new();
            while !is_over.load(Relaxed) {
                let number = stored.load(Relaxed);
                let change = OwnedChange::put(path(&format!("{tag}/{number}")), vec![1; DATA_BYTES]);
                let start = Instant::now();
                shared.change(change).unwrap();
                times.push(start.elapsed());
                stored.store(number + 1, Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
            times
        });
        let gets = scope.spawn(|| {
            let reader = Reader::new(RawDevice::open_reader(file).unwrap(), "disk");
            let round = tag.split('/').next().unwrap();
            let mut times = Vec::new();
            for number in (0..OLD_RECEIPTS).step_by(4).cycle() {
                if is_over.load(Relaxed) {
                    break;
                }
                let path = path(&format!("{round}/kept/{number}"));
                let start = Instant::now();
                assert_eq!(reader.get(&path).unwrap().data().len(), DATA_BYTES);
                times.push(start.elapsed());
            }
            times
        });
        let (mut totals, mut times) = (ExpireTotals::default(), Vec::new());
        if has_expiry {
            let reader = Reader::new(RawDevice::open_reader(file).unwrap(), "disk");
            let today = day::day_of_ms(receipt_store::clock_ms());
            let options = ExpireOptions { pace: Pace::new(pace()), ..ExpireOptions::of_day(today) };
            let steps: receipt_store::expire::WithWriter<'_, RawDevice> = &mut |step| {
                shared.exclusively(|writer| {
                    let start = Instant::now();
                    let done = step(writer);
                    times.push(start.elapsed());
                    done
                })
            };
            totals = expire(&reader, steps, options, |_| Ok(())).unwrap();
        } else {
            std::thread::sleep(Duration::from_secs(4));
        }
        is_over.store(true, Relaxed);
        let (mut gets, mut puts) = (gets.join().unwrap(), puts.join().unwrap());
        gets.sort();
        puts.sort();
        times.sort();
        Measured { elapsed: start.elapsed(), gets, puts, steps: times, totals }
    })
}

fn say(round: u32, what: &str, measured: &Measured) {
    let put = |percent| percentile(&measured.puts, percent);
    println!(
        "| {round} | {what}, {:.1} s | {} | {:.0} | {:.0} | {} | {:.0} | {:.0} | {} segments, {} copies | {} | {:.0} | {:.0} |",
        measured.elapsed.as_secs_f64(),
        measured.gets.len(),
        measured.get(50),
        measured.get(99),
        measured.puts.len(),
        put(50),
        put(99),
        measured.totals.segments,
        measured.totals.moved,
        measured.steps.len(),
        percentile(&measured.steps, 99),
        percentile(&measured.steps, 100),
    );
}
