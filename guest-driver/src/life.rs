//! What the writer does for the life of receipts besides storing them: the policy, holds, erasure.
//!
//! Each is a group commit of its own. Invariant: the superblock says that the store has such records before the first is written.

mod copies;

use crate::batch::{Batch, Draft};
use crate::checksum::DataSums;
use crate::day::day_of_ms;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{PAGE_HOLDS_FIRST, PAGE_HOLDS_LAST, PAGE_SUPERBLOCK, PATH_BYTES_MAX};
use crate::locator::Locator;
use crate::log::read_header;
use crate::page::PageKind;
use crate::path::ReceiptPath;
use crate::policy::{Hold, Policy, holds_len};
use crate::reader::Reader;
use crate::record::{FLAG_WAS_LIVE, Header, Kind};
use crate::rules::Rule;
use crate::space::Reserve;
use crate::writer::Writer;
use std::borrow::Cow;

/// Most bytes of the reason of an erasure.
pub const REASON_BYTES_MAX: usize = 1024;

/// A version that was erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erased {
    /// Where the version lies: its header stays.
    pub locator: Locator,
    /// Version of the path.
    pub version: u16,
    /// Sequence of the Erase record.
    pub seq: u64,
}

impl<D: Device> Writer<D> {
    /// Today by the clock.
    #[must_use]
    pub fn clock_day(&self) -> u32 {
        day_of_ms(self.now_ms())
    }

    /// Makes one group commit of what `plan` appends.
    pub(crate) fn transact<T>(
        &mut self,
        plan: impl FnOnce(&mut Self, &mut Batch<'static>) -> Result<T>,
    ) -> Result<T> {
        if self.is_stopped {
            return Err(Error::WriterStopped);
        }
        self.flag_life()?;
        self.pages.shrink();
        let mut batch = self.new_batch();
        let answer = match plan(self, &mut batch) {
            Ok(answer) => answer,
            Err(error) => {
                drop(self.pages.take_staged());
                return Err(error);
            }
        };
        if !batch.headers.is_empty()
            && let Err(error) = self.write_batch(batch)
        {
            return Err(self.stop(error));
        }
        Ok(answer)
    }

    /// Says in both superblocks that programs of before retention would misread the log.
    fn flag_life(&mut self) -> Result<()> {
        if self.superblock.has_life || !Rule::LifeFlagged.holds() {
            return Ok(());
        }
        let mut superblock = self.superblock.clone();
        superblock.has_life = true;
        self.write_superblock(superblock)
    }

    /// Writes the copy, then the superblock; the store is what the first says.
    pub(crate) fn write_superblock(&mut self, superblock: crate::Superblock) -> Result<()> {
        self.check_lease()?;
        let done = [self.superblock.geometry.superblock_copy_page(), PAGE_SUPERBLOCK]
            .into_iter()
            .try_for_each(|page_no| {
                self.pages.flush(&self.device, Rule::LifeFlagged)?;
                // crash here: the older superblock counts, or the newer one; both are right, because nothing needs the newer one yet.
                self.pages.write(&self.device, page_no, PageKind::Superblock, superblock.encode())?;
                self.pages.flush(&self.device, Rule::LifeFlagged)
            });
        if let Err(error) = done {
            return Err(self.stop(error));
        }
        self.superblock = superblock;
        Ok(())
    }

    /// Changes the terms: `change` gets the policy as it is. The first policy also confirms the day that the clock says.
    ///
    /// # Errors
    /// What `change` returns; no space; as [`Writer::commit_changes`].
    pub fn change_policy(&mut self, change: impl FnOnce(&mut Policy) -> Result<()>) -> Result<Policy> {
        self.transact(|writer, batch| {
            let mut policy = writer.retention()?.policy;
            let before = policy.clone();
            if policy.confirmed_day == 0 {
                policy.confirmed_day = writer.clock_day();
            }
            change(&mut policy)?;
            if policy != before {
                writer.append_policy(batch, &policy)?;
            }
            Ok(policy)
        })
    }

    fn append_policy(&mut self, batch: &mut Batch<'_>, policy: &Policy) -> Result<()> {
        let meta = policy.encode();
        self.make_room(batch, &meta, 0, Reserve::Shared)?;
        self.append_record(batch, Draft::statement(Kind::Policy, meta, Vec::new()))?;
        Ok(())
    }

    /// Keeps everything whose path begins with the hold's prefix from being removed, whatever its term; a hold with the same prefix is
    /// replaced.
    ///
    /// # Errors
    /// [`Error::HoldsFull`]; no space; as [`Writer::commit_changes`].
    pub fn hold(&mut self, hold: &Hold) -> Result<()> {
        if hold.prefix.is_empty() || hold.prefix.len() > PATH_BYTES_MAX {
            return Err(Error::Usage(format!("the prefix of a hold has 1 to {PATH_BYTES_MAX} bytes")));
        }
        self.transact(|writer, batch| {
            let retention = writer.retention()?;
            if retention.policy.confirmed_day == 0 {
                let confirmed_day = writer.clock_day();
                writer.append_policy(batch, &Policy { confirmed_day, ..retention.policy })?;
            }
            let known = retention.holds.iter().find(|(_, other)| other.prefix == hold.prefix);
            let mut pages = PAGE_HOLDS_FIRST..=PAGE_HOLDS_LAST;
            let has_room = |page_no: &u64| {
                let on_page: Vec<Hold> = retention
                    .holds
                    .iter()
                    .filter(|(page, _)| page == page_no)
                    .map(|(_, h)| h.clone())
                    .collect();
                holds_len(&on_page) + holds_len(std::slice::from_ref(hold)) <= crate::layout::SLOT_BODY_BYTES
            };
            let page_no = known.map(|(page, _)| *page).or_else(|| pages.find(has_room));
            writer.append_hold(batch, hold, false, page_no.ok_or(Error::HoldsFull)?)
        })
    }

    /// Ends the hold with this prefix.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none; no space; as [`Writer::commit_changes`].
    pub fn release(&mut self, prefix: &[u8]) -> Result<()> {
        self.transact(|writer, batch| {
            let holds = writer.retention()?.holds;
            let Some((page, hold)) = holds.iter().find(|(_, hold)| hold.prefix == prefix) else {
                return Err(Error::NotFound { path: format!("hold {:?}", String::from_utf8_lossy(prefix)) });
            };
            writer.append_hold(batch, hold, true, *page)
        })
    }

    fn append_hold(
        &mut self,
        batch: &mut Batch<'_>,
        hold: &Hold,
        is_release: bool,
        page_no: u64,
    ) -> Result<()> {
        let meta = hold.encode(is_release, u8::try_from(page_no).unwrap_or_default());
        self.make_room(batch, &meta, 0, Reserve::Shared)?;
        self.append_record(batch, Draft::statement(Kind::Hold, meta, Vec::new()))?;
        Ok(())
    }

    /// Erases every version of a path that the log holds, removed ones too, before its term if need be: the data is zeroed on the disk, the headers stay,
    /// and an Erase record each says why. The path is not found from then on.
    ///
    /// Reads the Summaries as a listing does.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the log holds no version; [`Error::Held`]; no space; as [`Writer::commit_changes`].
    pub fn erase(&mut self, path: &ReceiptPath, reason: &str) -> Result<Vec<Erased>> {
        if reason.trim().is_empty() || reason.len() > REASON_BYTES_MAX {
            return Err(Error::Usage(format!(
                "an erasure needs a reason of at most {REASON_BYTES_MAX} bytes"
            )));
        }
        let retention = self.retention()?;
        let today = retention.policy.today(self.clock_day());
        if let Some(hold) = retention.hold_on(path.as_str().as_bytes(), today) {
            return Err(Error::Held {
                path: path.to_string(),
                prefix: String::from_utf8_lossy(&hold.prefix).into_owned(),
                until: hold.until_day.map_or("it is released".to_owned(), crate::day::text),
            });
        }
        if Rule::EraseReachesCopies.holds() {
            self.zero_copies_left(path.as_str().as_bytes())?;
        }
        let versions = self.versions_in_log(path)?;
        if versions.is_empty() {
            return Err(Error::NotFound { path: path.to_string() });
        }
        self.check_erasable(&versions)?;
        self.leave_window(&versions)?;
        let mut erased = Vec::new();
        for some in versions.chunks(crate::layout::BATCH_RECORDS_MAX / 2) {
            let done = self.transact(|writer, batch| {
                some.iter()
                    .map(|header| writer.append_erasure(batch, path, header, reason))
                    .collect::<Result<Vec<_>>>()
            })?;
            erased.extend(done);
        }
        Ok(erased)
    }

    /// Moves the replay position behind these records: a recovery that finds one of them zeroed would end the log there.
    fn leave_window(&mut self, versions: &[Header]) -> Result<()> {
        let is_inside = versions.iter().any(|version| version.seq > self.head_replay.seq);
        if !is_inside || !Rule::EraseBeforeReplay.holds() {
            return Ok(());
        }
        if self.is_stopped {
            return Err(Error::WriterStopped);
        }
        self.check_lease()?;
        // crash here: nothing is erased yet, and either head is right.
        let done = self.end_window().and_then(|()| self.pages.flush(&self.device, Rule::ErasureFlushed));
        done.map_err(|error| self.stop(error))
    }

    /// Headers of all versions of a path that are still in the log with their data, the newest first: the current one and those that were replaced,
    /// removed or expired.
    fn versions_in_log(&self, path: &ReceiptPath) -> Result<Vec<Header>> {
        let reader = Reader::new(&self.device, "");
        let mut versions = Vec::new();
        reader.history(path, |block| {
            if let Ok((header, _)) = read_header(&self.device, &self.superblock, block)?
                && header.kind == Kind::Put
                && header.meta == path.as_str().as_bytes()
            {
                versions.push(header);
            }
            Ok(())
        })?;
        versions.sort_by_key(|header| std::cmp::Reverse(header.seq));
        versions.dedup();
        let is_whole = |header: &Header| crate::retire::is_zeroed(&self.device, header).map(|zeroed| !zeroed);
        let mut whole = Vec::new();
        for header in versions {
            if is_whole(&header)? {
                whole.push(header);
            }
        }
        Ok(whole)
    }

    fn append_erasure(
        &mut self,
        batch: &mut Batch<'_>,
        path: &ReceiptPath,
        version: &Header,
        reason: &str,
    ) -> Result<Erased> {
        let hash = self.superblock.path_hash(&version.meta);
        let is_live = self.pages().search(hash)?.entries.iter().any(|(_, entry)| entry.seq == version.seq);
        let segment = self.superblock.geometry.segment_of(version.block);
        self.pages().table_entry(segment)?; // cached now: nothing below reads the device
        let data = reason.as_bytes();
        self.make_room(batch, &version.meta, data.len() as u64, Reserve::Shared)?;
        let draft = Draft {
            kind: Kind::Erase,
            meta: version.meta.clone(),
            sums: DataSums::of(data),
            data: Cow::Owned(data.to_vec()),
            class: version.class,
            issued_day: version.issued_day,
            version: version.version,
            previous: (version.block, version.seq),
            flags: if is_live { FLAG_WAS_LIVE } else { 0 },
            recorded_at_ms: None,
        };
        let seq = self.append_record(batch, draft)?.seq;
        let locator = Locator {
            path: path.clone(),
            block: version.block,
            blocks: version.blocks,
            generation: version.generation,
            seq: version.seq,
        };
        Ok(Erased { locator, version: version.version, seq })
    }
}
