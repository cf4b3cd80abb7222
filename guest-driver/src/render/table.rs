//! Receipts in a CSV file.

use std::collections::HashSet;
use std::io::{Read, Write};

use super::record::{RawRecord, ReceiptRecord, RecordError};

/// Why a CSV file could not be read, and where.
#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    /// The file is not CSV with the right columns.
    #[error("line {line}: {source}")]
    Form {
        /// Line of the file, the header is line 1.
        line: u64,
        /// What the CSV reader found.
        source: csv::Error,
    },
    /// One record is not a receipt.
    #[error("line {line}: {source}")]
    Record {
        /// Line of the file, the header is line 1.
        line: u64,
        /// What is wrong with it.
        source: RecordError,
    },
}

/// Reads all receipts of a CSV file whose first line names the columns of [`RawRecord`], in any order.
///
/// # Errors
/// [`CsvError`] with the line, at the first line that is not a receipt.
pub fn read_csv(input: impl Read) -> Result<Vec<ReceiptRecord>, CsvError> {
    let mut reader = csv::Reader::from_reader(input);
    let mut records = Vec::new();
    let mut paths = HashSet::new();
    let mut rows = reader.deserialize::<RawRecord>();
    loop {
        let line = rows.reader().position().line();
        let Some(row) = rows.next() else { break };
        let raw = row.map_err(|source| CsvError::Form { line: error_line(&source, line), source })?;
        // A row may end after several lines (quoted line breaks): the line where it began is the one to look at.
        let record =
            ReceiptRecord::try_from(raw).map_err(|source| CsvError::Record { line: line.max(2), source })?;
        if !paths.insert(record.path()) {
            let source = RecordError::Twice(record.text().serial.clone());
            return Err(CsvError::Record { line: line.max(2), source });
        }
        records.push(record);
    }
    Ok(records)
}

fn error_line(error: &csv::Error, line: u64) -> u64 {
    error.position().map_or(line, csv::Position::line)
}

/// Writes records as [`read_csv`] reads them.
///
/// # Errors
/// When the output cannot be written.
pub fn write_csv(records: impl Iterator<Item = RawRecord>, output: impl Write) -> Result<(), csv::Error> {
    let mut writer = csv::Writer::from_writer(output);
    for record in records {
        writer.serialize(record)?;
    }
    writer.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sample::sample;
    use super::*;

    fn csv_of(change: impl Fn(usize, &mut RawRecord)) -> Vec<u8> {
        let mut out = Vec::new();
        let records = sample(3).enumerate().map(|(row, mut record)| {
            change(row, &mut record);
            record
        });
        write_csv(records, &mut out).unwrap();
        out
    }

    fn error_of(change: impl Fn(usize, &mut RawRecord)) -> String {
        read_csv(csv_of(change).as_slice()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let records = read_csv(csv_of(|_, _| ()).as_slice()).unwrap();
        assert_eq!(records.len(), 3);
        assert_eq!(records[0].path(), "2026/11/23/HT2026112300000001.png");
        assert!(records[0].path().len() <= 99, "a path is the whole network payload");
    }

    #[test]
    fn errors_name_the_line() {
        let on_last = |row: usize| row == 2;
        assert_eq!(
            error_of(|row, record| if on_last(row) {
                record.amount = "12,5".into()
            }),
            "line 4: amount \"12,5\" is not digits with at most two decimals, such as 1234.56"
        );
        assert_eq!(
            error_of(|row, record| if on_last(row) {
                record.issued_at = "2026-02-29T00:00:00".into()
            }),
            "line 4: issued_at \"2026-02-29T00:00:00\" is not a date and time such as 2026-11-23T14:05:09"
        );
        assert_eq!(
            error_of(|row, record| if row == 0 {
                record.payee_name.clear()
            }),
            "line 2: payee_name is empty"
        );
        assert_eq!(
            error_of(|_, record| record.serial = "SAME".into()),
            "line 3: serial \"SAME\" stands twice for one date"
        );
        assert_eq!(
            error_of(|row, record| if row == 1 {
                record.purpose = "x\u{1}".into()
            }),
            "line 3: purpose has a control character"
        );
    }

    #[test]
    fn a_missing_or_unknown_column_is_an_error_with_its_name() {
        let text = String::from_utf8(csv_of(|_, _| ())).unwrap();
        let error = read_csv(text.replacen("amount", "sum", 1).as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("line 2:") && error.contains("sum"), "{error}");
        let ragged = text.lines().next().unwrap().to_owned() + "\nonly,three,fields\n";
        let error = read_csv(ragged.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("line 2:") && error.contains("3 fields"), "{error}");
    }

    #[test]
    fn a_serial_cannot_leave_its_folder() {
        for serial in ["", "../../etc/passwd", "a/b", "a.b", "a b", "回单", &"x".repeat(33)] {
            assert!(
                error_of(|_, record| record.serial = serial.into()).starts_with("line 2: serial"),
                "{serial}"
            );
        }
    }
}
