//! Tables and JSON.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::load::{LOADS, Load};
use crate::options::Options;
use crate::peers::STORAGE_DAEMON;

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    pub iops: f64,
    pub cpu_us: f64,
    /// 50, 99, 99.9.
    pub percentiles_us: [f64; 3],
    /// Part of all requests that the guest with the fewest had.
    pub least_share: f64,
    pub memory_kib: u64,
    /// Part of the processors' time that others took meanwhile.
    pub disturbed: f64,
    /// What a peer that somebody else started has used of it.
    pub cpu_of_running_ticks: u64,
}

/// One load at one place, with all rounds of all peers by name.
pub struct Case {
    pub load: Load,
    pub place: String,
    pub pinned: bool,
    pub peers: Vec<(String, Vec<Figures>)>,
}

impl Case {
    /// A case without measurements; `load` is the name of a load that there is.
    pub fn new(load: &str, place: &str, pinned: bool) -> Self {
        let load = *LOADS.iter().find(|known| known.name == load).unwrap();
        Self { load, place: place.into(), pinned, peers: Vec::new() }
    }

    /// Adds a measurement.
    pub fn add(&mut self, peer: &str, figures: Figures) {
        match self.peers.iter_mut().find(|(known, _)| known == peer) {
            Some((_, all)) => all.push(figures),
            None => self.peers.push((peer.into(), vec![figures])),
        }
    }

    /// As the tables name it.
    pub fn name(&self) -> String {
        let pinned = if self.pinned { "pinned" } else { "not pinned" };
        format!("{}, {}, {pinned}", self.load.name, self.place)
    }

    /// All rounds of a peer.
    pub fn of(&self, peer: &str) -> Option<&[Figures]> {
        self.peers.iter().find(|(name, _)| name == peer).map(|(_, rounds)| rounds.as_slice())
    }

    /// All rounds of the way of qemu-storage-daemon that was the fastest here.
    pub fn best_storage_daemon(&self) -> Option<&[Figures]> {
        let daemons = self.peers.iter().filter(|(name, _)| name.starts_with(STORAGE_DAEMON));
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
            peer,
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
            "iops": f.iops, "cpu_us": f.cpu_us, "percentiles_us": f.percentiles_us, "least_share": f.least_share,
            "memory_kib": f.memory_kib, "disturbed": f.disturbed,
        })
    };
    let cases: Vec<Value> = cases
        .iter()
        .map(|case| {
            let peers = case.peers.iter().map(|(name, rounds)| {
                json!({ "name": name, "rounds": rounds.iter().map(sample).collect::<Vec<_>>() })
            });
            json!({
                "load": case.load.name, "place": case.place, "pinned": case.pinned,
                "peers": peers.collect::<Vec<_>>(),
            })
        })
        .collect();
    fs::write(path, serde_json::to_string_pretty(&json!({ "cases": cases })).unwrap()).unwrap();
}

/// The cases in files that [`write_json`] has written.
pub fn read_json(files: &[PathBuf]) -> Vec<Case> {
    let mut cases = Vec::new();
    for file in files {
        let all: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        for told in all["cases"].as_array().unwrap() {
            let text = |key: &str| told[key].as_str().unwrap();
            let mut case = Case::new(text("load"), text("place"), told["pinned"].as_bool().unwrap());
            for peer in told["peers"].as_array().unwrap() {
                let rounds = peer["rounds"].as_array().unwrap().iter().map(parse_sample);
                rounds.for_each(|figures| case.add(peer["name"].as_str().unwrap(), figures));
            }
            cases.push(case);
        }
    }
    cases
}

fn parse_sample(sample: &Value) -> Figures {
    let number = |value: &Value| value.as_f64().unwrap();
    Figures {
        iops: number(&sample["iops"]),
        cpu_us: number(&sample["cpu_us"]),
        percentiles_us: [0, 1, 2].map(|at: usize| number(&sample["percentiles_us"][at])),
        least_share: number(&sample["least_share"]),
        memory_kib: sample["memory_kib"].as_u64().unwrap(),
        disturbed: number(&sample["disturbed"]),
        cpu_of_running_ticks: 0,
    }
}
