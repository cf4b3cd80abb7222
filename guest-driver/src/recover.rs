//! Opening for writing: a new epoch, and the commits of a writer that did not close.
//!
//! Invariants: what is read here is durable before anything is built on it (the flush comes first, unless the last writer closed);
//! the epoch is durable before a record carries it; the log is never cut where something proves that it went on.

use crate::apply::Pages;
use crate::control::{Control, Head, Lease};
use crate::device::{AlignedBuf, Device};
use crate::error::{Error, Result};
use crate::index::IndexPage;
use crate::layout::{
    BATCH_BYTES_MAX, BLOCK_BYTES, BLOCK_BYTES_USIZE, PAGE_HEAD, PAGE_LEASE, WINDOW_RECORDS_MAX, block_offset,
};
use crate::log::{Cursor, Tail, load_tail, read_blocks, read_header};
use crate::page::{Page, PageKind};
use crate::page_store::PageStore;
use crate::record::{FLAG_BATCH_START, Header, Kind, RecordFault};
use crate::retire::{carry_out_again, remove_entries_again};
use crate::rules::Rule;
use crate::superblock::Superblock;
use crate::table::{self, SegmentState};
use crate::writer::{Writer, WriterOptions};
use std::collections::HashMap;

impl<D: Device> Writer<D> {
    /// Opens the store for writing. After a clean close this costs five small reads, the headers since the last Summary, one write
    /// and one flush; otherwise the last commits are re-indexed first, at most a few batches.
    ///
    /// # Errors
    /// No store, a store that this program may not write, [`Error::CorruptLog`], or a device error.
    pub fn open(device: D, options: &WriterOptions) -> Result<Self> {
        let (mut writer, head) = Self::begin(device, options)?;
        if let Some(head) = head {
            writer.roll_forward(&head)?;
        }
        writer.check_open_segment()?;
        writer.grow()?;
        Ok(writer)
    }

    /// Takes the lease. Returns the head, too, if the last writer has left something to re-index.
    pub(crate) fn begin(device: D, options: &WriterOptions) -> Result<(Self, Option<Head>)> {
        let superblock = Superblock::read(&device, &options.name)?;
        if superblock.is_read_only {
            return Err(Error::ReadOnly {
                name: options.name.clone(),
                reason: "the store has features that this program does not know".to_owned(),
            });
        }
        let control = Control::read(&device, &superblock)?;
        let is_clean = control.is_closed()
            && control.head.published_seq == control.head.replay.seq
            && next_header(&device, &superblock, &cursor_at(&control))?.is_none();
        if !is_clean && Rule::OpeningFlushes.holds() {
            // crash here: nothing has changed.
            device.flush()?;
        }
        let lease = new_lease(&device, &superblock, &control, options)?;
        let mut pages = PageStore::new(superblock.store_id(), lease.epoch);
        pages.remember(PAGE_LEASE, control.lease_page);
        pages.remember(PAGE_HEAD, control.head_page.clone());
        // crash here: the older lease counts and no record carries the new epoch; both slots torn means the same.
        pages.write(&device, PAGE_LEASE, PageKind::Lease, lease.encode())?;
        pages.flush(&device, Rule::EpochFlushed)?;
        let replay = &control.head.replay;
        let tail = match Rule::SummaryComplete.holds() {
            true => load_tail(&device, &superblock, replay, control.head_page.epoch)?,
            false => Tail::at(replay, control.head_page.epoch),
        };
        let writer = Self {
            device,
            superblock,
            pages,
            tail,
            lease,
            head_replay: control.head.replay.clone(),
            fixed_clock_ms: options.fixed_clock_ms,
            is_stopped: false,
            buffer: AlignedBuf::default(),
        };
        Ok((writer, (!is_clean).then_some(control.head)))
    }

    /// The segment table knows the segment of the end of the log; otherwise it has lost what was written, and what it calls free may
    /// hold receipts.
    fn check_open_segment(&mut self) -> Result<()> {
        let (segment, generation) =
            (self.superblock.geometry.segment_of(self.tail.cursor.block), self.tail.cursor.generation);
        let entry = self.pages().table_entry(segment)?;
        if Rule::FreeIsChecked.holds() && (entry.state, entry.generation) != (SegmentState::Open, generation)
        {
            return Err(Error::Corrupt(format!(
                "the segment table does not know the open segment {segment}: run `receipt scrub --repair`"
            )));
        }
        Ok(())
    }

    /// Re-indexes what the log holds behind the replay position.
    pub(crate) fn roll_forward(&mut self, head: &Head) -> Result<()> {
        self.pages.accept_damaged(true);
        let mut window = Vec::new();
        while let Some((header, hash)) = next_header(&self.device, &self.superblock, &self.tail.cursor)? {
            if Rule::RecoveryChecksData.holds() && !self.is_whole(&header)? {
                break;
            }
            self.tail.advance(&header, hash, &self.superblock.geometry);
            window.push(header);
            if window.len() > WINDOW_RECORDS_MAX {
                return Err(Error::Corrupt("the replay window does not end".to_owned()));
            }
        }
        let last: HashMap<&[u8], u64> =
            window.iter().filter(|h| h.changes_index()).map(|h| (h.meta.as_slice(), h.seq)).collect();
        let window_puts = window.iter().filter(|header| header.kind == Kind::Put).count();
        let store = &mut self.pages;
        let mut pages = Pages { device: &self.device, superblock: &self.superblock, store, window_puts };
        remove_entries_again(&mut pages, &window)?;
        for header in &window {
            let is_superseded = last.get(header.meta.as_slice()).is_some_and(|seq| *seq > header.seq);
            pages.apply_again(header, is_superseded)?;
        }
        self.check_end(head)?;
        // crash here: any subset of the pages may be lost or torn; the head still replays from the old place.
        self.pages.write_staged(&self.device)?;
        // crash here: as above.
        self.pages.flush(&self.device, Rule::RecoveryFlushes)?;
        // crash here: as above; what Erase and Retire records order is done again.
        carry_out_again(&self.device, &self.superblock, &mut self.pages, &window)?;
        self.write_head(&self.tail.position())?;
        // crash here: either head is right.
        self.pages.flush(&self.device, Rule::RecoveryFlushes)?;
        self.pages.accept_damaged(false);
        Ok(())
    }

    /// Whether all data of the record is there. Mends what is behind it: a torn write leaves there what the disk held before.
    fn is_whole(&self, header: &Header) -> Result<bool> {
        let mut buf = read_blocks(&self.device, header.block, header.blocks)?;
        if header.data(buf.as_slice()).is_err() {
            return Ok(false);
        }
        if header.mend_padding(buf.as_mut_slice()) && Rule::RecoveryMends.holds() {
            let last = buf.as_slice().len() - BLOCK_BYTES_USIZE;
            // crash here: a sector holds the same data before and after, or nothing but what is behind it.
            let block = header.block + u64::from(header.blocks) - 1;
            self.device.write(block_offset(block), buf.as_slice().get(last..).unwrap_or_default())?;
        }
        Ok(true)
    }

    /// The log ends here: is there proof that it went further and is damaged?
    fn check_end(&mut self, head: &Head) -> Result<()> {
        let end_seq = self.tail.cursor.seq;
        let fail = |evidence: String| Err(Error::CorruptLog { end_seq, evidence });
        if head.published_seq > end_seq && Rule::ProofHead.holds() {
            return fail(format!("the head has published sequence {}", head.published_seq));
        }
        let geometry = &self.superblock.geometry;
        let (table_page, _) = geometry.table_slot(geometry.segment_of(self.tail.cursor.block));
        let applied = table::applied_seq(self.pages.load(&self.device, table_page, PageKind::Table)?);
        if applied > end_seq && Rule::ProofTable.holds() {
            return fail(format!("the segment table knows sequence {applied}"));
        }
        for (page_no, kind, page) in self.pages.staged() {
            let seq = newest_seq(kind, page, page_no, &self.superblock)?;
            if seq > end_seq && proof(kind).holds() {
                return fail(format!("page {page_no} knows sequence {seq}"));
            }
        }
        self.check_later_commit()
    }

    /// [`Self::check_end`] where pages cannot be asked.
    pub(crate) fn check_log_end(&self, head: &Head) -> Result<()> {
        let end_seq = self.tail.cursor.seq;
        if head.published_seq > end_seq {
            let evidence = format!("the head has published sequence {}", head.published_seq);
            return Err(Error::CorruptLog { end_seq, evidence });
        }
        self.check_later_commit()
    }

    fn check_later_commit(&self) -> Result<()> {
        match later_batch(&self.device, &self.superblock, &self.tail, self.lease.epoch)? {
            Some(seq) if Rule::ProofCommit.holds() => Err(Error::CorruptLog {
                end_seq: self.tail.cursor.seq,
                evidence: format!("a later commit began with sequence {seq}"),
            }),
            _ => Ok(()),
        }
    }
}

fn cursor_at(control: &Control) -> Cursor {
    Cursor::at(&control.head.replay, control.head_page.epoch)
}

/// The header of the next record, if there is one.
///
/// # Errors
/// A device error, or a record of a kind that this program does not know.
fn next_header(
    device: &dyn Device,
    superblock: &Superblock,
    cursor: &Cursor,
) -> Result<Option<(Header, [u8; 32])>> {
    if !superblock.geometry.holds_record(cursor.block, 1) {
        return Ok(None);
    }
    match read_header(device, superblock, cursor.block)? {
        Ok(next) => Ok(Some(next).filter(|(header, _)| cursor.accepts(header, &superblock.geometry))),
        // Written by a newer program: the log does not end here, it only cannot be followed.
        Err(fault @ RecordFault::UnknownKind(_)) => {
            Err(Error::Corrupt(format!("record at block {}: {fault}", cursor.block)))
        }
        Err(_) => Ok(None),
    }
}

fn proof(kind: PageKind) -> Rule {
    if kind == PageKind::Table { Rule::ProofTable } else { Rule::ProofPage }
}

fn newest_seq(kind: PageKind, page: &Page, page_no: u64, superblock: &Superblock) -> Result<u64> {
    Ok(match kind {
        PageKind::Index => {
            let index = IndexPage::decode(page, page_no, &superblock.geometry)?;
            index.entries.iter().map(|entry| entry.seq).max().unwrap_or_default()
        }
        PageKind::Table | PageKind::Policy | PageKind::Hold => table::applied_seq(page),
        _ => 0,
    })
}

/// A commit begins only after the one before was flushed. So a first record of a commit behind the end of the log, with a
/// sequence beyond the next one, proves that durable records are damaged. Searched as far as one commit reaches.
///
/// What an older store left on the disk is no proof: its epochs are not between the last one of the log and this opening.
fn later_batch(
    device: &dyn Device,
    superblock: &Superblock,
    tail: &Tail,
    end_epoch: u32,
) -> Result<Option<u64>> {
    let cursor = &tail.cursor;
    let geometry = &superblock.geometry;
    let segment_end = geometry.end_block(geometry.segment_of(cursor.block));
    let end = segment_end.min(cursor.block.saturating_add(2 * BATCH_BYTES_MAX / BLOCK_BYTES));
    let mut block = cursor.block;
    while block < end {
        let blocks = u32::try_from((end - block).min(256)).unwrap_or(1);
        let buf = read_blocks(device, block, blocks)?;
        for bytes in buf.as_slice().chunks_exact(BLOCK_BYTES_USIZE) {
            if let Ok((header, _)) = Header::parse(bytes, superblock.record_seed()) {
                let is_later = header.flags & FLAG_BATCH_START != 0
                    && header.block == block
                    && header.generation == cursor.generation
                    && (cursor.epoch..end_epoch).contains(&header.epoch)
                    && header.seq > cursor.seq + 1;
                if is_later && header.kind != Kind::Summary {
                    return Ok(Some(header.seq));
                }
            }
            block += 1;
        }
    }
    Ok(None)
}

/// The lease of the next epoch. Where a slot is damaged, no record carries the epoch that was being written, so the newest
/// epoch in head and log counts.
fn new_lease(
    device: &dyn Device,
    superblock: &Superblock,
    control: &Control,
    options: &WriterOptions,
) -> Result<Lease> {
    let last_epoch = match &control.lease {
        Some(lease) if !control.lease_page.is_damaged => lease.epoch,
        damaged => {
            let mut cursor = cursor_at(control);
            for _ in 0..=WINDOW_RECORDS_MAX {
                let Some((header, hash)) = next_header(device, superblock, &cursor)? else {
                    break;
                };
                cursor.step(&header, hash, &superblock.geometry);
            }
            damaged.as_ref().map_or(cursor.epoch, |lease| lease.epoch.max(cursor.epoch))
        }
    };
    let epoch =
        last_epoch.checked_add(1).ok_or_else(|| Error::Corrupt("the epochs are used up".to_owned()))?;
    let writer_uuid = match options.fixed_uuid {
        Some(uuid) => uuid,
        None => crate::random_bytes()?,
    };
    Ok(Lease {
        epoch,
        is_open: true,
        opened_at_ms: options.fixed_clock_ms.unwrap_or_else(crate::clock_ms),
        writer_uuid,
        guest_name: options.guest_name.clone(),
    })
}
