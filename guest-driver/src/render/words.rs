//! Amounts as a bank writes them: in figures, in Chinese capital numerals and in English words.

use std::fmt;
use std::str::FromStr;

/// The currencies a receipt can be in. All have 100 parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Currency {
    /// Renminbi.
    Cny,
    /// Hong Kong dollar.
    Hkd,
    /// United States dollar.
    Usd,
    /// Euro.
    Eur,
}

impl Currency {
    /// The ISO 4217 code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Cny => "CNY",
            Self::Hkd => "HKD",
            Self::Usd => "USD",
            Self::Eur => "EUR",
        }
    }

    fn symbol(self) -> &'static str {
        match self {
            Self::Cny => "¥",
            Self::Hkd => "HK$",
            Self::Usd => "US$",
            Self::Eur => "€",
        }
    }

    /// The name that stands before the Chinese capital numerals.
    pub fn chinese(self) -> &'static str {
        match self {
            Self::Cny => "人民币",
            Self::Hkd => "港币",
            Self::Usd => "美元",
            Self::Eur => "欧元",
        }
    }

    fn english(self) -> &'static str {
        match self {
            Self::Cny => "Renminbi Yuan",
            Self::Hkd => "Hong Kong Dollars",
            Self::Usd => "US Dollars",
            Self::Eur => "Euros",
        }
    }
}

impl FromStr for Currency {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        match text {
            "CNY" => Ok(Self::Cny),
            "HKD" => Ok(Self::Hkd),
            "USD" => Ok(Self::Usd),
            "EUR" => Ok(Self::Eur),
            _ => Err(AmountError::Currency(text.to_owned())),
        }
    }
}

/// An amount of money in hundredths: fen, cents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    hundredths: u64,
    currency: Currency,
}

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// The currency is not one that a receipt can be in.
    #[error("currency {0:?} is not CNY, HKD, USD or EUR")]
    Currency(String),
    /// Not digits with at most one point and two decimals.
    #[error("amount {0:?} is not digits with at most two decimals, such as 1234.56")]
    Form(String),
    /// More than the words and the layout can hold.
    #[error("amount {0} is above the limit of 9999999999999.99")]
    Limit(String),
}

/// The largest amount: 13 digits before the point. Its English words still fit on two lines.
const HUNDREDTHS_MAX: u64 = 999_999_999_999_999;

impl Amount {
    /// Reads `1234`, `1234.5` or `1234.56`.
    ///
    /// # Errors
    /// [`AmountError`] when the text is anything else (signs, separators and spaces included).
    pub fn parse(text: &str, currency: Currency) -> Result<Self, AmountError> {
        let form = || AmountError::Form(text.to_owned());
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "00"));
        let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_digits(whole) || !is_digits(decimals) || decimals.len() > 2 {
            return Err(form());
        }
        let limit = || AmountError::Limit(text.to_owned());
        let hundredths = format!("{whole}{decimals:0<2}").parse::<u64>().map_err(|_| limit())?;
        if hundredths > HUNDREDTHS_MAX {
            return Err(limit());
        }
        Ok(Self { hundredths, currency })
    }

    /// The currency.
    pub fn currency(self) -> Currency {
        self.currency
    }

    /// `¥1,234.56`
    pub fn figures(self) -> String {
        let whole = (self.hundredths / 100).to_string();
        let mut grouped = String::new();
        for (position, digit) in whole.chars().enumerate() {
            if position > 0 && (whole.len() - position).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        format!("{}{grouped}.{:02}", self.currency.symbol(), self.hundredths % 100)
    }

    /// `人民币壹仟贰佰叁拾肆元伍角陆分`, by the central bank's rules for filling in bills.
    pub fn chinese(self) -> String {
        let (whole, tenths, hundredths) =
            (self.hundredths / 100, self.hundredths / 10 % 10, self.hundredths % 10);
        let mut words = self.currency.chinese().to_owned();
        if whole > 0 || self.hundredths == 0 {
            words += &chinese_whole(whole);
            words.push('元');
        }
        if tenths > 0 {
            words += chinese_digit(tenths);
            words.push('角');
        } else if whole > 0 && hundredths > 0 {
            words.push('零');
        }
        if hundredths > 0 {
            words += chinese_digit(hundredths);
            words.push('分');
        } else {
            words.push('整');
        }
        words
    }

    /// `Renminbi Yuan One Thousand Two Hundred Thirty-Four and 56/100 Only`
    pub fn english(self) -> String {
        let whole = english_whole(self.hundredths / 100);
        match self.hundredths % 100 {
            0 => format!("{} {whole} Only", self.currency.english()),
            part => format!("{} {whole} and {part:02}/100 Only", self.currency.english()),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{:02}", self.hundredths / 100, self.hundredths % 100)
    }
}

fn chinese_digit(digit: u64) -> &'static str {
    match digit {
        1 => "壹",
        2 => "贰",
        3 => "叁",
        4 => "肆",
        5 => "伍",
        6 => "陆",
        7 => "柒",
        8 => "捌",
        9 => "玖",
        _ => "零",
    }
}

/// Each unit multiplies what stands before it and adds what stands after it. One 零 stands for all the zeros between.
fn chinese_whole(number: u64) -> String {
    const UNITS: [(u64, &str); 5] =
        [(100_000_000, "亿"), (10_000, "万"), (1000, "仟"), (100, "佰"), (10, "拾")];
    let Some((value, name)) = UNITS.into_iter().find(|(value, _)| number >= *value) else {
        return chinese_digit(number).to_owned();
    };
    let rest = number % value;
    let gap = if rest > 0 && rest < value / 10 { "零" } else { "" };
    let rest_words = if rest > 0 { chinese_whole(rest) } else { String::new() };
    format!("{}{name}{gap}{rest_words}", chinese_whole(number / value))
}

fn english_whole(number: u64) -> String {
    const SMALL: [&str; 20] = [
        "Zero",
        "One",
        "Two",
        "Three",
        "Four",
        "Five",
        "Six",
        "Seven",
        "Eight",
        "Nine",
        "Ten",
        "Eleven",
        "Twelve",
        "Thirteen",
        "Fourteen",
        "Fifteen",
        "Sixteen",
        "Seventeen",
        "Eighteen",
        "Nineteen",
    ];
    const TENS: [&str; 10] =
        ["", "", "Twenty", "Thirty", "Forty", "Fifty", "Sixty", "Seventy", "Eighty", "Ninety"];
    const UNITS: [(u64, &str); 5] = [
        (1_000_000_000_000, "Trillion"),
        (1_000_000_000, "Billion"),
        (1_000_000, "Million"),
        (1000, "Thousand"),
        (100, "Hundred"),
    ];
    let word = |list: &[&'static str], at: u64| {
        usize::try_from(at).ok().and_then(|at| list.get(at).copied()).unwrap_or_default()
    };
    if number < 20 {
        return word(&SMALL, number).to_owned();
    }
    if number < 100 {
        let tens = word(&TENS, number / 10);
        return match number % 10 {
            0 => tens.to_owned(),
            ones => format!("{tens}-{}", word(&SMALL, ones)),
        };
    }
    let (value, name) = UNITS.into_iter().find(|(value, _)| number >= *value).unwrap_or((100, "Hundred"));
    let head = format!("{} {name}", english_whole(number / value));
    match number % value {
        0 => head,
        rest => format!("{head} {}", english_whole(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yuan(text: &str) -> Amount {
        Amount::parse(text, Currency::Cny).unwrap()
    }

    #[test]
    fn chinese_capital_numerals_follow_the_rules() {
        let cases = [
            ("0", "零元整"),
            ("0.05", "伍分"),
            ("0.50", "伍角整"),
            ("0.56", "伍角陆分"),
            ("1", "壹元整"),
            ("10", "壹拾元整"),
            ("10.01", "壹拾元零壹分"),
            ("105.30", "壹佰零伍元叁角整"),
            ("1234.56", "壹仟贰佰叁拾肆元伍角陆分"),
            ("1001", "壹仟零壹元整"),
            ("1010", "壹仟零壹拾元整"),
            ("1680.32", "壹仟陆佰捌拾元叁角贰分"),
            ("10000", "壹万元整"),
            ("10001", "壹万零壹元整"),
            ("107000.53", "壹拾万柒仟元伍角叁分"),
            ("100005000", "壹亿零伍仟元整"),
            ("100000000", "壹亿元整"),
            ("100010000", "壹亿零壹万元整"),
            ("120034000", "壹亿贰仟零叁万肆仟元整"),
            ("1000000000000", "壹万亿元整"),
            ("1000100000000", "壹万零壹亿元整"),
            ("1000000000001.10", "壹万亿零壹元壹角整"),
            ("9999999999999.99", "玖万玖仟玖佰玖拾玖亿玖仟玖佰玖拾玖万玖仟玖佰玖拾玖元玖角玖分"),
        ];
        for (figures, words) in cases {
            assert_eq!(yuan(figures).chinese(), format!("人民币{words}"), "{figures}");
        }
    }

    #[test]
    fn english_words_name_every_digit() {
        let cases = [
            ("0", "Zero Only"),
            ("0.07", "Zero and 07/100 Only"),
            ("13", "Thirteen Only"),
            ("20", "Twenty Only"),
            ("42.5", "Forty-Two and 50/100 Only"),
            ("100", "One Hundred Only"),
            ("1234.56", "One Thousand Two Hundred Thirty-Four and 56/100 Only"),
            ("1000001", "One Million One Only"),
            ("2000000000.01", "Two Billion and 01/100 Only"),
            ("1000000000000", "One Trillion Only"),
        ];
        for (figures, words) in cases {
            assert_eq!(yuan(figures).english(), format!("Renminbi Yuan {words}"), "{figures}");
        }
    }

    #[test]
    fn figures_are_grouped_by_thousands() {
        let cases =
            [("0", "¥0.00"), ("999.9", "¥999.90"), ("1000", "¥1,000.00"), ("1234567.89", "¥1,234,567.89")];
        for (text, figures) in cases {
            assert_eq!(yuan(text).figures(), figures);
        }
        let dollars = Amount::parse("5", Currency::Usd).unwrap();
        assert_eq!(dollars.figures(), "US$5.00");
        assert_eq!(dollars.chinese(), "美元伍元整");
        assert_eq!(dollars.to_string(), "5.00");
    }

    #[test]
    fn what_is_not_an_amount_is_refused() {
        for text in ["", ".", "1.", ".5", "1.234", "-1", "+1", "1,000", " 1", "1e3", "１", "1.2.3"] {
            assert_eq!(
                Amount::parse(text, Currency::Cny),
                Err(AmountError::Form(text.to_owned())),
                "{text:?}"
            );
        }
        for text in ["10000000000000", "99999999999999999999999"] {
            assert_eq!(Amount::parse(text, Currency::Cny), Err(AmountError::Limit(text.to_owned())));
        }
        assert_eq!("XAU".parse::<Currency>(), Err(AmountError::Currency("XAU".to_owned())));
    }
}
