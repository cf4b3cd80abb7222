//! The log of `serve --record` (the format of dm-log-writes), and the disks a host crash could leave behind.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use receipt_store::device::{DeviceResult, check_range};
use receipt_store::error::DeviceOp;

use crate::SECTOR;
use crate::rng::Rng;

const MAGIC: u64 = 0x006a_7366_7768_7273;
const FLAG_FLUSH: u64 = 1;
const FLAG_DISCARD: u64 = 4;

/// One thing that happened to the disk, in the order of completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes at a sector.
    Write(u64, Arc<Vec<u8>>),
    /// Sectors whose content is of no interest: (first, number).
    Discard(u64, u64),
    /// Everything before is durable.
    Flush,
}

/// Entries that are in a log now: what a guest was told by now is durable with them.
pub fn logged_entries(log: &Path) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut head = [0; 24];
    std::fs::File::open(log).unwrap().read_exact_at(&mut head, 0).unwrap();
    number(&head, 16)
}

/// All entries of a log.
pub fn read_log(log: &Path) -> Vec<Event> {
    let log = std::fs::read(log).unwrap();
    assert_eq!((number(&log, 0), number(&log, 8)), (MAGIC, 1));
    let mut events = Vec::new();
    let mut at = SECTOR;
    for _ in 0..number(&log, 16) {
        let (sector, sectors, flags) = (number(&log, at), number(&log, at + 8), number(&log, at + 16));
        at += SECTOR;
        events.push(match flags {
            FLAG_FLUSH => Event::Flush,
            FLAG_DISCARD => Event::Discard(sector, sectors),
            _ => {
                let len = usize::try_from(sectors).unwrap() * SECTOR;
                let data = log[at..at + len].to_vec();
                at += len;
                Event::Write(sector, Arc::new(data))
            }
        });
    }
    assert_eq!(at, log.len(), "the log ends with its last entry");
    events
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

type Sectors = BTreeMap<u64, [u8; SECTOR]>;

/// A disk in memory, zero where nothing was written: what is durable, shared by all crash states, and what lies on top.
#[derive(Debug, Clone)]
pub struct CrashedDisk {
    size_bytes: u64,
    durable: Arc<Sectors>,
    top: RefCell<Sectors>,
}

impl CrashedDisk {
    /// An empty disk.
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes, durable: Arc::default(), top: RefCell::default() }
    }

    /// Makes one event durable.
    pub fn keep(&mut self, event: &Event) {
        apply_some(Arc::make_mut(&mut self.durable), event, |_| true);
    }

    /// One sector.
    pub fn sector(&self, sector: u64) -> [u8; SECTOR] {
        let top = self.top.borrow();
        *top.get(&sector).or_else(|| self.durable.get(&sector)).unwrap_or(&[0; SECTOR])
    }

    /// All of `unflushed` events on top of what is durable.
    pub fn prefix(&self, unflushed: &[Event]) -> Self {
        let mut top = Sectors::new();
        unflushed.iter().for_each(|event| apply_some(&mut top, event, |_| true));
        Self { top: RefCell::new(top), ..self.clone() }
    }

    /// What a crash leaves of `unflushed` events on top of what is durable: each whole, lost, or torn by sector.
    pub fn crash(&self, unflushed: &[Event], rng: &mut Rng) -> Self {
        let mut top = Sectors::new();
        for event in unflushed {
            match rng.below(3) {
                0 => apply_some(&mut top, event, |_| true),
                1 => apply_some(&mut top, event, |_| rng.below(2) == 0),
                _ => {}
            }
        }
        Self { top: RefCell::new(top), ..self.clone() }
    }
}

/// Writes the sectors of an event that `keep` chooses.
fn apply_some(to: &mut Sectors, event: &Event, mut keep: impl FnMut(u64) -> bool) {
    if let Event::Write(first, data) = event {
        for (sector, content) in (*first..).zip(data.chunks_exact(SECTOR)) {
            if keep(sector) {
                to.insert(sector, content.try_into().unwrap());
            }
        }
    }
}

impl receipt_store::Device for CrashedDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        check_range(DeviceOp::Read, self.size_bytes, offset_bytes, buf.len())?;
        let first = offset_bytes / SECTOR as u64;
        for (sector, part) in (first..).zip(buf.chunks_exact_mut(SECTOR)) {
            part.copy_from_slice(&self.sector(sector));
        }
        Ok(())
    }

    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        check_range(DeviceOp::Write, self.size_bytes, offset_bytes, buf.len())?;
        let first = offset_bytes / SECTOR as u64;
        let mut top = self.top.borrow_mut();
        for (sector, part) in (first..).zip(buf.chunks_exact(SECTOR)) {
            top.insert(sector, part.try_into().unwrap());
        }
        Ok(())
    }

    fn flush(&self) -> DeviceResult<()> {
        Ok(())
    }
}
