//! `receipt serve`: holds the writer, and makes the changes of other writing commands, which share its group commits.

use super::args::Args;
use super::{open_writing_device, say, show, wire, writer_options};
use receipt_store::{CommitLimits, Error, RawDevice, Result, SharedWriter, Writer};
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// Most bytes of data that are held for all connections (a single larger request waits until it is alone).
const BYTES_MAX: u64 = 16 << 20;
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
    shared: SharedWriter<RawDevice>,
    store: String,
    room: Room,
    connections: Mutex<usize>,
}

pub fn run(args: &Args, limits: CommitLimits) -> Result<u8> {
    let signals = block_signals();
    let (device, name) = open_writing_device(args)?;
    let writer = Writer::open(device, &writer_options(name))?;
    let store = show::hex(&writer.superblock().uuid);
    let listener = match listen(&args.socket) {
        Ok(listener) => listener,
        Err(error) => {
            writer.close()?;
            return Err(error);
        }
    };
    let shared = SharedWriter::new(writer, limits);
    let server = Server { shared, store, room: Room::default(), connections: Mutex::new(0) };
    let server: &'static Server = Box::leak(Box::new(server)); // it lives as long as the process
    std::thread::spawn(move || accept(server, &listener));
    say(&args.socket.display().to_string())?;
    wait_for(&signals);
    // No connection gets an acknowledgement that is not durable: closing waits for the commit that runs.
    let closed = server.shared.close();
    let _ = std::fs::remove_file(&args.socket); // the next one replaces a stale socket anyway
    closed.map(|()| 0)
}

/// Only this user may connect. A socket that nobody listens to any more is replaced.
fn listen(path: &Path) -> Result<UnixListener> {
    let name = || path.display().to_string();
    if UnixStream::connect(path).is_ok() {
        return Err(Error::Busy { name: name() });
    }
    let _ = std::fs::remove_file(path); // a stale one, or none
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(mask);
    listener.map_err(|source| Error::File { name: name(), source })
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
        let announced = wire::Announced::parse(&wire::read_json(&mut stream, len)?)?;
        let taken = server.room.take(announced.bytes);
        let is_same = announced.store == server.store;
        let changes = announced.read_data(&mut stream)?;
        let answers = if is_same {
            server.shared.change_all(changes)
        } else {
            let other =
                || Error::Busy { name: "the device (the running writer serves another store)".to_owned() };
            changes.iter().map(|_| Err(other())).collect()
        };
        drop(taken);
        let answers: Vec<_> = answers.iter().map(wire::answer).collect();
        wire::write_frame(&mut stream, &serde_json::json!({ "answers": answers }))?;
    }
}

/// SIGINT and SIGTERM wait until [`wait_for`] takes them; threads that start later inherit that.
fn block_signals() -> libc::sigset_t {
    // SAFETY: a signal set is plain data that `sigemptyset` initialises; all pointers are to locals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    }
}

fn wait_for(signals: &libc::sigset_t) {
    let mut signal = 0;
    // SAFETY: both pointers are to live values of the right types.
    while unsafe { libc::sigwait(signals, &raw mut signal) } != 0 {}
}
