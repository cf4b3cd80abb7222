//! What a check found that the log can mend.

use crate::index::Entry;
use crate::path::PathHash;
use crate::record::Header;
use crate::table::TableEntry;
use std::collections::{BTreeMap, BTreeSet};

/// Everything that [`crate::Writer::repair`] may change. Each part follows from records that verify.
#[derive(Debug, Default)]
pub struct Plan {
    /// Entries that the index lacks: the newest record of its path, and nothing has removed it since.
    pub(crate) missing: Vec<(PathHash, Entry)>,
    /// Entries, with their pages, that a record of the log has replaced or removed, or that lie where their path does not lead.
    pub(crate) stale: Vec<(u64, Entry)>,
    /// Index pages with a slot that does not verify.
    pub(crate) damaged_pages: BTreeSet<u64>,
    /// What the segment table should say of the segments of the log.
    pub(crate) segments: BTreeMap<u64, TableEntry>,
    /// Paths of records, by their sequences, whose headers are gone.
    pub(crate) names: BTreeMap<u64, Vec<u8>>,
    /// Index entries a segment.
    pub(crate) live: BTreeMap<u64, u32>,
    /// Pages of the segment table that do not say what the log says, or have a damaged slot.
    pub(crate) table_pages: BTreeSet<u64>,
    /// Superblock pages that are damaged while the other one is right.
    pub(crate) superblock_pages: Vec<u64>,
    /// Policy and Hold records, and what else in the replay window is about no path, in the order of the log.
    pub(crate) statements: Vec<Header>,
    /// Pages of policy and holds that do not say what the log says, or have a damaged slot.
    pub(crate) retention_pages: BTreeSet<u64>,
    /// The last sequence that went with a retired segment, 0 = none.
    pub(crate) retired_seq: u64,
    /// The lease has a damaged slot.
    pub(crate) is_lease_damaged: bool,
    /// The head has a damaged slot.
    pub(crate) is_head_damaged: bool,
    /// The last record that is gone and of which nothing tells the path, 0 = none: any damaged index page may have named it, and it may
    /// have removed or replaced whatever is older.
    pub(crate) unknown_seq: u64,
    /// The newest sequence that index and segment table know.
    pub(crate) newest_seq: u64,
}

impl Plan {
    /// Of what is not newer than this sequence the log may not tell everything any more.
    pub(crate) fn gone_seq(&self) -> u64 {
        self.retired_seq.max(self.unknown_seq)
    }
}
