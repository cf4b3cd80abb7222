//! `receipt import DIR|TAR`: an export, or any tree of files. Paths are checked as those of any put, nothing but regular files is taken, and what is
//! stored already is left alone, so an import that was killed is just started again.

use super::line::{Item, Line, parse_line};
use super::stored::{Step, Stored};
use super::tarball::{self, Content};
use super::{FIRST_ENTRY, LAST_ENTRY, MANIFEST, RECEIPTS, UNFINISHED, VERSIONS};
use crate::cli::args::{Args, Command};
use crate::cli::lines::Lines;
use crate::cli::put::{Feed, feed, receipt_path};
use crate::cli::{below, file_error, open_reader};
use receipt_store::layout::DATA_BYTES_MAX;
use receipt_store::{Error, OwnedChange, RawDevice, Reader, ReceiptPath, Result, day};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What receipts get that come without facts of their own.
struct Defaults {
    prefix: String,
    class: Option<u8>,
    issued: Issued,
}

/// The day of issue of such receipts.
enum Issued {
    Today,
    Day(u32),
    /// The day on which the file was changed last.
    Changed,
}

impl Defaults {
    fn path(&self, name: &[u8]) -> Result<ReceiptPath> {
        if name.starts_with(b"/") {
            let path = String::from_utf8_lossy(name).into_owned();
            return Err(Error::BadPath { path, reason: "absolute" });
        }
        let name = name.strip_prefix(b"./").unwrap_or(name);
        receipt_path(ReceiptPath::from_bytes(&[self.prefix.as_bytes(), name].concat())?)
    }

    fn put(&self, name: &[u8], data: Vec<u8>, changed_at_seconds: u64) -> Result<OwnedChange> {
        let issued_day = match self.issued {
            Issued::Today => None,
            Issued::Day(day) => Some(day),
            Issued::Changed => Some(day::day_of_ms(changed_at_seconds.saturating_mul(1000))),
        };
        let path = self.path(name)?;
        Ok(OwnedChange::Put {
            path,
            data,
            is_new_version: false,
            class: self.class,
            issued_day,
            version: None,
        })
    }

    /// One that was exported.
    fn put_item(item: Item, data: Result<Vec<u8>>) -> Result<OwnedChange> {
        let data = data?;
        item.check(&data)?;
        let Item { path, class, issued_day, .. } = item;
        Ok(OwnedChange::Put {
            path,
            data,
            is_new_version: false,
            class: Some(class),
            issued_day: Some(issued_day),
            version: None,
        })
    }
}

pub fn run(args: &Args) -> Result<u8> {
    let Command::Import { source, prefix, class, issued } = &args.command else {
        return Err(Error::Usage("not an import".to_owned()));
    };
    let issued = match issued.as_deref() {
        None => Issued::Today,
        Some("changed") => Issued::Changed,
        Some(text) => Issued::Day(day::parse(text)?),
    };
    let defaults = Defaults { prefix: prefix.clone(), class: *class, issued };
    if source != Path::new("-") && !source.exists() {
        return Err(file_error(source, std::io::ErrorKind::NotFound.into()));
    }
    let reader = open_reader(args)?;
    feed(args, |feed| {
        let mut items = Items { feed, all: None, reader: Some(reader) };
        if !source.is_dir() {
            return import_tar(source, &defaults, &mut items);
        }
        match (source.join(MANIFEST).is_file(), source.join(UNFINISHED).exists()) {
            (true, _) => import_export(source, &mut items),
            (false, true) => Err(Error::Usage(format!(
                "{}: the export into this folder did not finish; run it again",
                source.display()
            ))),
            (false, false) => import_tree(source, &defaults, items.feed),
        }
    })
}

/// Where the items of an export go.
struct Items<'f, 'a> {
    feed: &'f mut Feed<'a>,
    /// Of an export with all versions.
    all: Option<Stored>,
    reader: Option<Reader<RawDevice>>,
}

impl Items<'_, '_> {
    fn begin(&mut self, is_all: bool) {
        self.all = self.reader.take_if(|_| is_all).map(Stored::new);
    }

    /// Takes an item; false when nobody stores it any more.
    fn offer(&mut self, item: Item, data: Result<Vec<u8>>) -> Result<bool> {
        let Some(stored) = &mut self.all else {
            return Ok(self.feed.offer(Defaults::put_item(item, data)));
        };
        Ok(match stored.take(item, data) {
            Ok(Step::Put(change)) => self.feed.offer(Ok(change)),
            Ok(Step::Stored(stat)) => {
                self.feed.say_stored(&stat)?;
                true
            }
            Err(error) => self.feed.offer(Err(error)),
        })
    }
}

/// Reads the file of an item below a folder.
fn read_item(root: &OwnedFd, receipts: &OwnedFd, item: &Item) -> Result<Vec<u8>> {
    let limit_bytes = DATA_BYTES_MAX + 1;
    if !item.is_older {
        return below::read(receipts, &item.path, limit_bytes);
    }
    let folder = below::enter(root, VERSIONS)
        .and_then(|versions| below::enter(&versions, &item.version.to_string()))
        .map_err(|errno| Error::File { name: item.entry_name(), source: errno.into() })?;
    below::read(&folder, &item.path, limit_bytes)
}

/// A folder with a manifest.
fn import_export(source: &Path, items: &mut Items<'_, '_>) -> Result<()> {
    let name = source.join(MANIFEST);
    let root = below::open_folder(source)?;
    let receipts =
        below::enter(&root, RECEIPTS).map_err(|errno| file_error(&source.join(RECEIPTS), errno.into()))?;
    let (mut expected, mut count) = (None, 0);
    for (at, line) in Lines::open(&name)?.enumerate() {
        match (parse_line(&line?)?, at) {
            (Line::First(first), 0) => items.begin(first.is_all),
            (Line::Item(item), 1..) if expected.is_none() => {
                count += 1;
                let data = read_item(&root, &receipts, &item);
                if !items.offer(item, data)? {
                    return Ok(());
                }
            }
            (Line::Last { receipts }, 1..) if expected.is_none() => expected = Some(receipts),
            _ => return Err(Error::Usage(format!("{}: line {} is out of place", name.display(), at + 1))),
        }
    }
    check_end(&name, expected, count)
}

fn check_end(name: &Path, expected: Option<u64>, count: u64) -> Result<()> {
    if expected == Some(count) {
        return Ok(());
    }
    let end = expected.map_or("it has no end".to_owned(), |expected| format!("its end says {expected}"));
    Err(Error::Usage(format!(
        "{}: {count} receipts, but {end}: a part of the export is missing",
        name.display()
    )))
}

/// A folder of any files.
fn import_tree(source: &Path, defaults: &Defaults, feed: &mut Feed<'_>) -> Result<()> {
    let root = below::open_folder(source)?;
    walk(&root, source, Path::new(""), defaults, feed).map(drop)
}

fn walk(
    root: &OwnedFd,
    source: &Path,
    inner: &Path,
    defaults: &Defaults,
    feed: &mut Feed<'_>,
) -> Result<bool> {
    let folder = source.join(inner);
    let entries = std::fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut entries = entries.map_err(|error| file_error(&folder, error))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = inner.join(entry.file_name());
        let goes_on = match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(root, source, &name, defaults, feed)?,
            Ok(kind) if kind.is_file() => feed.offer(tree_file(root, &entry, &name, defaults)),
            Ok(_) => feed.offer(Err(no_file(name.as_os_str().as_bytes(), "no regular file"))),
            Err(error) => feed.offer(Err(file_error(&entry.path(), error))),
        };
        if !goes_on {
            return Ok(false);
        }
    }
    Ok(true)
}

fn tree_file(
    root: &OwnedFd,
    entry: &std::fs::DirEntry,
    name: &Path,
    defaults: &Defaults,
) -> Result<OwnedChange> {
    let bytes = name.as_os_str().as_bytes();
    let changed =
        entry.metadata().and_then(|meta| meta.modified()).map_err(|error| file_error(name, error))?;
    let seconds = changed.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let data = below::read(root, &ReceiptPath::from_bytes(bytes)?, DATA_BYTES_MAX + 1)?;
    defaults.put(bytes, data, seconds)
}

fn no_file(name: &[u8], what: &str) -> Error {
    let name = String::from_utf8_lossy(name);
    Error::Usage(format!("{name:?} is {what}: only regular files are imported"))
}

/// An archive, that of an export or any other.
fn import_tar(source: &Path, defaults: &Defaults, items: &mut Items<'_, '_>) -> Result<()> {
    let (mut is_export, mut is_first) = (false, true);
    let (mut expected, mut count) = (None, 0);
    tarball::read(source, &mut |name, content| {
        let was_first = std::mem::replace(&mut is_first, false);
        let (data, line, mtime) = match content {
            Content::Other(what) => return Ok(items.feed.offer(Err(no_file(name, what)))),
            Content::File { data, line, mtime, .. } => (data, line, mtime),
        };
        if was_first
            && name == FIRST_ENTRY.as_bytes()
            && let Line::First(first) = parse_line(&data)?
        {
            is_export = true;
            items.begin(first.is_all);
        }
        if !is_export {
            return Ok(items.feed.offer(defaults.put(name, data, mtime)));
        }
        match (name, line) {
            _ if was_first => Ok(true),
            (name, None) if name == LAST_ENTRY.as_bytes() && expected.is_none() => {
                if let Line::Last { receipts } = parse_line(&data)? {
                    expected = Some(receipts);
                }
                Ok(true)
            }
            (name, Some(line)) if expected.is_none() => {
                count += 1;
                let item = match parse_line(&line)? {
                    Line::Item(item) if name == item.entry_name().as_bytes() => item,
                    _ => return Ok(items.feed.offer(Err(no_file(name, "not the entry of its receipt")))),
                };
                items.offer(item, Ok(data))
            }
            _ => Ok(items.feed.offer(Err(no_file(name, "no entry of this export")))),
        }
    })?;
    if is_export { check_end(source, expected, count) } else { Ok(()) }
}
