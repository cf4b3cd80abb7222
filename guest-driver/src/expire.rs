//! Expiry and room: which segments can go, and making them go, the oldest first.
//!
//! A segment goes whole. Every record of it is looked at: what is still to be kept is copied to the end of the log if little of the segment
//! is, otherwise only the receipts whose term is over are removed and the segment waits. Looking needs no writer, so receipts are stored meanwhile;
//! what could have changed since (policy, holds, the segment itself) is compared again when the writer acts.
//!
//! Invariants: nothing is removed before its term or on hold; a record that hides another one (a removal, a newer version) does not go before that
//! one, so nothing that was removed comes back; the chain over the gap stays provable.

mod empty;
mod forecast;
mod inspect;

pub use inspect::{Inspected, Look};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, BLOCK_BYTES};
use crate::list::Usage;
use crate::pace::{Pace, Paced};
use crate::path::ReceiptPath;
use crate::policy::Retention;
use crate::reader::Reader;
use crate::record::Header;
use crate::sealed::Undiscarded;
use crate::superblock::Superblock;
use crate::table::TableEntry;
use crate::writer::Writer;
use empty::chunks;
use forecast::Forecast;

/// Segments of which at least so many percent can be freed are emptied by copying the rest.
pub const COMPACT_PERCENT: u8 = 50;
/// Percent of the time that expiry works where nothing is said.
pub const WORK_PERCENT: u8 = 20;
/// The room of a store is at most so many times what is to be kept, where copies are made.
const ROOM_FACTOR: u64 = 2;
/// A store that uses no more segments is not too large.
const SPARE_SEGMENTS: u64 = 3;
/// A segment of which less can be freed is not worth copying.
const FREED_PERCENT_MIN: u64 = 3;
/// Most bytes of copies in one commit where there are pauses.
const PACED_BYTES_MAX: u64 = 256 << 10;
/// Most removals in one commit where there are pauses: a header is read for each while puts wait.
const PACED_REMOVALS_MAX: usize = 16;
/// Receipts whose index pages are read in one step.
const LOOK_AHEAD_RECEIPTS: usize = 64;

/// How expiry works.
#[derive(Clone, Copy, Debug)]
pub struct ExpireOptions {
    /// Change nothing.
    pub is_dry_run: bool,
    /// Day that the operator confirms.
    pub today: Option<u32>,
    /// Copy what is to be kept out of segments of which so many percent can be freed; 0 = never.
    pub compact_percent: u8,
    /// Today by the clock.
    pub clock_day: u32,
    /// How much of the time it works.
    pub pace: Pace,
}

impl ExpireOptions {
    /// Removes what is over on `today`, as a day that the operator confirms, with copies and without pauses.
    #[must_use]
    pub fn of_day(today: u32) -> Self {
        Self {
            is_dry_run: false,
            today: Some(today),
            compact_percent: COMPACT_PERCENT,
            clock_day: today,
            pace: Pace::new(100),
        }
    }
}

/// What expiry has done, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpireEvent<'a> {
    /// A receipt has gone.
    Expired(&'a ReceiptPath, u64),
    /// The room of a segment is free again.
    Retired {
        /// Segment.
        segment: u64,
        /// Receipts that were copied out of it.
        moved: u64,
    },
    /// A segment stays.
    Kept {
        /// Segment.
        segment: u64,
        /// Why.
        why: &'a str,
    },
    /// Segments looked at, of all.
    Progress(u64, u64),
}

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpireTotals {
    /// Receipts whose term was over.
    pub expired: u64,
    /// Receipts copied.
    pub moved: u64,
    /// Segments that are free now.
    pub segments: u64,
    /// Their bytes.
    pub freed_bytes: u64,
}

/// Access to the writer for one step; receipts may be stored between two.
pub type WithWriter<'a, D> = &'a mut dyn FnMut(&mut dyn FnMut(&mut Writer<D>) -> Result<()>) -> Result<()>;

struct Run<'a, R, D, F> {
    reader: &'a Reader<R>,
    writer: WithWriter<'a, D>,
    options: ExpireOptions,
    totals: ExpireTotals,
    /// Blocks of the receipts to be kept that it has met.
    kept_blocks: u64,
    /// Of a dry run.
    forecast: Forecast,
    paced: Paced,
    report: F,
}

/// Removes every receipt whose term is over and frees the segments that hold nothing else.
///
/// # Errors
/// [`Error::Refused`] when the clock is far from the last confirmed day; a device error, what `report` returns, or as
/// [`Writer::commit_changes`].
pub fn expire<R: Device, D: Device>(
    reader: &Reader<R>,
    writer: WithWriter<'_, D>,
    options: ExpireOptions,
    report: impl FnMut(ExpireEvent<'_>) -> Result<()>,
) -> Result<ExpireTotals> {
    let superblock = &*reader.superblock_now()?;
    let mut run = Run {
        reader,
        writer,
        options,
        totals: ExpireTotals::default(),
        kept_blocks: 0,
        forecast: Forecast::default(),
        paced: Paced::new(options.pace),
        report,
    };
    let today = run.confirm_today(&Retention::read(reader.device(), superblock)?)?;
    if !options.is_dry_run {
        run.discard_retired()?;
    }
    let segments = reader.segments_to_inspect(superblock)?;
    let count = segments.len() as u64;
    let mut kept = Vec::new();
    for ((segment, entry, may_go), done) in segments.into_iter().zip(0..) {
        (run.report)(ExpireEvent::Progress(done, count))?;
        if !run.segment(superblock, today, (segment, may_go), &entry)? && may_go {
            kept.push((segment, entry));
        }
    }
    run.bound_room(superblock, today, &kept)?;
    (run.report)(ExpireEvent::Progress(count, count))?;
    Ok(run.totals)
}

impl<R: Device, D: Device, F: FnMut(ExpireEvent<'_>) -> Result<()>> Run<'_, R, D, F> {
    /// The day that counts. What the clock says is confirmed by the operator, or by being near the last confirmed day.
    fn confirm_today(&mut self, retention: &Retention) -> Result<u32> {
        let (policy, clock_day) = (&retention.policy, self.options.clock_day);
        let has_terms = policy.terms.iter().any(|term| *term != crate::policy::Term::None);
        let day = self.options.today.unwrap_or(clock_day);
        if day > clock_day {
            let (day, clock) = (crate::day::text(day), crate::day::text(clock_day));
            return Err(Error::Refused(format!(
                "{day} is after what the clock says ({clock}): set the clock first"
            )));
        }
        if self.options.today.is_some_and(|today| today < policy.confirmed_day) {
            let (day, confirmed) = (crate::day::text(day), crate::day::text(policy.confirmed_day));
            return Err(Error::Refused(format!(
                "{day} is over: {confirmed} was confirmed already; leave `--today` out, or name a day from then on"
            )));
        }
        if self.options.today.is_none() && policy.today(day) != day && has_terms {
            let (clock, confirmed) = (crate::day::text(clock_day), crate::day::text(policy.confirmed_day));
            return Err(Error::Refused(format!(
                "the clock says {clock}, the last day that was confirmed is {confirmed}: if the clock is right, `receipt expire --today {clock}`"
            )));
        }
        if has_terms && day > policy.confirmed_day && !self.options.is_dry_run {
            let noted = (self.writer)(&mut |writer| {
                writer.change_policy(|policy| {
                    policy.confirmed_day = policy.confirmed_day.max(day);
                    Ok(())
                })?;
                Ok(())
            });
            match noted {
                Ok(()) | Err(Error::NoSpace { .. }) => {} // room comes first: the day is noted by the next run
                Err(error) => return Err(error),
            }
        }
        Ok(day)
    }

    /// Gives room back that the host did not take when its segment was retired, or that a run which was ended has left.
    fn discard_retired(&mut self) -> Result<()> {
        let mut next = Some(0);
        while let Some(first) = next {
            let mut found = Undiscarded::default();
            (self.writer)(&mut |writer| {
                found = writer.find_undiscarded(first)?;
                Ok(())
            })?;
            self.paced.rest();
            if let Some((segment, generation)) = found.segment {
                self.discard(segment, generation)?;
            }
            next = found.next;
        }
        Ok(())
    }

    /// Gives the room of a retired segment back, piece by piece.
    fn discard(&mut self, segment: u64, generation: u32) -> Result<()> {
        let mut end_bytes = u64::MAX;
        while end_bytes > 0 {
            (self.writer)(&mut |writer| {
                end_bytes = writer.discard_piece(segment, generation, end_bytes)?;
                Ok(())
            })?;
            self.paced.rest();
        }
        Ok(())
    }

    fn segment(
        &mut self,
        superblock: &Superblock,
        today: u32,
        (segment, may_go): (u64, bool),
        entry: &TableEntry,
    ) -> Result<bool> {
        let retention = Retention::read(self.reader.device(), superblock)?;
        let mut found = self.inspect(superblock, &retention, today, (segment, entry))?;
        self.kept_blocks += found.staying_blocks();
        if !may_go {
            found.pinned = Some("the log ends in it".to_owned());
        }
        let is_worth = {
            let percent = u64::from(self.options.compact_percent);
            percent > 0 && found.freed_bytes() * 100 >= percent * found.blocks * BLOCK_BYTES
        };
        let goes = found.pinned.is_none() && (found.staying.is_empty() || is_worth);
        let has_room = found.staying.is_empty() || self.usage(superblock)?.free_segments > 0;
        if self.options.is_dry_run {
            return self.dry_run(&found, goes && has_room).map(|()| goes && has_room);
        }
        if goes && has_room && self.empty_and_retire(&retention, &found)? {
            return Ok(true);
        }
        self.remove_expired(&found)?;
        let why = found.pinned.as_deref().unwrap_or(if has_room {
            "most of it is kept"
        } else {
            "no room for copies"
        });
        (self.report)(ExpireEvent::Kept { segment, why }).map(|()| false)
    }

    fn inspect(
        &self,
        superblock: &Superblock,
        retention: &Retention,
        today: u32,
        segment: (u64, &TableEntry),
    ) -> Result<Inspected> {
        let look = Look { superblock, retention, today, gone: &self.forecast.gone };
        self.reader.inspect(look, segment, &|| self.paced.rest())
    }

    fn usage(&self, superblock: &Superblock) -> Result<Usage> {
        self.forecast.usage(self.reader, superblock)
    }

    /// Empties the oldest of the segments that stayed, however little of them can be freed, while the store takes more than its room. What
    /// was removed holds the segment with its removal, and that one holds others: only the oldest of them can break the chain.
    fn bound_room(&mut self, superblock: &Superblock, today: u32, kept: &[(u64, TableEntry)]) -> Result<()> {
        if self.options.compact_percent == 0 {
            return Ok(());
        }
        let per_segment = superblock.geometry.blocks_per_segment();
        let segments_max = (ROOM_FACTOR * self.kept_blocks).div_ceil(per_segment).max(SPARE_SEGMENTS);
        for (segment, entry) in kept {
            let usage = self.usage(superblock)?;
            if usage.used_segments <= segments_max || usage.free_segments == 0 {
                break;
            }
            let retention = Retention::read(self.reader.device(), superblock)?;
            let found = self.inspect(superblock, &retention, today, (*segment, entry))?;
            let freed_blocks = found.freed_bytes() / BLOCK_BYTES;
            if found.pinned.is_some() || freed_blocks * 100 < FREED_PERCENT_MIN * found.blocks {
                continue;
            }
            if self.options.is_dry_run {
                self.forecast.retire(&found);
                self.count_retired(&found, found.staying.len() as u64)?;
            } else {
                self.empty_and_retire(&retention, &found)?;
            }
        }
        Ok(())
    }

    fn dry_run(&mut self, found: &Inspected, goes: bool) -> Result<()> {
        self.report_expired(&found.expired)?;
        if !goes {
            self.forecast.remove_expired(found);
            let why = found.pinned.as_deref().unwrap_or("most of it is kept");
            return (self.report)(ExpireEvent::Kept { segment: found.segment, why });
        }
        self.forecast.retire(found);
        self.count_retired(found, found.staying.len() as u64)
    }

    fn count_retired(&mut self, found: &Inspected, moved: u64) -> Result<()> {
        self.totals.moved += moved;
        self.totals.segments += 1;
        self.totals.freed_bytes += found.freed_bytes();
        (self.report)(ExpireEvent::Retired { segment: found.segment, moved })
    }

    fn report_expired(&mut self, headers: &[Header]) -> Result<()> {
        for header in headers {
            self.totals.expired += 1;
            (self.report)(ExpireEvent::Expired(&ReceiptPath::from_bytes(&header.meta)?, header.seq))?;
        }
        Ok(())
    }

    /// Copies what stays and retires the segment; false when something has changed meanwhile, or there is no room.
    fn empty_and_retire(&mut self, retention: &Retention, found: &Inspected) -> Result<bool> {
        let mut is_empty = true;
        let bytes_max = if self.paced.has_pauses() { PACED_BYTES_MAX } else { BATCH_BYTES_MAX };
        for some in chunks(&found.staying, bytes_max) {
            let mut is_moved = true;
            let done = (self.writer)(&mut |writer| {
                is_moved = writer.move_out(some)?;
                Ok(())
            });
            is_empty &= is_moved;
            self.paced.rest();
            match done {
                Ok(()) => {}
                Err(Error::NoSpace { .. } | Error::IndexFull { .. } | Error::CorruptReceipt { .. }) => {
                    is_empty = false;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let mut is_retired = false;
        if is_empty {
            for some in found.expired.chunks(LOOK_AHEAD_RECEIPTS) {
                (self.writer)(&mut |writer| {
                    writer.look_ahead(some);
                    Ok(())
                })?;
                self.paced.rest();
            }
            (self.writer)(&mut |writer| {
                is_retired = writer.retire(retention, found)?;
                Ok(())
            })?;
            self.paced.rest();
        }
        if is_retired {
            self.discard(found.segment, found.generation)?;
            self.report_expired(&found.expired)?;
            self.count_retired(found, found.staying.len() as u64)?;
        }
        Ok(is_retired)
    }

    /// Removes the receipts of a segment that stays.
    fn remove_expired(&mut self, found: &Inspected) -> Result<()> {
        let per_commit = if self.paced.has_pauses() { PACED_REMOVALS_MAX } else { BATCH_RECORDS_MAX / 2 };
        for some in found.expired.chunks(per_commit) {
            let mut removed = Vec::new();
            let done = (self.writer)(&mut |writer| {
                removed = writer.remove_expired(some)?;
                Ok(())
            });
            match done {
                Ok(()) => self.report_expired(&removed)?,
                Err(Error::NoSpace { .. }) => return Ok(()), // until room was made
                Err(error) => return Err(error),
            }
            self.paced.rest();
        }
        Ok(())
    }
}
