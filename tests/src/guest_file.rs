//! A guest's disk as a file of this host: what a program does with the file goes through a driver to the backend, without a virtual machine in
//! between. When the backend dies, the driver connects to the next one with what is in flight, as QEMU does, and the program waits.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::net::sockopt::socket_peercred;

use crate::SECTOR;
use crate::fuse::{Channel, Message, Mount, code, written};
use crate::raw::{Config, Outcome, RawGuest, Request, Setup, status};
use crate::wait::{first_readable, until};

/// Requests in flight, each with one descriptor of the ring.
const DEPTH: u16 = 64;

/// See the module. The file goes when it is dropped; programs that have it open must have ended, and the backend must not.
#[derive(Debug)]
pub struct GuestFile {
    mount: Option<Mount>,
    connections: Arc<AtomicU64>,
    server: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Server {
    channel: Channel,
    socket: PathBuf,
    guest: RawGuest,
    /// What the kernel waits for, by the head of its request.
    waiting: HashMap<u16, Message>,
    connections: Arc<AtomicU64>,
}

impl GuestFile {
    /// The disk that a backend offers on `socket`, at `path`, which must not exist yet. The thread that calls it gets its own mounts.
    pub fn new(path: &Path, socket: &Path) -> Self {
        let (mount, channel) = Mount::at(path);
        let mut guest = RawGuest::connect(socket);
        guest.start(Setup { size: DEPTH, is_tracked: true, ..Setup::default() });
        let connections = Arc::new(AtomicU64::new(1));
        let server = Server {
            channel,
            socket: socket.to_owned(),
            guest,
            waiting: HashMap::new(),
            connections: connections.clone(),
        };
        let server = std::thread::spawn(move || server.serve());
        Self { mount: Some(mount), connections, server: Some(server) }
    }

    /// Waits until it is connected to the `count`th backend.
    #[track_caller]
    pub fn wait_for_connection(&self, count: u64) {
        until("the disk to be connected again", || {
            (self.connections.load(Ordering::Relaxed) >= count).then_some(())
        });
    }
}

impl Drop for GuestFile {
    fn drop(&mut self) {
        drop(self.mount.take());
        let ended = self.server.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the driver has failed");
        }
    }
}

impl Server {
    /// Answers the kernel until the file is gone.
    fn serve(mut self) {
        let mut buffer = Channel::buffer();
        loop {
            self.answer_all();
            self.guest.ask_for_call_after(0, 0);
            self.answer_all();
            let call = self.guest.kick_and_call(0)[1];
            let connection = self.guest.front().wire().stream().as_fd();
            let is_full = self.waiting.len() >= usize::from(DEPTH);
            let fds = [call, connection, self.channel.as_fd()];
            match first_readable(&fds[..if is_full { 2 } else { 3 }]) {
                Some(0) => _ = self.guest.take_calls(0),
                Some(1) => self.reconnect(),
                Some(_) => match self.channel.next(&mut buffer) {
                    Some(message) => self.take(message),
                    None => return,
                },
                None => {}
            }
        }
    }

    fn reconnect(&mut self) {
        // The one that dies may still take connections.
        let peer = socket_peercred(self.guest.front().wire().stream()).unwrap();
        let process = PathBuf::from(format!("/proc/{}", peer.pid.as_raw_nonzero()));
        until("the dead backend to be gone", || (!process.exists()).then_some(()));
        self.guest.reconnect(&self.socket);
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes a request of a question, or answers it.
    fn take(&mut self, message: Message) {
        let range = || {
            let (start, end) = (message.range().start, message.range().end);
            (start / SECTOR as u64, usize::try_from(end - start).unwrap())
        };
        let request = match message.code {
            code::READ => Request::read(range().0, range().1),
            code::WRITE => Request::write(range().0, message.data()),
            code::FSYNC => Request::flush(),
            _ => {
                let size_bytes = if message.code == code::GETATTR { self.size_bytes() } else { 0 };
                return self.channel.answer(&message, message.answer_for(size_bytes));
            }
        };
        let head = self.guest.submit(0, &request.indirect());
        self.waiting.insert(head, message);
    }

    fn answer_all(&mut self) {
        while let Some((head, outcome)) = self.guest.poll_used(0) {
            let message = self.waiting.remove(&head).expect("what is answered was asked");
            self.channel.answer(&message, answer_to(&message, outcome));
        }
    }

    fn size_bytes(&mut self) -> u64 {
        loop {
            match self.guest.front().config_bytes(0, Config::SIZE) {
                Ok(config) => return Config::parse(&config).capacity * SECTOR as u64,
                Err(_) => self.reconnect(),
            }
        }
    }
}

fn answer_to(message: &Message, outcome: Outcome) -> Result<Vec<u8>, i32> {
    match (outcome.status, message.code) {
        (status::OK, code::WRITE) => Ok(written(message.data().len())),
        (status::OK, _) => Ok(outcome.data),
        _ => Err(libc::EIO),
    }
}
