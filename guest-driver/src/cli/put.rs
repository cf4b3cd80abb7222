//! `receipt put`.

use super::args::{Args, Command};
use super::lines::Lines;
use super::progress::Progress;
use super::queue::Queue;
use super::sink::Sink;
use super::{below, complain, file_error, say};
#[cfg(feature = "archive")]
use receipt_store::Stat;
use receipt_store::layout::DATA_BYTES_MAX;
use receipt_store::path::ID_PREFIX;
use receipt_store::{CommitLimits, Error, OwnedChange, ReceiptPath, Result, Stored};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[cfg(feature = "archive")]
/// Bytes of a group commit of what is fed: twice as much is in memory.
const FEED_BYTES: u64 = 4 << 20;

/// How receipts are stored and what is said of them.
struct Options<'a> {
    args: &'a Args,
    is_new_version: bool,
    has_locator: bool,
    class: Option<u8>,
    issued_day: Option<u32>,
}

impl Options<'_> {
    fn put(&self, path: ReceiptPath, data: Vec<u8>) -> OwnedChange {
        let Self { is_new_version, class, issued_day, .. } = *self;
        OwnedChange::Put { path, data, is_new_version, class, issued_day, version: None }
    }
}

pub fn run(args: &Args) -> Result<u8> {
    let Command::Put { path, file, batch, prefix, locator, new_version, class, issued, limits } =
        &args.command
    else {
        return Err(Error::Usage("not a put".to_owned()));
    };
    let options = Options {
        args,
        is_new_version: *new_version,
        has_locator: *locator,
        class: *class,
        issued_day: issued.as_deref().map(receipt_store::day::parse).transpose()?,
    };
    if let Some(source) = batch {
        return put_batch(&options, source, prefix.as_deref().unwrap_or_default(), (*limits).into());
    }
    let (Some(path), Some(file)) = (path, file) else {
        return Err(Error::Usage("put needs PATH and FILE".to_owned()));
    };
    let path = receipt_path(ReceiptPath::new(path)?)?;
    let data = read_input(file)?;
    let mut writer = Sink::open(args)?;
    let changes = [options.put(path, data)];
    let result = writer.commit(&changes).and_then(|mut all| all.pop().unwrap_or(Err(Error::WriterStopped)));
    let answer = report(&options, result);
    let closed = writer.close();
    match answer {
        Ok(code) => closed.map(|()| code),
        Err(error) => Err(error),
    }
}

#[cfg(feature = "archive")]
impl Feed<'_> {
    /// Prints what is stored already.
    pub fn say_stored(&self, stat: &Stat) -> Result<()> {
        let stored = Stored { locator: stat.locator(), version: stat.header.version, is_new: false };
        say_put(self.args, &stored, false)
    }
}

/// Prints what was stored; an error of one receipt is printed and becomes the exit code.
fn report(options: &Options<'_>, result: Result<Stored>) -> Result<u8> {
    let stored = match result {
        Ok(stored) => stored,
        Err(error) => return Ok(complain(options.args, &error)),
    };
    say_put(options.args, &stored, options.has_locator).map(|()| 0)
}

fn say_put(args: &Args, stored: &Stored, has_locator: bool) -> Result<()> {
    let locator = &stored.locator;
    if args.json {
        let line = serde_json::json!({
            "path": locator.path.as_str(), "locator": locator.to_string(), "seq": locator.seq,
            "version": stored.version, "new": stored.is_new,
        });
        say(&line.to_string())
    } else if has_locator {
        say(&locator.to_string())
    } else {
        say(locator.path.as_str())
    }
}

fn put_batch(options: &Options<'_>, source: &Path, prefix: &str, limits: CommitLimits) -> Result<u8> {
    if source != Path::new("-") {
        source.metadata().map_err(|error| file_error(source, error))?;
    }
    feed_with(options, limits, |feed| produce(options, source, prefix, feed))
}

/// Where receipts go that are found one after the other; a bad one is named and the rest goes on.
pub struct Feed<'a> {
    args: &'a Args,
    queue: &'a Queue,
    first_code: u8,
}

impl Feed<'_> {
    /// Takes a receipt, or says why there is none; false when nobody stores them any more.
    pub fn offer(&mut self, item: Result<OwnedChange>) -> bool {
        match item {
            Ok(item) => self.queue.push(item),
            Err(error) => {
                let code = complain(self.args, &error);
                self.first_code = if self.first_code == 0 { code } else { self.first_code };
                true
            }
        }
    }
}

#[cfg(feature = "archive")]
/// Stores what `producer` finds, as it comes, and prints each path as soon as it is durable.
pub fn feed(args: &Args, producer: impl FnOnce(&mut Feed<'_>) -> Result<()> + Send) -> Result<u8> {
    let options = Options { args, is_new_version: false, has_locator: false, class: None, issued_day: None };
    let limits = CommitLimits { bytes: FEED_BYTES, ..CommitLimits::default() };
    feed_with(&options, limits, producer)
}

fn feed_with(
    options: &Options<'_>,
    limits: CommitLimits,
    producer: impl FnOnce(&mut Feed<'_>) -> Result<()> + Send,
) -> Result<u8> {
    let mut writer = Sink::open(options.args)?;
    let queue = Queue::new(limits);
    let (produced, committed) = std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let mut feed = Feed { args: options.args, queue: &queue, first_code: 0 };
            let done = producer(&mut feed);
            queue.close();
            done.map(|()| feed.first_code)
        });
        let committed = commit_all(options, &mut writer, &queue);
        queue.close();
        if let Err(error) = &committed {
            // The reading thread may wait for its input for ever; there is nothing left to do with it.
            std::process::exit(i32::from(complain(options.args, error)));
        }
        (producer.join(), committed)
    });
    let produced = produced.unwrap_or_else(|_| Err(Error::Usage("the reading thread failed".to_owned())));
    let code = committed?;
    writer.close()?;
    Ok(if code == 0 { produced? } else { code })
}

fn commit_all(options: &Options<'_>, writer: &mut Sink, queue: &Queue) -> Result<u8> {
    let mut first_code = 0;
    let mut progress = Progress::beside_output("receipts");
    let mut done = 0;
    loop {
        let batch = queue.take_batch();
        if batch.is_empty() {
            return Ok(first_code);
        }
        done += batch.len() as u64;
        for result in writer.commit(&batch)? {
            let code = report(options, result)?;
            first_code = if first_code == 0 { code } else { first_code };
        }
        progress.show(done, None);
    }
}

/// Reads the files of a folder or list into the queue; a bad one is named and the rest goes on.
fn produce(options: &Options<'_>, source: &Path, prefix: &str, feed: &mut Feed<'_>) -> Result<()> {
    if source.is_dir() {
        let root = below::open_folder(source)?;
        walk(source, &mut |file, is_file| {
            let relative = file.strip_prefix(source).unwrap_or(file).as_os_str().as_bytes();
            feed.offer(if is_file {
                name_of(prefix, relative).and_then(|path| {
                    let file = ReceiptPath::from_bytes(relative)?;
                    Ok(options.put(path, below::read(&root, &file, DATA_BYTES_MAX + 1)?))
                })
            } else {
                Err(Error::Usage(format!("{}: only regular files are stored", file.display())))
            })
        })?;
        return Ok(());
    }
    for line in Lines::open(source)? {
        let line = line?;
        let mut parts = line.splitn(2, |byte| *byte == b'\t');
        let goes_on = feed.offer(match (parts.next(), parts.next()) {
            // Standard input may be the list itself, and whoever reads it a second time gets nothing: an empty receipt.
            (Some(path), Some(b"-")) => Err(Error::Usage(format!(
                "{}: a list names files, not standard input (`./-` is a file of that name)",
                String::from_utf8_lossy(path)
            ))),
            (Some(path), Some(file)) => name_of(prefix, path)
                .and_then(|path| Ok(options.put(path, read_input(Path::new(OsStr::from_bytes(file)))?))),
            _ => {
                let line = String::from_utf8_lossy(&line);
                Err(Error::Usage(format!("line {line:?} is not PATH<TAB>FILE")))
            }
        });
        if !goes_on {
            break;
        }
    }
    Ok(())
}

/// The path of a receipt of a batch.
fn name_of(prefix: &str, path: &[u8]) -> Result<ReceiptPath> {
    receipt_path(if prefix.is_empty() {
        ReceiptPath::from_bytes(path)?
    } else {
        ReceiptPath::from_bytes(&[prefix.as_bytes(), path.strip_prefix(b"/").unwrap_or(path)].concat())?
    })
}

/// A path for a receipt: what the gateway keeps below `.id/` says which receipt an id names, and nobody else may say that.
pub fn receipt_path(path: ReceiptPath) -> Result<ReceiptPath> {
    if path.as_str().starts_with(ID_PREFIX) {
        let reason = "below `.id/`, where `receipt-gateway` keeps business ids";
        return Err(Error::BadPath { path: path.to_string(), reason });
    }
    Ok(path)
}

/// Visits what is below `dir`, all but folders, in the order of names, and says of each whether it is a regular file; no link is followed.
/// `visit` returns false to stop.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path, bool) -> bool) -> Result<bool> {
    let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut entries = entries.map_err(|error| file_error(dir, error))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let kind = entry.file_type().map_err(|error| file_error(&path, error))?;
        let goes_on = if kind.is_dir() { walk(&path, visit)? } else { visit(&path, kind.is_file()) };
        if !goes_on {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads a file or standard input, at most one byte more than a record can hold.
fn read_input(file: &Path) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    let limit = DATA_BYTES_MAX + 1;
    let done = if file == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut data)
    } else {
        File::open(file).and_then(|file| file.take(limit).read_to_end(&mut data))
    };
    done.map_err(|error| file_error(file, error))?;
    Ok(data)
}
