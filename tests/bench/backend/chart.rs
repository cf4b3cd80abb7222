//! The chart: requests per second of every peer in each case.

#[path = "../chart.rs"]
mod bars;

use bars::{Bar, Group};

use crate::report::{Case, median};

/// An SVG of bars, one group a case, kIOPS written behind each.
pub fn draw(cases: &[Case]) -> String {
    let group = |case: &Case| Group {
        title: format!("{}: kIOPS (CPU us a request)", case.name()),
        bars: case
            .peers
            .iter()
            .map(|(peer, rounds)| {
                let iops = median(rounds, |f| f.iops);
                let text = format!("{:.1} ({:.2})", iops / 1e3, median(rounds, |f| f.cpu_us));
                Bar { label: peer.to_string(), value: iops, text }
            })
            .collect(),
    };
    bars::draw(&cases.iter().map(group).collect::<Vec<_>>())
}
