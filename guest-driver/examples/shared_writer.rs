//! Eight threads store receipts through one writer: what arrives while a group commit runs shares the next flush.
//!
//! `cargo run -p receipt --example shared_writer [FILE|DEVICE]`; without an argument a temporary file is used.

use receipt_store::{CommitLimits, OwnedChange, SharedWriter};
use receipt_store::{FormatOptions, RawDevice, Reader, ReceiptPath, Result, Writer, WriterOptions, format};
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let given = std::env::args_os().nth(1).map(PathBuf::from);
    let is_temporary = given.is_none();
    let file = given.unwrap_or_else(|| std::env::temp_dir().join(format!("receipts-{}", std::process::id())));
    if is_temporary {
        let made = std::fs::File::create(&file).and_then(|file| file.set_len(64 << 20));
        made.map_err(|source| receipt_store::Error::File { name: file.display().to_string(), source })?;
        format(&RawDevice::open_writer(&file)?, &FormatOptions::default())?;
    }
    let writer = Writer::open(RawDevice::open_writer(&file)?, &WriterOptions::default())?;
    // The default waits for nothing. A wait trades the latency of each put for fewer flushes.
    let limits = CommitLimits { wait: Duration::ZERO, ..CommitLimits::default() };
    let shared = SharedWriter::new(writer, limits);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let shared = &shared;
            scope.spawn(move || {
                for number in 0..50 {
                    let stored = ReceiptPath::new(&format!("{thread}/{number}"))
                        .and_then(|path| shared.change(OwnedChange::put(path, vec![thread; 20_000])));
                    if let Err(error) = stored {
                        eprintln!("{error}"); // this receipt only; the others have their own answers
                    }
                }
            });
        }
    });
    println!("400 receipts in {:?}", start.elapsed());
    shared.close()?;
    let reader = Reader::new(RawDevice::open_reader(&file)?, "example");
    assert_eq!(reader.get(&ReceiptPath::new("7/49")?)?.data(), [7; 20_000]);
    if is_temporary {
        let _ = std::fs::remove_file(&file); // it lies in the folder for temporary files
    }
    Ok(())
}
