//! Reading by path, from nothing but the disk. A reader registers nowhere and holds no lock.
//!
//! Invariants: no byte is handed out before the data matches its checksum or its hash; "not found" is final only after the bucket was read again behind the
//! head and the replay window was searched, so an acknowledged receipt is never "not found".

use crate::control::Control;
use crate::device::{AlignedBuf, Device};
use crate::error::{Error, Result};
use crate::index::{Entry, Found, IndexPage, search};
use crate::layout::GET_ATTEMPTS_MAX;
use crate::locator::Locator;
use crate::log::{read_blocks_into, read_header};
use crate::page::{Page, PageId, PageKind, read_page};
use crate::path::{PathHash, ReceiptPath};
use crate::record::{Header, Kind, RecordFault};
use crate::rules::Rule;
use crate::spares::Spares;
use crate::superblock::Superblock;
use crate::table;
use crate::window::Window;
use std::sync::{Arc, Mutex, PoisonError};

/// A receipt that was read and is what was stored: its data matches its checksum or, where it has none that fits, its hash.
#[derive(Debug)]
pub struct Receipt {
    path: ReceiptPath,
    header: Header,
    buf: AlignedBuf,
    /// Where the buffer goes in the end.
    spares: Option<Arc<Spares>>,
}

impl Receipt {
    /// Takes the blocks of a record and checks the data.
    ///
    /// # Errors
    /// [`RecordFault::BadData`].
    pub fn verified(
        path: ReceiptPath,
        header: Header,
        buf: AlignedBuf,
    ) -> std::result::Result<Self, RecordFault> {
        if Rule::DataFits.holds() {
            header.data_by_checksum(buf.as_slice())?;
        }
        Ok(Self::of_checked(path, header, buf))
    }

    /// Takes the blocks of a record whose data was checked already.
    pub(crate) fn of_checked(path: ReceiptPath, header: Header, buf: AlignedBuf) -> Self {
        Self { path, header, buf, spares: None }
    }

    /// Its buffer goes to `spares` when it is dropped.
    pub(crate) fn giving_back(mut self, spares: &Arc<Spares>) -> Self {
        self.spares = Some(spares.clone());
        self
    }

    /// The bytes that were stored.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        let start = self.header.len_bytes();
        let len = usize::try_from(self.header.data_len).unwrap_or_default();
        self.buf.as_slice().get(start..start.saturating_add(len)).unwrap_or_default()
    }

    /// Checks the bytes against the hash in the header (BLAKE3), which a get leaves out where their checksum fits. For whoever shows the hash as
    /// proof, or keeps the bytes elsewhere.
    ///
    /// # Errors
    /// [`Error::CorruptReceipt`].
    pub fn check_hash(&self) -> Result<()> {
        self.header.data(self.buf.as_slice()).map(drop).map_err(|fault| Error::CorruptReceipt {
            path: self.path.to_string(),
            fact: format!("record at block {}: {fault}", self.header.block),
        })
    }

    /// What is known about them.
    #[must_use]
    pub fn stat(&self) -> Stat {
        Stat { path: self.path.clone(), header: self.header.clone() }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(spares) = &self.spares {
            spares.give_back(std::mem::take(&mut self.buf));
        }
    }
}

/// What the header of a receipt says; its data was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Path.
    pub path: ReceiptPath,
    /// Header of the record.
    pub header: Header,
}

impl Stat {
    /// The address of this version.
    #[must_use]
    pub fn locator(&self) -> Locator {
        Locator {
            path: self.path.clone(),
            block: self.header.block,
            blocks: self.header.blocks,
            generation: self.header.generation,
            seq: self.header.seq,
        }
    }
}

/// Reads receipts. One reader serves any number of threads when its device does.
#[derive(Debug)]
pub struct Reader<D> {
    device: D,
    name: String,
    superblock: Mutex<Option<Arc<Superblock>>>,
    window: Mutex<Window>,
    spares: Arc<Spares>,
}

/// What one attempt found.
enum Attempt<T> {
    Hit(T),
    /// The record is not the one that the index names: the index changed meanwhile, or it is damage.
    Mismatch(String),
    Miss,
}

impl<D: Device> Reader<D> {
    /// A reader of `device`; `name` is for messages. Nothing is read yet.
    pub fn new(device: D, name: &str) -> Self {
        Self {
            device,
            name: name.to_owned(),
            superblock: Mutex::default(),
            window: Mutex::default(),
            spares: Arc::default(),
        }
    }

    /// The superblock, read once, and again where a path is not found: the store may have grown or been formatted since.
    ///
    /// # Errors
    /// As [`Superblock::read`].
    pub fn superblock(&self) -> Result<Arc<Superblock>> {
        match self.known_superblock() {
            Some(superblock) => Ok(superblock),
            None => self.read_superblock(),
        }
    }

    /// The superblock as it is now: one device read.
    ///
    /// # Errors
    /// As [`Superblock::read`].
    pub fn superblock_now(&self) -> Result<Arc<Superblock>> {
        self.read_superblock()
    }

    fn known_superblock(&self) -> Option<Arc<Superblock>> {
        self.superblock.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn read_superblock(&self) -> Result<Arc<Superblock>> {
        let superblock = Arc::new(Superblock::read(&self.device, &self.name)?);
        let mut known = self.superblock.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_some_and(|known| known.uuid != superblock.uuid) {
            *self.window.lock().unwrap_or_else(PoisonError::into_inner) = Window::default();
        }
        *known = Some(superblock.clone());
        Ok(superblock)
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Reads and verifies the newest version: 3 device reads cold, 2 warm.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Pending`], [`Error::CorruptReceipt`], or a device error.
    pub fn get(&self, path: &ReceiptPath) -> Result<Receipt> {
        self.find(path, |superblock, entry| self.read_record(superblock, path, entry))
    }

    /// Reads the header of the newest version: 3 device reads cold, 2 warm, whatever the size of the data.
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub fn stat(&self, path: &ReceiptPath) -> Result<Stat> {
        self.find(path, |superblock, entry| self.read_stat(superblock, path, entry))
    }

    /// Whether the segment of a block holds only records younger than `seq`, or none.
    pub(crate) fn is_retired(&self, superblock: &Superblock, block: u64, seq: u64) -> Result<bool> {
        table::is_retired(&self.device, superblock, block, seq)
    }

    /// Reads by locator with one device read, and one for the superblock when cold; one that does not fit any more falls back to its
    /// path.
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub fn get_locator(&self, locator: &Locator) -> Result<Receipt> {
        match locator.read_with(&self.device, &*self.superblock()?, &self.spares)? {
            Some(receipt) => Ok(receipt),
            None => self.get(&locator.path),
        }
    }

    fn find<T>(
        &self,
        path: &ReceiptPath,
        read: impl Fn(&Superblock, &Entry) -> Result<Attempt<T>>,
    ) -> Result<T> {
        let Some(known) = self.known_superblock() else {
            return self.find_in(&*self.read_superblock()?, path, &read);
        };
        let answer = self.find_in(&known, path, &read);
        if answer.is_ok() || matches!(answer, Err(Error::Device(_))) || !Rule::MissReadsSuperblock.holds() {
            return answer;
        }
        let now = self.read_superblock()?;
        if now == known { answer } else { self.find_in(&now, path, &read) }
    }

    fn find_in<T>(
        &self,
        superblock: &Superblock,
        path: &ReceiptPath,
        read: &impl Fn(&Superblock, &Entry) -> Result<Attempt<T>>,
    ) -> Result<T> {
        let hash = superblock.path_hash(path.as_str().as_bytes());
        let mut fact = String::new();
        for _ in 0..GET_ATTEMPTS_MAX {
            match self.attempt(superblock, hash, read)? {
                (Attempt::Hit(hit), found) if !found.is_damaged => return Ok(hit),
                (Attempt::Mismatch(found), _) => {
                    fact = found;
                    continue;
                }
                (Attempt::Miss, found) if !Rule::MissReadsAgain.holds() => {
                    let control = Control::read(&self.device, superblock)?;
                    return Err(self.why_missing(superblock, path, &control, &found)?);
                }
                _ => {}
            }
            // A miss: the put may have been acknowledged since the bucket was read, or lie in the replay window. Or a hit in a page
            // with a damaged slot: the other slot may be rotten and have named a newer version.
            let control = Control::read(&self.device, superblock)?;
            match self.attempt(superblock, hash, read)? {
                (Attempt::Hit(hit), found) => {
                    if self.is_rotten(superblock, &control, &found)? {
                        return Err(damaged_slot(path));
                    }
                    return Ok(hit);
                }
                (Attempt::Mismatch(found), _) => fact = found,
                (Attempt::Miss, found) => return Err(self.why_missing(superblock, path, &control, &found)?),
            }
        }
        Err(Error::CorruptReceipt { path: path.to_string(), fact })
    }

    fn attempt<T>(
        &self,
        superblock: &Superblock,
        hash: PathHash,
        read: &impl Fn(&Superblock, &Entry) -> Result<Attempt<T>>,
    ) -> Result<(Attempt<T>, Found)> {
        let found = self.search_buckets(superblock, hash)?;
        for (_, entry) in &found.entries {
            match read(superblock, entry)? {
                Attempt::Miss => {} // another path with the same tag
                answer => return Ok((answer, found)),
            }
        }
        Ok((Attempt::Miss, found))
    }

    /// Whether a damaged slot on the way is rot: no commit in the replay window explains it.
    fn is_rotten(&self, superblock: &Superblock, control: &Control, found: &Found) -> Result<bool> {
        if !found.is_damaged || found.is_lost || control.is_closed() {
            return Ok(found.is_damaged); // a crash tears one slot of a page at most
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.extend(&self.device, superblock, control)?;
        Ok(!window.explains(superblock, &found.pages))
    }

    /// Searches the bucket in every index region, the newest first.
    pub(crate) fn search_buckets(&self, superblock: &Superblock, hash: PathHash) -> Result<Found> {
        let geometry = &superblock.geometry;
        let mut all = Found::default();
        for region in geometry.regions.iter().rev() {
            let home = geometry.home_page(region, hash.bucket);
            let mut is_lost = false;
            let found = search(geometry, home, hash.tag, &mut |page_no| {
                let (index, page) = self.read_index_page(superblock, page_no)?;
                is_lost |= page.is_lost;
                Ok((index, page.is_damaged))
            })?;
            all.is_lost |= is_lost;
            all.entries.extend(found.entries);
            all.pages.extend(found.pages);
            all.is_damaged |= found.is_damaged;
        }
        Ok(all)
    }

    /// One index page: one device read of 8 KiB.
    pub(crate) fn read_index_page(&self, superblock: &Superblock, page_no: u64) -> Result<(IndexPage, Page)> {
        let id = PageId { store_id: Some(superblock.store_id()), page_no, kind: PageKind::Index };
        let (page, _) = read_page(&self.device, id)?;
        Ok((IndexPage::decode(&page, page_no, &superblock.geometry)?, page))
    }

    fn why_missing(
        &self,
        superblock: &Superblock,
        path: &ReceiptPath,
        control: &Control,
        found: &Found,
    ) -> Result<Error> {
        if !control.is_closed() && Rule::MissSearchesWindow.holds() {
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            window.extend(&self.device, superblock, control)?;
            if window.holds(path) {
                return Ok(Error::Pending { path: path.to_string() });
            }
        }
        Ok(match self.is_rotten(superblock, control, found)? {
            true => damaged_slot(path),
            false => Error::NotFound { path: path.to_string() },
        })
    }

    fn read_record(
        &self,
        superblock: &Superblock,
        path: &ReceiptPath,
        entry: &Entry,
    ) -> Result<Attempt<Receipt>> {
        let buf = read_blocks_into(&self.device, entry.block, entry.blocks, self.spares.take())?;
        let header = match Header::parse(buf.as_slice(), superblock.record_seed()) {
            Ok((header, _)) => header,
            Err(fault) => return Ok(mismatch(entry, &fault.to_string())),
        };
        match check(path, entry, &header) {
            Attempt::Hit(()) => {}
            Attempt::Mismatch(fact) => return Ok(Attempt::Mismatch(fact)),
            Attempt::Miss => return Ok(Attempt::Miss),
        }
        Ok(match Receipt::verified(path.clone(), header, buf) {
            Ok(receipt) => Attempt::Hit(receipt.giving_back(&self.spares)),
            Err(fault) => mismatch(entry, &fault.to_string()),
        })
    }

    fn read_stat(&self, superblock: &Superblock, path: &ReceiptPath, entry: &Entry) -> Result<Attempt<Stat>> {
        let header = match read_header(&self.device, superblock, entry.block)? {
            Ok((header, _)) => header,
            Err(fault) => return Ok(mismatch(entry, &fault.to_string())),
        };
        Ok(match check(path, entry, &header) {
            Attempt::Hit(()) => Attempt::Hit(Stat { path: path.clone(), header }),
            Attempt::Mismatch(fact) => Attempt::Mismatch(fact),
            Attempt::Miss => Attempt::Miss,
        })
    }
}

fn damaged_slot(path: &ReceiptPath) -> Error {
    let fact = "its index page has a damaged slot".to_owned();
    Error::CorruptReceipt { path: path.to_string(), fact }
}

fn mismatch<T>(entry: &Entry, fact: &str) -> Attempt<T> {
    Attempt::Mismatch(format!("record {} at block {}: {fact}", entry.seq, entry.block))
}

/// Whether the record is the one that the entry names, and of this path.
fn check(path: &ReceiptPath, entry: &Entry, header: &Header) -> Attempt<()> {
    let is_named = header.kind == Kind::Put
        && (header.block, header.blocks) == (entry.block, entry.blocks)
        && (header.seq, header.generation) == (entry.seq, entry.generation);
    if !is_named && Rule::EntryFits.holds() {
        return mismatch(entry, "another record lies there");
    }
    if header.meta != path.as_str().as_bytes() {
        return Attempt::Miss;
    }
    Attempt::Hit(())
}
