//! What an archive that was not finished holds already: whole receipts up to its first bad byte, and which of them are still what the store holds.

use super::line::{First, Line, parse_line};
use super::tarball::{self, Content};
use super::{FIRST_ENTRY, LAST_ENTRY};
use crate::cli::Progress;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::Path;

/// Of the line of a receipt: all that is known of it.
type Digest = [u8; 16];

fn digest(line: &[u8]) -> Digest {
    let mut digest = Digest::default();
    blake3::Hasher::new().update(line).finalize_xof().fill(&mut digest);
    digest
}

/// The entries of one path.
#[derive(Clone, Copy, Debug)]
struct Group {
    start_bytes: u64,
    entries: u64,
    digest: Digest,
    /// The store was found to hold this one.
    is_current: bool,
}

/// Entries that stay.
#[derive(Debug)]
pub struct Kept {
    /// By the sequence of the newest version, with which they end.
    groups: HashMap<u64, Group>,
    /// End of the last one.
    end_bytes: u64,
}

impl Kept {
    /// Reads what an export that was ended has left in `file`, up to the first entry that is not whole. None when it is not this export.
    pub fn read(name: &Path, file: &File, first: &First) -> Option<Self> {
        let len_bytes = file.metadata().ok()?.len();
        let mut input = file.try_clone().ok()?;
        input.rewind().ok()?;
        let mut kept = None;
        let (mut entries, mut path) = (0, None);
        let mut progress = Progress::new("bytes of the archive that is there");
        // Whatever ends the reading is the end of what is there.
        let _ = tarball::read_from(name, Box::new(BufReader::new(input)), &mut |entry_name, content| {
            let Content::File { data, line, end_bytes, .. } = content else { return Ok(false) };
            progress.show(end_bytes, Some(len_bytes));
            if end_bytes > len_bytes || entry_name == LAST_ENTRY.as_bytes() {
                return Ok(false);
            }
            let Some(kept) = &mut kept else {
                let found = parse_line(&data)?;
                let is_same = matches!(found, Line::First(found) if found.is_same_export(first));
                let is_first = entry_name == FIRST_ENTRY.as_bytes() && is_same;
                kept = is_first.then(|| Self { groups: HashMap::new(), end_bytes });
                return Ok(is_first);
            };
            let line = line.unwrap_or_default();
            match parse_line(&line)? {
                Line::Item(item)
                    if entry_name == item.entry_name().as_bytes()
                        && item.holds(&data)
                        && (entries == 0 || path.as_ref() == Some(&item.path)) =>
                {
                    entries += 1;
                    path = Some(item.path);
                    if !item.is_older {
                        let (start_bytes, digest) = (kept.end_bytes, digest(&line));
                        let group = Group { start_bytes, entries, digest, is_current: false };
                        kept.groups.insert(item.seq, group);
                        (kept.end_bytes, entries) = (end_bytes, 0);
                    }
                    Ok(true)
                }
                _ => Ok(false),
            }
        });
        kept
    }

    /// Whether a newest version with this sequence is there.
    pub fn holds(&self, seq: u64) -> bool {
        self.groups.contains_key(&seq)
    }

    /// The store holds this one: whether it is the one that is here, its line says. A disk that was set back may have another one under its sequence.
    pub fn compare(&mut self, seq: u64, line: &str) {
        if let Some(group) = self.groups.get_mut(&seq) {
            group.is_current = group.digest == digest(line.as_bytes());
        }
    }

    /// Whether the newest version with this sequence is there, after [`Kept::cut`]; returns how many entries its path has.
    pub fn see(&mut self, seq: u64) -> Option<u64> {
        let group = self.groups.get_mut(&seq)?;
        group.is_current = true;
        Some(group.entries)
    }

    /// After a look at every receipt: lets go of the first one that the store has no more as it is here, and of all behind it. Returns where the rest ends.
    pub fn cut(&mut self) -> u64 {
        let gone = self.groups.values().filter(|group| !group.is_current);
        self.end_bytes = gone.map(|group| group.start_bytes).fold(self.end_bytes, u64::min);
        let end_bytes = self.end_bytes;
        self.groups.retain(|_, group| group.start_bytes < end_bytes);
        self.groups.values_mut().for_each(|group| group.is_current = false);
        end_bytes
    }

    /// After the last receipt: whether one that is here was replaced, removed or copied since [`Kept::cut`].
    pub fn is_outdated(&self) -> bool {
        self.groups.values().any(|group| !group.is_current)
    }
}
