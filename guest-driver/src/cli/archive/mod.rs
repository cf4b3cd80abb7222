//! `receipt export` and `receipt import`: receipts as files of a folder or entries of a tar archive, with what the store knows of each.
//!
//! A folder holds `receipts/PATH` and, once everything is there, `manifest.jsonl`: one line that begins, one a receipt, one that ends. An archive holds
//! the same lines: the first and the last one as entries of their own, that of a receipt in the PAX header of its entry.

pub mod export;
mod folder;
pub mod import;
mod tarball;

use receipt_store::{Error, ReceiptPath, Result, Stat, day, hex};
use serde_json::{Value, json};

/// Version of the lines.
const VERSION: u64 = 1;
/// Folder of the receipts.
const RECEIPTS: &str = "receipts";
/// The lines of a folder.
const MANIFEST: &str = "manifest.jsonl";
/// The same while an export runs.
const UNFINISHED: &str = "manifest.jsonl.part";
/// A receipt while it is written.
const PARTIAL: &str = "receipt.part";
/// First and last entry of an archive.
const FIRST_ENTRY: &str = "receipt-export.json";
const LAST_ENTRY: &str = "receipt-export-end.json";
/// The line of a receipt in the PAX header of its entry.
const PAX_KEY: &str = "RECEIPTDISK.receipt";

/// What an export says of a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    path: ReceiptPath,
    size_bytes: u64,
    blake3: String,
    class: u8,
    issued_day: u32,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    First,
    Item(Item),
    Last { receipts: u64 },
}

fn first_line(note: &str, prefix: &str) -> Value {
    json!({ "receipt_export": VERSION, "note": note, "prefix": prefix })
}

fn item_line(stat: &Stat) -> Value {
    let header = &stat.header;
    json!({
        "path": stat.path.as_str(), "size_bytes": header.data_len, "blake3": hex(&header.data_hash),
        "seq": header.seq, "version": header.version, "class": header.class,
        "issued": day::text(header.issued_day), "recorded_at_ms": header.recorded_at_ms,
    })
}

fn last_line(receipts: u64) -> Value {
    json!({ "receipt_export_end": VERSION, "receipts": receipts })
}

fn parse_line(text: &[u8]) -> Result<Line> {
    let bad = || {
        let start = String::from_utf8_lossy(text).chars().take(80).collect::<String>();
        Error::Usage(format!("no line of an export: {start:?}"))
    };
    let value: Value = serde_json::from_slice(text).map_err(|_| bad())?;
    let number = |name: &str| value[name].as_u64().ok_or_else(bad);
    if !value["receipt_export"].is_null() || !value["receipt_export_end"].is_null() {
        let is_first = value["receipt_export_end"].is_null();
        let version = number(if is_first { "receipt_export" } else { "receipt_export_end" })?;
        if version != VERSION {
            return Err(Error::Usage(format!(
                "an export of version {version}; this program knows {VERSION}"
            )));
        }
        return Ok(if is_first { Line::First } else { Line::Last { receipts: number("receipts")? } });
    }
    let string = |name: &str| value[name].as_str().ok_or_else(bad);
    Ok(Line::Item(Item {
        path: ReceiptPath::new(string("path")?)?,
        size_bytes: number("size_bytes")?,
        blake3: string("blake3")?.to_owned(),
        class: u8::try_from(number("class")?).map_err(|_| bad())?,
        issued_day: day::parse(string("issued")?)?,
    }))
}

impl Item {
    /// Whether these are the bytes that were exported.
    fn check(&self, data: &[u8]) -> Result<()> {
        if self.size_bytes == data.len() as u64 && self.blake3 == blake3::hash(data).to_hex().as_str() {
            return Ok(());
        }
        let fact = "these are not the bytes that were exported: their hash is another one".to_owned();
        Err(Error::CorruptReceipt { path: self.path.to_string(), fact })
    }
}

fn is_tar(name: &std::path::Path) -> bool {
    name == std::path::Path::new("-") || name.extension().is_some_and(|end| end == "tar")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_round_trip_and_others_are_refused() {
        assert_eq!(parse_line(first_line("n", "").to_string().as_bytes()).unwrap(), Line::First);
        assert_eq!(parse_line(last_line(7).to_string().as_bytes()).unwrap(), Line::Last { receipts: 7 });
        let text = r#"{"path":"a/b","size_bytes":1,"blake3":"00","class":3,"issued":"2026-11-23","x":1}"#;
        let Line::Item(item) = parse_line(text.as_bytes()).unwrap() else { panic!("no item") };
        assert_eq!(
            (item.path.as_str(), item.class, day::text(item.issued_day)),
            ("a/b", 3, "2026-11-23".into())
        );
        for bad in [
            "",
            "{}",
            "[1]",
            r#"{"receipt_export":2}"#,
            r#"{"path":"../a","size_bytes":1,"blake3":"00","class":3,"issued":"2026-11-23"}"#,
            r#"{"path":"a","size_bytes":1,"blake3":"00","class":300,"issued":"2026-11-23"}"#,
            r#"{"path":"a","size_bytes":-1,"blake3":"00","class":3,"issued":"2026-11-23"}"#,
            r#"{"path":"a","size_bytes":1,"blake3":"00","class":3,"issued":"2026-13-23"}"#,
        ] {
            assert!(parse_line(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
