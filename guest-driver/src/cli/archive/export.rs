//! `receipt export [PREFIX] DIR|TAR`: the newest version of each receipt.

use super::folder::FolderTarget;
use super::tarball::TarTarget;
use super::{first_line, is_tar, item_line};
use crate::cli::args::Args;
use crate::cli::{Progress, complain, open_reader, say};
use receipt_store::{Error, Locator, RawDevice, Reader, Receipt, Result};
use std::path::Path;

enum Target {
    Folder(FolderTarget),
    Tar(TarTarget),
}

impl Target {
    fn open(name: &Path, first_line: &str) -> Result<Self> {
        if is_tar(name) && !name.is_dir() {
            return TarTarget::open(name, first_line).map(Self::Tar);
        }
        FolderTarget::open(name, first_line).map(Self::Folder)
    }

    fn add(&mut self, receipt: &Receipt) -> Result<bool> {
        let line = item_line(&receipt.stat()).to_string();
        match self {
            Self::Folder(folder) => folder.add(receipt, &line),
            Self::Tar(tar) => tar.add(receipt, &line).map(|()| true),
        }
    }

    fn finish(self, receipts: u64) -> Result<()> {
        match self {
            Self::Folder(folder) => folder.finish(receipts),
            Self::Tar(tar) => tar.finish(receipts),
        }
    }
}

pub fn run(args: &Args, prefix: &str, name: &Path) -> Result<u8> {
    let reader = open_reader(args)?;
    let mut target = Target::open(name, &first_line(&reader.note()?.to_string(), prefix).to_string())?;
    let is_stdout = name == Path::new("-");
    let mut progress =
        if is_stdout { Progress::new("receipts") } else { Progress::beside_output("receipts") };
    let (mut done, mut written, mut first_code) = (0, 0, 0);
    reader.list(prefix, |locator| {
        progress.show(done, None);
        match read(&reader, &locator)
            .and_then(|receipt| receipt.map(|one| add(&mut target, &one)).transpose())
        {
            Ok(None) => return Ok(()), // removed meanwhile
            Ok(Some(is_new)) => {
                done += 1;
                written += u64::from(is_new);
            }
            Err(Stop::Here(error)) => return Err(error),
            Err(Stop::Receipt(error)) => {
                let code = complain(args, &error);
                first_code = if first_code == 0 { code } else { first_code };
                return Ok(());
            }
        }
        if is_stdout { Ok(()) } else { say_path(args, &locator) }
    })?;
    progress.end();
    if first_code != 0 {
        eprintln!(
            "receipt: the export is not complete, so it is not ended: it gets no manifest, or not its name"
        );
        return Ok(first_code);
    }
    target.finish(done)?;
    eprintln!("{done} receipts exported, {} of them were there already", done - written);
    Ok(0)
}

/// An error of one receipt, or of everything.
enum Stop {
    Receipt(Error),
    Here(Error),
}

fn add(target: &mut Target, receipt: &Receipt) -> std::result::Result<bool, Stop> {
    let is_folder = matches!(target, Target::Folder(_));
    target.add(receipt).map_err(|error| match &error {
        // A name that is too long, or a receipt `a` beside `a/b`. A full disk is everybody's.
        Error::File { source, .. } if is_folder && source.kind() != std::io::ErrorKind::StorageFull => {
            Stop::Receipt(error)
        }
        _ => Stop::Here(error),
    })
}

fn read(reader: &Reader<RawDevice>, locator: &Locator) -> std::result::Result<Option<Receipt>, Stop> {
    let receipt = match reader.get_locator(locator) {
        Err(Error::NotFound { .. }) => reader.get(&locator.path),
        answer => answer,
    };
    // What leaves the store, and its list of hashes, must match.
    match receipt.and_then(|receipt| receipt.check_hash().map(|()| receipt)) {
        Ok(receipt) => Ok(Some(receipt)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error @ Error::Device(_)) => Err(Stop::Here(error)),
        Err(error) => Err(Stop::Receipt(error)),
    }
}

fn say_path(args: &Args, locator: &Locator) -> Result<()> {
    if !args.json {
        return say(locator.path.as_str());
    }
    say(&serde_json::json!({ "path": locator.path.as_str(), "seq": locator.seq }).to_string())
}
