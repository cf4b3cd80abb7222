//! The empty form: its rules, its headings and the types it is set in.

use super::fit::fitted;
use super::fonts::{SANS, SERIF};
use super::ornament::Palette;
use super::svg::{Svg, Type, number};

/// The colour of what is printed into the form.
pub const INK: &str = "#1d1d1f";
/// Left edge of the table.
pub const LEFT: f64 = 62.0;
/// Right edge of the table.
pub const RIGHT: f64 = 1178.0;
/// Where the payee begins.
pub const MIDDLE: f64 = 620.0;
/// Upper edge of the table.
pub const TABLE_TOP: f64 = 176.0;
/// Lower edge of the rows of payer and payee.
pub const PARTIES_BOTTOM: f64 = 332.0;
/// Lower edge of the amount.
pub const AMOUNT_BOTTOM: f64 = 428.0;
/// Lower edge of the table.
pub const TABLE_BOTTOM: f64 = 584.0;

/// A form in the colours of one bank.
pub struct Form<'a> {
    /// Its colours.
    pub palette: &'a Palette,
}

impl Form<'_> {
    /// The type of labels.
    pub fn label(&self) -> Type<'static> {
        Type {
            family: SANS,
            size: 12.0,
            colour: self.palette.middle,
            bold: false,
            anchor: "start",
            spacing: 0.0,
        }
    }

    /// The type of titles.
    pub fn title(&self) -> Type<'static> {
        Type {
            family: SERIF,
            size: 34.0,
            colour: self.palette.dark,
            bold: true,
            anchor: "middle",
            spacing: 12.0,
        }
    }

    /// The rules of the table.
    pub fn grid(&self, svg: &mut Svg) {
        let wash = |svg: &mut Svg, place: [f64; 4]| {
            let [x, y, width, height] = place.map(number);
            svg.element(
                "rect",
                &[
                    ("x", &x),
                    ("y", &y),
                    ("width", &width),
                    ("height", &height),
                    ("fill", self.palette.wash),
                    ("fill-opacity", "0.85"),
                ],
            );
        };
        wash(svg, [LEFT, TABLE_TOP, 44.0, TABLE_BOTTOM - TABLE_TOP]);
        wash(svg, [MIDDLE, TABLE_TOP, 44.0, PARTIES_BOTTOM - TABLE_TOP]);
        for y in [PARTIES_BOTTOM, AMOUNT_BOTTOM] {
            svg.line([LEFT, y, RIGHT, y], self.palette.dark, 1.0);
        }
        for step in [1.0, 2.0] {
            let y = TABLE_TOP + step * 52.0;
            svg.line([LEFT + 44.0, y, MIDDLE, y], self.palette.middle, 0.5);
            svg.line([MIDDLE + 44.0, y, RIGHT, y], self.palette.middle, 0.5);
            let y = AMOUNT_BOTTOM + step * 52.0;
            svg.line([LEFT + 44.0, y, RIGHT, y], self.palette.middle, 0.5);
        }
        svg.line([LEFT + 44.0, TABLE_TOP, LEFT + 44.0, TABLE_BOTTOM], self.palette.middle, 0.5);
        svg.line([MIDDLE, TABLE_TOP, MIDDLE, PARTIES_BOTTOM], self.palette.dark, 1.0);
        svg.line([MIDDLE + 44.0, TABLE_TOP, MIDDLE + 44.0, PARTIES_BOTTOM], self.palette.middle, 0.5);
        svg.line([864.0, PARTIES_BOTTOM, 864.0, AMOUNT_BOTTOM], self.palette.middle, 0.5);
        svg.frame([LEFT, TABLE_TOP, RIGHT - LEFT, TABLE_BOTTOM - TABLE_TOP], self.palette.dark, 2.0);
    }

    /// A heading that runs down its column, as on printed forms.
    pub fn upright(&self, svg: &mut Svg, x: f64, top: f64, bottom: f64, text: &str) {
        let style =
            Type { size: 17.0, colour: self.palette.dark, bold: true, anchor: "middle", ..self.label() };
        let count = f64::from(u32::try_from(text.chars().count()).unwrap_or(1));
        let step = 27.0;
        let first = (top + bottom) / 2.0 - (count - 1.0) * step / 2.0 + 6.0;
        for (place, letter) in (0_u32..).zip(text.chars()) {
            svg.text(x + 22.0, first + f64::from(place) * step, style, &letter.to_string());
        }
    }

    /// A label and what stands under it.
    pub fn cell(
        &self,
        svg: &mut Svg,
        [x, y, width]: [f64; 3],
        (family, size): (&'static str, f64),
        label: &str,
        value: &str,
    ) {
        svg.text(x, y + 17.0, Type { size: 11.5, ..self.label() }, label);
        fitted(svg, [x, y + 41.0, width], Type { family, size, colour: INK, ..self.label() }, value);
    }
}
