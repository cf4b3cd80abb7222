//! What each operation needs: the one match on the operation. It touches no ring and no disk.

use crate::disk::Disk;
use crate::limits::SERIAL_BYTES;
use crate::memory::{HostSlice, scatter};
use crate::order::{Access, ByteRange};
use crate::request::{Direction, Operation, Status};
use crate::syncer::SlowOp;
use crate::transfer::Transfer;

/// How an operation goes on.
#[derive(Debug)]
pub enum Start {
    /// It is over: the status, and the data bytes written to guest memory.
    Finished(Status, u32),
    /// It needs no range: straight to the slow operations.
    Slow(SlowOp),
    /// It runs once all `ranges` are admitted.
    Ordered {
        /// The ranges it touches, none empty.
        ranges: Ranges,
        /// How it touches them.
        kind: Kind,
        /// What to do then.
        work: Work,
    },
}

/// What an operation touches: nearly always one range, which costs no memory.
#[derive(Debug)]
pub enum Ranges {
    /// One.
    One([ByteRange; 1]),
    /// Several, of a DISCARD or WRITE_ZEROES.
    Several(Box<[ByteRange]>),
}

impl Ranges {
    /// No range at all.
    pub const NONE: Self = Self::One([ByteRange { start: 0, end: 0 }]);

    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[ByteRange] {
        match self {
            Self::One(range) => range,
            Self::Several(ranges) => ranges,
        }
    }
}

/// Kinds of operations that are not over at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Read,
    Write,
    Erase,
    Flush,
}

impl Kind {
    /// Whether it changes what is on the disk.
    #[must_use]
    pub fn changes_disk(self) -> bool {
        matches!(self, Self::Write | Self::Erase)
    }

    /// How it touches its ranges.
    #[must_use]
    pub fn access(self) -> Access {
        if self.changes_disk() { Access::Exclusive } else { Access::Shared }
    }
}

/// What an admitted operation does.
#[derive(Debug)]
pub enum Work {
    /// Moves data by the engine.
    Transfer {
        /// The IO to do.
        transfer: Transfer,
        /// Whether it needs a bounce buffer to begin.
        bounces: bool,
    },
    /// Erases by the slow operations.
    Slow(SlowOp),
    /// Waits for the slow operation that was submitted.
    AwaitSlow {
        /// Bytes read or written before.
        moved_bytes: u32,
    },
}

impl Work {
    /// Pieces of guest memory that it keeps a list of.
    #[must_use]
    pub fn pieces(&self) -> usize {
        match self {
            Self::Transfer { transfer, .. } => transfer.pieces(),
            Self::Slow(_) | Self::AwaitSlow { .. } => 0,
        }
    }

    /// Bytes of guest memory that it moves.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Transfer { transfer, .. } => transfer.len_bytes(),
            Self::Slow(_) | Self::AwaitSlow { .. } => 0,
        }
    }
}

/// What decides about an operation besides itself.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The disk, for its geometry and health.
    pub disk: &'a Disk,
    /// Whether the guest's writes are carried out.
    pub may_write: bool,
    /// The guest's serial.
    pub serial: &'a [u8],
    /// Whether writes must be durable when they complete: the driver did not accept VIRTIO_BLK_F_FLUSH.
    pub write_through: bool,
}

/// Decides how `operation` goes on.
#[must_use]
pub fn start(operation: Operation, context: Context<'_>) -> Start {
    let Context { disk, may_write, serial, write_through } = context;
    let refuses_writes = !may_write || disk.is_poisoned();
    match operation {
        Operation::GetId { segments } => Start::Finished(Status::Ok, answer_id(serial, &segments)),
        Operation::Flush if disk.is_poisoned() => refused(),
        Operation::Flush => Start::Slow(SlowOp::Flush),
        Operation::Transfer { direction: Direction::Write, .. } | Operation::Erase { .. }
            if refuses_writes =>
        {
            refused()
        }
        Operation::Transfer { range, .. } if range.start == range.end => Start::Finished(Status::Ok, 0),
        Operation::Transfer { direction, range, segments } => {
            order_transfer(direction, range, segments, disk)
        }
        Operation::Erase { ranges, .. } if ranges.is_empty() => Start::Finished(Status::Ok, 0),
        Operation::Erase { kind, ranges } => Start::Ordered {
            ranges: Ranges::Several(
                ranges
                    .iter()
                    .map(|erase| erase.range.rounded_out(disk.image().alignment.offset_bytes))
                    .collect(),
            ),
            kind: Kind::Erase,
            work: Work::Slow(SlowOp::Erase { kind, ranges: ranges.into(), durable: write_through }),
        },
    }
}

fn refused() -> Start {
    Start::Finished(Status::IoErr, 0)
}

fn order_transfer(direction: Direction, range: ByteRange, segments: Vec<HostSlice>, disk: &Disk) -> Start {
    let alignment = disk.image().alignment;
    let bounces = !alignment.suits(range, &segments);
    let (kind, admitted) = match direction {
        Direction::Read => (Kind::Read, range),
        // A bounced write may read and write back the rest of its first and last block.
        Direction::Write => (Kind::Write, range.rounded_out(alignment.offset_bytes)),
    };
    let transfer = Transfer::new(direction, range, segments, alignment);
    Start::Ordered { ranges: Ranges::One([admitted]), kind, work: Work::Transfer { transfer, bounces } }
}

/// Writes the serial, padded with NULs to [`SERIAL_BYTES`], and returns the bytes written.
fn answer_id(serial: &[u8], segments: &[HostSlice]) -> u32 {
    let mut id = [0; SERIAL_BYTES];
    let len = serial.len().min(SERIAL_BYTES);
    id[..len].copy_from_slice(&serial[..len]);
    u32::try_from(scatter(segments, 0, &id)).unwrap_or(0)
}
