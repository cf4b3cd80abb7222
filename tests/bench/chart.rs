//! Bar charts as SVG: groups of bars, each drawn relative to the longest of its group.

use std::fmt::Write;

const LEFT: f64 = 330.0;
const WIDTH: f64 = 420.0;
const BAR: f64 = 12.0;
const GAP: f64 = 16.0;
const COLOURS: [&str; 6] = ["#1b6ca8", "#7fb7de", "#8a8a8a", "#b0b0b0", "#d0d0d0", "#e0a030"];

/// One bar.
pub struct Bar {
    /// Before it.
    pub label: String,
    /// Its length.
    pub value: f64,
    /// Behind it.
    pub text: String,
}

/// Bars that are compared.
pub struct Group {
    /// Above them.
    pub title: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
}

/// The whole chart.
pub fn draw(groups: &[Group]) -> String {
    let bars: usize = groups.iter().map(|group| group.bars.len()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred at most")]
    let height = bars as f64 * BAR + groups.len() as f64 * (GAP + 16.0) + GAP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut top = GAP;
    for group in groups {
        let longest = group.bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
        let title_base = top + 10.0;
        let _ = writeln!(svg, "<text x=\"8\" y=\"{title_base}\" font-weight=\"bold\">{}</text>", group.title);
        top += 16.0;
        for (at, bar) in group.bars.iter().enumerate() {
            let (width, base) = (bar.value / longest * WIDTH, top + BAR - 3.0);
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{base}\">{}</text>",
                LEFT - 6.0,
                bar.label,
                BAR - 2.0,
                COLOURS[at.min(COLOURS.len() - 1)],
                LEFT + width + 4.0,
                bar.text,
            );
            top += BAR;
        }
        top += GAP;
    }
    svg.push_str("</svg>\n");
    svg
}
