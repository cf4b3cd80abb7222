//! `receipt get`.

use super::args::{Args, Command};
use super::lines::Lines;
use super::{Progress, below, complain, file_error, open_reader, say, show, write_stdout};
use receipt_store::{Error, Locator, RawDevice, Reader, Receipt, ReceiptPath, Result};
use rustix::fs::{Mode, OFlags};
use std::path::Path;
use std::time::{Duration, Instant};

pub fn run(args: &Args) -> Result<u8> {
    let Command::Get { path, output, version, hash, batch, to } = &args.command else {
        return Err(Error::Usage("not a get".to_owned()));
    };
    let reader = open_reader(args)?;
    if let (Some(list), Some(to)) = (batch, to) {
        return get_batch(args, &reader, list, to, *hash);
    }
    let Some(path) = path else {
        return Err(Error::Usage("get needs PATH".to_owned()));
    };
    let receipt = get(args, &reader, path, *version, *hash)?;
    if output == Path::new("-") {
        write_stdout(receipt.data(), b"")?;
        if args.json {
            eprintln!("{}", show::stat_json(&receipt.stat()));
        }
    } else {
        write_file(output, receipt.data()).map_err(|error| file_error(output, error))?;
        if args.json {
            say(&show::stat_json(&receipt.stat()).to_string())?;
        }
    }
    Ok(0)
}

/// A file that was not there appears whole. One that is there, and may be a device or a pipe, is written over.
fn write_file(name: &Path, data: &[u8]) -> std::io::Result<()> {
    let (Some(folder), Some(file)) = (name.parent(), name.file_name()) else {
        return std::fs::write(name, data);
    };
    if name.symlink_metadata().is_ok() {
        return std::fs::write(name, data);
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    // It need not be one that may be listed.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    below::write_whole(&rustix::fs::open(folder, flags, Mode::empty())?, file, data)
}

/// Reads a path or a locator; a pending one again as long as `--wait` says.
fn get(
    args: &Args,
    reader: &Reader<RawDevice>,
    text: &str,
    version: Option<u16>,
    is_hashed: bool,
) -> Result<Receipt> {
    let deadline = super::deadline(args);
    let receipt = loop {
        match get_once(reader, text, version) {
            Err(Error::Pending { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            answer => break answer?,
        }
    };
    if is_hashed {
        receipt.check_hash()?;
    }
    Ok(receipt)
}

fn get_once(reader: &Reader<RawDevice>, text: &str, version: Option<u16>) -> Result<Receipt> {
    match (Locator::parse(text), version) {
        (Some(locator), None) => reader.get_locator(&locator),
        // The number says which version, so the address does not count.
        (Some(locator), Some(version)) => reader.get_version(&locator.path, version),
        (None, None) => reader.get(&ReceiptPath::new(text)?),
        (None, Some(version)) => reader.get_version(&ReceiptPath::new(text)?, version),
    }
}

fn get_batch(args: &Args, reader: &Reader<RawDevice>, list: &Path, to: &Path, is_hashed: bool) -> Result<u8> {
    let mut progress = Progress::beside_output("receipts");
    let mut first_code = 0;
    for (done, line) in (0..).zip(Lines::open(list)?) {
        let line = line?;
        progress.show(done, None);
        if let Err(error) = get_to(args, reader, &line, to, is_hashed) {
            let code = complain(args, &error);
            first_code = if first_code == 0 { code } else { first_code };
        }
    }
    Ok(first_code)
}

/// Reads one receipt into its file below `to`. The rules of paths (no `..`, no empty part) keep it below.
fn get_to(args: &Args, reader: &Reader<RawDevice>, line: &[u8], to: &Path, is_hashed: bool) -> Result<()> {
    let text = std::str::from_utf8(line).map_err(|_| Error::BadPath {
        path: String::from_utf8_lossy(line).into_owned(),
        reason: "not UTF-8",
    })?;
    let receipt = get(args, reader, text, None, is_hashed)?;
    let stat = receipt.stat();
    below::write(&below::open_folder(to)?, &stat.path, receipt.data())?;
    if args.json { say(&show::stat_json(&stat).to_string()) } else { say(stat.path.as_str()) }
}
