//! One peer under one load, once, undisturbed if that can be had.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use receiptdisk_tests::Scratch;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::guest::Guest;
use crate::histogram::Histogram;
use crate::load::{Load, Seen, drive};
use crate::peers::{Peer, Place, fio};
use crate::report::Figures;

/// Above this part of the processors' time spent on others a measurement is repeated.
const DISTURBED: f64 = 0.05;
const MOST_REPEATS: usize = 3;

/// What a measurement needs to know besides the peer and its load.
pub struct Bench<'a> {
    pub place: Place,
    pub image: &'a Path,
    /// Processors of the backend, and of the load.
    pub cpus: [CpuSet; 2],
    pub seconds: f64,
}

impl Bench<'_> {
    /// One peer once; of a few tries, when others disturb them, the one that was disturbed least.
    pub fn measure(&self, peer: &Peer, load: &Load, round: u64) -> Figures {
        let mut best = self.try_once(peer, load, round);
        for _ in 0..MOST_REPEATS {
            if best.disturbed <= DISTURBED {
                break;
            }
            let again = self.try_once(peer, load, round);
            if again.disturbed < best.disturbed {
                best = again;
            }
        }
        best
    }

    fn try_once(&self, peer: &Peer, load: &Load, round: u64) -> Figures {
        run_on(&self.cpus[0]);
        let before = Ticks::now();
        let mut figures = match peer {
            Peer::Fio => fio(load, self.image, self.place, self.seconds),
            _ => self.drive(peer, load, round),
        };
        // The peer has ended, or is another's and is counted by itself.
        figures.disturbed = before.foreign_since(figures.cpu_of_running_ticks);
        figures
    }

    fn drive(&self, peer: &Peer, load: &Load, round: u64) -> Figures {
        let folder = Scratch::new();
        let served = peer.start(self.image, self.place, load, folder.path());
        let cpu_at_start = served.cpu_ns();
        run_on(&self.cpus[1]);
        let connect = |socket: &PathBuf| Guest::connect(socket, load, peer.is_tracked());
        let mut guests: Vec<Guest> = served.sockets.iter().flat_map(connect).collect();
        let time = Duration::from_secs_f64(self.seconds);
        drive_all(&mut guests, load, time / 4, round);
        let (cpu_before, began) = (served.cpu_ns(), Instant::now());
        let seen = drive_all(&mut guests, load, time, round + 1000);
        let (took, cpu_ns) = (began.elapsed().as_secs_f64(), served.cpu_ns() - cpu_before);
        let counted = if load.is_beside() { &seen[..1] } else { &seen[..] };
        let mut figures = figures(counted, took, Duration::from_nanos(cpu_ns).as_secs_f64());
        figures.memory_kib = served.memory_kib();
        if served.is_foreign() {
            figures.cpu_of_running_ticks = (served.cpu_ns() - cpu_at_start) / NANOS_PER_TICK;
        }
        figures
    }
}

/// All guests at once, each on a thread of its own.
fn drive_all(guests: &mut [Guest], load: &Load, time: Duration, seed: u64) -> Vec<Seen> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(guests)
            .map(|(number, guest)| scope.spawn(move || drive(guest, load, number, time, seed)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn figures(seen: &[Seen], took: f64, cpu_seconds: f64) -> Figures {
    let counts: Vec<f64> = seen.iter().map(|seen| f64::from(u32::try_from(seen.requests).unwrap())).collect();
    let total: f64 = counts.iter().sum();
    let mut latency = Histogram::default();
    seen.iter().for_each(|seen| latency.merge(&seen.latency));
    Figures {
        iops: total / took,
        cpu_us: cpu_seconds / total * 1e6,
        percentiles_us: [50.0, 99.0, 99.9].map(|percent| latency.percentile_us(percent)),
        least_share: counts.iter().copied().fold(total, f64::min) / total,
        ..Figures::default()
    }
}

fn run_on(cpus: &CpuSet) {
    sched_setaffinity(None, cpus).unwrap();
}

/// The unit of `/proc/stat`, a hundredth of a second.
const NANOS_PER_TICK: u64 = 10_000_000;

/// Processor time so far: of the whole machine, busy and in all, and of this process with the children that have ended.
struct Ticks {
    busy: u64,
    all: u64,
    own: u64,
}

impl Ticks {
    fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        // user nice system idle iowait irq softirq steal; guests are in user.
        let machine: Vec<u64> = numbers(stat.lines().next().unwrap()).take(8).collect();
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        let (_, own) = own.rsplit_once(')').unwrap();
        // Field 3 is the first, and not a number; times are fields 14 to 17.
        let own = numbers(own).skip(10).take(4).sum();
        let all = machine.iter().sum();
        Self { busy: all - machine[3] - machine[4], all, own }
    }

    /// Part of the processors' time that has gone to neither this process and its children nor `spent` elsewhere.
    fn foreign_since(&self, spent: u64) -> f64 {
        let now = Self::now();
        let foreign = (now.busy - self.busy).saturating_sub(now.own - self.own + spent);
        #[expect(clippy::cast_precision_loss, reason = "a few hundred ticks")]
        let part = foreign as f64 / (now.all - self.all).max(1) as f64;
        part
    }
}

fn numbers(text: &str) -> impl Iterator<Item = u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok())
}
