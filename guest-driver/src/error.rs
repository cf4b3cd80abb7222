//! What can go wrong, one variant a fact, and the one place that turns a fact into an exit code.

use crate::path::ReceiptPath;
use crate::record::Header;
use std::io;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The device operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceOp {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush of the volatile cache.
    Flush,
    /// A discard of room that nothing uses.
    Discard,
}

impl std::fmt::Display for DeviceOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        })
    }
}

/// One failed device operation. Short transfers are failures, too.
#[derive(Debug, thiserror::Error)]
#[error("device {op} of {len_bytes} bytes at byte {offset_bytes} failed: {source}")]
pub struct DeviceError {
    /// What was asked of the device.
    pub op: DeviceOp,
    /// Where, in bytes.
    pub offset_bytes: u64,
    /// How much, in bytes.
    pub len_bytes: usize,
    /// What the device answered.
    pub source: io::Error,
}

/// Everything that the store refuses or finds wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device answered with an error.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device or file cannot be opened at all.
    #[error("cannot open {name}: {source}")]
    CannotOpen {
        /// Device as the user wrote it.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of the user (not the device) failed.
    #[error("{name}: {source}")]
    File {
        /// The file as the user wrote it.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Wrong arguments; the text says what to do.
    #[error("{0}")]
    Usage(String),
    /// No path by the rules of the store.
    #[error("bad path {path:?}: {reason}")]
    BadPath {
        /// The path as given (lossy when it is not UTF-8).
        path: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// More data than one record of this store can hold.
    #[error(
        "{path}: {data_len_bytes} bytes are more than one record of this store holds ({limit_bytes} bytes)"
    )]
    TooLarge {
        /// The path.
        path: String,
        /// Bytes offered.
        data_len_bytes: u64,
        /// Bytes that fit.
        limit_bytes: u64,
    },
    /// Neither superblock is there.
    #[error("{name} holds no receipt store (run `receipt format` first)")]
    NoStore {
        /// Device.
        name: String,
    },
    /// The device already holds something.
    #[error("the device already holds {what}; `format --force` overwrites it")]
    NotEmpty {
        /// What was found.
        what: String,
    },
    /// The store was written by a newer program.
    #[error("the store has format {major}.{minor}, this program reads format 1: use a newer `receipt`")]
    NewerFormat {
        /// Major version found.
        major: u16,
        /// Minor version found.
        minor: u16,
    },
    /// Unknown incompatible features.
    #[error(
        "the store uses features that this program does not know (incompat {bits:#x}): use a newer `receipt`"
    )]
    UnknownFeature {
        /// The unknown bits.
        bits: u32,
    },
    /// The device is smaller than the store says, or the geometry makes no sense.
    #[error("bad geometry: {0}")]
    BadGeometry(String),
    /// Nothing is stored under the path.
    #[error("{path}: not found")]
    NotFound {
        /// The path.
        path: String,
    },
    /// The record is written, but its put is not acknowledged yet.
    #[error("{path}: pending (written, not acknowledged yet; try again)")]
    Pending {
        /// The path.
        path: String,
    },
    /// What is stored does not verify.
    #[error("{path}: corrupt: {fact}")]
    CorruptReceipt {
        /// The path.
        path: String,
        /// What does not verify.
        fact: String,
    },
    /// A page or another structure does not verify.
    #[error("corrupt store: {0}")]
    Corrupt(String),
    /// The log ends before a record that is known to have been durable.
    #[error(
        "corrupt log: it ends at sequence {end_seq}, but {evidence}; the store is not opened for writing and nothing was cut off"
    )]
    CorruptLog {
        /// Last sequence that verifies.
        end_seq: u64,
        /// What proves that there was more.
        evidence: String,
    },
    /// No free segment is left that can be written.
    #[error("no space: the record needs {needed_blocks} blocks and no free segment is left{}", refusing(*refused_segments))]
    NoSpace {
        /// Blocks of 4096 bytes.
        needed_blocks: u64,
        /// Free segments that refuse writes.
        refused_segments: u64,
    },
    /// The index page of the path and its neighbours are full.
    #[error(
        "no space: the index is full around page {page_no}: make the disk larger, at least as `receipt info` says (index_grows_from_bytes)"
    )]
    IndexFull {
        /// Home page of the path.
        page_no: u64,
    },
    /// Another process writes.
    #[error("{name} is busy: another process of this machine writes to it")]
    Busy {
        /// Device.
        name: String,
    },
    /// This machine may only read.
    #[error("{name} cannot be written from this machine: {reason}")]
    ReadOnly {
        /// Device.
        name: String,
        /// Why.
        reason: String,
    },
    /// A newer writer has taken the store over.
    #[error("fenced by epoch {epoch}: another writer has taken the store over")]
    Fenced {
        /// Epoch of the newer writer.
        epoch: u32,
    },
    /// An earlier failure left the state on disk unknown.
    #[error("the writer stopped after a device error; open the store again")]
    WriterStopped,
    /// Other data is stored under the path already.
    #[error(
        "{path}: other data is stored under this path already (sequence {seq}); `--new-version` adds a version"
    )]
    Exists {
        /// The path.
        path: String,
        /// Sequence of the record that is there.
        seq: u64,
    },
    /// The same data is stored under the path already, but kept otherwise than is asked for now.
    #[error(
        "{path}: is stored already, with class {class} and issued {issued}; `--new-version` stores it again as given now"
    )]
    KeptOtherwise {
        /// The path.
        path: String,
        /// Retention class of what is there.
        class: u8,
        /// Its day of issue.
        issued: String,
    },
    /// The change was to follow another one, which was refused.
    #[error("not made, because the change before it was refused")]
    NotReached,
    /// The term of the receipt is not over.
    #[error("{path}: kept until {until} (class {class}){clock}")]
    Kept {
        /// The path.
        path: String,
        /// Retention class.
        class: u8,
        /// Last day, or "for ever".
        until: String,
        /// Why the clock does not count, or nothing.
        clock: String,
    },
    /// A hold covers the receipt.
    #[error("{path}: on hold by prefix {prefix:?} until {until}")]
    Held {
        /// The path.
        path: String,
        /// Prefix of the hold.
        prefix: String,
        /// Last day, or that it must be released.
        until: String,
    },
    /// Something that the store must not do now; the text says what to do.
    #[error("{0}")]
    Refused(String),
    /// No hold page has room.
    #[error("no room for another hold: release some, or hold a shorter prefix that covers several")]
    HoldsFull,
    /// What the process that holds the writer answered.
    #[error("{text}")]
    Remote {
        /// Its words.
        text: String,
        /// Its exit code.
        exit_code: u8,
    },
    /// A path has all the versions that the format can count.
    #[error("{path}: has 65535 versions, no more fit")]
    TooManyVersions {
        /// The path.
        path: String,
    },
}

impl Error {
    /// [`Error::KeptOtherwise`] than what is there.
    #[must_use]
    pub fn kept_otherwise(path: &ReceiptPath, there: &Header) -> Self {
        let issued = crate::day::text(there.issued_day);
        Self::KeptOtherwise { path: path.to_string(), class: there.class, issued }
    }

    /// Exit code of the command line: 1 other, 2 usage, 3 not found, 4 pending, 5 corrupt, 6 no space,
    /// 7 busy or read-only, 8 refused by policy.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Device(_)
            | Self::CannotOpen { .. }
            | Self::File { .. }
            | Self::NoStore { .. }
            | Self::NewerFormat { .. }
            | Self::UnknownFeature { .. }
            | Self::WriterStopped => 1,
            Self::Usage(_) | Self::BadPath { .. } | Self::TooLarge { .. } | Self::BadGeometry(_) => 2,
            Self::Remote { exit_code, .. } => *exit_code,
            Self::NotFound { .. } => 3,
            Self::Pending { .. } => 4,
            Self::CorruptReceipt { .. } | Self::Corrupt(_) | Self::CorruptLog { .. } => 5,
            Self::NoSpace { .. } | Self::IndexFull { .. } | Self::HoldsFull => 6,
            Self::Busy { .. } | Self::ReadOnly { .. } | Self::Fenced { .. } => 7,
            Self::NotEmpty { .. }
            | Self::Exists { .. }
            | Self::KeptOtherwise { .. }
            | Self::TooManyVersions { .. }
            | Self::NotReached
            | Self::Kept { .. }
            | Self::Held { .. }
            | Self::Refused(_) => 8,
        }
    }
}
fn refusing(segments: u64) -> String {
    match segments {
        0 => String::new(),
        _ => format!(
            ": {segments} refuse writes; if the host has sealed them, it must unseal those that are retired (`receipt seals --retired`)"
        ),
    }
}
