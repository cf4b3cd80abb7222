//! Listing, through Summaries: one block each decides whether the list of up to 256 receipts must be read.
//!
//! Newest first, so that a path whose newer version was seen is skipped; only removed paths and those with several versions cost memory.

use crate::control::{Control, Head};
use crate::device::{AlignedBuf, Device};
use crate::error::{Error, Result};
use crate::layout::{BATCH_RECORDS_MAX, BLOCK_BYTES, INDEX_PAGE_ENTRIES, PAGE_TABLE, TABLE_ENTRIES_PER_PAGE};
use crate::locator::Locator;
use crate::log::{Tail, load_tail, read_blocks, read_header};
use crate::page::{PageId, PageKind, read_page};
use crate::path::ReceiptPath;
use crate::reader::Reader;
use crate::record::{Header, Kind};
use crate::retire::Retired;
use crate::rules::Rule;
use crate::summary::{Descriptor, Item, decode_items};
use crate::superblock::Superblock;
use crate::table::{self, SegmentState, TableEntry};
use std::collections::{HashMap, HashSet};

/// The Summary or Seal at a block, with its list.
pub(crate) fn read_summary(
    device: &dyn Device,
    superblock: &Superblock,
    block: u64,
    prefix: &[u8],
) -> Result<(Header, Descriptor, Vec<Item>)> {
    let corrupt = |fact: &str| Error::Corrupt(format!("Summary at block {block}: {fact}"));
    let geometry = &superblock.geometry;
    if !geometry.holds_record(block, 1) {
        return Err(corrupt("address out of bounds"));
    }
    let (header, _) = read_header(device, superblock, block)?.map_err(|fault| corrupt(&fault.to_string()))?;
    if !header.kind.is_list() || !geometry.holds_record(block, header.blocks) {
        return Err(corrupt("no Summary"));
    }
    let descriptor = Descriptor::decode(&header).ok_or_else(|| corrupt("descriptor"))?;
    if !descriptor.may_hold_prefix(prefix) {
        return Ok((header, descriptor, Vec::new()));
    }
    let buf: AlignedBuf = read_blocks(device, block, header.blocks)?;
    let data = header.data(buf.as_slice()).map_err(|fault| corrupt(&fault.to_string()))?;
    let items = decode_items(data).ok_or_else(|| corrupt("list"))?;
    Ok((header, descriptor, items))
}

/// Segments in use with their table entries.
pub(crate) fn used_segments(device: &dyn Device, superblock: &Superblock) -> Result<Vec<(u64, TableEntry)>> {
    Ok(table_segments(device, superblock)?.0)
}

/// Segments that were retired and not opened again, with the number of their last life.
pub(crate) fn free_segments(device: &dyn Device, superblock: &Superblock) -> Result<Vec<(u64, u32)>> {
    let mut free = Vec::new();
    read_table(device, superblock, |segment, entry| {
        if entry.state == SegmentState::Free && entry.generation > 0 {
            free.push((segment, entry.generation));
        }
    })?;
    Ok(free)
}

/// Segments in use with their table entries, and whether a slot of the table is damaged.
fn table_segments(device: &dyn Device, superblock: &Superblock) -> Result<(Vec<(u64, TableEntry)>, bool)> {
    let mut used = Vec::new();
    let is_damaged = read_table(device, superblock, |segment, entry| {
        if entry.state != SegmentState::Free {
            used.push((segment, entry));
        }
    })?;
    Ok((used, is_damaged))
}

/// Calls `visit` with every data segment; true when a slot of the table is damaged.
fn read_table(
    device: &dyn Device,
    superblock: &Superblock,
    mut visit: impl FnMut(u64, TableEntry),
) -> Result<bool> {
    let geometry = &superblock.geometry;
    let mut is_damaged = false;
    for number in 0..geometry.segment_count.div_ceil(TABLE_ENTRIES_PER_PAGE) {
        let id = PageId {
            store_id: Some(superblock.store_id()),
            page_no: PAGE_TABLE + number,
            kind: PageKind::Table,
        };
        let (page, _) = read_page(device, id)?;
        is_damaged |= page.is_lost;
        let first = number * TABLE_ENTRIES_PER_PAGE;
        let end = geometry.segment_count.min(first + TABLE_ENTRIES_PER_PAGE);
        for segment in (first..end).filter(|s| geometry.is_data_segment(*s)) {
            visit(segment, table::entry(&page, geometry.table_slot(segment).1)?);
        }
    }
    Ok(is_damaged)
}

/// Records from the last Summary before the head to the end of what is published, oldest first, and whether one is damaged.
fn open_end(
    device: &dyn Device,
    superblock: &Superblock,
    head: &Head,
    epoch: u32,
    log_end: &mut Option<Tail>,
) -> Result<(Vec<Header>, bool)> {
    let geometry = &superblock.geometry;
    let mut tail: Tail = load_tail(device, superblock, &head.replay, epoch)?;
    let mut headers = Vec::new();
    let mut is_damaged = !tail.damaged_blocks.is_empty();
    for item in std::mem::take(&mut tail.pending) {
        match read_header(device, superblock, item.block)? {
            Ok((header, _)) => headers.push(header),
            Err(_) => is_damaged = true,
        }
    }
    while tail.cursor.seq < head.published_seq {
        match read_header(device, superblock, tail.cursor.block)? {
            Ok((header, hash)) if tail.cursor.accepts(&header, geometry) => {
                tail.advance(&header, hash, geometry);
                headers.push(header);
            }
            _ => return Ok((headers, true)),
        }
    }
    *log_end = Some(tail);
    Ok((headers, is_damaged))
}

/// Records with a path in the blocks `from..to` of a segment, oldest first, by their headers.
fn walk(device: &dyn Device, superblock: &Superblock, from: u64, to: u64) -> Result<Vec<Header>> {
    let mut headers: Vec<Header> = Vec::new();
    let mut block = from;
    while block < to {
        let last_seq = headers.last().map_or(0, |header| header.seq);
        match read_header(device, superblock, block)? {
            Ok((header, _)) if header.seq > last_seq => {
                block += u64::from(header.blocks);
                if header.changes_index() {
                    headers.push(header);
                }
            }
            _ => block += 1,
        }
    }
    Ok(headers)
}

/// Hands out each path once.
struct Newest<'a> {
    prefix: &'a [u8],
    replaced: HashSet<Vec<u8>>,
    visit: &'a mut dyn FnMut(Locator) -> Result<()>,
    /// Something that lists paths is damaged.
    is_damaged: bool,
    /// Not only the newest receipts, but every one.
    is_history: bool,
    /// Segments that were retired before all of them was listed, and the sequence from which on they were listed.
    gone: HashMap<u64, u64>,
}

impl Newest<'_> {
    fn see(&mut self, item: Item, generation: u32) -> Result<()> {
        let is_skipped = !self.is_history && self.replaced.contains(&item.path);
        if !item.path.starts_with(self.prefix) || is_skipped {
            return Ok(());
        }
        if item.kind != Kind::Put && self.is_history {
            return Ok(());
        }
        if item.kind != Kind::Put {
            self.replaced.insert(item.path); // whatever is older was removed
            return Ok(());
        }
        let path = ReceiptPath::from_bytes(&item.path)?;
        let Item { seq, block, blocks, .. } = item;
        if item.is_replacement && !self.is_history {
            self.replaced.insert(item.path);
        }
        (self.visit)(Locator { path, block, blocks, generation, seq })
    }
}

/// What a list shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Everything up to this sequence, and of what is behind it only what expiry copied there while the list went on.
    pub published_seq: u64,
    /// Nothing that lists paths is damaged.
    pub is_complete: bool,
}

impl<D: Device> Reader<D> {
    /// Calls `visit` with every acknowledged path that begins with `prefix` (any bytes, not only whole parts), newest first.
    ///
    /// Costs one read a page of the segment table, one or two a Summary (256 receipts or 4 MiB), and one a record since the last
    /// Summary.
    ///
    /// # Errors
    /// A device error, or what `visit` returns. [`Error::Corrupt`] comes after everything that can still be listed.
    pub fn list(&self, prefix: &str, visit: impl FnMut(Locator) -> Result<()>) -> Result<()> {
        match self.list_to_head(prefix, visit)? {
            Listed { is_complete: true, .. } => Ok(()),
            _ => Err(missing_paths()),
        }
    }

    /// As [`Reader::list`], and says what the list shows.
    ///
    /// # Errors
    /// A device error, or what `visit` returns.
    pub fn list_to_head(&self, prefix: &str, mut visit: impl FnMut(Locator) -> Result<()>) -> Result<Listed> {
        let prefix = prefix.strip_prefix('/').unwrap_or(prefix).as_bytes();
        let (replaced, visit) = (HashSet::new(), &mut visit);
        let gone = HashMap::new();
        let newest = Newest { prefix, replaced, visit, is_damaged: false, is_history: false, gone };
        list_items(self.device(), &*self.superblock_now()?, newest)
    }

    /// Calls `visit` with the block of every record that stored a receipt under `path`, whatever became of it. Costs as much as a list.
    pub(crate) fn history(&self, path: &ReceiptPath, mut visit: impl FnMut(u64) -> Result<()>) -> Result<()> {
        let prefix = path.as_str().as_bytes();
        let mut visit = |locator: Locator| if locator.path == *path { visit(locator.block) } else { Ok(()) };
        let (replaced, visit) = (HashSet::new(), &mut visit);
        let gone = HashMap::new();
        let newest = Newest { prefix, replaced, visit, is_damaged: false, is_history: true, gone };
        match list_items(self.device(), &*self.superblock_now()?, newest)? {
            Listed { is_complete: true, .. } => Ok(()),
            _ => Err(missing_paths()),
        }
    }
}

fn list_items(device: &dyn Device, superblock: &Superblock, mut newest: Newest<'_>) -> Result<Listed> {
    let geometry = &superblock.geometry;
    let control = Control::read(device, superblock)?;
    let replay = &control.head.replay;
    let mut log_end = None;
    let (open, is_end_damaged) =
        open_end(device, superblock, &control.head, control.head_page.epoch, &mut log_end)?;
    for header in open.iter().rev() {
        if header.changes_index() {
            newest.see(Item::of(header), header.generation)?;
        }
    }
    let open_segment = geometry.segment_of(replay.block);
    list_summaries(device, superblock, replay.summary_block, replay.generation, &mut newest)?;
    if let (Some(from), Some(first)) = (newest.gone.get_mut(&open_segment), open.first()) {
        *from = (*from).min(first.seq);
    }
    let (used, is_table_damaged) = table_segments(device, superblock)?;
    let mut sealed: Vec<(u64, TableEntry)> = used
        .into_iter()
        .filter(|(segment, entry)| {
            *segment != open_segment && entry.seal_block != 0 && entry.first_seq <= replay.seq
        })
        .collect();
    sealed.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.first_seq));
    for (segment, entry) in &sealed {
        let seal_block = geometry.first_block(*segment) + u64::from(entry.seal_block);
        list_summaries(device, superblock, seal_block, entry.generation, &mut newest)?;
    }
    if let Some(tail) = log_end.filter(|_| !newest.is_history && Rule::ListFollowsCopies.holds()) {
        let mut listed: Vec<u64> = sealed.iter().map(|(segment, _)| *segment).collect();
        listed.push(open_segment);
        listed.sort_unstable();
        list_copies(device, superblock, tail, &listed, &mut newest)?;
    }
    let is_damaged = newest.is_damaged || is_end_damaged || is_table_damaged;
    Ok(Listed { published_seq: control.head.published_seq, is_complete: !is_damaged })
}

/// Receipts that were copied, or replaced, behind the end of the list, where the record that it would have shown has gone before it was listed. One read a
/// record that was written meanwhile.
fn list_copies(
    device: &dyn Device,
    superblock: &Superblock,
    mut tail: Tail,
    listed: &[u64],
    newest: &mut Newest<'_>,
) -> Result<()> {
    let geometry = &superblock.geometry;
    let end_seq = tail.cursor.seq;
    let published_seq = Control::read(device, superblock)?.head.published_seq;
    let mut later = Vec::new();
    // A commit that was under way then has no more records behind it.
    while tail.cursor.seq < published_seq + 2 * BATCH_RECORDS_MAX as u64 {
        // Behind what is published, too: the table may say free before the head tells of the Retire record.
        match read_header(device, superblock, tail.cursor.block)? {
            Ok((header, hash)) if tail.cursor.accepts(&header, geometry) => {
                tail.advance(&header, hash, geometry);
                if let Some(retired) = Retired::of(&header, geometry)
                    && listed.binary_search(&retired.segment).is_err()
                {
                    newest.gone.entry(retired.segment).or_insert(u64::MAX);
                }
                if header.kind == Kind::Put && (1..=end_seq).contains(&header.previous_version_seq) {
                    later.push(header);
                }
            }
            _ => break,
        }
    }
    newest.is_damaged |= tail.cursor.seq < published_seq;
    for header in later {
        let segment = geometry.segment_of(header.previous_version_block);
        if newest.gone.get(&segment).is_some_and(|from| header.previous_version_seq < *from) {
            newest.see(Item::of(&header), header.generation)?;
        }
    }
    Ok(())
}

/// The Summaries of one segment, from `block` backwards.
fn list_summaries(
    device: &dyn Device,
    superblock: &Superblock,
    mut block: u64,
    generation: u32,
    newest: &mut Newest<'_>,
) -> Result<()> {
    let mut listed_from = u64::MAX;
    while block != 0 {
        let summary = read_summary(device, superblock, block, newest.prefix);
        let Some((header, descriptor, items)) =
            summary.as_ref().ok().filter(|(header, ..)| header.generation == generation).cloned()
        else {
            let at = (block, generation, listed_from);
            return list_without_summary(device, superblock, at, newest, summary.err());
        };
        listed_from = descriptor.first_seq;
        for item in items.into_iter().rev() {
            newest.see(item, header.generation)?;
        }
        if descriptor.previous_block >= block {
            return Err(Error::Corrupt(format!("Summary at block {block} links forward")));
        }
        block = descriptor.previous_block;
    }
    Ok(())
}

/// The records of a segment before `block`, where a Summary is damaged.
fn list_without_summary(
    device: &dyn Device,
    superblock: &Superblock,
    (block, generation, listed_from): (u64, u32, u64),
    newest: &mut Newest<'_>,
    fault: Option<Error>,
) -> Result<()> {
    if let Some(error @ Error::Device(_)) = fault {
        return Err(error);
    }
    let geometry = &superblock.geometry;
    let segment = geometry.segment_of(block);
    let entry = table::read_entry(device, superblock, segment)?;
    if entry.state == SegmentState::Free || entry.generation != generation {
        newest.gone.insert(segment, listed_from); // retired since the table was read; what was to be kept was copied
        return Ok(());
    }
    newest.is_damaged = true;
    let first = geometry.first_block(segment);
    for header in walk(device, superblock, first, block)?.iter().rev() {
        newest.see(Item::of(header), header.generation)?;
    }
    Ok(())
}

fn missing_paths() -> Error {
    Error::Corrupt("paths may be missing from the list: run `receipt verify`".to_owned())
}

/// How full a store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Segments that hold nothing.
    pub free_segments: u64,
    /// Receipts by the segment table; a hint after a crash.
    pub live: u64,
    /// Segments that hold records.
    pub used_segments: u64,
}

/// What the index says of the receipts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexFill {
    /// Bytes of the records that the index names: exact in a small store, otherwise from a sample of the index pages.
    pub live_bytes: u64,
    /// How full the index is, in percent.
    pub percent: u64,
}

/// Most index pages that [`Reader::index_fill`] reads.
const SAMPLED_PAGES: u64 = 256;

impl<D: Device> Reader<D> {
    /// Counts segments and receipts: one read a page of the segment table.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn usage(&self) -> Result<Usage> {
        let superblock = &*self.superblock_now()?;
        let used = used_segments(self.device(), superblock)?;
        Ok(Usage {
            free_segments: superblock.geometry.data_segment_count().saturating_sub(used.len() as u64),
            live: used.iter().map(|(_, entry)| u64::from(entry.live)).sum(),
            used_segments: used.len() as u64,
        })
    }

    /// Bytes of live records and fill of the index, from at most 256 index pages: paths are spread over them by their hash.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn index_fill(&self) -> Result<IndexFill> {
        let superblock = &*self.superblock_now()?;
        let geometry = &superblock.geometry;
        let mut fill = IndexFill::default();
        let (mut entries, mut capacity) = (0, 0);
        for region in &geometry.regions {
            let pages = region.zones * geometry.pages_per_segment();
            let sampled = pages.min(SAMPLED_PAGES);
            let (mut blocks, mut sampled_entries) = (0, 0);
            for number in 0..sampled {
                let page_no = geometry.home_page(region, number * pages / sampled);
                let page = self.read_index_page(superblock, page_no)?.0;
                blocks += page.entries.iter().map(|entry| u64::from(entry.blocks)).sum::<u64>();
                sampled_entries += page.entries.len() as u64;
            }
            fill.live_bytes += blocks * BLOCK_BYTES * pages / sampled.max(1);
            entries += sampled_entries * pages / sampled.max(1);
            capacity += pages * INDEX_PAGE_ENTRIES;
        }
        fill.percent = entries * 100 / capacity.max(1);
        Ok(fill)
    }
}
