//! An archive that is written; a file gets its name when it is whole.
//!
//! Invariant: the file is this user's alone and this process's alone while it has no name, and no link leads to it.

use super::kept::Kept;
use super::line::{First, entry_name, item_line, last_line};
use super::{FIRST_ENTRY, LAST_ENTRY, PAX_KEY};
use crate::cli::file_error;
use receipt_store::{Error, Receipt, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tar::{Builder, Header};

/// Tries to get a file of its own where somebody else makes others under its name.
const OPEN_TRIES_MAX: u32 = 16;

/// Where entries go.
pub struct TarTarget {
    name: PathBuf,
    /// Name and file until it is whole; none for standard output.
    part: Option<(PathBuf, File)>,
    builder: Builder<BufWriter<Box<dyn Write>>>,
    kept: Option<Kept>,
}

impl TarTarget {
    pub fn open(name: &Path, first: &First) -> Result<Self> {
        let mut target = if name == Path::new("-") {
            let out: Box<dyn Write> = Box::new(std::io::stdout());
            Self { name: name.to_owned(), part: None, builder: builder(out), kept: None }
        } else {
            let mut part = name.as_os_str().to_owned();
            part.push(".part");
            Self::open_file(name, PathBuf::from(part), first)?
        };
        if target.kept.is_none() {
            target.append(FIRST_ENTRY, 0, first.line().as_bytes())?;
        }
        Ok(target)
    }

    fn open_file(name: &Path, part: PathBuf, first: &First) -> Result<Self> {
        let failed = |error| file_error(&part, error);
        let mut file = open_part(&part)?;
        let kept = Kept::read(&part, &file, first);
        if kept.is_none() {
            file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        }
        let out: Box<dyn Write> = Box::new(file.try_clone().map_err(failed)?);
        Ok(Self { name: name.to_owned(), part: Some((part, file)), builder: builder(out), kept })
    }

    /// What is there already; none = nothing.
    pub fn kept(&mut self) -> Option<&mut Kept> {
        self.kept.as_mut()
    }

    /// Goes on behind what is there and still right.
    pub fn cut(&mut self) -> Result<()> {
        let (Some(kept), Some((part, file))) = (&mut self.kept, &mut self.part) else { return Ok(()) };
        let end_bytes = kept.cut();
        let done = file.set_len(end_bytes).and_then(|()| file.seek(SeekFrom::Start(end_bytes)));
        done.map(drop).map_err(|error| file_error(part, error))
    }

    pub fn add(&mut self, receipt: &Receipt, is_older: bool) -> Result<()> {
        let stat = receipt.stat();
        let version = u64::from(stat.header.version);
        let (path, line) = (entry_name(version, is_older, &stat.path), item_line(&stat, is_older));
        let facts = [("path", path.as_bytes()), (PAX_KEY, line.as_bytes())];
        self.builder.append_pax_extensions(facts).map_err(|error| file_error(&self.name, error))?;
        // For programs that know no PAX headers.
        let short = entry_name(version, is_older, stat.header.seq);
        self.append(&short, stat.header.recorded_at_ms / 1000, receipt.data())
    }

    fn append(&mut self, name: &str, mtime: u64, data: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        let done = header.set_path(name).and_then(|()| {
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(mtime);
            header.set_cksum();
            self.builder.append(&header, data)
        });
        done.map_err(|error| file_error(&self.name, error))
    }

    pub fn finish(mut self, receipts: u64) -> Result<()> {
        if self.kept.as_ref().is_some_and(Kept::is_outdated) {
            return Err(Error::Usage(format!(
                "{}: receipts that it holds were changed meanwhile: start the export again, it goes on where it must",
                self.name.display()
            )));
        }
        self.append(LAST_ENTRY, 0, last_line(receipts).as_bytes())?;
        let failed = |error| file_error(&self.name, error);
        let mut out = self.builder.into_inner().map_err(failed)?;
        out.flush().map_err(failed)?;
        let Some((part, file)) = &self.part else { return Ok(()) };
        file.sync_all().and_then(|()| std::fs::rename(part, &self.name)).map_err(failed)?;
        let folder = self.name.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

fn builder(out: Box<dyn Write>) -> Builder<BufWriter<Box<dyn Write>>> {
    Builder::new(BufWriter::with_capacity(1 << 16, out))
}

/// The unfinished file, or a new one, locked. What is not this user's own file goes, and a link that somebody else has put there is not followed.
fn open_part(part: &Path) -> Result<File> {
    let failed = |error| file_error(part, error);
    for _ in 0..OPEN_TRIES_MAX {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(part, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => {
                match File::options().read(true).write(true).create_new(true).mode(0o600).open(part) {
                    Ok(file) => file,
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                    Err(error) => return Err(failed(error)),
                }
            }
            Err(Errno::LOOP | Errno::ACCESS | Errno::NXIO) => {
                std::fs::remove_file(part).map_err(failed)?;
                continue;
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        let found = file.metadata().map_err(failed)?;
        let is_own =
            found.is_file() && found.nlink() == 1 && found.uid() == rustix::process::geteuid().as_raw();
        if !is_own {
            std::fs::remove_file(part).map_err(failed)?;
            continue;
        }
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy { name: part.display().to_string() }),
            Err(errno) => return Err(failed(errno.into())),
        }
        // The process that had the lock may have given the file its name meanwhile.
        let is_there = std::fs::symlink_metadata(part)
            .is_ok_and(|now| (now.dev(), now.ino()) == (found.dev(), found.ino()));
        if is_there {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600)).map_err(|errno| failed(errno.into()))?;
            return Ok(file);
        }
    }
    Err(failed(ErrorKind::AlreadyExists.into()))
}
