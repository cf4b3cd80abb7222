//! The whole method against what banks do today: two QEMU guests, the same receipts, one way after the other in the same run.
//! Run with `tests/bench.sh method`; `--help` tells the options.

#[path = "../chart.rs"]
mod chart;
mod folders;
mod measure;
mod options;
mod peers;
mod readers;
mod report;
mod stand;

use measure::{Measured, Phase};
use options::Options;
use peers::{Peer, peers};
use stand::Stand;

fn main() {
    let options = Options::from_command_line();
    let mut stand = Stand::boot(&options);
    let peers = peers(&options);
    let mut seen: Vec<Vec<(Phase, Vec<Measured>)>> = peers
        .iter()
        .map(|peer| peer.phases().into_iter().map(|phase| (phase, Vec::new())).collect())
        .collect();
    let mut next_id = 0;
    for _ in 0..options.rounds {
        for (peer, phases) in peers.iter().zip(&mut seen) {
            stand.begin(peer);
            for (phase, rounds) in phases {
                rounds.push(stand.measure(peer, *phase, &mut next_id, &options));
                report::progress(peer, *phase, rounds);
            }
            stand.end();
        }
    }
    drop(stand);
    let of_rounds = |(phase, rounds): (Phase, Vec<Measured>)| (phase, Measured::of_rounds(&rounds));
    let seen = seen.into_iter().map(|phases| phases.into_iter().map(of_rounds).collect());
    let results: Vec<(Peer, Vec<(Phase, Measured)>)> = peers.into_iter().zip(seen).collect();
    let scaled = if options.wants("readers") { readers::measure(&options) } else { Vec::new() };
    report::print(&results, &scaled, &options);
    report::write(&results, &scaled, &options);
}
