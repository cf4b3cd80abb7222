//! Where front ends come from: a socket that is listened on, or one that QEMU listens on.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with};

use crate::error::StartError;
use crate::handover::ListenerState;
use crate::limits::MAX_WAITING_CONNECTIONS;
use crate::places::check_folder;

/// Who may connect, besides the backend's own user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketAccess {
    /// Permission bits; 0600 if not given.
    pub mode: Option<u32>,
    /// Owning group.
    pub group_id: Option<u32>,
}

/// Source of a guest's connections.
#[derive(Debug)]
pub enum Endpoint {
    /// The backend listens, QEMU connects.
    Listen(Listener),
    /// QEMU listens (`server=on`), the backend connects.
    Connect(PathBuf),
}

impl Endpoint {
    /// Lets front ends connect.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listen(&self) -> io::Result<()> {
        match self {
            Self::Listen(listener) => listener.listen(),
            Self::Connect(_) => Ok(()),
        }
    }

    /// Whether connections that nobody has accepted wait for the next process.
    #[must_use]
    pub fn outlives_process(&self) -> bool {
        matches!(self, Self::Listen(listener) if listener.made.is_none())
    }

    /// Makes it this process's own.
    pub fn keep(&self) {
        if let Self::Listen(listener) = self {
            listener.keep();
        }
    }

    /// Lets nobody connect any more.
    pub fn close(&self) {
        if let Self::Listen(listener) = self {
            listener.close();
        }
    }

    /// A connection if there is one to be had now.
    ///
    /// # Errors
    /// When the process lacks the means, not when the front end is away.
    pub fn next_stream(&self) -> io::Result<Option<UnixStream>> {
        match self {
            Self::Listen(listener) => listener.accept(),
            Self::Connect(path) => if_any(connect_at_once(path).map_err(io::Error::from)),
        }
    }
}

/// No connection is not an error while nobody is there.
fn if_any(stream: io::Result<UnixStream>) -> io::Result<Option<UnixStream>> {
    match stream {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock
            | io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            // A listener that was closed.
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotFound => Ok(None),
            _ => Err(error),
        },
    }
}

/// A socket whose path goes away with it, or one that was handed over open.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    made: Option<(PathBuf, u64)>,
    /// Whether another process still has it, and decides what becomes of it.
    is_borrowed: AtomicBool,
}

impl Listener {
    /// Takes `path` without listening yet; the socket file of a dead process is replaced.
    ///
    /// # Errors
    /// When another process listens there, something else is in the way, or the folder forbids it.
    pub fn bind(path: &Path, access: SocketAccess) -> Result<Self, StartError> {
        let failed = |error| StartError::Socket { path: path.into(), error };
        check_folder("socket", path)?;
        remove_stale(path)?;
        let socket = bind_stream_socket(path).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.st_ino();
        let made = Some((path.into(), inode));
        let listener = Self { socket, made, is_borrowed: AtomicBool::new(false) };
        if let Some(group_id) = access.group_id {
            std::os::unix::fs::chown(path, None, Some(group_id)).map_err(failed)?;
        }
        let mode = access.mode.unwrap_or(0o600);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok(listener)
    }

    /// Takes over a socket that another process opened and listens on.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn from_open(socket: UnixListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, made: None, is_borrowed: AtomicBool::new(false) })
    }

    /// The socket of a process whose place this one is about to take: its own once it has.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn borrowed(socket: UnixListener, path: &Path, state: ListenerState) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let made = state.inode.map(|inode| (path.into(), inode));
        Ok(Self { socket, made, is_borrowed: AtomicBool::new(true) })
    }

    /// What another process must know of it besides its path.
    #[must_use]
    pub fn state(&self) -> ListenerState {
        ListenerState::of_inode(self.made.as_ref().map(|(_, inode)| *inode))
    }

    /// Makes it this process's own.
    pub fn keep(&self) {
        self.is_borrowed.store(false, Ordering::Release);
    }

    fn is_ours(&self) -> bool {
        !self.is_borrowed.load(Ordering::Acquire)
    }

    /// Lets front ends connect.
    ///
    /// # Errors
    /// When the kernel refuses, which it should not.
    pub fn listen(&self) -> io::Result<()> {
        if self.made.is_some() && self.is_ours() {
            Ok(rustix::net::listen(&self.socket, MAX_WAITING_CONNECTIONS)?)
        } else {
            Ok(())
        }
    }

    /// A connection if one waits.
    ///
    /// # Errors
    /// When the process lacks the means.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        if_any(self.socket.accept().map(|(stream, _)| stream))
    }

    /// Lets nobody connect any more, so that a front end tries again at the next process and not at one that
    /// is about to end. Connections that wait already can still be accepted.
    pub fn close(&self) {
        if self.made.is_some()
            && self.is_ours()
            && let Err(error) = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both)
        {
            log::debug!("event=shutdown-failed error=\"{error}\"");
        }
        self.remove_path();
    }

    fn remove_path(&self) {
        if let Some((path, inode)) = &self.made
            && self.is_ours()
            && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.st_ino() == *inode)
            && let Err(error) = fs::remove_file(path)
        {
            log::warn!("event=left-behind socket={} error=\"{error}\"", path.display());
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove_path();
    }
}

/// Removes a socket file on which nobody listens any more.
fn remove_stale(path: &Path) -> Result<(), StartError> {
    let failed = |error| StartError::Socket { path: path.into(), error };
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    if !metadata.file_type().is_socket() {
        return Err(StartError::SocketNotASocket { path: path.into() });
    }
    if is_live(path).map_err(failed)? {
        return Err(StartError::SocketLive { path: path.into() });
    }
    fs::remove_file(path).map_err(failed)
}

/// Whether somebody listens; a full backlog is a listener too.
fn is_live(path: &Path) -> io::Result<bool> {
    match connect_at_once(path) {
        Ok(_) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        // A datagram socket, as QEMU makes for networks.
        Err(Errno::PROTOTYPE) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Connects without waiting for room in the other's backlog.
fn connect_at_once(path: &Path) -> Result<UnixStream, Errno> {
    let socket = stream_socket()?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn bind_stream_socket(path: &Path) -> io::Result<UnixListener> {
    let socket = stream_socket()?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}
