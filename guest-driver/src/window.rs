//! The replay window: records after the head's replay position, which may not be in the index yet. Normally one or two
//! batches; a reader searches it before it calls a miss final.
//!
//! Invariant: what is remembered belongs to one version of the head page; behind it the log is followed anew each time.

use crate::control::Control;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{SPILL_HOPS_MAX, WINDOW_RECORDS_MAX};
use crate::log::{Cursor, read_header};
use crate::path::ReceiptPath;
use crate::record::{Kind, RecordFault};
use crate::rules::Rule;
use crate::superblock::Superblock;
use std::collections::HashMap;

/// Headers of the window that were read so far.
#[derive(Debug, Default)]
pub struct Window {
    head: Option<(u64, u32)>,
    cursor: Option<Cursor>,
    /// Whether the last record of a path in the window is a receipt; otherwise it removes the path.
    paths: HashMap<Vec<u8>, bool>,
    /// A segment is being retired: any index page may be changed.
    has_retirement: bool,
}

impl Window {
    /// Follows the log behind the head: one device read a record that is new, and one for the end.
    ///
    /// # Errors
    /// A device error, or [`Error::Corrupt`] when the window is longer than the format allows.
    pub fn extend(&mut self, device: &dyn Device, superblock: &Superblock, control: &Control) -> Result<()> {
        let head = Some((control.head_page.version, control.head_page.epoch));
        let mut cursor = match self.cursor.take() {
            Some(cursor) if self.head == head => cursor,
            _ => {
                self.paths.clear();
                self.has_retirement = false;
                let epoch = if Rule::WindowEpoch.holds() { control.head_page.epoch } else { 0 };
                Cursor::at(&control.head.replay, epoch)
            }
        };
        self.head = head;
        for _ in 0..=WINDOW_RECORDS_MAX {
            let geometry = &superblock.geometry;
            if !geometry.holds_record(cursor.block, 1) {
                self.cursor = Some(cursor); // the segment is full to its last block
                return Ok(());
            }
            match read_header(device, superblock, cursor.block)? {
                Ok((header, hash)) if cursor.accepts(&header, geometry) => {
                    self.has_retirement |= header.kind == Kind::Retire;
                    if header.changes_index() {
                        self.paths.insert(header.meta.clone(), header.kind == Kind::Put);
                    }
                    cursor.step(&header, hash, geometry);
                }
                Err(fault @ RecordFault::UnknownKind(_)) => {
                    return Err(Error::Corrupt(format!("record at block {}: {fault}", cursor.block)));
                }
                _ => {
                    let end_seq = cursor.seq;
                    self.cursor = Some(cursor);
                    return check_end(device, superblock, control, end_seq);
                }
            }
        }
        Err(Error::Corrupt("the replay window does not end".to_owned()))
    }

    /// Whether the window ends with a receipt under `path`.
    #[must_use]
    pub fn holds(&self, path: &ReceiptPath) -> bool {
        self.paths.get(path.as_str().as_bytes()).copied().unwrap_or_default()
    }

    /// Whether the commits in the window may have torn one of `pages`.
    #[must_use]
    pub fn explains(&self, superblock: &Superblock, pages: &[u64]) -> bool {
        let geometry = &superblock.geometry;
        self.has_retirement
            || self.paths.keys().any(|path| {
                let hash = superblock.path_hash(path);
                geometry.regions.iter().any(|region| {
                    let mut page_no = geometry.home_page(region, hash.bucket);
                    (0..=SPILL_HOPS_MAX).any(|_| {
                        let is_on_the_way = pages.contains(&page_no);
                        page_no = geometry.spill_page(page_no);
                        is_on_the_way
                    })
                })
            })
    }
}

/// What the head publishes is in the window, unless the head has changed meanwhile or a record is damaged.
fn check_end(device: &dyn Device, superblock: &Superblock, control: &Control, end_seq: u64) -> Result<()> {
    let published_seq = control.head.published_seq;
    if end_seq >= published_seq
        || Control::read(device, superblock)?.head_page.version != control.head_page.version
    {
        return Ok(());
    }
    Err(Error::Corrupt(format!("the log ends at sequence {end_seq}, published is {published_seq}")))
}
