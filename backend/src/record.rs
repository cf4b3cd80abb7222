//! `--record`: every write, discard and sync, in the format of the kernel's dm-log-writes, so that crash
//! states can be made from it by `replay-log` or by a test.
//!
//! ```text
//! sector 0      magic u64, version u64 = 1, entries u64, sector size u32 = 512
//! entries       sector u64, sectors u64, flags u64, data bytes u64 = 0; padded to one sector; then the data
//! flags         1 flush (no data): every entry before it was durable when a guest was told so; 4 discard (no data)
//! ```
//!
//! Invariants:
//! 1. Entries stand in the order of their completion; a write is logged before its range is released, with what
//!    is on the disk then.
//! 2. A flush stands behind exactly the writes that had completed when its sync began: later ones wait in memory
//!    until the next sync has ended, or the process stops.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::limits::SECTOR_BYTES;
use crate::order::ByteRange;

const MAGIC: u64 = 0x006a_7366_7768_7273;
const VERSION: u64 = 1;
const FLAG_FLUSH: u64 = 1;
const FLAG_DISCARD: u64 = 4;
const SECTOR: usize = 512;

/// What is done to the disk.
#[derive(Debug)]
pub enum Change {
    /// These bytes were written.
    Write(Vec<u8>),
    /// The content is of no interest any more.
    Discard,
}

/// The log.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    offset: u64,
    logged: u64,
    /// Changes that have completed, not yet behind a flush in the log.
    waiting: VecDeque<(ByteRange, Change)>,
    /// Changes that were ever noted, and of these the ones that are in the log.
    noted: u64,
    kept: u64,
}

impl Recorder {
    /// A new log at `path`.
    ///
    /// # Errors
    /// When the file cannot be written, or holds something: another log, or what a slip of the pen would cost.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() > 0 {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it holds something already; give a new name",
            ));
        }
        let mut recorder =
            Self { file, offset: SECTOR_BYTES, logged: 0, waiting: VecDeque::new(), noted: 0, kept: 0 };
        recorder.write_head()?;
        Ok(recorder)
    }

    /// Notes a completed change.
    pub fn note(&mut self, range: ByteRange, change: Change) {
        self.waiting.push_back((range, change));
        self.noted += 1;
    }

    /// The changes that a sync starting now covers, to be given to [`Recorder::flushed`].
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.noted
    }

    /// A sync has ended that covered that many changes.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn flushed(&mut self, covered: u64) -> io::Result<()> {
        while self.kept < covered {
            self.keep_next()?;
        }
        self.append(ByteRange { start: 0, end: 0 }, FLAG_FLUSH, &[])?;
        self.write_head()
    }

    /// Logs what has completed since the last sync: the process stops.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn finish(&mut self) -> io::Result<()> {
        while self.kept < self.noted {
            self.keep_next()?;
        }
        self.write_head()
    }

    fn keep_next(&mut self) -> io::Result<()> {
        let Some((range, change)) = self.waiting.pop_front() else { return Ok(()) };
        self.kept += 1;
        match change {
            Change::Write(data) => self.append(range, 0, &data),
            Change::Discard => self.append(range, FLAG_DISCARD, &[]),
        }
    }

    fn append(&mut self, range: ByteRange, flags: u64, data: &[u8]) -> io::Result<()> {
        let fields = [range.start / SECTOR_BYTES, (range.end - range.start) / SECTOR_BYTES, flags, 0];
        self.write_sector(self.offset, &fields.map(u64::to_le_bytes).concat())?;
        self.file.write_all_at(data, self.offset + SECTOR_BYTES)?;
        self.offset += SECTOR_BYTES + data.len() as u64;
        self.logged += 1;
        Ok(())
    }

    fn write_head(&mut self) -> io::Result<()> {
        let numbers = [MAGIC, VERSION, self.logged].map(u64::to_le_bytes).concat();
        self.write_sector(0, &[&numbers[..], &512u32.to_le_bytes()].concat())
    }

    fn write_sector(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        let mut sector = [0; SECTOR];
        sector[..content.len()].copy_from_slice(content);
        self.file.write_all_at(&sector, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(log: &[u8]) -> Vec<(u64, u64, u64)> {
        let number = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap());
        let mut found = Vec::new();
        let mut at = SECTOR;
        while at < log.len() {
            let (sector, sectors, flags) = (number(at), number(at + 8), number(at + 16));
            found.push((sector, sectors, flags));
            at += SECTOR + if flags == 0 { usize::try_from(sectors).unwrap() * SECTOR } else { 0 };
        }
        assert_eq!((number(0), number(8)), (MAGIC, VERSION));
        assert_eq!(number(16), found.len() as u64);
        found
    }

    #[test]
    fn a_flush_stands_behind_the_writes_it_covers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut recorder = Recorder::create(&path).unwrap();
        let range = |start: u64| ByteRange { start: start * 512, end: start * 512 + 1024 };
        recorder.note(range(1), Change::Write(vec![7; 1024]));
        recorder.note(range(2), Change::Discard);
        let covered = recorder.covered();
        recorder.note(range(3), Change::Write(vec![8; 1024]));
        recorder.flushed(covered).unwrap();
        assert_eq!(entries(&std::fs::read(&path).unwrap()), [(1, 2, 0), (2, 2, 4), (0, 0, 1)]);
        recorder.finish().unwrap();
        assert_eq!(entries(&std::fs::read(&path).unwrap()), [(1, 2, 0), (2, 2, 4), (0, 0, 1), (3, 2, 0)]);
    }
}
