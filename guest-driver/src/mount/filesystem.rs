//! FUSE requests to questions for the [`View`], and its answers to FUSE replies. Nothing is decided here.

use super::nodes::{File, ROOT_NODE, folder_of, node_of_folder, node_of_record};
use super::tree::Content;
use super::view::{Found, View};
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use receipt_store::Device;
use receipt_store::layout::PATH_BYTES_MAX;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A name may mean another record at any time: the kernel asks for it at every use.
const ENTRY_TTL: Duration = Duration::ZERO;
/// A record never changes.
const FILE_TTL: Duration = Duration::from_secs(86_400);
/// The times of a folder do.
const FOLDER_TTL: Duration = Duration::ZERO;
/// What the kernel reads ahead.
const READ_AHEAD_BYTES: u32 = 1 << 20;
const BLOCK_BYTES: u32 = 4096;

/// Extended attributes.
const HASH: &str = "user.receipt.hash";
const SEQ: &str = "user.receipt.seq";
const LOCATOR: &str = "user.receipt.locator";

/// See the module.
#[derive(Debug)]
pub struct ReceiptFilesystem<D> {
    view: View<D>,
    owner: (u32, u32),
    folders: Mutex<HashMap<u64, Arc<Content>>>,
    next_handle: AtomicU64,
}

impl<D: Device> ReceiptFilesystem<D> {
    /// The files of `view`, owned by this process's user.
    pub fn new(view: View<D>) -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { view, owner, folders: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    fn attributes(&self, node: u64, kind: FileType, size: u64, changed_ms: u64) -> FileAttr {
        let time = UNIX_EPOCH.checked_add(Duration::from_millis(changed_ms)).unwrap_or(UNIX_EPOCH);
        let is_file = kind == FileType::RegularFile;
        FileAttr {
            ino: INodeNo(node),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: SystemTime::UNIX_EPOCH,
            kind,
            perm: if is_file { 0o444 } else { 0o555 },
            nlink: if is_file { 1 } else { 2 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    fn file_attributes(&self, node: u64, file: &File) -> FileAttr {
        self.attributes(node, FileType::RegularFile, file.size_bytes, file.recorded_at_ms)
    }

    fn folder_attributes(&self, id: u64) -> Result<FileAttr, Errno> {
        let changed_ms = self.view.changed_ms(id).map_err(code)?;
        Ok(self.attributes(node_of_folder(id), FileType::Directory, 0, changed_ms))
    }

    fn xattr(&self, node: u64, name: &OsStr) -> Result<String, Errno> {
        if folder_of(node).is_some() {
            return Err(Errno::from_i32(libc::ENODATA));
        }
        let file = self.view.file(node).map_err(code)?;
        match name.to_str() {
            Some(HASH) => Ok(file.data_hash.iter().map(|byte| format!("{byte:02x}")).collect()),
            Some(SEQ) => Ok(file.locator.seq.to_string()),
            Some(LOCATOR) => Ok(file.locator.to_string()),
            _ => Err(Errno::from_i32(libc::ENODATA)),
        }
    }
}

fn code(errno: super::view::Errno) -> Errno {
    Errno::from_i32(errno.0)
}

/// Size, or bytes where they fit.
fn answer_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl<D: Device + Send + Sync + 'static> Filesystem for ReceiptFilesystem<D> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // An older kernel without them is slower, nothing else.
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        let _ = config.set_max_readahead(READ_AHEAD_BYTES);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(folder) = folder_of(parent.0) else { return reply.error(Errno::ENOTDIR) };
        let (attributes, ttl) = match self.view.lookup(folder, name.as_bytes()) {
            Ok(Found::File(node, file)) => (self.file_attributes(node, &file), FILE_TTL),
            Ok(Found::Folder(id)) => match self.folder_attributes(id) {
                Ok(attributes) => (attributes, FOLDER_TTL),
                Err(errno) => return reply.error(errno),
            },
            Err(errno) => return reply.error(code(errno)),
        };
        reply.entry_with_ttls(&ttl, &ENTRY_TTL, &attributes, Generation(0));
    }

    fn forget(&self, _request: &Request, node: INodeNo, lookups: u64) {
        self.view.forget(node.0, lookups);
    }

    fn getattr(&self, _request: &Request, node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        if let Some(id) = folder_of(node.0) {
            return match self.folder_attributes(id) {
                Ok(attributes) => reply.attr(&FOLDER_TTL, &attributes),
                Err(errno) => reply.error(errno),
            };
        }
        match self.view.file(node.0) {
            Ok(file) => reply.attr(&FILE_TTL, &self.file_attributes(node.0, &file)),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn access(&self, _request: &Request, node: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        if mask.contains(AccessFlags::W_OK) {
            reply.error(Errno::EROFS);
        } else if mask.contains(AccessFlags::X_OK) && folder_of(node.0).is_none() {
            reply.error(Errno::EACCES);
        } else {
            reply.ok();
        }
    }

    fn open(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.view.open_file(node.0) {
            // Pages of this node are pages of this record, whenever they were read.
            Ok(handle) => {
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut reply = Some(reply);
        let read = self.view.read(handle.0, offset, size, |bytes| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        });
        if let (Err(errno), Some(reply)) = (read, reply) {
            reply.error(code(errno));
        }
    }

    fn release(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.view.close_file(handle.0);
        reply.ok();
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let Some(id) = folder_of(node.0) else { return reply.error(Errno::ENOTDIR) };
        match self.view.content(id) {
            Ok(content) => {
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
                folders.insert(handle, Arc::new(content));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let known = self.folders.lock().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned();
        let Some(content) = known else { return reply.error(Errno::EBADF) };
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut last = offset;
        for (node, kind, name) in entries(node.0, &content).skip(skip) {
            last += 1;
            if reply.add(INodeNo(node), last, kind, name) {
                return reply.ok();
            }
        }
        // All that can be listed was handed out before the damage is told.
        if last == offset && self.view.is_incomplete() {
            return reply.error(Errno::EIO);
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        let (receipts, folders, bytes) = self.view.totals();
        let blocks = bytes / u64::from(BLOCK_BYTES);
        let name_bytes_max = u32::try_from(PATH_BYTES_MAX).unwrap_or(u32::MAX);
        reply.statfs(blocks, 0, 0, receipts + folders, 0, BLOCK_BYTES, name_bytes_max, BLOCK_BYTES);
    }

    fn getxattr(&self, _request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.xattr(node.0, name) {
            Ok(value) => answer_xattr(value.as_bytes(), size, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let names: &[&str] = if folder_of(node.0).is_some() { &[] } else { &[HASH, SEQ, LOCATOR] };
        let list: Vec<u8> = names.iter().flat_map(|name| name.bytes().chain([0])).collect();
        answer_xattr(&list, size, reply);
    }
}

/// What `readdir` shows, in a fixed order: a folder hides a receipt of the same name.
fn entries(node: u64, content: &Content) -> impl Iterator<Item = (u64, FileType, &str)> {
    let above = if node == ROOT_NODE { ROOT_NODE } else { node_of_folder(content.parent) };
    let dots = [(node, FileType::Directory, "."), (above, FileType::Directory, "..")];
    let folders =
        content.folders.iter().map(|(name, id)| (node_of_folder(*id), FileType::Directory, &**name));
    let is_hidden = |name: &str| content.folders.binary_search_by(|(folder, _)| (**folder).cmp(name)).is_ok();
    let files = content.files.iter().filter(move |file| !is_hidden(&file.name));
    let files = files.map(|file| (node_of_record(file.seq), FileType::RegularFile, &*file.name));
    dots.into_iter().chain(folders).chain(files)
}
