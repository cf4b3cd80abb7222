//! What the kernel remembers of files, and the receipts that are open.
//!
//! Invariants: a node number means one record for ever, so that pages which the kernel kept are those of that record; what is pinned
//! has matched its hash.

use receipt_store::{Locator, Receipt, Stat};
use std::collections::HashMap;
use std::sync::Arc;

/// Folders have this bit, files have not.
const FOLDER_BIT: u64 = 1 << 63;
/// The node of record 1, because the root has 1.
const NODE_OF_RECORD_1: u64 = 1 << 62;
/// Node of the root.
pub const ROOT_NODE: u64 = 1;

/// The node of a record: its sequence, but for the first.
#[must_use]
pub fn node_of_record(seq: u64) -> u64 {
    if seq == 1 { NODE_OF_RECORD_1 } else { seq }
}

/// The node of a folder of the [`super::tree::Tree`].
#[must_use]
pub fn node_of_folder(id: u64) -> u64 {
    if id == super::tree::ROOT { ROOT_NODE } else { id | FOLDER_BIT }
}

/// The folder of a node; `None` = a file.
#[must_use]
pub fn folder_of(node: u64) -> Option<u64> {
    match node {
        ROOT_NODE => Some(super::tree::ROOT),
        _ => (node & FOLDER_BIT != 0).then_some(node & !FOLDER_BIT),
    }
}

/// One version of a receipt as a file. It never changes.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it lies.
    pub locator: Locator,
    /// Size.
    pub size_bytes: u64,
    /// When it was recorded, in milliseconds since 1970.
    pub recorded_at_ms: u64,
    /// BLAKE3 of the data.
    pub data_hash: [u8; 32],
}

impl File {
    /// The file of a record.
    #[must_use]
    pub fn of(stat: &Stat) -> Self {
        Self {
            locator: stat.locator(),
            size_bytes: stat.header.data_len,
            recorded_at_ms: stat.header.recorded_at_ms,
            data_hash: stat.header.data_hash,
        }
    }
}

/// Files by node, as long as the kernel remembers them.
#[derive(Debug, Default)]
pub struct Nodes(HashMap<u64, (Arc<File>, u64)>);

impl Nodes {
    /// The kernel has looked the file up.
    pub fn remember(&mut self, file: File) -> (u64, Arc<File>) {
        let node = node_of_record(file.locator.seq);
        let (file, lookups) = self.0.entry(node).or_insert_with(|| (Arc::new(file), 0));
        *lookups += 1;
        (node, Arc::clone(file))
    }

    /// The kernel has forgotten `lookups` of its look-ups.
    pub fn forget(&mut self, node: u64, lookups: u64) {
        if let Some((_, known)) = self.0.get_mut(&node) {
            *known = known.saturating_sub(lookups);
            if *known == 0 {
                self.0.remove(&node);
            }
        }
    }

    /// The file of a node.
    #[must_use]
    pub fn get(&self, node: u64) -> Option<Arc<File>> {
        self.0.get(&node).map(|(file, _)| Arc::clone(file))
    }
}

/// Verified receipts in memory, one copy each however often it is open.
#[derive(Debug)]
pub struct Pins {
    by_seq: HashMap<u64, (Arc<Receipt>, u64)>,
    bytes: usize,
    bytes_max: usize,
}

impl Pins {
    /// Pins of at most `bytes_max` bytes of data together.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { by_seq: HashMap::new(), bytes: 0, bytes_max }
    }

    /// Pins a receipt once more, if it is pinned.
    pub fn again(&mut self, seq: u64) -> Option<Arc<Receipt>> {
        let (receipt, pins) = self.by_seq.get_mut(&seq)?;
        *pins += 1;
        Some(Arc::clone(receipt))
    }

    /// Pins a verified receipt; `None` where there is no room.
    pub fn pin(&mut self, seq: u64, receipt: Receipt) -> Option<Arc<Receipt>> {
        if let Some(pinned) = self.again(seq) {
            return Some(pinned);
        }
        let bytes = self.bytes.checked_add(receipt.data().len()).filter(|bytes| *bytes <= self.bytes_max)?;
        self.bytes = bytes;
        let receipt = Arc::new(receipt);
        self.by_seq.insert(seq, (Arc::clone(&receipt), 1));
        Some(receipt)
    }

    /// Takes one pin back.
    pub fn unpin(&mut self, seq: u64) {
        let Some((receipt, pins)) = self.by_seq.get_mut(&seq) else { return };
        *pins -= 1;
        if *pins == 0 {
            self.bytes -= receipt.data().len();
            self.by_seq.remove(&seq);
        }
    }
}
