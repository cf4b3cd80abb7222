//! Compares vhost-user-blk backends: the same loads, one peer after the other in each round, without a virtual machine.
//! Run with `tests/bench.sh backend`; `--help` tells the options.

mod chart;
mod guest;
mod histogram;
mod load;
mod options;
mod peers;
mod report;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use receiptdisk_tests::{Scratch, pattern};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::guest::Guest;
use crate::histogram::Histogram;
use crate::load::{Load, Seen, drive};
use crate::options::Options;
use crate::peers::{Peer, Place, fio};
use crate::report::{Case, Figures};

const IMAGE_BYTES: u64 = 512 << 20;

fn main() {
    let options = Options::from_command_line();
    let all_cpus = sched_getaffinity(None).unwrap();
    let mut cases = Vec::new();
    for &place in &options.places {
        let scratch = if place.direct { Scratch::in_folder(&options.folder) } else { Scratch::on_tmpfs() };
        let image = scratch.join("disk.img");
        fill(&image);
        for &pinned in &options.pinned {
            let cpus = if pinned { [only(0), only(1)] } else { [all_cpus, all_cpus] };
            for load in &options.loads {
                let case = measure_case(load, place, pinned, cpus, &image, &options);
                report::print(&case);
                cases.push(case);
            }
        }
    }
    report::write_json(&cases, &options);
    if let Some(path) = &options.svg {
        std::fs::write(path, chart::draw(&cases)).unwrap();
    }
}

/// All rounds of one load at one place, the peers in turns.
fn measure_case(
    load: &Load,
    place: Place,
    pinned: bool,
    cpus: [CpuSet; 2],
    image: &Path,
    options: &Options,
) -> Case {
    let mut case = Case { load: *load, place, pinned, peers: Vec::new() };
    for round in 0..options.rounds {
        for peer in &options.peers {
            let Some(figures) = measure(peer, load, place, cpus, image, options.seconds, round) else {
                continue;
            };
            match case.peers.iter_mut().find(|(known, _)| known.name() == peer.name()) {
                Some((_, all)) => all.push(figures),
                None => case.peers.push((peer.clone(), vec![figures])),
            }
        }
    }
    case
}

/// One peer once; `None` where it cannot carry such a load.
fn measure(
    peer: &Peer,
    load: &Load,
    place: Place,
    [backend_cpus, load_cpus]: [CpuSet; 2],
    image: &Path,
    seconds: f64,
    round: u64,
) -> Option<Figures> {
    run_on(&backend_cpus);
    if matches!(peer, Peer::Fio) {
        let result = fio(load, image, place, seconds)?;
        let (iops, cpu_us) = (result.iops, result.cpu_us);
        return Some(Figures {
            iops,
            cpu_us,
            percentiles_us: result.percentiles_us,
            least_share: 1.0,
            peak_kib: 0,
        });
    }
    let folder = Scratch::new();
    let served = peer.start(image, place, load.guests, folder.path());
    run_on(&load_cpus);
    let mut guests: Vec<Guest> =
        served.sockets.iter().map(|socket| Guest::connect(socket, load.depth, load.len)).collect();
    let time = Duration::from_secs_f64(seconds);
    drive_all(&mut guests, load, time / 4, round);
    let (cpu_before, began) = (served.cpu_ns(), Instant::now());
    let seen = drive_all(&mut guests, load, time, round + 1000);
    let (took, cpu_ns) = (began.elapsed().as_secs_f64(), served.cpu_ns() - cpu_before);
    Some(figures(&seen, took, Duration::from_nanos(cpu_ns).as_secs_f64(), served.peak_kib()))
}

/// All guests at once, each on a thread of its own.
fn drive_all(guests: &mut [Guest], load: &Load, time: Duration, seed: u64) -> Vec<Seen> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(guests)
            .map(|(number, guest)| scope.spawn(move || drive(guest, load, time, seed * 64 + number)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn figures(seen: &[Seen], took: f64, cpu_seconds: f64, peak_kib: u64) -> Figures {
    let counts: Vec<f64> = seen.iter().map(|seen| f64::from(u32::try_from(seen.requests).unwrap())).collect();
    let total: f64 = counts.iter().sum();
    let mut latency = Histogram::default();
    seen.iter().for_each(|seen| latency.merge(&seen.latency));
    Figures {
        iops: total / took,
        cpu_us: cpu_seconds / total * 1e6,
        percentiles_us: [50.0, 99.0, 99.9].map(|percent| latency.percentile_us(percent)),
        least_share: counts.iter().copied().fold(total, f64::min) / total,
        peak_kib,
    }
}

/// Allocated and written once, so that no peer pays for that.
fn fill(image: &Path) {
    let mut file = File::create(image).unwrap();
    let piece = pattern(1, 0, 1 << 20);
    (0..IMAGE_BYTES >> 20).for_each(|_| file.write_all(&piece).unwrap());
    file.sync_all().unwrap();
}

fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

fn run_on(cpus: &CpuSet) {
    sched_setaffinity(None, cpus).unwrap();
}
