//! Where everything stands on the paper. The background is the same for all receipts of a bank, the face is one receipt's.

use super::fit::{fitted, shrunk, until_width, width_of};
use super::fonts::{MONO, SANS, SERIF};
use super::form::{AMOUNT_BOTTOM, Form, INK, LEFT, MIDDLE, PARTIES_BOTTOM, RIGHT, TABLE_BOTTOM, TABLE_TOP};
use super::ornament::{self, PALETTES, Palette};
use super::record::ReceiptRecord;
use super::sample::Random;
use super::svg::{Svg, Type};

/// Width of the image in pixels.
pub const WIDTH: u32 = 1240;
/// Height of the image in pixels.
pub const HEIGHT: u32 = 740;

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
    let page = Page { record, form: Form { palette } };
    page.header(&mut svg);
    page.facts(&mut svg);
    page.form.grid(&mut svg);
    page.parties(&mut svg);
    page.amount(&mut svg);
    page.details(&mut svg);
    page.foot(&mut svg);
    page.seal(&mut svg);
    svg.finish()
}

struct Page<'a> {
    record: &'a ReceiptRecord,
    form: Form<'a>,
}

impl Page<'_> {
    fn header(&self, svg: &mut Svg) {
        let text = self.record.text();
        let petals = 5 + u32::try_from(palette_index(&text.bank_name)).unwrap_or_default();
        ornament::emblem(svg, (98.0, 96.0), 35.0, petals, self.form.palette);
        let name = Type { size: 29.0, anchor: "start", spacing: 2.0, ..self.form.title() };
        fitted(svg, [148.0, 95.0, 300.0], name, &text.bank_name);
        fitted(
            svg,
            [149.0, 119.0, 300.0],
            Type { size: 13.0, bold: true, spacing: 1.5, ..self.form.label() },
            &text.bank_name_en,
        );
        svg.text(MIDDLE, 97.0, self.form.title(), "电子回单");
        svg.text(
            MIDDLE,
            121.0,
            Type { size: 13.0, spacing: 2.0, anchor: "middle", ..self.form.label() },
            "ELECTRONIC BANK RECEIPT",
        );
        ornament::bar_code(svg, [RIGHT, 62.0, 330.0, 38.0], &text.serial);
        svg.text(
            RIGHT,
            119.0,
            Type { family: MONO, size: 14.0, colour: INK, anchor: "end", ..self.form.label() },
            &format!("No. {}", text.serial),
        );
    }

    /// The line between the titles and the table.
    fn facts(&self, svg: &mut Svg) {
        let text = self.record.text();
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
            svg.text(x, 161.0, self.form.label(), label);
            let value_x = x + width_of(label, 12.0) + 12.0;
            fitted(
                svg,
                [value_x, 161.0, 240.0],
                Type { size: 15.0, colour: INK, ..self.form.label() },
                &value,
            );
        }
    }

    fn parties(&self, svg: &mut Svg) {
        let text = self.record.text();
        for (x, heading, english, name, account, bank) in [
            (LEFT, "付款人", "Payer", &text.payer_name, &text.payer_account, &text.payer_bank),
            (MIDDLE, "收款人", "Payee", &text.payee_name, &text.payee_account, &text.payee_bank),
        ] {
            self.form.upright(svg, x, TABLE_TOP, PARTIES_BOTTOM - 18.0, heading);
            let small = Type { size: 11.0, anchor: "middle", ..self.form.label() };
            svg.text(x + 22.0, PARTIES_BOTTOM - 14.0, small, english);
            let place = |row: f64| [x + 58.0, TABLE_TOP + row * 52.0, 490.0];
            self.form.cell(svg, place(0.0), (SANS, 19.0), "户名 Account name", name);
            self.form.cell(svg, place(1.0), (MONO, 18.0), "账号 Account number", account);
            self.form.cell(svg, place(2.0), (SANS, 17.0), "开户行 Bank", bank);
        }
    }

    fn amount(&self, svg: &mut Svg) {
        let amount = self.record.amount();
        self.form.upright(svg, LEFT, PARTIES_BOTTOM, AMOUNT_BOTTOM - 14.0, "金额");
        svg.text(
            LEFT + 22.0,
            AMOUNT_BOTTOM - 13.0,
            Type { size: 10.5, anchor: "middle", ..self.form.label() },
            "Amount",
        );
        svg.text(LEFT + 58.0, PARTIES_BOTTOM + 18.0, self.form.label(), "大写 In words");
        let words =
            Type { family: SERIF, size: 25.0, colour: INK, bold: true, spacing: 1.0, ..self.form.label() };
        fitted(svg, [LEFT + 58.0, PARTIES_BOTTOM + 52.0, 684.0], words, &amount.chinese());
        fitted(
            svg,
            [LEFT + 58.0, PARTIES_BOTTOM + 80.0, 684.0],
            Type { size: 14.5, colour: INK, ..self.form.label() },
            &amount.english(),
        );
        svg.text(878.0, PARTIES_BOTTOM + 18.0, self.form.label(), "小写 In figures");
        let figures = Type {
            family: MONO,
            size: 30.0,
            colour: self.form.palette.dark,
            bold: true,
            anchor: "end",
            ..self.form.label()
        };
        shrunk(svg, [RIGHT - 16.0, PARTIES_BOTTOM + 66.0, 284.0], figures, &amount.figures());
    }

    fn details(&self, svg: &mut Svg) {
        let text = self.record.text();
        self.form.upright(svg, LEFT, AMOUNT_BOTTOM, TABLE_BOTTOM - 14.0, "明细");
        svg.text(
            LEFT + 22.0,
            TABLE_BOTTOM - 18.0,
            Type { size: 10.5, anchor: "middle", ..self.form.label() },
            "Details",
        );
        let left = LEFT + 58.0;
        let row = |row: f64| AMOUNT_BOTTOM + row * 52.0;
        self.form.cell(svg, [left, row(0.0), 780.0], (SANS, 17.0), "用途 Purpose", &text.purpose);
        self.form.cell(svg, [left, row(1.0), 360.0], (MONO, 16.0), "回单编号 Receipt number", &text.serial);
        self.form.cell(
            svg,
            [left + 420.0, row(1.0), 360.0],
            (MONO, 16.0),
            "验证码 Check code",
            &self.record.check_code(),
        );
        self.form.cell(
            svg,
            [left, row(2.0), 780.0],
            (SANS, 15.0),
            "附言 Remark",
            if text.remark.is_empty() { "—" } else { &text.remark },
        );
    }

    fn foot(&self, svg: &mut Svg) {
        let notes = [
            "本回单由系统自动生成，加盖电子回单专用章后有效；请勿重复记账，以实际入账为准。",
            "This receipt was issued electronically and is valid with the electronic seal. Do not book it twice; the ledger entry prevails.",
        ];
        for (y, note) in [612.0, 632.0].into_iter().zip(notes) {
            svg.text(LEFT, y, Type { size: 12.0, ..self.form.label() }, note);
        }
        let text = self.record.text();
        svg.text(LEFT, 672.0, Type { size: 13.0, ..self.form.label() }, "打印次数 Copy: 1");
        svg.text(260.0, 672.0, Type { size: 13.0, ..self.form.label() }, "渠道 Channel: 电子银行 e-Banking");
        svg.text(
            RIGHT,
            672.0,
            Type { family: MONO, size: 12.0, anchor: "end", ..self.form.label() },
            &self.record.path(),
        );
        let micro = format!("{} ELECTRONIC RECEIPT {} · ", text.bank_name_en, text.serial);
        let style = Type { size: 4.6, spacing: 0.4, ..self.form.label() };
        svg.text(LEFT, 689.0, style, &until_width(&micro, style.size * 1.14, RIGHT - LEFT));
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
