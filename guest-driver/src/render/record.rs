//! One receipt as data: read from CSV (or from JSON, through [`RawRecord`]), checked once, and never doubted afterwards.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::words::{Amount, AmountError, Currency};

/// The columns of the CSV file, all text, none checked yet.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawRecord {
    /// Unique number of the receipt: letters, digits, `-` and `_`.
    pub serial: String,
    /// `2026-11-23T14:05:09`, the bank's local time.
    pub issued_at: String,
    /// The issuing bank.
    pub bank_name: String,
    /// The issuing bank's name in Latin letters.
    pub bank_name_en: String,
    /// CNY, HKD, USD or EUR.
    pub currency: String,
    /// `1234.56`
    pub amount: String,
    /// Who paid.
    pub payer_name: String,
    /// The payer's account number.
    pub payer_account: String,
    /// The branch that keeps the payer's account.
    pub payer_bank: String,
    /// Who was paid.
    pub payee_name: String,
    /// The payee's account number.
    pub payee_account: String,
    /// The branch that keeps the payee's account.
    pub payee_bank: String,
    /// The kind of business, such as `转账汇款 Transfer`.
    pub business: String,
    /// What was paid for.
    pub purpose: String,
    /// Anything else; printed at the foot. May be empty.
    #[serde(default)]
    pub remark: String,
}

/// A checked receipt: every text fits its place, the serial is safe in a path, the amount can be written in words.
#[derive(Clone, Debug)]
pub struct ReceiptRecord {
    raw: RawRecord,
    amount: Amount,
    issued_at: Moment,
}

/// A date and a time of day that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    year: u16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

/// Why a record was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The serial becomes part of a path, so it is limited to harmless characters.
    #[error("serial {0:?} is not 1 to 32 letters, digits, - or _")]
    Serial(String),
    /// No such date or time.
    #[error("issued_at {0:?} is not a date and time such as 2026-11-23T14:05:09")]
    IssuedAt(String),
    /// Amount or currency.
    #[error(transparent)]
    Amount(#[from] AmountError),
    /// A column that must not be empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A text that does not fit its place on the receipt.
    #[error("{column} has {columns} columns (a Chinese character counts two), the limit is {limit}")]
    TooLong {
        /// The CSV column.
        column: &'static str,
        /// The width of the text.
        columns: usize,
        /// The width of its place.
        limit: usize,
    },
    /// Control characters cannot be drawn, and XML has no way to write most of them.
    #[error("{0} has a control character")]
    Control(&'static str),
    /// Two records would be written to one path.
    #[error("serial {0:?} stands twice for one date")]
    Twice(String),
}

/// Limits in columns, half the width of a Chinese character. The layout shrinks and wraps up to these and no further.
const NAME_COLUMNS_MAX: usize = 96;
const ACCOUNT_COLUMNS_MAX: usize = 34;
const BANK_COLUMNS_MAX: usize = 48;
const TEXT_COLUMNS_MAX: usize = 120;

impl TryFrom<RawRecord> for ReceiptRecord {
    type Error = RecordError;

    fn try_from(raw: RawRecord) -> Result<Self, RecordError> {
        let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if raw.serial.is_empty() || raw.serial.len() > 32 || !raw.serial.bytes().all(is_safe) {
            return Err(RecordError::Serial(raw.serial));
        }
        for (column, text, limit) in [
            ("bank_name", &raw.bank_name, BANK_COLUMNS_MAX),
            ("bank_name_en", &raw.bank_name_en, BANK_COLUMNS_MAX),
            ("payer_name", &raw.payer_name, NAME_COLUMNS_MAX),
            ("payer_account", &raw.payer_account, ACCOUNT_COLUMNS_MAX),
            ("payer_bank", &raw.payer_bank, NAME_COLUMNS_MAX),
            ("payee_name", &raw.payee_name, NAME_COLUMNS_MAX),
            ("payee_account", &raw.payee_account, ACCOUNT_COLUMNS_MAX),
            ("payee_bank", &raw.payee_bank, NAME_COLUMNS_MAX),
            ("business", &raw.business, BANK_COLUMNS_MAX),
            ("purpose", &raw.purpose, TEXT_COLUMNS_MAX),
        ] {
            if text.trim().is_empty() {
                return Err(RecordError::Empty(column));
            }
            check_text(column, text, limit)?;
        }
        check_text("remark", &raw.remark, TEXT_COLUMNS_MAX)?;
        let amount = Amount::parse(&raw.amount, raw.currency.parse::<Currency>()?)?;
        let issued_at =
            Moment::parse(&raw.issued_at).ok_or_else(|| RecordError::IssuedAt(raw.issued_at.clone()))?;
        Ok(Self { raw, amount, issued_at })
    }
}

impl ReceiptRecord {
    /// The texts as they came.
    pub fn text(&self) -> &RawRecord {
        &self.raw
    }

    /// The amount.
    pub fn amount(&self) -> Amount {
        self.amount
    }

    /// `2026-11-23 14:05:09`
    pub fn issued_at(&self) -> String {
        self.issued_at.to_string()
    }

    /// The path under which the image is stored and asked for: `2026/11/23/HT2026112300000042.png`.
    pub fn path(&self) -> String {
        let Moment { year, month, day, .. } = self.issued_at;
        format!("{year:04}/{month:02}/{day:02}/{}.png", self.raw.serial)
    }

    /// 16 hexadecimal digits over all fields: a changed field shows in a changed code.
    pub fn check_code(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let RawRecord { serial, issued_at, payer_name, payer_account, payee_name, payee_account, .. } =
            &self.raw;
        let money = format!("{} {}", self.amount.currency().code(), self.amount);
        for field in [serial, issued_at, &money, payer_name, payer_account, payee_name, payee_account] {
            hasher.update(field.as_bytes());
            hasher.update(b"\0");
        }
        let hex = hasher.finalize().to_hex().to_uppercase();
        hex.chars().take(16).enumerate().fold(String::new(), |mut code, (position, digit)| {
            if position > 0 && position % 4 == 0 {
                code.push('-');
            }
            code.push(digit);
            code
        })
    }
}

impl Moment {
    fn parse(text: &str) -> Option<Self> {
        let (date, time) = text.split_once(['T', ' '])?;
        let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
        let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            2 if is_leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let small = |number: u16| u8::try_from(number).ok();
        Some(Self {
            year,
            month: small(month)?,
            day: small(day)?,
            hour: small(hour)?,
            minute: small(minute)?,
            second: small(second)?,
        })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(formatter, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}

/// Three numbers of fixed length between separators.
fn numbers(text: &str, separator: char, lengths: [usize; 3]) -> Option<[u16; 3]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; 3];
    for (number, length) in numbers.iter_mut().zip(lengths) {
        let part = parts.next()?;
        if part.len() != length || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn check_text(column: &'static str, text: &str, limit: usize) -> Result<(), RecordError> {
    if text.chars().any(|letter| letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}')) {
        return Err(RecordError::Control(column));
    }
    match text_columns(text) {
        columns if columns > limit => Err(RecordError::TooLong { column, columns, limit }),
        _ => Ok(()),
    }
}

/// The width of a text in columns: 2 for a full-width character, 1 for any other.
pub fn text_columns(text: &str) -> usize {
    text.chars().map(letter_columns).sum()
}

/// The width of one character in columns.
pub fn letter_columns(letter: char) -> usize {
    if matches!(letter, '\u{1100}'..='\u{11ff}' | '\u{2e80}'..='\u{ffef}' | '\u{1f000}'..) { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::super::sample::sample;
    use super::*;

    #[test]
    fn dates_and_times_exist() {
        for text in ["2024-02-29T23:59:59", "2026-12-31 00:00:00"] {
            assert_eq!(Moment::parse(text).unwrap().to_string(), text.replace('T', " "));
        }
        for text in [
            "2026-11-23",
            "2026-13-01T00:00:00",
            "2026-11-31T00:00:00",
            "1900-02-29T00:00:00",
            "2026-11-23T24:00:00",
            "2026-11-23T1:00:00",
            "2026-11-23T10:00:00Z",
            "+026-11-23T10:00:00",
        ] {
            assert_eq!(Moment::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_changed_field_changes_the_check_code() {
        let code = |change: fn(&mut RawRecord)| {
            let mut raw = sample(1).next().unwrap();
            change(&mut raw);
            ReceiptRecord::try_from(raw).unwrap().check_code()
        };
        let plain = code(|_| ());
        assert_eq!(plain.len(), 19);
        assert_ne!(plain, code(|raw| raw.amount = "1.00".into()));
        assert_ne!(plain, code(|raw| raw.payee_account = "1".into()));
    }
}
