//! Texts of any length in places of fixed width.

use super::record::{letter_columns, text_columns};
use super::svg::{Svg, Type};

/// A text in a place `width` wide: smaller where it would not fit, on two lines where it would become too small.
pub fn fitted(svg: &mut Svg, [x, y, width]: [f64; 3], style: Type<'_>, text: &str) {
    let (size, lines) = fit(text, style.size, style.spacing, width);
    let style = Type { size, spacing: style.spacing * size / style.size, ..style };
    match lines.as_slice() {
        [first, second] => {
            svg.text(x, y - size * 0.70, style, first);
            svg.text(x, y + size * 0.46, style, second);
        }
        _ => svg.text(x, y, style, text),
    }
}

/// A text on one line, however small it becomes: a number that is cut in two can be misread.
pub fn shrunk(svg: &mut Svg, [x, y, width]: [f64; 3], style: Type<'_>, text: &str) {
    let size = style.size * (width / width_of(text, style.size)).min(1.0);
    svg.text(x, y, Type { size, ..style }, text);
}

/// The size of type, and the text in one or two lines.
fn fit(text: &str, size: f64, spacing: f64, width: f64) -> (f64, Vec<String>) {
    let spaced = |text: &str| {
        width_of(text, size) + spacing * f64::from(u32::try_from(text.chars().count()).unwrap_or_default())
    };
    let ratio = width / spaced(text).max(1.0);
    if ratio >= 0.72 {
        return (size * ratio.min(1.0), vec![text.to_owned()]);
    }
    let [first, second] = halves(text);
    let ratio = width / spaced(&first).max(spaced(&second)).max(1.0);
    (size * ratio.min(0.68), vec![first, second])
}

/// Splits near the middle, at a space where one is close.
fn halves(text: &str) -> [String; 2] {
    let half = text_columns(text) / 2;
    let mut columns = 0;
    let mut cut = text.len();
    for (place, letter) in text.char_indices() {
        let is_near = columns + 14 >= half;
        if columns >= half || (is_near && letter == ' ') {
            cut = place;
            break;
        }
        columns += letter_columns(letter);
    }
    let (first, second) = text.split_at(cut);
    [first.trim_end().to_owned(), second.trim_start().to_owned()]
}

/// An estimate on the safe side: a full-width character is as wide as high, others 0.6 of that (0.68 for capitals).
pub fn width_of(text: &str, size: f64) -> f64 {
    let width = |letter: char| match letter {
        letter if letter_columns(letter) == 2 => 1.0,
        'A'..='Z' | '@' | '%' | '&' => 0.68,
        _ => 0.602,
    };
    text.chars().map(width).sum::<f64>() * size
}

/// `text` repeated as often as `width` allows.
pub fn until_width(text: &str, size: f64, width: f64) -> String {
    let times = (1..200_u32).take_while(|times| f64::from(*times) * width_of(text, size) <= width).count();
    text.repeat(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_texts_stay_in_their_place() {
        for (text, size, width) in [
            ("有限".repeat(24), 19.0, 490.0),
            ("W".repeat(96), 19.0, 490.0),
            ("采购".repeat(30), 17.0, 780.0),
            ("9".repeat(34), 18.0, 490.0),
        ] {
            let (size, lines) = fit(&text, size, 0.0, width);
            assert!(size >= 9.0, "{text}: {size}");
            for line in lines {
                assert!(width_of(&line, size) <= width + 0.01, "{line}");
            }
        }
    }

    #[test]
    fn a_long_text_is_cut_at_a_space_and_loses_nothing() {
        let [first, second] = halves("Northmoor and Vale Demonstration Bank, Harbour Branch");
        assert_eq!(format!("{first} {second}"), "Northmoor and Vale Demonstration Bank, Harbour Branch");
        assert_eq!(halves("一二三四五六"), ["一二三", "四五六"]);
    }
}
