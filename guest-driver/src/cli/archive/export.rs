//! `receipt export [PREFIX] DIR|TAR`: the newest version of each receipt, or all versions.

use super::folder::FolderTarget;
use super::is_tar;
use super::kept::Kept;
use super::line::{First, item_line};
use super::tar_target::TarTarget;
use crate::cli::args::Args;
use crate::cli::{Progress, complain, open_reader, say};
use receipt_store::log::read_header;
use receipt_store::{Error, Locator, RawDevice, Reader, Receipt, Result, Stat};
use std::path::Path;

enum Target {
    Folder(FolderTarget),
    Tar(TarTarget),
}

impl Target {
    fn open(name: &Path, first: &First) -> Result<Self> {
        if is_tar(name) && !name.is_dir() {
            return TarTarget::open(name, first).map(Self::Tar);
        }
        FolderTarget::open(name, first).map(Self::Folder)
    }

    /// What an archive holds already.
    fn kept(&mut self) -> Option<&mut Kept> {
        match self {
            Self::Folder(_) => None,
            Self::Tar(tar) => tar.kept(),
        }
    }

    /// Lets go of what an archive holds that is not in the store as it is there.
    fn compare(&mut self, reader: &Reader<RawDevice>, prefix: &str) -> Result<()> {
        let Self::Tar(tar) = self else { return Ok(()) };
        if let Some(kept) = tar.kept() {
            let superblock = reader.superblock()?;
            reader.list_to_head(prefix, |locator| {
                if kept.holds(locator.seq)
                    && let Ok((header, _)) = read_header(reader.device(), &superblock, locator.block)?
                {
                    let line = item_line(&Stat { path: locator.path, header }, false);
                    kept.compare(locator.seq, &line);
                }
                Ok(())
            })?;
        }
        tar.cut()
    }

    fn add(&mut self, receipt: &Receipt, is_older: bool) -> Result<bool> {
        match self {
            Self::Folder(folder) => folder.add(receipt, is_older),
            Self::Tar(tar) => tar.add(receipt, is_older).map(|()| true),
        }
    }

    fn finish(self, entries: u64) -> Result<()> {
        match self {
            Self::Folder(folder) => folder.finish(entries),
            Self::Tar(tar) => tar.finish(entries),
        }
    }
}

/// Sums.
#[derive(Default)]
struct Totals {
    receipts: u64,
    /// Receipts with their older versions.
    entries: u64,
    /// Receipts that were there, with all of their older versions.
    there: u64,
}

struct Export<'a> {
    reader: &'a Reader<RawDevice>,
    target: Target,
    is_all: bool,
    totals: Totals,
}

pub fn run(args: &Args, is_all: bool, prefix: &str, name: &Path) -> Result<u8> {
    let reader = open_reader(args)?;
    let prefix = prefix.strip_prefix('/').unwrap_or(prefix);
    let first = First { note: reader.note()?.to_string(), prefix: prefix.to_owned(), is_all };
    let mut target = Target::open(name, &first)?;
    target.compare(&reader, prefix)?;
    let mut export = Export { reader: &reader, target, is_all, totals: Totals::default() };
    let is_stdout = name == Path::new("-");
    let mut progress =
        if is_stdout { Progress::new("receipts") } else { Progress::beside_output("receipts") };
    let mut first_code = 0;
    reader.list(prefix, |locator| {
        progress.show(export.totals.receipts, None);
        match export.receipt(&locator) {
            Ok(false) => return Ok(()), // removed meanwhile
            Ok(true) => {}
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
    let Totals { receipts, entries, there } = export.totals;
    export.target.finish(entries)?;
    let versions = if is_all { format!(" in {entries} versions") } else { String::new() };
    eprintln!("{receipts} receipts{versions} exported, {there} of them were there already");
    Ok(0)
}

impl Export<'_> {
    /// Exports a receipt; false when it has gone.
    fn receipt(&mut self, locator: &Locator) -> std::result::Result<bool, Stop> {
        if let Some(entries) = self.target.kept().and_then(|kept| kept.see(locator.seq)) {
            self.totals.receipts += 1;
            self.totals.entries += entries;
            self.totals.there += 1;
            return Ok(true);
        }
        let Some(newest) = read(self.reader, locator)? else { return Ok(false) };
        let older = if self.is_all { self.reader.versions_before(&newest.stat()) } else { Ok(Vec::new()) };
        let mut is_new = false;
        for stat in older.map_err(of_receipt)? {
            let version = self.reader.read_version(&stat).map_err(of_receipt)?;
            if let Some(version) = version {
                version.check_hash().map_err(Stop::Receipt)?;
                is_new |= self.add(&version, true)?;
            }
        }
        is_new |= self.add(&newest, false)?;
        self.totals.receipts += 1;
        self.totals.there += u64::from(!is_new);
        Ok(true)
    }

    fn add(&mut self, receipt: &Receipt, is_older: bool) -> std::result::Result<bool, Stop> {
        let is_folder = matches!(self.target, Target::Folder(_));
        let is_new = self.target.add(receipt, is_older).map_err(|error| match &error {
            // A name that is too long, or a receipt `a` beside `a/b`. A full disk is everybody's.
            Error::File { source, .. } if is_folder && source.kind() != std::io::ErrorKind::StorageFull => {
                Stop::Receipt(error)
            }
            _ => Stop::Here(error),
        })?;
        self.totals.entries += 1;
        Ok(is_new)
    }
}

/// An error of one receipt, or of everything.
enum Stop {
    Receipt(Error),
    Here(Error),
}

fn of_receipt(error: Error) -> Stop {
    if matches!(error, Error::Device(_)) { Stop::Here(error) } else { Stop::Receipt(error) }
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
        Err(error) => Err(of_receipt(error)),
    }
}

fn say_path(args: &Args, locator: &Locator) -> Result<()> {
    if !args.json {
        return say(locator.path.as_str());
    }
    say(&serde_json::json!({ "path": locator.path.as_str(), "seq": locator.seq }).to_string())
}
