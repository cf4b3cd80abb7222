//! The lines of an export: one that begins, one a receipt or older version, one that ends.

use super::{RECEIPTS, VERSIONS};
use receipt_store::note::Note;
use receipt_store::{Error, ReceiptPath, Result, Stat, day, hex};
use serde_json::{Value, json};

/// Version of the lines of an export of the newest versions only.
const NEWEST: u64 = 1;
/// Version of the lines of an export with all versions; programs that know only the other one refuse it.
const ALL: u64 = 2;

/// What an export is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct First {
    /// Head note of the store when it began.
    pub note: String,
    /// Only paths that begin with this.
    pub prefix: String,
    /// With older versions.
    pub is_all: bool,
}

impl First {
    /// Whether one goes on with the other: the same of the same store.
    pub fn is_same_export(&self, other: &Self) -> bool {
        let store = |first: &Self| Note::parse(&first.note).map(|note| note.uuid);
        store(self).is_some()
            && (store(self), &self.prefix, self.is_all) == (store(other), &other.prefix, other.is_all)
    }

    /// Its line.
    pub fn line(&self) -> String {
        let version = if self.is_all { ALL } else { NEWEST };
        json!({ "receipt_export": version, "note": self.note, "prefix": self.prefix }).to_string()
    }
}

/// What an export says of a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Path.
    pub path: ReceiptPath,
    size_bytes: u64,
    blake3: String,
    /// Sequence of its record in the store that it comes from.
    pub seq: u64,
    /// Version of the path.
    pub version: u64,
    /// A newer version follows.
    pub is_older: bool,
    /// Retention class.
    pub class: u8,
    /// Days since 1970.
    pub issued_day: u32,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// It begins.
    First(First),
    /// A receipt.
    Item(Item),
    /// It ends, after so many receipts.
    Last {
        /// Lines between.
        receipts: u64,
    },
}

/// The line of a receipt.
pub fn item_line(stat: &Stat, is_older: bool) -> String {
    let header = &stat.header;
    let mut line = json!({
        "path": stat.path.as_str(), "size_bytes": header.data_len, "blake3": hex(&header.data_hash),
        "seq": header.seq, "version": header.version, "class": header.class,
        "issued": day::text(header.issued_day), "recorded_at_ms": header.recorded_at_ms,
    });
    if is_older {
        line["older"] = true.into();
    }
    line.to_string()
}

/// The last line.
pub fn last_line(receipts: u64) -> String {
    json!({ "receipt_export_end": NEWEST, "receipts": receipts }).to_string()
}

/// The name of an entry, `path` its own or a shorter one.
pub fn entry_name(version: u64, is_older: bool, path: impl std::fmt::Display) -> String {
    if is_older { format!("{VERSIONS}/{version}/{path}") } else { format!("{RECEIPTS}/{path}") }
}

/// Reads a line.
pub fn parse_line(text: &[u8]) -> Result<Line> {
    let bad = || {
        let start = String::from_utf8_lossy(text).chars().take(80).collect::<String>();
        Error::Usage(format!("no line of an export: {start:?}"))
    };
    let value: Value = serde_json::from_slice(text).map_err(|_| bad())?;
    let number = |name: &str| value[name].as_u64().ok_or_else(bad);
    let string = |name: &str| value[name].as_str().ok_or_else(bad);
    let known = |version: u64| match version {
        NEWEST => Ok(false),
        ALL => Ok(true),
        _ => Err(Error::Usage(format!(
            "an export of version {version}; this program knows {NEWEST} and {ALL}"
        ))),
    };
    if !value["receipt_export"].is_null() {
        let (note, prefix) = (string("note")?.to_owned(), string("prefix")?.to_owned());
        return Ok(Line::First(First { note, prefix, is_all: known(number("receipt_export")?)? }));
    }
    if !value["receipt_export_end"].is_null() {
        known(number("receipt_export_end")?)?;
        return Ok(Line::Last { receipts: number("receipts")? });
    }
    Ok(Line::Item(Item {
        path: ReceiptPath::new(string("path")?)?,
        size_bytes: number("size_bytes")?,
        blake3: string("blake3")?.to_owned(),
        seq: number("seq")?,
        version: number("version")?,
        is_older: value["older"] == true,
        class: u8::try_from(number("class")?).map_err(|_| bad())?,
        issued_day: day::parse(string("issued")?)?,
    }))
}

impl Item {
    /// Whether these are the bytes that were exported.
    pub fn check(&self, data: &[u8]) -> Result<()> {
        if self.holds(data) {
            return Ok(());
        }
        let fact = "these are not the bytes that were exported: their hash is another one".to_owned();
        Err(Error::CorruptReceipt { path: self.path.to_string(), fact })
    }

    /// As [`Item::check`].
    pub fn holds(&self, data: &[u8]) -> bool {
        self.size_bytes == data.len() as u64 && self.is_hash(*blake3::hash(data).as_bytes())
    }

    /// Whether this is its hash.
    pub fn is_hash(&self, hash: [u8; 32]) -> bool {
        self.blake3 == hex(&hash)
    }

    /// The name of its entry.
    pub fn entry_name(&self) -> String {
        entry_name(self.version, self.is_older, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_round_trip_and_others_are_refused() {
        for is_all in [false, true] {
            let first = First { note: "n".to_owned(), prefix: "p".to_owned(), is_all };
            assert_eq!(parse_line(first.line().as_bytes()).unwrap(), Line::First(first));
        }
        assert_eq!(parse_line(last_line(7).as_bytes()).unwrap(), Line::Last { receipts: 7 });
        let good = r#"{"path":"a/b","size_bytes":1,"blake3":"00","seq":9,"version":2,"class":3,"issued":"2026-11-23","x":1}"#;
        let Line::Item(item) = parse_line(good.as_bytes()).unwrap() else { panic!("no item") };
        assert_eq!(
            (item.entry_name().as_str(), item.class, day::text(item.issued_day)),
            ("receipts/a/b", 3, "2026-11-23".into())
        );
        let older = good.replace("\"x\":1", "\"older\":true");
        let Line::Item(item) = parse_line(older.as_bytes()).unwrap() else { panic!("no item") };
        assert_eq!(item.entry_name(), "versions/2/a/b");
        for bad in
            ["", "{}", "[1]", r#"{"receipt_export":3,"note":"","prefix":""}"#, r#"{"receipt_export":1}"#]
        {
            assert!(parse_line(bad.as_bytes()).is_err(), "{bad}");
        }
        for (from, to) in
            [("a/b", "../a"), ("\"class\":3", "\"class\":300"), (":1,", ":-1,"), ("-11-", "-13-")]
        {
            let bad = good.replacen(from, to, 1);
            assert!(bad != good && parse_line(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_same_of_the_same_store_is_gone_on_with() {
        let note = |uuid: u8, seq: u64| Note { uuid: [uuid; 16], seq, hash: [1; 32] }.to_string();
        let first = |note: String, prefix: &str, is_all| First { note, prefix: prefix.to_owned(), is_all };
        let one = first(note(1, 1), "p", false);
        assert!(one.is_same_export(&first(note(1, 9), "p", false)));
        for other in
            [first(note(2, 1), "p", false), first(note(1, 1), "", false), first(note(1, 1), "p", true)]
        {
            assert!(!one.is_same_export(&other), "{other:?}");
        }
        let none = first("no note".to_owned(), "p", false);
        assert!(!none.is_same_export(&none));
    }
}
