//! Tar archives: what an export writes, and entries of any archive, read one after the other with bounded memory.

use super::{FIRST_ENTRY, LAST_ENTRY, PAX_KEY, RECEIPTS, last_line};
use crate::cli::file_error;
use receipt_store::layout::DATA_BYTES_MAX;
use receipt_store::{Error, Receipt, Result};
use std::cell::Cell;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tar::{Archive, Builder, EntryType, Header};

/// Most bytes of headers between two entries: long names and PAX headers of a sane archive have a few thousand.
const HEADERS_BYTES_MAX: u64 = 256 << 10;

/// An archive that is written; a file gets its name when it is whole.
pub struct TarTarget {
    name: PathBuf,
    part: Option<PathBuf>,
    builder: Builder<BufWriter<Box<dyn Write>>>,
    file: Option<File>,
}

impl TarTarget {
    pub fn open(name: &Path, first_line: &str) -> Result<Self> {
        let failed = |error| file_error(name, error);
        let (part, file, out): (_, _, Box<dyn Write>) = if name == Path::new("-") {
            (None, None, Box::new(std::io::stdout()))
        } else {
            let mut part = name.as_os_str().to_owned();
            part.push(".part");
            let part = PathBuf::from(part);
            let file = create_anew(&part).map_err(|error| file_error(&part, error))?;
            let out = file.try_clone().map_err(failed)?;
            (Some(part), Some(file), Box::new(out))
        };
        let builder = Builder::new(BufWriter::with_capacity(1 << 16, out));
        let mut target = Self { name: name.to_owned(), part, builder, file };
        target.append(FIRST_ENTRY, 0, first_line.as_bytes())?;
        Ok(target)
    }

    pub fn add(&mut self, receipt: &Receipt, line: &str) -> Result<()> {
        let stat = receipt.stat();
        let path = format!("{RECEIPTS}/{}", stat.path);
        let facts = [("path", path.as_bytes()), (PAX_KEY, line.as_bytes())];
        self.builder.append_pax_extensions(facts).map_err(|error| file_error(&self.name, error))?;
        // For programs that know no PAX headers.
        let short = format!("{RECEIPTS}/{}", stat.header.seq);
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
        self.append(LAST_ENTRY, 0, last_line(receipts).to_string().as_bytes())?;
        let failed = |error| file_error(&self.name, error);
        let mut out = self.builder.into_inner().map_err(failed)?;
        out.flush().map_err(failed)?;
        let (Some(part), Some(file)) = (&self.part, &self.file) else { return Ok(()) };
        file.sync_all().and_then(|()| std::fs::rename(part, &self.name)).map_err(failed)?;
        let folder = self.name.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

/// A file of this user's own: what was there goes, and a link that somebody else has put there is not followed.
fn create_anew(name: &Path) -> std::io::Result<File> {
    match std::fs::remove_file(name) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().write(true).create_new(true).mode(0o600).open(name)
}

/// What an archive holds under a name.
pub enum Content {
    /// A regular file.
    File { data: Vec<u8>, line: Option<Vec<u8>>, mtime: u64 },
    /// Anything else but a folder.
    Other(&'static str),
}

/// Calls `visit` with every entry but folders, until it returns false.
pub fn read(name: &Path, visit: &mut dyn FnMut(&[u8], Content) -> Result<bool>) -> Result<()> {
    let input: Box<dyn Read> = if name == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(File::open(name).map_err(|error| file_error(name, error))?)
    };
    let left = Rc::new(Cell::new(0));
    let mut archive = Archive::new(Bounded { input, left: Rc::clone(&left) });
    let failed = |error| file_error(name, error);
    let mut entries = archive.entries().map_err(failed)?;
    loop {
        left.set(HEADERS_BYTES_MAX);
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry.map_err(failed)?;
        let path = entry.path_bytes().into_owned();
        let mtime = entry.header().mtime().unwrap_or(0);
        let other = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => None,
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            EntryType::Symlink => Some("a symbolic link"),
            EntryType::Link => Some("a hard link"),
            EntryType::Char | EntryType::Block => Some("a device"),
            EntryType::Fifo => Some("a pipe"),
            _ => Some("of a kind that is not known"),
        };
        left.set(u64::MAX);
        let content = match other {
            Some(what) => Content::Other(what),
            None => {
                let line = pax_line(&mut entry).map_err(failed)?;
                let size_bytes = entry.size();
                let mut data = Vec::new();
                (&mut entry).take(DATA_BYTES_MAX + 1).read_to_end(&mut data).map_err(failed)?;
                if (data.len() as u64) < size_bytes.min(DATA_BYTES_MAX + 1) {
                    return Err(Error::Usage(format!(
                        "{}: the archive ends in the middle of an entry",
                        name.display()
                    )));
                }
                Content::File { data, line, mtime }
            }
        };
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(failed)?;
        if !visit(&path, content)? {
            return Ok(());
        }
    }
}

fn pax_line<R: Read>(entry: &mut tar::Entry<'_, R>) -> std::io::Result<Option<Vec<u8>>> {
    for fact in entry.pax_extensions()?.into_iter().flatten() {
        let fact = fact?;
        if fact.key_bytes() == PAX_KEY.as_bytes() {
            return Ok(Some(fact.value_bytes().to_vec()));
        }
    }
    Ok(None)
}

/// Reads no more than is left: what announces gigabytes of names costs no memory.
struct Bounded {
    input: Box<dyn Read>,
    left: Rc<Cell<u64>>,
}

impl Read for Bounded {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(std::io::Error::other("the headers of an entry are too long"));
        }
        let most = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.input.read(buf.get_mut(..most).unwrap_or_default())?;
        if left != u64::MAX {
            self.left.set(left - count as u64);
        }
        Ok(count)
    }
}
