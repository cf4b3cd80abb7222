//! What the order costs a guest: 4 KiB requests at depth 32 on tmpfs, backend on one processor and load on
//! another, with the order and without it (`RECEIPTDISK_UNORDERED`) in turns. Run with `tests/bench.sh order`.

use std::fs;
use std::time::{Duration, Instant};

use receiptdisk_tests::rng::Rng;
use receiptdisk_tests::{Backend, Driver, Scratch, Serve};
use rustix::thread::{CpuSet, sched_setaffinity};

const IMAGE_BYTES: u64 = 256 << 20;
const REQUEST_BYTES: usize = 4096;
const DEPTH: usize = 32;
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;

/// One load, as seen from outside.
#[derive(Debug, Clone, Copy)]
struct Figures {
    iops: f64,
    cpu_us: f64,
}

/// What the requests are.
#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    write: bool,
    /// Blocks to choose from.
    blocks: u64,
}

const LOADS: [Load; 3] = [
    Load { name: "read, disjoint", write: false, blocks: IMAGE_BYTES / REQUEST_BYTES as u64 },
    Load { name: "write, disjoint", write: true, blocks: IMAGE_BYTES / REQUEST_BYTES as u64 },
    Load { name: "write, 4 blocks", write: true, blocks: 4 },
];

fn main() {
    println!(
        "\nload              ordered kIOPS  CPU us   unordered kIOPS  CPU us   ratio of IOPS (median of {ROUNDS})"
    );
    for load in LOADS {
        let rounds: Vec<_> = (0..ROUNDS).map(|_| (measure(load, true), measure(load, false))).collect();
        let median = |pick: &dyn Fn(&(Figures, Figures)) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            values[ROUNDS / 2]
        };
        println!(
            "{:<17} {:>13.1} {:>7.2} {:>17.1} {:>7.2} {:>15.3}",
            load.name,
            median(&|r| r.0.iops) / 1e3,
            median(&|r| r.0.cpu_us),
            median(&|r| r.1.iops) / 1e3,
            median(&|r| r.1.cpu_us),
            median(&|r| r.0.iops / r.1.iops),
        );
    }
}

fn measure(load: Load, ordered: bool) -> Figures {
    let scratch = Scratch::on_tmpfs();
    let image = scratch.image(IMAGE_BYTES);
    // SAFETY: this program has one thread, so nobody reads the environment meanwhile.
    unsafe {
        if ordered {
            std::env::remove_var("RECEIPTDISK_UNORDERED");
        } else {
            std::env::set_var("RECEIPTDISK_UNORDERED", "1");
        }
    }
    run_on(0);
    let mut backend = Serve::image(&image).arg("--cache").arg("page").rw("issuer").start();
    run_on(1);
    let mut driver = Driver::connect_with(&backend.socket("issuer"), 1, 128, DEPTH);
    drive(&mut driver, load, ROUND / 4);
    let cpu_before = cpu_seconds(&mut backend);
    let began = Instant::now();
    let requests = drive(&mut driver, load, ROUND);
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds(&mut backend) - cpu_before;
    Figures { iops: requests / seconds, cpu_us: cpu / requests * 1e6 }
}

/// Keeps `DEPTH` requests in flight for `time` and returns their number.
fn drive(driver: &mut Driver, load: Load, time: Duration) -> f64 {
    let mut rng = Rng::new(7);
    let data = [0xa5; REQUEST_BYTES];
    let mut submit = |driver: &mut Driver, slot| {
        let offset = rng.below(load.blocks) * REQUEST_BYTES as u64;
        if load.write {
            driver.submit_write(0, slot, offset, &data);
        } else {
            driver.submit_read(0, slot, offset, REQUEST_BYTES);
        }
    };
    (0..DEPTH).for_each(|slot| submit(driver, slot));
    let (mut in_flight, mut done) = (DEPTH, 0u32);
    let end = Instant::now() + time;
    while in_flight > 0 {
        for (slot, errno) in driver.wait(0) {
            assert_eq!(errno, 0);
            done += 1;
            in_flight -= 1;
            if Instant::now() < end {
                submit(driver, slot);
                in_flight += 1;
            }
        }
    }
    f64::from(done)
}

fn run_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).unwrap();
}

/// User and system time of the backend.
fn cpu_seconds(backend: &mut Backend) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", backend.proc().pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|&at: &usize| fields[at].parse::<f64>().unwrap()).sum();
    ticks / f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).unwrap())
}
