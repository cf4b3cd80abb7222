//! Entries of any archive, read one after the other with bounded memory.

use super::PAX_KEY;
use crate::cli::file_error;
use receipt_store::layout::DATA_BYTES_MAX;
use receipt_store::{Error, Result};
use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use tar::{Archive, EntryType};

/// Most bytes of headers between two entries: long names and PAX headers of a sane archive have a few thousand.
const HEADERS_BYTES_MAX: u64 = 256 << 10;

/// What an archive holds under a name.
pub enum Content {
    /// A regular file; where its entry ends in the archive.
    File { data: Vec<u8>, line: Option<Vec<u8>>, mtime: u64, end_bytes: u64 },
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
    read_from(name, input, visit)
}

/// As [`read`], from what is open; `name` is for messages.
pub fn read_from(
    name: &Path,
    input: Box<dyn Read>,
    visit: &mut dyn FnMut(&[u8], Content) -> Result<bool>,
) -> Result<()> {
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
                let end_bytes = entry.raw_file_position() + size_bytes.next_multiple_of(512);
                Content::File { data, line, mtime, end_bytes }
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
