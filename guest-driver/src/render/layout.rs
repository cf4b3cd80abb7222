//! Where everything stands on the paper. The background is the same for all receipts of a bank, the face is one receipt's.

use super::fonts::{MONO, SANS, SERIF};
use super::ornament::{self, PALETTES, Palette};
use super::record::{ReceiptRecord, letter_columns, text_columns};
use super::sample::Random;
use super::svg::{Svg, Type};

/// Width of the image in pixels.
pub const WIDTH: u32 = 1240;
/// Height of the image in pixels.
pub const HEIGHT: u32 = 740;

const INK: &str = "#1d1d1f";
const LEFT: f64 = 62.0;
const RIGHT: f64 = 1178.0;
const MIDDLE: f64 = 620.0;
const TABLE_TOP: f64 = 176.0;
const PARTIES_BOTTOM: f64 = 332.0;
const AMOUNT_BOTTOM: f64 = 428.0;
const TABLE_BOTTOM: f64 = 584.0;

/// Which of the palettes a bank has.
pub fn palette_index(bank_name: &str) -> usize {
    usize::from(blake3::hash(bank_name.as_bytes()).as_bytes()[0]) % PALETTES.len()
}

/// The printed paper, without any data.
pub fn background(palette: &Palette) -> String {
    let mut svg = Svg::new(WIDTH, HEIGHT);
    svg.rect([0.0, 0.0, f64::from(WIDTH), f64::from(HEIGHT)], palette.paper);
    ornament::band(&mut svg, [38.0, 1202.0, 105.0, 118.0], 10, 3.0, palette.tint);
    ornament::band(&mut svg, [38.0, 1202.0, 640.0, 92.0], 8, 5.0, palette.second_tint);
    ornament::rosette(&mut svg, (MIDDLE, 380.0), 205.0, (9, 16), palette.tint);
    ornament::rosette(&mut svg, (MIDDLE, 380.0), 92.0, (7, 10), palette.second_tint);
    ornament::rosette(&mut svg, (214.0, 470.0), 118.0, (8, 10), palette.second_tint);
    ornament::rosette(&mut svg, (1026.0, 300.0), 118.0, (8, 10), palette.second_tint);
    ornament::border(&mut svg, [22.0, 22.0, 1196.0, 696.0], palette);
    svg.finish()
}

/// One receipt, drawn over the background.
pub fn face(record: &ReceiptRecord, palette: &Palette) -> String {
    let mut svg = Svg::new(WIDTH, HEIGHT);
    let page = Page { record, palette };
    page.header(&mut svg);
    page.grid(&mut svg);
    page.parties(&mut svg);
    page.amount(&mut svg);
    page.details(&mut svg);
    page.foot(&mut svg);
    page.seal(&mut svg);
    svg.finish()
}

struct Page<'a> {
    record: &'a ReceiptRecord,
    palette: &'a Palette,
}

impl Page<'_> {
    fn label(&self) -> Type<'static> {
        Type {
            family: SANS,
            size: 12.0,
            colour: self.palette.middle,
            bold: false,
            anchor: "start",
            spacing: 0.0,
        }
    }

    fn title(&self) -> Type<'static> {
        Type {
            family: SERIF,
            size: 34.0,
            colour: self.palette.dark,
            bold: true,
            anchor: "middle",
            spacing: 12.0,
        }
    }

    fn header(&self, svg: &mut Svg) {
        let text = self.record.text();
        let petals = 5 + u32::try_from(palette_index(&text.bank_name)).unwrap_or_default();
        ornament::emblem(svg, (98.0, 96.0), 35.0, petals, self.palette);
        let name = Type {
            size: 29.0,
            anchor: "start",
            spacing: 2.0,
            ..self.title()
        };
        fitted(svg, [148.0, 95.0, 300.0], name, &text.bank_name);
        fitted(
            svg,
            [149.0, 119.0, 300.0],
            Type {
                size: 13.0,
                bold: true,
                spacing: 1.5,
                ..self.label()
            },
            &text.bank_name_en,
        );
        svg.text(MIDDLE, 97.0, self.title(), "电子回单");
        svg.text(
            MIDDLE,
            121.0,
            Type {
                size: 13.0,
                spacing: 2.0,
                anchor: "middle",
                ..self.label()
            },
            "ELECTRONIC BANK RECEIPT",
        );
        ornament::bar_code(svg, [RIGHT, 62.0, 330.0, 38.0], &text.serial);
        svg.text(
            RIGHT,
            119.0,
            Type {
                family: MONO,
                size: 14.0,
                colour: INK,
                anchor: "end",
                ..self.label()
            },
            &format!("No. {}", text.serial),
        );
        let pairs = [
            (LEFT, "交易时间 Date & time", self.record.issued_at()),
            (440.0, "业务类型 Business", text.business.clone()),
            (
                856.0,
                "币种 Currency",
                format!(
                    "{} {}",
                    self.record.amount().currency().code(),
                    self.record.amount().currency().chinese()
                ),
            ),
        ];
        for (x, label, value) in pairs {
            svg.text(x, 161.0, self.label(), label);
            let value_x = x + width_of(label, 12.0) + 12.0;
            fitted(
                svg,
                [value_x, 161.0, 240.0],
                Type {
                    size: 15.0,
                    colour: INK,
                    ..self.label()
                },
                &value,
            );
        }
    }

    fn grid(&self, svg: &mut Svg) {
        let wash = |svg: &mut Svg, place: [f64; 4]| {
            let [x, y, width, height] = place.map(super::svg::number);
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
        svg.line(
            [LEFT + 44.0, TABLE_TOP, LEFT + 44.0, TABLE_BOTTOM],
            self.palette.middle,
            0.5,
        );
        svg.line(
            [MIDDLE, TABLE_TOP, MIDDLE, PARTIES_BOTTOM],
            self.palette.dark,
            1.0,
        );
        svg.line(
            [MIDDLE + 44.0, TABLE_TOP, MIDDLE + 44.0, PARTIES_BOTTOM],
            self.palette.middle,
            0.5,
        );
        svg.line(
            [864.0, PARTIES_BOTTOM, 864.0, AMOUNT_BOTTOM],
            self.palette.middle,
            0.5,
        );
        svg.frame(
            [LEFT, TABLE_TOP, RIGHT - LEFT, TABLE_BOTTOM - TABLE_TOP],
            self.palette.dark,
            2.0,
        );
    }

    /// A heading that runs down its column, as on printed forms.
    fn upright(&self, svg: &mut Svg, x: f64, top: f64, bottom: f64, text: &str) {
        let style = Type {
            size: 17.0,
            colour: self.palette.dark,
            bold: true,
            anchor: "middle",
            ..self.label()
        };
        let count = f64::from(u32::try_from(text.chars().count()).unwrap_or(1));
        let step = 27.0;
        let first = (top + bottom) / 2.0 - (count - 1.0) * step / 2.0 + 6.0;
        for (place, letter) in (0_u32..).zip(text.chars()) {
            svg.text(
                x + 22.0,
                first + f64::from(place) * step,
                style,
                &letter.to_string(),
            );
        }
    }

    fn cell(
        &self,
        svg: &mut Svg,
        [x, y, width]: [f64; 3],
        (family, size): (&'static str, f64),
        label: &str,
        value: &str,
    ) {
        svg.text(
            x,
            y + 17.0,
            Type {
                size: 11.5,
                ..self.label()
            },
            label,
        );
        fitted(
            svg,
            [x, y + 41.0, width],
            Type {
                family,
                size,
                colour: INK,
                ..self.label()
            },
            value,
        );
    }

    fn parties(&self, svg: &mut Svg) {
        let text = self.record.text();
        for (x, heading, english, name, account, bank) in [
            (
                LEFT,
                "付款人",
                "Payer",
                &text.payer_name,
                &text.payer_account,
                &text.payer_bank,
            ),
            (
                MIDDLE,
                "收款人",
                "Payee",
                &text.payee_name,
                &text.payee_account,
                &text.payee_bank,
            ),
        ] {
            self.upright(svg, x, TABLE_TOP, PARTIES_BOTTOM - 18.0, heading);
            let small = Type {
                size: 11.0,
                anchor: "middle",
                ..self.label()
            };
            svg.text(x + 22.0, PARTIES_BOTTOM - 14.0, small, english);
            let place = |row: f64| [x + 58.0, TABLE_TOP + row * 52.0, 490.0];
            self.cell(svg, place(0.0), (SANS, 19.0), "户名 Account name", name);
            self.cell(svg, place(1.0), (MONO, 18.0), "账号 Account number", account);
            self.cell(svg, place(2.0), (SANS, 17.0), "开户行 Bank", bank);
        }
    }

    fn amount(&self, svg: &mut Svg) {
        let amount = self.record.amount();
        self.upright(svg, LEFT, PARTIES_BOTTOM, AMOUNT_BOTTOM - 14.0, "金额");
        svg.text(
            LEFT + 22.0,
            AMOUNT_BOTTOM - 13.0,
            Type {
                size: 10.5,
                anchor: "middle",
                ..self.label()
            },
            "Amount",
        );
        svg.text(LEFT + 58.0, PARTIES_BOTTOM + 18.0, self.label(), "大写 In words");
        let words = Type {
            family: SERIF,
            size: 25.0,
            colour: INK,
            bold: true,
            spacing: 1.0,
            ..self.label()
        };
        fitted(
            svg,
            [LEFT + 58.0, PARTIES_BOTTOM + 52.0, 684.0],
            words,
            &amount.chinese(),
        );
        fitted(
            svg,
            [LEFT + 58.0, PARTIES_BOTTOM + 80.0, 684.0],
            Type {
                size: 14.5,
                colour: INK,
                ..self.label()
            },
            &amount.english(),
        );
        svg.text(878.0, PARTIES_BOTTOM + 18.0, self.label(), "小写 In figures");
        let figures = Type {
            family: MONO,
            size: 30.0,
            colour: self.palette.dark,
            bold: true,
            anchor: "end",
            ..self.label()
        };
        shrunk(
            svg,
            [RIGHT - 16.0, PARTIES_BOTTOM + 66.0, 284.0],
            figures,
            &amount.figures(),
        );
    }

    fn details(&self, svg: &mut Svg) {
        let text = self.record.text();
        self.upright(svg, LEFT, AMOUNT_BOTTOM, TABLE_BOTTOM - 14.0, "明细");
        svg.text(
            LEFT + 22.0,
            TABLE_BOTTOM - 18.0,
            Type {
                size: 10.5,
                anchor: "middle",
                ..self.label()
            },
            "Details",
        );
        let left = LEFT + 58.0;
        let row = |row: f64| AMOUNT_BOTTOM + row * 52.0;
        self.cell(
            svg,
            [left, row(0.0), 780.0],
            (SANS, 17.0),
            "用途 Purpose",
            &text.purpose,
        );
        self.cell(
            svg,
            [left, row(1.0), 360.0],
            (MONO, 16.0),
            "回单编号 Receipt number",
            &text.serial,
        );
        self.cell(
            svg,
            [left + 420.0, row(1.0), 360.0],
            (MONO, 16.0),
            "验证码 Check code",
            &self.record.check_code(),
        );
        self.cell(
            svg,
            [left, row(2.0), 780.0],
            (SANS, 15.0),
            "附言 Remark",
            if text.remark.is_empty() {
                "—"
            } else {
                &text.remark
            },
        );
    }

    fn foot(&self, svg: &mut Svg) {
        let notes = [
            "本回单由系统自动生成，加盖电子回单专用章后有效；请勿重复记账，以实际入账为准。",
            "This receipt was issued electronically and is valid with the electronic seal. Do not book it twice; the ledger entry prevails.",
        ];
        for (y, note) in [612.0, 632.0].into_iter().zip(notes) {
            svg.text(
                LEFT,
                y,
                Type {
                    size: 12.0,
                    ..self.label()
                },
                note,
            );
        }
        let text = self.record.text();
        svg.text(
            LEFT,
            672.0,
            Type {
                size: 13.0,
                ..self.label()
            },
            "打印次数 Copy: 1",
        );
        svg.text(
            260.0,
            672.0,
            Type {
                size: 13.0,
                ..self.label()
            },
            "渠道 Channel: 电子银行 e-Banking",
        );
        svg.text(
            RIGHT,
            672.0,
            Type {
                family: MONO,
                size: 12.0,
                anchor: "end",
                ..self.label()
            },
            &self.record.path(),
        );
        let micro = format!("{} ELECTRONIC RECEIPT {} · ", text.bank_name_en, text.serial);
        let style = Type {
            size: 4.6,
            spacing: 0.4,
            ..self.label()
        };
        svg.text(
            LEFT,
            689.0,
            style,
            &until_width(&micro, style.size * 1.14, RIGHT - LEFT),
        );
    }

    fn seal(&self, svg: &mut Svg) {
        let text = self.record.text();
        let seed = blake3::hash(text.serial.as_bytes());
        let [first, second, ..] = *seed.as_bytes();
        let mut random = Random(u64::from(first) << 8 | u64::from(second));
        let x = 1052.0 + f64::from(random.below(24));
        let y = 536.0 + f64::from(random.below(20));
        ornament::seal(
            svg,
            (x, y),
            &text.bank_name,
            self.record.issued_at().get(..10).unwrap_or_default(),
            &mut random,
        );
    }
}

/// A text in a place `width` wide: smaller where it would not fit, on two lines where it would become too small.
fn fitted(svg: &mut Svg, [x, y, width]: [f64; 3], style: Type<'_>, text: &str) {
    let (size, lines) = fit(text, style.size, style.spacing, width);
    let style = Type {
        size,
        spacing: style.spacing * size / style.size,
        ..style
    };
    match lines.as_slice() {
        [first, second] => {
            svg.text(x, y - size * 0.70, style, first);
            svg.text(x, y + size * 0.46, style, second);
        }
        _ => svg.text(x, y, style, text),
    }
}

/// A text on one line, however small it becomes: a number that is cut in two can be misread.
fn shrunk(svg: &mut Svg, [x, y, width]: [f64; 3], style: Type<'_>, text: &str) {
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
fn width_of(text: &str, size: f64) -> f64 {
    let width = |letter: char| match letter {
        letter if letter_columns(letter) == 2 => 1.0,
        'A'..='Z' | '@' | '%' | '&' => 0.68,
        _ => 0.602,
    };
    text.chars().map(width).sum::<f64>() * size
}

/// `text` repeated as often as `width` allows.
fn until_width(text: &str, size: f64, width: f64) -> String {
    let times = (1..200_u32)
        .take_while(|times| f64::from(*times) * width_of(text, size) <= width)
        .count();
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
        assert_eq!(
            format!("{first} {second}"),
            "Northmoor and Vale Demonstration Bank, Harbour Branch"
        );
        assert_eq!(halves("一二三四五六"), ["一二三", "四五六"]);
    }
}
