//! What the writer does for expiry: copying what stays, retiring a segment, removing what is over.

use super::inspect::Inspected;
use crate::batch::{Batch, Draft};
use crate::checksum::DataSums;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{BATCH_RECORDS_MAX, BLOCK_BYTES};
use crate::log::read_blocks;
use crate::page::PageKind;
use crate::path::ReceiptPath;
use crate::policy::Retention;
use crate::record::{FLAG_EXPIRED, FLAG_MOVED, Header, Kind};
use crate::retire::{Retired, encode_ranges, join_ranges};
use crate::rules::Rule;
use crate::space::Reserve;
use crate::table::SegmentState;
use crate::writer::Writer;
use std::borrow::Cow;

/// Pieces of one group commit each, of at most `bytes_max` or a record.
pub(super) fn chunks(headers: &[Header], bytes_max: u64) -> Vec<&[Header]> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, header) in headers.iter().enumerate() {
        let len = u64::from(header.blocks) * BLOCK_BYTES;
        if at > start && (bytes + len > bytes_max || at - start >= BATCH_RECORDS_MAX / 2) {
            pieces.push(&headers[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += len;
    }
    if start < headers.len() {
        pieces.push(&headers[start..]);
    }
    pieces
}

impl<D: Device> Writer<D> {
    /// Copies receipts to the end of the log, with all that is known of them; the index names the copies from then on. False when one of them was replaced
    /// or removed since it was looked at: what it is now, an older version that is kept perhaps, must be looked at again.
    pub(crate) fn move_out(&mut self, headers: &[Header]) -> Result<bool> {
        self.transact(|writer, batch| {
            headers.iter().try_fold(true, |all, header| Ok(writer.append_copy(batch, header)? && all))
        })
    }

    fn append_copy(&mut self, batch: &mut Batch<'_>, header: &Header) -> Result<bool> {
        let path = ReceiptPath::from_bytes(&header.meta)?;
        let hash = self.superblock.path_hash(&header.meta);
        if !self.pages().search(hash)?.entries.iter().any(|(_, entry)| entry.seq == header.seq) {
            return Ok(!Rule::RetireMovedAll.holds());
        }
        let buf = read_blocks(&self.device, header.block, header.blocks)?;
        let parsed = Header::parse(buf.as_slice(), self.superblock.record_seed());
        let data = header.data(buf.as_slice()).map_err(|fault| fault.to_string());
        let data = match parsed {
            Ok((now, _)) if now == *header => data,
            Ok(_) => Err("another record lies there".to_owned()),
            Err(fault) => Err(fault.to_string()),
        };
        let data = data.map_err(|fact| Error::CorruptReceipt { path: path.to_string(), fact })?;
        self.make_room(batch, &header.meta, header.data_len, Reserve::Used)?;
        let segment = self.superblock.geometry.segment_of(header.block);
        self.pages().table_entry(segment)?;
        let draft = Draft {
            kind: Kind::Put,
            meta: header.meta.clone(),
            data: Cow::Owned(data.to_vec()),
            sums: DataSums::of_hashed(data, header.data_hash),
            class: header.class,
            issued_day: header.issued_day,
            version: header.version,
            previous: (header.block, header.seq),
            flags: FLAG_MOVED,
            recorded_at_ms: Some(header.recorded_at_ms),
        };
        self.append_record(batch, draft).map(|_| true)
    }

    /// Reads the index pages that a retirement of these receipts changes, so that it reads none while puts wait for it.
    pub(super) fn look_ahead(&mut self, headers: &[Header]) {
        self.pages.shrink();
        let superblock = &self.superblock;
        let homes = headers.iter().flat_map(|header| superblock.home_pages(&header.meta));
        self.pages.prefetch(&self.device, homes, PageKind::Index);
    }

    /// Retires a segment that was looked at under `retention`; false when that is not so any more.
    pub(crate) fn retire(&mut self, retention: &Retention, found: &Inspected) -> Result<bool> {
        let Some(range) = found.range else { return Ok(false) };
        let entry = self.pages().table_entry(found.segment)?;
        let is_same = entry.state == SegmentState::Sealed && entry.generation == found.generation;
        let is_before = range.last_seq <= self.head_replay.seq || !Rule::RetireBeforeReplay.holds();
        let now = self.retention()?;
        if !is_same
            || !is_before
            || (now.holds != retention.holds || now.policy.terms != retention.policy.terms)
        {
            return Ok(false);
        }
        self.transact(|writer, batch| {
            let meta = Retired { segment: found.segment, generation: found.generation, range }.encode();
            let data = encode_ranges(&join_ranges(found.carried.clone()));
            writer.make_room(batch, &meta, data.len() as u64, Reserve::Used)?;
            batch.dead.clone_from(&found.expired);
            writer.append_record(batch, Draft::statement(Kind::Retire, meta, data))
        })?;
        Ok(true)
    }

    /// Removes receipts whose term is over; returns those that are gone.
    pub(super) fn remove_expired(&mut self, headers: &[Header]) -> Result<Vec<Header>> {
        self.transact(|writer, batch| {
            let mut removed = Vec::new();
            for header in headers {
                let path = ReceiptPath::from_bytes(&header.meta)?;
                let newest = writer.newest_version(batch, &path)?;
                let Some(newest) = newest.filter(|newest| newest.seq == header.seq) else { continue };
                match writer.check_removal(batch, &newest) {
                    Ok(()) => {}
                    Err(Error::Kept { .. } | Error::Held { .. }) => continue,
                    Err(error) => return Err(error),
                }
                writer.append_removal(batch, &path, &newest, FLAG_EXPIRED)?;
                removed.push(newest);
            }
            Ok(removed)
        })
    }
}
