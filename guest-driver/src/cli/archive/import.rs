//! `receipt import DIR|TAR`: an export, or any tree of files. Paths are checked as those of any put, nothing but regular files is taken, and what is
//! stored already is left alone, so an import that was killed is just started again.

use super::tarball::{self, Content};
use super::{FIRST_ENTRY, Item, LAST_ENTRY, Line, MANIFEST, RECEIPTS, UNFINISHED, parse_line};
use crate::cli::args::{Args, Command};
use crate::cli::lines::Lines;
use crate::cli::put::{Feed, feed, receipt_path};
use crate::cli::{below, file_error};
use receipt_store::layout::DATA_BYTES_MAX;
use receipt_store::{Error, OwnedChange, ReceiptPath, Result, day};
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
        Ok(OwnedChange::Put { path, data, is_new_version: false, class: self.class, issued_day })
    }

    /// One that was exported.
    fn put_item(item: Item, data: Vec<u8>) -> Result<OwnedChange> {
        item.check(&data)?;
        let Item { path, class, issued_day, .. } = item;
        Ok(OwnedChange::Put {
            path,
            data,
            is_new_version: false,
            class: Some(class),
            issued_day: Some(issued_day),
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
    feed(args, |feed| {
        if !source.is_dir() {
            return import_tar(source, &defaults, feed);
        }
        match (source.join(MANIFEST).is_file(), source.join(UNFINISHED).exists()) {
            (true, _) => import_export(source, feed),
            (false, true) => Err(Error::Usage(format!(
                "{}: the export into this folder did not finish; run it again",
                source.display()
            ))),
            (false, false) => import_tree(source, &defaults, feed),
        }
    })
}

/// A folder with a manifest.
fn import_export(source: &Path, feed: &mut Feed<'_>) -> Result<()> {
    let name = source.join(MANIFEST);
    let root = below::open_folder(source)?;
    let receipts =
        below::enter(&root, RECEIPTS).map_err(|errno| file_error(&source.join(RECEIPTS), errno.into()))?;
    let (mut expected, mut count) = (None, 0);
    for (at, line) in Lines::open(&name)?.enumerate() {
        match (parse_line(&line?)?, at) {
            (Line::First, 0) => {}
            (Line::Item(item), 1..) if expected.is_none() => {
                count += 1;
                let data = below::read(&receipts, &item.path, DATA_BYTES_MAX + 1);
                if !feed.offer(data.and_then(|data| Defaults::put_item(item, data))) {
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
fn import_tar(source: &Path, defaults: &Defaults, feed: &mut Feed<'_>) -> Result<()> {
    let (mut is_export, mut is_first) = (false, true);
    let (mut expected, mut count) = (None, 0);
    tarball::read(source, &mut |name, content| {
        let was_first = std::mem::replace(&mut is_first, false);
        let (data, line, mtime) = match content {
            Content::Other(what) => return Ok(feed.offer(Err(no_file(name, what)))),
            Content::File { data, line, mtime } => (data, line, mtime),
        };
        if was_first && name == FIRST_ENTRY.as_bytes() {
            is_export = parse_line(&data)? == Line::First;
        }
        if !is_export {
            return Ok(feed.offer(defaults.put(name, data, mtime)));
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
                    Line::Item(item)
                        if name.strip_prefix(b"receipts/") == Some(item.path.as_str().as_bytes()) =>
                    {
                        item
                    }
                    _ => return Ok(feed.offer(Err(no_file(name, "not the entry of its receipt")))),
                };
                Ok(feed.offer(Defaults::put_item(item, data)))
            }
            _ => Ok(feed.offer(Err(no_file(name, "no entry of this export")))),
        }
    })?;
    if is_export { check_end(source, expected, count) } else { Ok(()) }
}
