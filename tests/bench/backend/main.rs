//! Compares vhost-user-blk backends: the same loads, one peer after the other in each round, without a virtual machine.
//! Run with `tests/bench.sh backend`; `--help` tells the options.

mod chart;
mod goals;
mod guest;
mod histogram;
mod load;
mod measure;
mod options;
mod peers;
mod report;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use receiptdisk_tests::{Scratch, pattern};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::load::Load;
use crate::measure::Bench;
use crate::options::Options;
use crate::report::Case;

const IMAGE_BYTES: u64 = 512 << 20;

fn main() {
    let options = Options::from_command_line();
    let all_cpus = sched_getaffinity(None).unwrap();
    let mut cases = report::read_json(&options.with);
    for &place in &options.places {
        let scratch = if place.direct { Scratch::in_folder(&options.folder) } else { Scratch::on_tmpfs() };
        let image = scratch.join("disk.img");
        fill(&image);
        for &pinned in &options.pinned {
            let cpus = if pinned { [only(0), only(1)] } else { [all_cpus, all_cpus] };
            let bench = Bench { place, image: &image, cpus, seconds: options.seconds };
            for load in &options.loads {
                let case = measure_case(&bench, load, pinned, &options);
                report::print(&case);
                cases.push(case);
            }
        }
    }
    goals::print(&cases);
    report::write_json(&cases, &options);
    if let Some(path) = &options.svg {
        std::fs::write(path, chart::draw(&cases)).unwrap();
    }
}

/// All rounds of one load, the peers in turns.
fn measure_case(bench: &Bench, load: &Load, pinned: bool, options: &Options) -> Case {
    let mut case = Case::new(load.name, bench.place.name, pinned);
    for round in 0..options.rounds {
        for peer in options.peers.iter().filter(|peer| peer.takes(load)) {
            case.add(&peer.name(), bench.measure(peer, load, round));
        }
    }
    case
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
