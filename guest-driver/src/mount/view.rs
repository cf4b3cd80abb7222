//! The store as files: what a name is, what an open file holds, what a folder lists. It knows nothing of FUSE.
//!
//! Invariants: a name is answered from the index at the time of the question, never from a list; an open file is one version, and
//! no byte of it is handed out before the whole matches its hash; once the disk was formatted anew, everything is [`STALE`].

use super::nodes::{File, Nodes, Pins};
use super::tree::{Change, Content, Fate, FileName, TooManyNames, Tree, split};
use receipt_store::follow::{Event, Follower};
use receipt_store::{Device, Error, Locator, Reader, Receipt, ReceiptPath, Superblock};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A number of `errno.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// The disk was formatted anew, or the record is gone.
pub const STALE: Errno = Errno(libc::ESTALE);
const IO: Errno = Errno(libc::EIO);
const NOT_FOUND: Errno = Errno(libc::ENOENT);
/// A folder with more names than may be kept.
const TOO_BIG: Errno = Errno(libc::EFBIG);

type Result<T> = std::result::Result<T, Errno>;

/// Following costs a read a change, listing anew one every 256 receipts: behind by more than this, and by a 128th of all, list.
const FOLLOW_MAX: u64 = 4096;
/// How often, while it is used, it looks at the disk beside what a question needs: was it formatted anew, did folders become empty?
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Complaints about the same thing would fill a log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(1);

/// Limits of a view.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Names of folders and receipts that are kept for listings.
    pub names: usize,
    /// Bytes of open receipts that are kept in memory.
    pub pinned_bytes: usize,
}

/// What a name is.
#[derive(Debug)]
pub enum Found {
    /// A folder, by its id.
    Folder(u64),
    /// A receipt: node and file.
    File(u64, Arc<File>),
}

/// An open file.
#[derive(Debug)]
pub struct OpenFile {
    file: Arc<File>,
    /// `None`: memory was short, each read fetches and verifies the receipt again.
    pinned: Option<Arc<Receipt>>,
}

/// See the module.
#[derive(Debug)]
pub struct View<D> {
    reader: Reader<D>,
    name: String,
    uuid: [u8; 16],
    /// Paths that begin with this are not shown.
    hidden_prefix: &'static str,
    /// Where the tree stands in the log; `None`: it must be listed anew.
    follower: Mutex<Option<Follower>>,
    tree: Mutex<Tree>,
    /// One listing at a time: the second one finds the names of the first.
    listing: Mutex<()>,
    nodes: Mutex<Nodes>,
    pins: Mutex<Pins>,
    open: Mutex<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
    /// Damage hides paths from the lists.
    is_incomplete: AtomicBool,
    is_stale: AtomicBool,
    looked_at: Mutex<Instant>,
    complained_at: Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Device> View<D> {
    /// Reads the list of the store once: one to two reads for every 256 receipts.
    ///
    /// # Errors
    /// No store, a device error, more folders than names may be kept.
    pub fn open(
        reader: Reader<D>,
        name: &str,
        hidden_prefix: &'static str,
        limits: Limits,
    ) -> receipt_store::Result<Self> {
        let view = Self {
            uuid: reader.superblock()?.uuid,
            reader,
            name: name.to_owned(),
            hidden_prefix,
            follower: Mutex::default(),
            tree: Mutex::new(Tree::new(limits.names)),
            listing: Mutex::default(),
            nodes: Mutex::default(),
            pins: Mutex::new(Pins::new(limits.pinned_bytes)),
            open: Mutex::default(),
            next_handle: AtomicU64::new(1),
            is_incomplete: AtomicBool::new(false),
            is_stale: AtomicBool::new(false),
            looked_at: Mutex::new(Instant::now()),
            complained_at: Mutex::default(),
        };
        *lock(&view.follower) = Some(view.list_all()?);
        Ok(view)
    }

    /// What `name` in a folder is: no device read for a folder, two for a receipt (index page and header).
    ///
    /// # Errors
    /// ENOENT, EAGAIN (written, not acknowledged yet), EIO, ESTALE.
    pub fn lookup(&self, folder: u64, name: &[u8]) -> Result<Found> {
        self.check_store()?;
        let name = std::str::from_utf8(name).map_err(|_| NOT_FOUND)?;
        if let Some(id) = lock(&self.tree).child(folder, name) {
            return Ok(Found::Folder(id));
        }
        let above = lock(&self.tree).path(folder).map(str::to_owned).ok_or(NOT_FOUND)?;
        let path = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
        let path = ReceiptPath::new(&path).map_err(|_| NOT_FOUND)?;
        let found = self.reader.stat(&path);
        self.check_uuid()?;
        let error = match found {
            Ok(stat) => {
                let (node, file) = lock(&self.nodes).remember(File::of(&stat));
                return Ok(Found::File(node, file));
            }
            Err(error @ Error::Device(_)) => return Err(self.errno(&error)),
            Err(error) => error,
        };
        // No receipt: it may be a folder that is new.
        self.refresh()?;
        if let Some(id) = lock(&self.tree).child(folder, name) {
            return Ok(Found::Folder(id));
        }
        match self.errno(&error) {
            NOT_FOUND if self.is_incomplete() => Err(IO),
            errno => Err(errno),
        }
    }

    /// The file of a node that was looked up.
    ///
    /// # Errors
    /// ESTALE.
    pub fn file(&self, node: u64) -> Result<Arc<File>> {
        lock(&self.nodes).get(node).ok_or(STALE)
    }

    /// The kernel forgets.
    pub fn forget(&self, node: u64, lookups: u64) {
        lock(&self.nodes).forget(node, lookups);
    }

    /// Reads and verifies a file that was looked up: one device read, none while it is open elsewhere. Returns a handle.
    ///
    /// # Errors
    /// ESTALE where the record is gone (the kernel then looks the name up again), EIO.
    pub fn open_file(&self, node: u64) -> Result<u64> {
        let file = self.file(node)?;
        let seq = file.locator.seq;
        let again = lock(&self.pins).again(seq);
        let pinned = match again {
            Some(receipt) => Some(receipt),
            None => {
                let receipt = self.read_whole(&file.locator)?;
                lock(&self.pins).pin(seq, receipt)
            }
        };
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).insert(handle, Arc::new(OpenFile { file, pinned }));
        Ok(handle)
    }

    /// Calls `take` with at most `size` bytes at `offset` of an open file.
    ///
    /// # Errors
    /// EIO, and ESTALE, where memory was short and the record has to be read again.
    pub fn read<T>(&self, handle: u64, offset: u64, size: u32, take: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let open = lock(&self.open).get(&handle).cloned().ok_or(IO)?;
        let again;
        let data = match &open.pinned {
            Some(receipt) => receipt.data(),
            None => {
                again = self.read_whole(&open.file.locator)?;
                again.data()
            }
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)).min(data.len());
        Ok(take(data.get(start..end).unwrap_or_default()))
    }

    /// Ends a handle.
    pub fn close_file(&self, handle: u64) {
        let closed = lock(&self.open).remove(&handle);
        if let Some(open) = closed.filter(|open| open.pinned.is_some()) {
            lock(&self.pins).unpin(open.file.locator.seq);
        }
    }

    /// What a folder holds now: one read of the head and one a change since the last look; where the names are not kept, one to
    /// two reads for every 256 receipts of the store more.
    ///
    /// # Errors
    /// ENOENT, EFBIG for a folder with more names than may be kept, EIO, ESTALE.
    pub fn content(&self, folder: u64) -> Result<Content> {
        self.check_store()?;
        self.refresh()?;
        let _one = lock(&self.listing);
        let mut tree = lock(&self.tree);
        if tree.is_listed(folder).ok_or(NOT_FOUND)? {
            return tree.content(folder).ok_or(NOT_FOUND);
        }
        drop(tree);
        let names = self.list_folder(folder)?;
        let mut tree = lock(&self.tree);
        tree.keep_files(folder, names).map_err(|TooManyNames| {
            self.complain("a folder has more names than are kept: raise --names-max");
            TOO_BIG
        })?;
        tree.content(folder).ok_or(NOT_FOUND)
    }

    /// When something in a folder changed last, in milliseconds since 1970: by the last look at a list or a missing name, not before the
    /// store was listed as a whole.
    ///
    /// # Errors
    /// ENOENT.
    pub fn changed_ms(&self, folder: u64) -> Result<u64> {
        lock(&self.tree).changed_ms(folder).ok_or(NOT_FOUND)
    }

    /// Receipts, folders, bytes of the device.
    pub fn totals(&self) -> (u64, u64, u64) {
        let (receipts, folders) = lock(&self.tree).totals();
        (receipts, folders, self.reader.device().size_bytes())
    }

    /// Whether damage hides paths from the lists.
    pub fn is_incomplete(&self) -> bool {
        self.is_incomplete.load(Ordering::Relaxed)
    }

    fn read_whole(&self, locator: &Locator) -> Result<Receipt> {
        self.check_store()?;
        let superblock = self.reader.superblock().map_err(|error| self.errno(&error))?;
        let receipt = locator.read(self.reader.device(), &superblock).map_err(|error| self.errno(&error))?;
        receipt.ok_or(STALE)
    }

    /// Brings the tree to the head of the log.
    fn refresh(&self) -> Result<()> {
        let mut follower = lock(&self.follower);
        let Some(mut at) = follower.take() else {
            *follower = Some(self.list_all().map_err(|error| self.errno(&error))?);
            return self.check_uuid();
        };
        let changes_max = FOLLOW_MAX.max(lock(&self.tree).totals().0 / 128);
        let mut changes = Vec::new();
        let retirements = at.retirements();
        let polled = self.reader.poll(&mut at, |event| {
            if changes.len() as u64 >= changes_max {
                return Err(Error::Usage("too far behind to follow".to_owned()));
            }
            changes.extend(self.change(&event));
            Ok(())
        });
        self.check_uuid()?;
        let applied = lock(&self.tree).apply(&changes);
        let must_list = !matches!(polled, Ok(()) | Err(Error::Device(_)))
            || applied.is_err()
            || at.retirements() != retirements; // their receipts have gone without a change each
        *follower =
            if must_list { Some(self.list_all().map_err(|error| self.errno(&error))?) } else { Some(at) };
        match polled {
            Err(error @ Error::Device(_)) => Err(self.errno(&error)),
            _ => Ok(()),
        }
    }

    fn change(&self, event: &Event) -> Option<Change> {
        let (path, header) = (event.stat.path.as_str(), &event.stat.header);
        let fate = match (event.is_removal, header.previous_version_seq) {
            (true, _) => Fate::Removed,
            (false, 0) => Fate::Added,
            (false, _) => Fate::Replaced,
        };
        let change = Change { path: path.into(), seq: header.seq, at_ms: header.recorded_at_ms, fate };
        (!self.is_hidden(path)).then_some(change)
    }

    fn is_hidden(&self, path: &str) -> bool {
        path.starts_with(self.hidden_prefix)
    }

    /// Counts all receipts anew; the tree then stands where the follower begins.
    fn list_all(&self) -> receipt_store::Result<Follower> {
        let now_ms = receipt_store::clock_ms();
        lock(&self.tree).begin_listing();
        let listed = self.reader.list_to_head("", |locator| match self.is_hidden(locator.path.as_str()) {
            true => Ok(()),
            false => lock(&self.tree).count(locator.path.as_str(), now_ms).map_err(|TooManyNames| {
                Error::Usage("the paths make more folders than are kept: raise --names-max".to_owned())
            }),
        })?;
        self.is_incomplete.store(!listed.is_complete, Ordering::Relaxed);
        if listed.is_complete {
            lock(&self.tree).drop_empty();
        } else {
            self.complain("damage hides paths: folders may be missing; run `receipt verify`");
        }
        self.reader.follow(Some(listed.published_seq + 1))
    }

    fn list_folder(&self, folder: u64) -> Result<Vec<FileName>> {
        let path = lock(&self.tree).path(folder).map(str::to_owned).ok_or(NOT_FOUND)?;
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let mut names = Vec::new();
        let listed = self.reader.list_to_head(&prefix, |locator| {
            let (above, name) = split(locator.path.as_str());
            if above == path && !self.is_hidden(locator.path.as_str()) {
                names.push(FileName { name: name.into(), seq: locator.seq });
            }
            Ok(())
        });
        let listed = listed.map_err(|error| self.errno(&error))?;
        self.check_uuid()?;
        if !listed.is_complete {
            self.is_incomplete.store(true, Ordering::Relaxed);
        }
        Ok(names)
    }

    /// Reads superblock and head if that was not done lately.
    fn check_store(&self) -> Result<()> {
        if self.is_stale.load(Ordering::Relaxed) {
            return Err(STALE);
        }
        let mut looked_at = lock(&self.looked_at);
        if looked_at.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        *looked_at = Instant::now();
        drop(looked_at);
        match Superblock::read(self.reader.device(), &self.name) {
            Ok(superblock) => self.check_is(superblock.uuid)?,
            Err(error) => return Err(self.errno(&error)),
        }
        self.refresh()
    }

    /// Whether the reader still reads the store that was mounted: it takes over a new superblock where it misses a path.
    fn check_uuid(&self) -> Result<()> {
        let superblock = self.reader.superblock().map_err(|error| self.errno(&error))?;
        self.check_is(superblock.uuid)
    }

    fn check_is(&self, uuid: [u8; 16]) -> Result<()> {
        if uuid == self.uuid {
            return Ok(());
        }
        self.is_stale.store(true, Ordering::Relaxed);
        self.complain("the disk holds another store now: mount it again");
        Err(STALE)
    }

    /// The one place that turns an error of the store into one of a file system.
    fn errno(&self, error: &Error) -> Errno {
        match error {
            Error::NotFound { .. } | Error::BadPath { .. } => NOT_FOUND,
            Error::Pending { .. } => Errno(libc::EAGAIN),
            Error::NoStore { .. } => STALE,
            error => {
                self.complain(&error.to_string());
                IO
            }
        }
    }

    fn complain(&self, text: &str) {
        let mut last = lock(&self.complained_at);
        if last.is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY) {
            *last = Some(Instant::now());
            eprintln!("receipt-mount: {}: {text}", self.name);
        }
    }
}
