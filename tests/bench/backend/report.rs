//! Tables and JSON.

use std::fs;

use serde_json::{Value, json};

use crate::load::Load;
use crate::options::Options;
use crate::peers::{Peer, Place};

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub iops: f64,
    pub cpu_us: f64,
    /// 50, 99, 99.9.
    pub percentiles_us: [f64; 3],
    /// Part of all requests that the guest with the fewest had.
    pub least_share: f64,
    pub peak_kib: u64,
}

/// One load at one place, with all rounds of all peers.
pub struct Case {
    pub load: Load,
    pub place: Place,
    pub pinned: bool,
    pub peers: Vec<(Peer, Vec<Figures>)>,
}

impl Case {
    /// As the tables name it.
    pub fn name(&self) -> String {
        let pinned = if self.pinned { "pinned" } else { "not pinned" };
        format!("{}, {}, {pinned}", self.load.name, self.place.name)
    }

    /// All rounds of the way of qemu-storage-daemon that was the fastest here.
    pub fn best_storage_daemon(&self) -> Option<&[Figures]> {
        let daemons = self.peers.iter().filter(|(peer, _)| peer.is_storage_daemon());
        let best = daemons.max_by(|(_, a), (_, b)| median(a, |f| f.iops).total_cmp(&median(b, |f| f.iops)));
        best.map(|(_, figures)| figures.as_slice())
    }
}

/// The middle value of `pick` over all rounds.
pub fn median(rounds: &[Figures], pick: impl Fn(&Figures) -> f64) -> f64 {
    middle(rounds.iter().map(pick).collect())
}

/// The middle value of the ratio of two peers in the same round.
pub fn median_ratio(rounds: &[Figures], others: &[Figures], pick: impl Fn(&Figures) -> f64) -> f64 {
    middle(rounds.iter().zip(others).map(|(a, b)| pick(a) / pick(b)).collect())
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One table.
pub fn print(case: &Case) {
    println!("\n### {}\n", case.name());
    println!(
        "| | kIOPS | CPU us a request | p50 us | p99 us | p99.9 us | kIOPS / best daemon | CPU / best daemon |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let best = case.best_storage_daemon();
    for (peer, rounds) in &case.peers {
        let [p50, p99, p999] = [0, 1, 2].map(|at: usize| median(rounds, |f| f.percentiles_us[at]));
        let ratio = |pick: fn(&Figures) -> f64| {
            best.map_or("-".into(), |best| format!("{:.2}", median_ratio(rounds, best, pick)))
        };
        println!(
            "| {} | {:.1} | {:.2} | {p50:.0} | {p99:.0} | {p999:.0} | {} | {} |",
            peer.name(),
            median(rounds, |f| f.iops) / 1e3,
            median(rounds, |f| f.cpu_us),
            ratio(|f| f.iops),
            ratio(|f| f.cpu_us),
        );
        if case.load.guests > 1 {
            println!(
                "|   the guest with fewer: {:.1} % | | | | | | | |",
                median(rounds, |f| f.least_share) * 100.0
            );
        }
    }
}

/// All samples of all cases.
pub fn write_json(cases: &[Case], options: &Options) {
    let Some(path) = &options.json else { return };
    let sample = |f: &Figures| {
        json!({
            "iops": f.iops, "cpu_us": f.cpu_us, "p50_us": f.percentiles_us[0], "p99_us": f.percentiles_us[1],
            "p99_9_us": f.percentiles_us[2], "least_share": f.least_share, "peak_kib": f.peak_kib,
        })
    };
    let cases: Vec<Value> = cases
        .iter()
        .map(|case| {
            let peers = case.peers.iter().map(|(peer, rounds)| {
                json!({ "name": peer.name(), "rounds": rounds.iter().map(sample).collect::<Vec<_>>() })
            });
            json!({
                "load": case.load.name, "place": case.place.name, "pinned": case.pinned, "depth": case.load.depth,
                "guests": case.load.guests, "bytes": case.load.len, "peers": peers.collect::<Vec<_>>(),
            })
        })
        .collect();
    let all = json!({ "seconds": options.seconds, "rounds": options.rounds, "cases": cases });
    fs::write(path, serde_json::to_string_pretty(&all).unwrap()).unwrap();
}
