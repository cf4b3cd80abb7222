//! What the fuzz targets of `backend/fuzz` run: the real code, fed with invented bytes. Compiled for them and for the tests, which
//! run the corpus once.
//!
//! Nothing is expected of the input but that it hurts nobody: no panic, no access outside the guest's memory, no request
//! outside the disk, and a worker that goes on afterwards.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::chain::Chain;
use crate::disk::Disk;
use crate::engine::{Engine, EngineKind};
use crate::execute::{Context, Start, start};
use crate::gate::Gate;
use crate::image::{CacheMode, Image, ImageOptions};
use crate::memory::{HostSlice, Mem, total_len};
use crate::message::{HEADER_BYTES, Header, Message};
use crate::order::ByteRange;
use crate::recovery::Recovery;
use crate::request::{Operation, Request};
use crate::role::{ReadMode, Role};
use crate::session::{Offer, Session};
use crate::shared::Shared;
use crate::throttle::Limits;
use crate::transfer::{AlignedBuffer, Alignment, BUFFER_ALIGNMENT_BYTES, Transfer};
use crate::vring::Vring;
use crate::worker::{Mail, Worker, WorkerConfig};

/// Bytes of guest memory, all of it one region where the target says nothing else.
const MEMORY_BYTES: usize = 64 << 10;
/// Bytes of the memory that a single ring lives in, in two regions.
const RING_BYTES: usize = 16 << 10;
/// Bytes of the disk.
const DISK_BYTES: u64 = 256 << 10;

/// Takes the input apart from its front; past the end all is 0.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }
}

/// A disk that is gone with the process.
fn disk() -> Disk {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let unique = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(format!("receiptdisk-fuzz-{}-{}.img", unique.0, unique.1));
    let disk = open_disk(path.clone()).unwrap();
    let _ = std::fs::remove_file(path);
    disk
}

fn open_disk(path: PathBuf) -> Result<Disk, crate::error::StartError> {
    let options =
        ImageOptions { path, create_bytes: Some(DISK_BYTES), writable: true, cache: CacheMode::Page };
    Ok(Disk::new(Image::open(&options)?, true, true, None))
}

/// Nobody to wait for.
fn recovery() -> Recovery {
    let folder = std::env::temp_dir().join(format!("receiptdisk-fuzz-{}", std::process::id()));
    Recovery::load(&folder.join("state"), vec!["fuzz".into()])
}

/// A guest's worker and the syncer, which serve one input after the other.
fn shared() -> &'static Arc<Shared> {
    static SHARED: LazyLock<Arc<Shared>> = LazyLock::new(|| {
        let shared = Arc::new(Shared::new(disk(), Gate::new(1, false).unwrap(), recovery(), 1));
        let config = WorkerConfig {
            index: 0,
            guest: "fuzz".into(),
            may_write: true,
            seals: Arc::default(),
            reads: ReadMode::Durable,
            serial: b"receiptdisk-fuzz".to_vec(),
            poll: Duration::ZERO,
            limits: Limits::default(),
            cpu: None,
        };
        let engine =
            Engine::new(Some(EngineKind::Sync), shared.disk.image(), shared.disk.file(true)).unwrap();
        let [worker, syncer] = [(); 2].map(|()| Arc::clone(&shared));
        thread::spawn(move || Worker::new(config, worker, engine).and_then(Worker::run).unwrap());
        thread::spawn(move || syncer.run_syncer(|| ()));
        shared
    });
    &SHARED
}

/// One connection: `len u16, memory[len]`, then messages, each after a byte that says which descriptors come with it.
pub fn messages(input: &[u8]) {
    let mut input = Input(input);
    let memory = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
    memory.set_len(MEMORY_BYTES as u64).unwrap();
    let content = usize::from(input.u16());
    memory.write_all_at(input.bytes(content.min(MEMORY_BYTES)), 0).unwrap();
    let shared = shared();
    let offer = Offer { role: Role::ReadWrite, queues: 2, queue_size: 256 };
    let mut session = Session::new(Arc::clone(shared), 0, offer);
    while !input.0.is_empty() {
        let with = input.byte();
        if next_message(&mut input, with, &memory).is_some_and(|message| session.apply(message).is_err()) {
            break;
        }
    }
    session.end(input.byte() & 1 == 1);
    // The worker is there, and the next guest is served by it.
    let (reply, answer) = mpsc::channel();
    shared.mailbox(0).send(Mail::SetMayWrite { may_write: true, reply });
    answer.recv().unwrap();
    shared.disk.set_poisoned(false);
}

fn next_message(input: &mut Input<'_>, with: u8, memory: &File) -> Option<Message> {
    let mut header = [0; HEADER_BYTES];
    let taken = input.bytes(HEADER_BYTES);
    header[..taken.len()].copy_from_slice(taken);
    let header = Header::decode(header).ok()?;
    let mut body = input.bytes(header.body_bytes).to_vec();
    body.resize(header.body_bytes, 0);
    let descriptor = || -> io::Result<OwnedFd> {
        Ok(match with >> 6 {
            0 | 1 => memory.as_fd().try_clone_to_owned()?,
            2 => eventfd(0, EventfdFlags::NONBLOCK)?,
            _ => File::open("/dev/null")?.into(),
        })
    };
    let fds = (0..with & 0x3f).map_while(|_| descriptor().ok()).collect();
    Message::decode(header.request, &body, fds).ok()
}

/// One ring in memory that holds the input, taken from and given back to while the rest of the input changes it.
pub fn rings(input: &[u8]) {
    let mut input = Input(input);
    let (shape, features) = (input.byte(), u64::from(input.byte()) << 28);
    let mem = Arc::new(
        Mem::from_ranges(&[(GuestAddress(0), RING_BYTES / 2), (GuestAddress(0x2000), RING_BYTES / 2)])
            .unwrap(),
    );
    let content = input.bytes(4096);
    mem.write_slice(content, GuestAddress(0)).unwrap();
    let mut queue = Queue::new(128).unwrap();
    queue.set_size([8, 16, 128][usize::from(shape % 3)]);
    queue.try_set_desc_table_address(GuestAddress(0)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(0x800)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(0xa00)).unwrap();
    queue.set_ready(true);
    queue.set_event_idx(shape & 0x80 != 0);
    queue.set_next_avail(input.u16());
    let size = queue.size();
    let [kick, call] = [(); 2].map(|()| eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    let mut vring = Vring::new(queue, Arc::clone(&mem), kick, Some(call), features, None);
    let (mut heads, mut chain) = (Vec::new(), Chain::default());
    for _ in 0..8 {
        let limit = usize::from(input.byte() % 65);
        heads.clear();
        vring.take(limit, &mut heads);
        assert!(heads.len() <= limit && heads.iter().all(|head| *head < size));
        for &head in &heads {
            if vring.walk(head, &mut chain).is_ok() {
                chain.readable.iter().chain(&chain.writable).for_each(|slice| assert_inside(&mem, slice));
                let request = Request::parse(&mut chain, DISK_BYTES);
                request.iter().for_each(check_request);
            }
            vring.give_back(head, u32::from(input.byte()));
        }
        vring.publish();
        let _ = vring.ask_for_kick() || vring.has_waiting();
        let (at, value) = (u64::from(input.u16()) % 4095, input.u16());
        mem.store(value, GuestAddress(at & !1), Ordering::Release).unwrap();
    }
    assert_eq!(vring.in_flight, 0);
}

fn assert_inside(mem: &Mem, slice: &HostSlice) {
    let is_inside = [0, 0x2000].into_iter().any(|region| {
        let first = mem.get_host_address(GuestAddress(region)).unwrap().addr();
        let at = slice.address();
        first <= at && at + slice.len() <= first + RING_BYTES / 2
    });
    assert!(is_inside || slice.is_empty(), "a slice outside guest memory");
}

fn check_request(request: &Request) {
    assert_eq!(request.status.len(), 1);
    assert!(request.len_bytes() <= DISK_BYTES);
}

/// One request, cut into buffers as the input says, parsed and carried out by IOs that move as much as the input says.
pub fn requests(input: &[u8]) {
    static DISK: LazyLock<Disk> = LazyLock::new(disk);
    let mut input = Input(input);
    let (flags, bounce_bytes) = (input.byte(), usize::from(input.byte()) * 16 + 4096);
    let alignment = [1, 512, 4096, 512][usize::from(flags & 3)];
    let alignment = Alignment { memory_bytes: usize::try_from(alignment).unwrap(), offset_bytes: alignment };
    let mut buffer = AlignedBuffer::new(MEMORY_BYTES, BUFFER_ALIGNMENT_BYTES);
    let readable = usize::from(input.u16()) % (MEMORY_BYTES / 2);
    let writable = usize::from(input.u16()) % (MEMORY_BYTES / 2);
    let cuts: Vec<u16> = (0..input.byte() % 32).map(|_| input.u16()).collect();
    let content = input.bytes(readable);
    buffer.as_mut_slice()[..content.len()].copy_from_slice(content);
    let mut chain = Chain {
        readable: pieces(&mut buffer, 0, readable, &cuts),
        writable: pieces(&mut buffer, MEMORY_BYTES / 2, writable, &cuts),
        is_too_long: flags & 0x40 != 0,
        walked: 0,
    };
    let Some(request) = Request::parse(&mut chain, DISK_BYTES) else { return };
    check_request(&request);
    let Ok(operation) = request.operation else { return };
    if let Operation::Transfer { direction, range, segments } = &operation
        && !range.is_empty()
    {
        let bounces = !alignment.suits(*range, segments);
        let mut transfer = Transfer::new(*direction, *range, segments.clone(), alignment);
        if bounces {
            let len = bounce_bytes.next_multiple_of(BUFFER_ALIGNMENT_BYTES);
            transfer.use_bounce_buffer(AlignedBuffer::new(len, BUFFER_ALIGNMENT_BYTES));
        }
        carry_out(transfer, range.rounded_out(alignment.offset_bytes), &mut input);
    }
    let context = Context {
        disk: &DISK,
        may_write: flags & 0x80 != 0,
        serial: b"fuzz",
        write_through: flags & 0x20 != 0,
    };
    let Start::Ordered { ranges, .. } = start(operation, context) else { return };
    let is_inside = |range: &ByteRange| !range.is_empty() && range.end <= DISK_BYTES;
    assert!(ranges.as_slice().iter().all(is_inside), "a range outside the disk");
}

fn pieces(buffer: &mut AlignedBuffer, at: usize, len: usize, cuts: &[u16]) -> Vec<HostSlice> {
    let memory = &mut buffer.as_mut_slice()[at..at + len];
    // SAFETY: the buffer outlives the request that is made of these slices, and is not touched otherwise meanwhile.
    let mut rest = unsafe { HostSlice::of_buffer(memory.as_mut_ptr(), memory.len()) };
    let mut pieces = Vec::new();
    for &cut in cuts {
        let (first, left) = rest.split(usize::from(cut) % 4096);
        pieces.push(first);
        rest = left;
    }
    pieces.push(rest);
    pieces
}

/// Every IO lies in what is admitted for it, and all bytes are moved in the end.
fn carry_out(mut transfer: Transfer, admitted: ByteRange, input: &mut Input<'_>) {
    while let Some(io) = transfer.next_io() {
        // SAFETY: the transfer owns the segments and is not touched meanwhile.
        let segments =
            unsafe { std::slice::from_raw_parts(io.segments, usize::try_from(io.segment_count).unwrap()) };
        let len = total_len(segments);
        let is_inside = io.offset_bytes >= admitted.start && io.offset_bytes + len as u64 <= admitted.end;
        assert!(len > 0 && is_inside, "an IO outside what was admitted");
        let most = usize::from(input.u16());
        transfer.advance(if most == 0 { len } else { len.min(most) });
    }
    assert_eq!(u64::from(transfer.moved_bytes()), transfer.len_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was found, and one valid input for each way through: they must hurt nobody either.
    fn run_corpus(name: &str, target: fn(&[u8])) {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            target(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "the corpus of {name} is empty");
    }

    #[test]
    fn corpus_of_messages() {
        run_corpus("messages", messages);
    }

    #[test]
    fn corpus_of_rings() {
        run_corpus("rings", rings);
    }

    #[test]
    fn corpus_of_requests() {
        run_corpus("requests", requests);
    }
}
