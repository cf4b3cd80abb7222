//! The socket of the process that holds the writer: other commands of this machine make their changes through it, and share its
//! group commits.

use crate::{Error, RawDevice, Reader, Result, SharedWriter, orders, scrub, wire};
use serde_json::{Value, json};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// Most bytes of data that are held for all connections (a single larger request waits until it is alone).
const BYTES_MAX: u64 = 16 << 20;
/// How often the size of the device is looked at.
const GROWTH_POLL: Duration = Duration::from_secs(1);
/// How long a started request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Room for data that has not been committed.
#[derive(Debug, Default)]
struct Room {
    used: Mutex<u64>,
    changed: Condvar,
}

/// Gives room back.
struct Taken<'a>(&'a Room, u64);

impl Room {
    fn take(&self, bytes: u64) -> Taken<'_> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while *used > 0 && *used + bytes > BYTES_MAX {
            used = self.changed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        *used += bytes;
        Taken(self, bytes)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.used.lock().unwrap_or_else(PoisonError::into_inner) -= self.1;
        self.0.changed.notify_all();
    }
}

struct Server {
    shared: Arc<SharedWriter<RawDevice>>,
    store: String,
    room: Room,
    connections: Mutex<usize>,
}

/// A socket that is listened on; its file goes when this is dropped, its threads live as long as the process.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Listens on `path`. Only this user may connect; a socket that nobody listens to any more is replaced.
    ///
    /// # Errors
    /// [`Error::Busy`] when somebody listens there, [`Error::Usage`] when a file that is no socket is there, [`Error::File`].
    pub fn listen(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), listener: Some(listen(path)?) })
    }

    /// Makes the changes that are asked for through `shared`, carries out orders, and takes over what the device grows by; `store` is the hexadecimal uuid of its store.
    pub fn serve(&mut self, shared: Arc<SharedWriter<RawDevice>>, store: String) {
        let server = Server { shared, store, room: Room::default(), connections: Mutex::new(0) };
        let server: &'static Server = Box::leak(Box::new(server)); // it lives as long as the process
        if let Some(listener) = self.listener.take() {
            std::thread::spawn(move || accept(server, &listener));
            std::thread::spawn(move || grow_with_device(server));
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // the next one replaces a stale socket anyway
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    let name = || path.display().to_string();
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let what = "a file that is no socket is in the way; remove it or give another path";
            return Err(Error::Usage(format!("socket {}: {what}", name())));
        }
        Ok(_) => remove_stale(path)?,
        Err(_) => {} // none, or an error that binding has, too
    }
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(mask);
    listener.map_err(|source| Error::File { name: name(), source })
}

/// Removes a socket that nobody listens to any more.
fn remove_stale(path: &Path) -> Result<()> {
    let name = path.display().to_string();
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::Busy { name }),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| Error::File { name, source })
        }
        Err(source) => Err(Error::File { name, source }),
    }
}

fn accept(server: &'static Server, listener: &UnixListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            std::thread::sleep(Duration::from_millis(100)); // no descriptors left
            continue;
        };
        let mut count = server.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if *count >= CONNECTIONS_MAX {
            continue; // closes it: the other side says that the connection broke
        }
        *count += 1;
        drop(count);
        std::thread::spawn(move || {
            if let Err(error) = converse(server, stream) {
                eprintln!("receipt: {error}");
            }
            *server.connections.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        });
    }
}

/// Serves one connection to its end.
fn converse(server: &Server, mut stream: UnixStream) -> Result<()> {
    loop {
        let mut len = [0; 4];
        stream.set_read_timeout(None).map_err(wire::broken)?;
        if stream.read(&mut len[..1]).map_err(wire::broken)? == 0 {
            return Ok(());
        }
        stream.set_read_timeout(Some(REQUEST_TIMEOUT)).map_err(wire::broken)?;
        stream.set_write_timeout(Some(REQUEST_TIMEOUT)).map_err(wire::broken)?;
        stream.read_exact(&mut len[1..]).map_err(wire::broken)?;
        let request = wire::read_json(&mut stream, len)?;
        if !request["order"].is_null() {
            obey(server, &request, &mut stream)?;
            continue;
        }
        if let Some(scrub) = request.get("scrub") {
            if request["store"] == server.store.as_str() {
                scrub::serve(&server.shared, &mut stream, scrub)?;
            } else {
                wire::write_frame(&mut stream, &wire::answer_error(&other_store()))?;
            }
            continue;
        }
        let announced = wire::Announced::parse(&request)?;
        let taken = server.room.take(announced.bytes);
        let is_same = announced.store == server.store;
        let changes = announced.read_data(&mut stream)?;
        let answers = if is_same {
            server.shared.change_all(changes)
        } else {
            changes.iter().map(|_| Err(other_store())).collect()
        };
        drop(taken);
        let answers: Vec<_> = answers.iter().map(wire::answer).collect();
        wire::write_frame(&mut stream, &serde_json::json!({ "answers": answers }))?;
    }
}

/// Takes over what the device grows by.
fn grow_with_device(server: &Server) {
    loop {
        std::thread::sleep(GROWTH_POLL);
        let grown = server.shared.exclusively(|writer| {
            if let Some(grown) = writer.grow()? {
                eprintln!(
                    "receipt: the store has {} segments now, {} more",
                    grown.segment_count, grown.added
                );
            }
            Ok(())
        });
        // A writer that has stopped may be opened again: whoever changes something meanwhile is told why it has.
        if grown.is_err() && server.shared.is_closed() {
            return;
        }
    }
}

/// Carries out an order step by step; receipts are stored between the steps.
fn obey(server: &Server, request: &Value, stream: &mut UnixStream) -> Result<()> {
    let end = match carry_out(server, request, stream) {
        Ok(()) => json!({ "done": true }),
        Err(error) => wire::answer_error(&error),
    };
    wire::write_frame(stream, &end)
}

fn carry_out(server: &Server, request: &Value, stream: &mut UnixStream) -> Result<()> {
    if request["store"] != server.store.as_str() {
        return Err(other_store());
    }
    let device = server.shared.exclusively(|writer| writer.device().try_clone())?;
    let reader = Reader::new(device, "the device");
    let steps: crate::expire::WithWriter<'_, RawDevice> =
        &mut |step| server.shared.exclusively(|writer| step(writer));
    orders::perform(&request["order"], Some(steps), &reader, &mut |event| wire::write_frame(stream, &event))
}

fn other_store() -> Error {
    Error::Busy { name: "the device (the running writer serves another store)".to_owned() }
}
