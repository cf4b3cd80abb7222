//! Tables, JSON, the chart.

use std::fs;

use serde_json::{Value, json};

use crate::chart::{self, Bar, Group};
use crate::measure::{Measured, Phase};
use crate::options::Options;
use crate::peers::Peer;
use crate::readers::Scaled;

/// All phases of all peers.
pub type Results = [(Peer, Vec<(Phase, Measured)>)];

/// One line on standard error while it runs.
pub fn progress(peer: &Peer, phase: Phase, rounds: &[Measured]) {
    let Some(seen) = rounds.last() else { return };
    eprintln!("{}: {}: {:.0}/s, p50 {:.0} us", peer.name, phase.name(), seen.per_second, seen.p50_us);
}

/// The phases in the order of the first peer that has them.
fn phases(results: &Results) -> Vec<Phase> {
    let mut phases = Vec::new();
    for (phase, _) in results.iter().flat_map(|(_, measured)| measured) {
        if !phases.contains(phase) {
            phases.push(*phase);
        }
    }
    phases
}

/// Every peer that has the phase.
fn of_phase(results: &Results, phase: Phase) -> impl Iterator<Item = (&Peer, &Measured)> {
    results.iter().filter_map(move |(peer, measured)| {
        let (_, seen) = measured.iter().find(|(other, _)| *other == phase)?;
        Some((peer, seen))
    })
}

/// A table a phase.
pub fn print(results: &Results, scaled: &[Scaled], options: &Options) {
    println!(
        "{} times {} receipts of {} bytes in each measurement, the peers in turns",
        options.rounds, options.count, options.bytes
    );
    for phase in phases(results) {
        println!("\n### {}\n", phase.name());
        println!(
            "| | a second | p50 ms | p99 ms | bytes on the cable | CPU ms, this guest | other guest | host |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        for (peer, seen) in of_phase(results, phase) {
            println!(
                "| {} | {:.0} | {:.2} | {:.2} | {:.0} | {:.2} | {:.2} | {:.2} |",
                peer.name,
                seen.per_second,
                seen.p50_us / 1e3,
                seen.p99_us / 1e3,
                seen.net_bytes,
                seen.cpu_ms,
                seen.other_cpu_ms,
                seen.host_cpu_ms,
            );
        }
    }
    if scaled.is_empty() {
        return;
    }
    println!("\n### One writer and several readers, without virtual machines\n");
    println!("| readers | gets a second, all together | puts a second meanwhile |\n|---|---|---|");
    for Scaled { readers, gets, puts } in scaled {
        println!("| {readers} | {gets:.0} | {puts:.0} |");
    }
}

/// What `--json` and `--svg` ask for.
pub fn write(results: &Results, scaled: &[Scaled], options: &Options) {
    if let Some(path) = &options.json {
        let peers: Vec<Value> = results.iter().map(as_json).collect();
        let scaled = scaled.iter().map(|s| json!({ "readers": s.readers, "gets": s.gets, "puts": s.puts }));
        let all = json!({
            "rounds": options.rounds, "count": options.count, "bytes": options.bytes, "threads": options.threads, "peers": peers,
            "scaled": scaled.collect::<Vec<_>>(),
        });
        fs::write(path, serde_json::to_string_pretty(&all).unwrap()).unwrap();
    }
    if let Some(path) = &options.svg {
        fs::write(path, draw(results)).unwrap();
    }
}

fn as_json((peer, measured): &(Peer, Vec<(Phase, Measured)>)) -> Value {
    let phase = |(phase, seen): &(Phase, Measured)| {
        json!({
            "phase": phase.name(), "per_second": seen.per_second, "p50_us": seen.p50_us, "p99_us": seen.p99_us,
            "net_bytes": seen.net_bytes, "cpu_ms": seen.cpu_ms, "other_cpu_ms": seen.other_cpu_ms,
            "host_cpu_ms": seen.host_cpu_ms,
        })
    };
    json!({ "name": peer.name, "phases": measured.iter().map(phase).collect::<Vec<_>>() })
}

/// Rates of every phase; the time of "issued -> readable".
fn draw(results: &Results) -> String {
    let group = |phase: Phase| {
        let is_time = phase == Phase::Issue;
        let bar = |(peer, seen): (&Peer, &Measured)| Bar {
            label: peer.name.to_owned(),
            value: if is_time { seen.p50_us } else { seen.per_second },
            text: match is_time {
                true => format!("{:.2} ms, p99 {:.2}", seen.p50_us / 1e3, seen.p99_us / 1e3),
                false => format!("{:.0}/s", seen.per_second),
            },
        };
        let unit = if is_time { "p50, shorter is better" } else { "a second" };
        Group {
            title: format!("{}: {unit}", phase.name()),
            bars: of_phase(results, phase).map(bar).collect(),
        }
    };
    chart::draw(&phases(results).into_iter().map(group).collect::<Vec<_>>())
}
