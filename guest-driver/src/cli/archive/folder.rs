//! The folder of an export: files that are whole or not there.

use super::line::{First, item_line, last_line};
use super::{MANIFEST, PARTIAL, RECEIPTS, UNFINISHED, VERSIONS};
use crate::cli::{below, file_error};
use receipt_store::{Error, Receipt, Result};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where receipts go. What is there from an export that was killed is kept if it has the right bytes.
///
/// Invariant: the manifest has its name only when every file that it names is on the disk.
#[derive(Debug)]
pub struct FolderTarget {
    name: PathBuf,
    root: OwnedFd,
    receipts: OwnedFd,
    manifest: BufWriter<File>,
}

impl FolderTarget {
    pub fn open(name: &Path, first: &First) -> Result<Self> {
        let failed = |errno: Errno| file_error(name, errno.into());
        let root = below::open_folder(name)?;
        // From here on the folder changes: an older manifest must not speak of it.
        match rustix::fs::unlinkat(&root, MANIFEST, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let receipts = below::make_folder(&root, RECEIPTS).map_err(failed)?;
        let mut manifest = BufWriter::new(create(&root, UNFINISHED).map_err(failed)?);
        writeln!(manifest, "{}", first.line()).map_err(|error| file_error(name, error))?;
        Ok(Self { name: name.to_owned(), root, receipts, manifest })
    }

    /// Writes the file unless it is there; true if it was written.
    pub fn add(&mut self, receipt: &Receipt, is_older: bool) -> Result<bool> {
        let stat = receipt.stat();
        let failed = |source| Error::File { name: stat.path.to_string(), source };
        let older = if is_older {
            let folder = below::make_folder(&self.root, VERSIONS)
                .and_then(|versions| below::make_folder(&versions, &stat.header.version.to_string()));
            Some(folder.map_err(|errno| failed(errno.into()))?)
        } else {
            None
        };
        let folder = older.as_ref().unwrap_or(&self.receipts);
        let is_there = match below::read(folder, &stat.path, stat.header.data_len + 1) {
            Ok(data) => data == receipt.data(),
            Err(_) => false, // whatever is there, writing says what is wrong with it
        };
        if !is_there {
            let mut file = create(&self.root, PARTIAL).map_err(|errno| failed(errno.into()))?;
            file.write_all(receipt.data()).map_err(failed)?;
            below::place(&self.root, PARTIAL, folder, &stat.path)?;
        }
        let line = item_line(&stat, is_older);
        writeln!(self.manifest, "{line}").map_err(|error| file_error(&self.name, error))?;
        Ok(!is_there)
    }

    /// Syncs everything; then the manifest gets its name.
    pub fn finish(mut self, receipts: u64) -> Result<()> {
        let failed = |error: std::io::Error| file_error(&self.name, error);
        let ended = writeln!(self.manifest, "{}", last_line(receipts)).and_then(|()| self.manifest.flush());
        ended.and_then(|()| self.manifest.get_ref().sync_all()).map_err(failed)?;
        // One sync for all files, instead of one each.
        rustix::fs::syncfs(&self.root).map_err(|errno| failed(errno.into()))?;
        rustix::fs::renameat(&self.root, UNFINISHED, &self.root, MANIFEST)
            .and_then(|()| rustix::fs::fsync(&self.root))
            .map_err(|errno| failed(errno.into()))
    }
}

fn create(folder: &OwnedFd, name: &str) -> std::result::Result<File, Errno> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o666)).map(File::from)
}
