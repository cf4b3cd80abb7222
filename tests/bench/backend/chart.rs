//! The chart: requests per second of every peer relative to the fastest in each case.

use std::fmt::Write;

use crate::report::{Case, median};

const LEFT: f64 = 330.0;
const WIDTH: f64 = 420.0;
const BAR: f64 = 12.0;
const GAP: f64 = 16.0;
const COLOURS: [&str; 6] = ["#1b6ca8", "#7fb7de", "#8a8a8a", "#b0b0b0", "#d0d0d0", "#e0a030"];

/// An SVG of bars, one group a case, kIOPS written behind each.
pub fn draw(cases: &[Case]) -> String {
    let bars: usize = cases.iter().map(|case| case.peers.len()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred at most")]
    let height = bars as f64 * BAR + cases.len() as f64 * (GAP + 16.0) + GAP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut top = GAP;
    for case in cases {
        let fastest = case.peers.iter().map(|(_, rounds)| median(rounds, |f| f.iops)).fold(1.0, f64::max);
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{}: kIOPS (CPU us a request)</text>",
            top + 10.0,
            case.name()
        );
        top += 16.0;
        for (at, (peer, rounds)) in case.peers.iter().enumerate() {
            let iops = median(rounds, |f| f.iops);
            let (width, base) = (iops / fastest * WIDTH, top + BAR - 3.0);
            let colour = COLOURS[at.min(COLOURS.len() - 1)];
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{base}\">{:.1} ({:.2})</text>",
                LEFT - 6.0,
                peer,
                BAR - 2.0,
                LEFT + width + 4.0,
                iops / 1e3,
                median(rounds, |f| f.cpu_us),
            );
            top += BAR;
        }
        top += GAP;
    }
    svg.push_str("</svg>\n");
    svg
}
