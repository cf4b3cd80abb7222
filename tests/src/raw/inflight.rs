//! The region in which a backend keeps what is in flight (vhost-user, "Inflight I/O tracking"), as its front end holds it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

use super::front::Front;
use super::wire::{Message, code};

/// Bytes before the heads of a queue, and of each head.
const HEADER_BYTES: u64 = 16;
const HEAD_BYTES: u64 = 16;

/// A region for some queues.
#[derive(Debug)]
pub struct Inflight {
    file: File,
    bytes: u64,
    queues: u16,
    queue_size: u16,
}

impl Inflight {
    /// Has the backend make one.
    #[track_caller]
    pub fn ask(front: &Front, queues: u16, queue_size: u16) -> Self {
        front.wire().send(&message(code::GET_INFLIGHT_FD, 0, 0, queues, queue_size), &[]).unwrap();
        let (reply, mut fds) = front.wire().receive().expect("a region");
        assert_eq!((reply.request, fds.len()), (code::GET_INFLIGHT_FD, 1));
        let bytes = u64::from_le_bytes(reply.body[..8].try_into().unwrap());
        let file = File::from(fds.pop().unwrap());
        assert!(bytes > 0 && file.metadata().unwrap().len() >= bytes, "{bytes} bytes");
        Self { file, bytes, queues, queue_size }
    }

    /// One of the test's own making.
    pub fn of_file(file: OwnedFd, bytes: u64, queues: u16, queue_size: u16) -> Self {
        Self { file: file.into(), bytes, queues, queue_size }
    }

    /// The same content in a file that may change its size.
    pub fn unsealed_copy(&self) -> Self {
        let file = File::from(memfd_create("inflight-copy", MemfdFlags::CLOEXEC).unwrap());
        let mut content = vec![0; usize::try_from(self.bytes).unwrap()];
        self.file.read_exact_at(&mut content, 0).unwrap();
        file.write_all_at(&content, 0).unwrap();
        Self { file, bytes: self.bytes, queues: self.queues, queue_size: self.queue_size }
    }

    /// Gives it to the backend.
    #[track_caller]
    pub fn tell(&self, front: &Front) {
        front.must(&self.message(), &[self.file.as_fd()]);
    }

    /// The message that gives it to the backend.
    pub fn message(&self) -> Message {
        message(code::SET_INFLIGHT_FD, self.bytes, 0, self.queues, self.queue_size)
    }

    /// The file behind it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes that a head is in flight, as a backend would that was killed.
    pub fn mark(&self, queue: u16, head: u16, counter: u64, is_started: bool) {
        let at = self.queue_start(queue) + HEADER_BYTES + HEAD_BYTES * u64::from(head);
        self.file.write_all_at(&counter.to_ne_bytes(), at + 8).unwrap();
        self.file.write_all_at(&[1, u8::from(is_started)], at).unwrap();
    }

    /// Overwrites bytes of a queue's part.
    pub fn write(&self, queue: u16, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.queue_start(queue) + at).unwrap();
    }

    fn queue_start(&self, queue: u16) -> u64 {
        let queue_bytes = HEADER_BYTES + HEAD_BYTES * u64::from(self.queue_size);
        u64::from(queue) * queue_bytes.next_multiple_of(64)
    }
}

/// GET_INFLIGHT_FD or SET_INFLIGHT_FD, with the padding that QEMU sends.
pub fn message(request: u32, bytes: u64, offset: u64, queues: u16, queue_size: u16) -> Message {
    let mut body = [bytes, offset].map(u64::to_le_bytes).concat();
    body.extend([queues, queue_size].map(u16::to_le_bytes).concat());
    body.extend([0; 4]);
    Message::new(request, &body)
}
