//! The security printing: guilloche rosettes and bands, the bank's emblem, the red seal, the bar code.

use std::f64::consts::{PI, TAU};

use super::fonts::{SANS, SERIF};
use super::sample::Random;
use super::svg::{Svg, Type, number};

/// Colours of one bank's paper.
pub struct Palette {
    /// Titles and rules.
    pub dark: &'static str,
    /// Thin lines and labels.
    pub middle: &'static str,
    /// Guilloche lines of the first colour.
    pub tint: &'static str,
    /// Guilloche lines of the second colour.
    pub second_tint: &'static str,
    /// The paper.
    pub paper: &'static str,
    /// Cells with labels.
    pub wash: &'static str,
}

/// One palette a bank, chosen by its name.
pub const PALETTES: [Palette; 4] = [
    Palette {
        dark: "#0f4c4a",
        middle: "#3f7d78",
        tint: "#bfdcd6",
        second_tint: "#e3d5b4",
        paper: "#fbfdfb",
        wash: "#e9f3f0",
    },
    Palette {
        dark: "#1c3668",
        middle: "#4e6a9c",
        tint: "#c3d2ea",
        second_tint: "#ead3d6",
        paper: "#fbfcfe",
        wash: "#eaf0f8",
    },
    Palette {
        dark: "#6b1f2e",
        middle: "#9a5663",
        tint: "#ecccd0",
        second_tint: "#d3dcc6",
        paper: "#fefbfb",
        wash: "#f8ecee",
    },
    Palette {
        dark: "#5a4317",
        middle: "#8d7544",
        tint: "#e6d9b8",
        second_tint: "#cbdcdf",
        paper: "#fefdf9",
        wash: "#f6f0e1",
    },
];

/// The colour of seals and of the word "copy".
const SEAL_RED: &str = "#c8161d";

/// A rosette: `turns` closed curves, each turned a little against the one before.
pub fn rosette(svg: &mut Svg, (x, y): (f64, f64), radius: f64, (petals, turns): (u32, u32), colour: &str) {
    for turn in 0..turns {
        let phase = f64::from(turn) / f64::from(turns) * TAU;
        let petals = f64::from(petals);
        let points = (0..=360).map(|step| {
            let angle = f64::from(step) / 360.0 * TAU;
            let wave = (petals * angle + phase).sin() * 0.20 + (2.0 * petals * angle - phase).cos() * 0.06;
            let reach = radius * (0.72 + wave);
            (x + reach * angle.cos(), y + reach * angle.sin())
        });
        svg.curve(points, colour, 0.7);
    }
}

/// A horizontal band of `lines` waves that pinch together and open again.
pub fn band(svg: &mut Svg, [left, right, y, height]: [f64; 4], lines: u32, waves: f64, colour: &str) {
    for line in 0..lines {
        let phase = f64::from(line) / f64::from(lines) * TAU;
        let steps = 300;
        let points = (0..=steps).map(|step| {
            let part = f64::from(step) / f64::from(steps);
            let open = 0.55 + 0.45 * (waves * PI * part).cos();
            (left + (right - left) * part, y + height / 2.0 * open * (waves * TAU * part + phase).sin())
        });
        svg.curve(points, colour, 0.7);
    }
}

/// The border: two interlaced waves on each side, between two rules.
pub fn border(svg: &mut Svg, [x, y, width, height]: [f64; 4], palette: &Palette) {
    svg.frame([x, y, width, height], palette.dark, 1.6);
    svg.frame([x + 13.0, y + 13.0, width - 26.0, height - 26.0], palette.dark, 0.8);
    for phase in [0.0, PI * 0.5, PI, PI * 1.5] {
        for (start, length, across) in [(x, width, y + 6.5), (x, width, y + height - 6.5)] {
            let points = (0..=600).map(|step| {
                let part = f64::from(step) / 600.0;
                (start + length * part, across + 4.6 * (part * TAU * (length / 26.0).round() + phase).sin())
            });
            svg.curve(points, palette.middle, 0.6);
        }
        for (start, length, across) in [(y, height, x + 6.5), (y, height, x + width - 6.5)] {
            let points = (0..=400).map(|step| {
                let part = f64::from(step) / 400.0;
                (across + 4.6 * (part * TAU * (length / 26.0).round() + phase).sin(), start + length * part)
            });
            svg.curve(points, palette.middle, 0.6);
        }
    }
}

/// The bank's emblem: a blossom of `petals` in a ring.
pub fn emblem(svg: &mut Svg, (x, y): (f64, f64), radius: f64, petals: u32, palette: &Palette) {
    let place = |value: f64| number(value);
    svg.element(
        "circle",
        &[("cx", &place(x)), ("cy", &place(y)), ("r", &place(radius)), ("fill", palette.dark)],
    );
    let ring = place(radius - 3.5);
    svg.element(
        "circle",
        &[
            ("cx", &place(x)),
            ("cy", &place(y)),
            ("r", &ring),
            ("fill", "none"),
            ("stroke", palette.paper),
            ("stroke-width", "1.2"),
        ],
    );
    for petal in 0..petals {
        let turn = format!(
            "rotate({} {} {})",
            number(f64::from(petal) * 360.0 / f64::from(petals)),
            place(x),
            place(y)
        );
        let (tip, waist) = (y - radius * 0.76, radius * 0.36);
        let shape = format!(
            "M{} {} C{} {} {} {} {} {} C{} {} {} {} {} {} Z",
            place(x),
            place(y - radius * 0.14),
            place(x - waist),
            place(y - radius * 0.30),
            place(x - waist),
            place(tip + radius * 0.04),
            place(x),
            place(tip),
            place(x + waist),
            place(tip + radius * 0.04),
            place(x + waist),
            place(y - radius * 0.30),
            place(x),
            place(y - radius * 0.14),
        );
        svg.element(
            "path",
            &[
                ("d", &shape),
                ("transform", &turn),
                ("fill", palette.paper),
                ("fill-opacity", "0.92"),
                ("stroke", palette.dark),
                ("stroke-width", "0.8"),
            ],
        );
    }
    svg.element(
        "circle",
        &[("cx", &place(x)), ("cy", &place(y)), ("r", &place(radius * 0.11)), ("fill", palette.paper)],
    );
}

/// A round seal: the bank's name around a star, its purpose below, worn as stamps are.
pub fn seal(svg: &mut Svg, (x, y): (f64, f64), name: &str, date: &str, random: &mut Random) {
    let tilt = f64::from(random.below(17)) - 8.0;
    let turn = format!("rotate({} {} {})", number(tilt), number(x), number(y));
    svg.open("g", &[("transform", &turn), ("opacity", "0.82")]);
    let (cx, cy) = (number(x), number(y));
    for (radius, thickness) in [("86", "4.5"), ("79.5", "1")] {
        svg.element(
            "circle",
            &[
                ("cx", &cx),
                ("cy", &cy),
                ("r", radius),
                ("fill", "none"),
                ("stroke", SEAL_RED),
                ("stroke-width", thickness),
            ],
        );
    }
    star(svg, (x, y - 6.0), 24.0);
    let letters: Vec<char> = name.chars().collect();
    let count = f64::from(u32::try_from(letters.len()).unwrap_or(1));
    // As wide an arc as the letters need, at most 236 degrees: the lower part is for the purpose.
    let arc = (count * 25.0).min(236.0);
    let size = (62.0 * arc.to_radians() / count).clamp(8.0, 25.0);
    for (position, letter) in (0_u32..).zip(letters) {
        let angle = if count > 1.0 { -arc / 2.0 + arc * f64::from(position) / (count - 1.0) } else { 0.0 };
        svg.open("g", &[("transform", &format!("rotate({} {cx} {cy})", number(angle)))]);
        let style =
            Type { family: SERIF, size, colour: SEAL_RED, bold: true, anchor: "middle", spacing: 0.0 };
        svg.text(x, y - 73.0 + size * 0.82, style, &letter.to_string());
        svg.close("g");
    }
    let style =
        Type { family: SANS, size: 13.5, colour: SEAL_RED, bold: true, anchor: "middle", spacing: 1.0 };
    svg.text(x, y + 40.0, style, "电子回单专用章");
    svg.text(x, y + 57.0, Type { size: 12.0, spacing: 0.5, ..style }, date);
    svg.close("g");
}

fn star(svg: &mut Svg, (x, y): (f64, f64), radius: f64) {
    let points: Vec<String> = (0..10)
        .map(|corner| {
            let reach = if corner % 2 == 0 { radius } else { radius * 0.382 };
            let angle = f64::from(corner) * PI / 5.0 - PI / 2.0;
            format!("{},{}", number(x + reach * angle.cos()), number(y + reach * angle.sin()))
        })
        .collect();
    svg.element("polygon", &[("points", &points.join(" ")), ("fill", SEAL_RED)]);
}

/// Code 39: per character 9 bars and spaces, `w` for a wide one; the bars are at the even places.
const CODE_39: [(char, &str); 40] = [
    ('0', "nnnwwnwnn"),
    ('1', "wnnwnnnnw"),
    ('2', "nnwwnnnnw"),
    ('3', "wnwwnnnnn"),
    ('4', "nnnwwnnnw"),
    ('5', "wnnwwnnnn"),
    ('6', "nnwwwnnnn"),
    ('7', "nnnwnnwnw"),
    ('8', "wnnwnnwnn"),
    ('9', "nnwwnnwnn"),
    ('A', "wnnnnwnnw"),
    ('B', "nnwnnwnnw"),
    ('C', "wnwnnwnnn"),
    ('D', "nnnnwwnnw"),
    ('E', "wnnnwwnnn"),
    ('F', "nnwnwwnnn"),
    ('G', "nnnnnwwnw"),
    ('H', "wnnnnwwnn"),
    ('I', "nnwnnwwnn"),
    ('J', "nnnnwwwnn"),
    ('K', "wnnnnnnww"),
    ('L', "nnwnnnnww"),
    ('M', "wnwnnnnwn"),
    ('N', "nnnnwnnww"),
    ('O', "wnnnwnnwn"),
    ('P', "nnwnwnnwn"),
    ('Q', "nnnnnnwww"),
    ('R', "wnnnnnwwn"),
    ('S', "nnwnnnwwn"),
    ('T', "nnnnwnwwn"),
    ('U', "wwnnnnnnw"),
    ('V', "nwwnnnnnw"),
    ('W', "wwwnnnnnn"),
    ('X', "nwnnwnnnw"),
    ('Y', "wwnnwnnnn"),
    ('Z', "nwwnwnnnn"),
    ('-', "nwnnnnwnw"),
    ('.', "wwnnnnwnn"),
    (' ', "nwwnnnwnn"),
    ('*', "nwnnwnwnn"),
];

/// The bar code of `text`, right-aligned; nothing where Code 39 has no sign for a character.
pub fn bar_code(svg: &mut Svg, [right, y, width_max, height]: [f64; 4], text: &str) {
    let signs: Option<Vec<&str>> = format!("*{text}*")
        .chars()
        .map(|letter| CODE_39.iter().find(|(sign, _)| *sign == letter).map(|(_, bars)| *bars))
        .collect();
    let Some(signs) = signs else { return };
    let widths: Vec<(bool, f64)> = signs
        .iter()
        .flat_map(|bars| bars.chars().chain(['n']).enumerate())
        .map(|(place, kind)| (place % 2 == 0 && place < 9, if kind == 'w' { 2.5 } else { 1.0 }))
        .collect();
    let total: f64 = widths.iter().map(|(_, width)| width).sum();
    let module = (width_max / total).min(1.2);
    let mut x = right - total * module;
    for (is_bar, width) in widths {
        if is_bar {
            svg.rect([x, y, width * module, height], "#222222");
        }
        x += width * module;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_39_sign_has_three_wide_elements_and_is_unique() {
        for (sign, bars) in CODE_39 {
            assert_eq!((bars.len(), bars.matches('w').count()), (9, 3), "{sign}");
            assert_eq!(CODE_39.iter().filter(|(_, other)| *other == bars).count(), 1, "{sign}");
        }
    }
}
