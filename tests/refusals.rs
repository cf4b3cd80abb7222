//! Peers that do it wrong: each is refused or hung up on, the others notice nothing, the next one is welcome.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use receiptdisk_tests::raw::{
    GUEST_BASE, Inflight, Memory, Message, Region, Request, Wire, code, feature, flags, inflight, mem_table,
    status,
};
use receiptdisk_tests::{SECTOR, Stand, until};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};

/// What a peer does wrong, on a connection of its own that is past the greeting.
struct Case {
    name: &'static str,
    act: fn(&Peer) -> io::Result<()>,
}

/// The connection of a wrong peer, and what it sends from.
struct Peer {
    wire: Wire,
    memory: Memory,
}

impl Peer {
    fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.wire.send(&message.clone().need_reply(), fds)
    }

    fn header(&self, request: u32, flags: u32, size: u32) -> io::Result<()> {
        self.wire.send_bytes(&[request, flags, size].map(u32::to_le_bytes).concat(), &[])
    }

    /// A memory table with one descriptor each.
    fn table(&self, regions: &[Region]) -> io::Result<()> {
        self.send(&mem_table(regions), &vec![self.memory.fd(); regions.len()])
    }

    /// A memory table of one region, changed by `change`.
    fn changed_region(&self, change: fn(&mut Region)) -> io::Result<()> {
        let mut region = self.memory.regions(1)[0];
        change(&mut region);
        self.table(&[region])
    }

    /// A memory table of one region with another descriptor.
    fn table_from(&self, fd: impl AsFd) -> io::Result<()> {
        self.send(&mem_table(&self.memory.regions(1)), &[fd.as_fd()])
    }

    /// Everything that queue 0 of 128 entries needs to run, and a region, written by `forge`, that says what is in flight.
    fn ring_with_region(&self, queues: u16, forge: fn(&Inflight)) -> io::Result<()> {
        let file = File::from(empty_file());
        file.set_len(1 << 16)?;
        let region = Inflight::of_file(file.into(), 1 << 16, queues, 128);
        forge(&region);
        let features = feature::PROTOCOL_FEATURES | feature::VERSION_1;
        self.wire.send(&Message::u64(code::SET_FEATURES, features), &[])?;
        self.addresses(0, 8192, 4096)?;
        self.wire.receive()?;
        self.wire.send(&region.message(), &[region.file().as_fd()])?;
        let kick = eventfd(0, EventfdFlags::CLOEXEC)?;
        self.wire.send(&Message::u64(code::SET_VRING_KICK, 0), &[kick.as_fd()])?;
        self.send(&Message::vring(code::SET_VRING_ENABLE, 0, 1), &[])
    }

    /// SET_INFLIGHT_FD with a file of 64 KiB.
    fn region(&self, bytes: u64, offset: u64, queues: u16, queue_size: u16) -> io::Result<()> {
        let file = File::from(empty_file());
        file.set_len(1 << 16)?;
        self.send(
            &inflight::message(code::SET_INFLIGHT_FD, bytes, offset, queues, queue_size),
            &[file.as_fd()],
        )
    }

    /// Ring addresses of queue 0 as offsets into guest memory, which is told first.
    fn addresses(&self, desc: u64, used: u64, avail: u64) -> io::Result<()> {
        self.wire.send(&mem_table(&self.memory.regions(1)), &[self.memory.fd()])?;
        self.wire.send(&Message::vring(code::SET_VRING_NUM, 0, 128), &[])?;
        let places = [desc, used, avail].map(|at| Memory::user_address(GUEST_BASE).wrapping_add(at));
        let body = [vec![0; 8], places.map(u64::to_le_bytes).concat(), vec![0; 8]].concat();
        self.send(&Message::new(code::SET_VRING_ADDR, &body), &[])
    }
}

/// Waits until a wrong peer has been refused: hung up on, or told so.
fn refusal(sent: io::Result<()>, wire: &Wire) -> Result<(), String> {
    let reply = match sent.and_then(|()| wire.receive()) {
        Ok((reply, _)) => reply,
        Err(error) if is_hang_up(&error) => return Ok(()),
        Err(error) => return Err(format!("neither answer nor hang-up: {error}")),
    };
    let is_refusal = match reply.request {
        code::GET_CONFIG => reply.body.is_empty(),
        _ => reply.body.len() == 8 && reply.value() != 0,
    };
    if is_refusal { Ok(()) } else { Err(format!("answered with {reply:?}")) }
}

/// Runs every case while a polite guest works on the other socket, and connects a good peer after each.
fn run_cases(cases: &[Case]) {
    let mut stand = Stand::pair();
    let mut polite = stand.started("front");
    let mut failures = Vec::new();
    for case in cases {
        let guest = stand.raw("issuer");
        let peer = Peer { wire: guest.into_wire(), memory: Memory::new() };
        let sent = (case.act)(&peer);
        if let Err(what) = refusal(sent, &peer.wire) {
            failures.push(format!("{}: {what}", case.name));
        }
        drop(peer);
        assert!(stand.backend().proc().is_running(), "{}: the backend ended", case.name);
        polite.assert_readable();
        stand.started("issuer").assert_works();
    }
    assert!(failures.is_empty(), "not refused:\n{}", failures.join("\n"));
}

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

#[test]
fn broken_messages_are_refused() {
    run_cases(&[
        Case { name: "size 2^32-1", act: |peer| peer.header(code::GET_FEATURES, 1, u32::MAX) },
        Case { name: "size 4097", act: |peer| peer.header(code::GET_FEATURES, 1, 4097) },
        Case { name: "request 0", act: |peer| peer.header(0, 1 | flags::NEED_REPLY, 0) },
        Case { name: "request 99", act: |peer| peer.header(99, 1 | flags::NEED_REPLY, 0) },
        Case { name: "request 2^32-1", act: |peer| peer.header(u32::MAX, 1 | flags::NEED_REPLY, 0) },
        Case { name: "RESET_DEVICE, not offered", act: |peer| peer.send(&Message::new(34, &[]), &[]) },
        Case { name: "version 0", act: |peer| peer.header(code::SET_OWNER, flags::NEED_REPLY, 0) },
        Case { name: "version 2", act: |peer| peer.header(code::SET_OWNER, 2 | flags::NEED_REPLY, 0) },
        Case {
            name: "REPLY bit",
            act: |peer| peer.header(code::SET_OWNER, 1 | flags::REPLY | flags::NEED_REPLY, 0),
        },
        Case {
            name: "reserved flag",
            act: |peer| peer.header(code::SET_OWNER, 1 | 0x10 | flags::NEED_REPLY, 0),
        },
        Case { name: "log of 1 TiB", act: |peer| peer.send(&log_base(), &[peer.memory.fd()]) },
        Case { name: "body missing", act: |peer| peer.send(&Message::new(code::SET_FEATURES, &[]), &[]) },
        Case { name: "body short", act: |peer| peer.send(&Message::new(code::SET_FEATURES, &[0; 4]), &[]) },
        Case { name: "body long", act: |peer| peer.send(&Message::new(code::SET_FEATURES, &[0; 16]), &[]) },
        Case {
            name: "body on GET_QUEUE_NUM",
            act: |peer| peer.send(&Message::u64(code::GET_QUEUE_NUM, 0), &[]),
        },
        Case {
            name: "a channel that is no socket",
            act: |peer| {
                let event = eventfd(0, EventfdFlags::CLOEXEC)?;
                peer.send(&Message::new(code::SET_BACKEND_REQ_FD, &[]), &[event.as_fd()])
            },
        },
        Case { name: "8 surplus descriptors", act: |peer| surplus(peer, 8) },
        Case { name: "253 surplus descriptors", act: |peer| surplus(peer, 253) },
        Case { name: "descriptors with every byte", act: descriptors_with_every_byte },
    ]);
}

/// Dirty pages are logged for live migration, which is not offered.
fn log_base() -> Message {
    Message::new(code::SET_LOG_BASE, &[1_u64 << 40, 0].map(u64::to_le_bytes).concat())
}

/// A message that is not complete yet, each byte of which brings more.
fn descriptors_with_every_byte(peer: &Peer) -> io::Result<()> {
    let header = [code::SET_MEM_TABLE, 1, 4096].map(u32::to_le_bytes).concat();
    header.chunks(1).try_for_each(|byte| peer.wire.send_bytes(byte, &[peer.memory.fd(); 8]))
}

fn surplus(peer: &Peer, count: usize) -> io::Result<()> {
    peer.send(&Message::u64(code::SET_FEATURES, feature::VERSION_1), &vec![peer.memory.fd(); count])
}

#[test]
fn half_messages_end_with_the_connection() {
    let mut stand = Stand::pair();
    let mut polite = stand.started("front");
    let whole = Message::u64(code::SET_FEATURES, feature::VERSION_1).bytes();
    let memory = Memory::new();
    for len in 1..whole.len() {
        let wire = stand.raw("issuer").into_wire();
        wire.send_bytes(&whole[..len], &[memory.fd()]).unwrap();
        drop(wire);
        polite.assert_readable();
    }
    stand.started("issuer").assert_works();
    assert!(stand.backend().proc().is_running());
}

#[test]
fn wrong_memory_is_refused() {
    run_cases(&[
        Case { name: "no regions", act: |peer| peer.table(&[]) },
        Case { name: "8 said, 1 sent", act: |peer| lying_count(peer, 8) },
        Case { name: "2^32-1 said, 1 sent", act: |peer| lying_count(peer, u32::MAX) },
        Case { name: "no descriptor", act: |peer| peer.send(&mem_table(&peer.memory.regions(1)), &[]) },
        Case {
            name: "two descriptors for one region",
            act: |peer| peer.send(&mem_table(&peer.memory.regions(1)), &[peer.memory.fd(), peer.memory.fd()]),
        },
        Case { name: "size 0", act: |peer| peer.changed_region(|region| region.size = 0) },
        Case { name: "size 2^64-1", act: |peer| peer.changed_region(|region| region.size = u64::MAX) },
        Case { name: "size 2^46", act: |peer| peer.changed_region(|region| region.size = 1 << 46) },
        Case { name: "larger than its file", act: |peer| peer.changed_region(|region| region.size += 4096) },
        Case {
            name: "offset past the file",
            act: |peer| peer.changed_region(|region| region.offset = 1 << 40),
        },
        Case {
            name: "offset wraps",
            act: |peer| peer.changed_region(|region| region.offset = u64::MAX - 4095),
        },
        Case { name: "offset in a page", act: |peer| peer.changed_region(|region| region.offset = 100) },
        Case {
            name: "guest addresses wrap",
            act: |peer| peer.changed_region(|region| region.guest = u64::MAX - 8191),
        },
        Case {
            name: "front-end addresses wrap",
            act: |peer| peer.changed_region(|region| region.user = u64::MAX - 8191),
        },
        Case { name: "overlapping", act: |peer| peer.table(&[peer.memory.regions(1)[0]; 2]) },
        Case { name: "a pipe", act: |peer| peer.table_from(rustix::pipe::pipe().unwrap().0) },
        Case { name: "a folder", act: |peer| peer.table_from(File::open("/").unwrap()) },
        Case { name: "a read-only file", act: |peer| peer.table_from(read_only(&peer.memory)) },
        Case { name: "an empty file", act: |peer| peer.table_from(empty_file()) },
        Case { name: "unknown region removed", act: |peer| peer.send(&remove_unknown(), &[]) },
        Case { name: "region added without descriptor", act: |peer| peer.send(&add_region(peer), &[]) },
    ]);
}

fn lying_count(peer: &Peer, count: u32) -> io::Result<()> {
    let mut message = mem_table(&peer.memory.regions(1));
    message.body[..4].copy_from_slice(&count.to_le_bytes());
    peer.send(&message, &[peer.memory.fd()])
}

fn empty_file() -> OwnedFd {
    memfd_create("empty", MemfdFlags::CLOEXEC).unwrap()
}

fn read_only(memory: &Memory) -> File {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", memory.fd().as_raw_fd())).unwrap()
}

fn remove_unknown() -> Message {
    let region = Region { guest: 1 << 40, size: 4096, user: 1 << 41, offset: 0 };
    Message::new(code::REM_MEM_REG, &[vec![0; 8], region.bytes()].concat())
}

fn add_region(peer: &Peer) -> Message {
    Message::new(code::ADD_MEM_REG, &[vec![0; 8], peer.memory.regions(1)[0].bytes()].concat())
}

#[test]
fn wrong_queues_are_refused() {
    run_cases(&[
        Case {
            name: "NUM of queue 64",
            act: |peer| peer.send(&Message::vring(code::SET_VRING_NUM, 64, 128), &[]),
        },
        Case {
            name: "NUM of queue 2^32-1",
            act: |peer| peer.send(&Message::vring(code::SET_VRING_NUM, u32::MAX, 128), &[]),
        },
        Case {
            name: "BASE of queue 255",
            act: |peer| peer.send(&Message::vring(code::SET_VRING_BASE, 255, 0), &[]),
        },
        Case {
            name: "ENABLE of queue 64",
            act: |peer| peer.send(&Message::vring(code::SET_VRING_ENABLE, 64, 1), &[]),
        },
        Case {
            name: "ENABLE with 2",
            act: |peer| peer.send(&Message::vring(code::SET_VRING_ENABLE, 0, 2), &[]),
        },
        Case { name: "size 0", act: |peer| peer.send(&Message::vring(code::SET_VRING_NUM, 0, 0), &[]) },
        Case { name: "size 3", act: |peer| peer.send(&Message::vring(code::SET_VRING_NUM, 0, 3), &[]) },
        Case {
            name: "size 65536",
            act: |peer| peer.send(&Message::vring(code::SET_VRING_NUM, 0, 65536), &[]),
        },
        Case {
            name: "size 0x10080",
            act: |peer| peer.send(&Message::vring(code::SET_VRING_NUM, 0, 0x10080), &[]),
        },
        Case {
            name: "base 65536",
            act: |peer| peer.send(&Message::vring(code::SET_VRING_BASE, 0, 65536), &[]),
        },
        Case {
            name: "kick of queue 64",
            act: |peer| peer.send(&Message::u64(code::SET_VRING_KICK, 64), &[peer.memory.fd()]),
        },
        Case {
            name: "kick without descriptor",
            act: |peer| peer.send(&Message::u64(code::SET_VRING_KICK, 0), &[]),
        },
        Case { name: "kick with two", act: |peer| two_descriptors(peer, code::SET_VRING_KICK) },
        Case { name: "call with two", act: |peer| two_descriptors(peer, code::SET_VRING_CALL) },
        Case {
            name: "no descriptor said, one sent",
            act: |peer| peer.send(&Message::u64(code::SET_VRING_KICK, 0x100), &[peer.memory.fd()]),
        },
        Case {
            name: "bits past the index",
            act: |peer| peer.send(&Message::u64(code::SET_VRING_CALL, 0x200), &[peer.memory.fd()]),
        },
        Case { name: "kick by a file", act: |peer| descriptor(peer, code::SET_VRING_KICK, peer.memory.fd()) },
        Case {
            name: "kick by a pipe",
            act: |peer| descriptor(peer, code::SET_VRING_KICK, rustix::pipe::pipe().unwrap().0.as_fd()),
        },
        Case {
            name: "call by a pipe",
            act: |peer| descriptor(peer, code::SET_VRING_CALL, rustix::pipe::pipe().unwrap().1.as_fd()),
        },
        Case {
            name: "call by the socket itself",
            act: |peer| descriptor(peer, code::SET_VRING_CALL, peer.wire.stream().as_fd()),
        },
        Case {
            name: "addresses of queue 2^32-1",
            act: |peer| peer.send(&Message::new(code::SET_VRING_ADDR, &[0xff; 40]), &[]),
        },
        Case {
            name: "addresses before memory",
            act: |peer| {
                peer.wire.send(&Message::vring(code::SET_VRING_NUM, 0, 128), &[])?;
                peer.send(&Message::new(code::SET_VRING_ADDR, &[0; 40]), &[])
            },
        },
        Case {
            name: "index of queue 64",
            act: |peer| peer.wire.send(&Message::vring(code::GET_VRING_BASE, 64, 0), &[]),
        },
        Case {
            name: "size 32768",
            act: |peer| peer.send(&Message::vring(code::SET_VRING_NUM, 0, 32768), &[]),
        },
        Case { name: "descriptors outside memory", act: |peer| peer.addresses(1 << 40, 8192, 4096) },
        Case { name: "used ring outside memory", act: |peer| peer.addresses(0, 1 << 40, 4096) },
        Case { name: "avail ring outside memory", act: |peer| peer.addresses(0, 8192, 1 << 40) },
        Case { name: "used ring across the end", act: |peer| peer.addresses(0, (256 << 20) - 64, 4096) },
        Case { name: "addresses wrap", act: |peer| peer.addresses(u64::MAX - 15, 8192, 4096) },
        Case { name: "descriptors misaligned", act: |peer| peer.addresses(8, 8192, 4096) },
        Case { name: "used ring misaligned", act: |peer| peer.addresses(0, 8194, 4096) },
        Case { name: "avail ring misaligned", act: |peer| peer.addresses(0, 8192, 4097) },
    ]);
}

fn descriptor(peer: &Peer, request: u32, fd: BorrowedFd<'_>) -> io::Result<()> {
    peer.send(&Message::u64(request, 0), &[fd])
}

fn two_descriptors(peer: &Peer, request: u32) -> io::Result<()> {
    peer.send(&Message::u64(request, 0), &[peer.memory.fd(), peer.memory.fd()])
}

fn ask_for_region(peer: &Peer, queues: u16, queue_size: u16) -> io::Result<()> {
    peer.send(&inflight::message(code::GET_INFLIGHT_FD, 0, 0, queues, queue_size), &[])
}

#[test]
fn wrong_inflight_regions_are_refused() {
    run_cases(&[
        Case { name: "asks for 0 queues", act: |peer| ask_for_region(peer, 0, 128) },
        Case { name: "asks for queues of 0", act: |peer| ask_for_region(peer, 1, 0) },
        Case { name: "asks for 65 queues", act: |peer| ask_for_region(peer, 65, 128) },
        Case { name: "asks for 65535 queues of 65535", act: |peer| ask_for_region(peer, u16::MAX, u16::MAX) },
        Case { name: "1 TiB of a small file", act: |peer| peer.region(1 << 40, 0, 64, 1024) },
        Case { name: "smaller than its shape", act: |peer| peer.region(1024, 0, 1, 128) },
        Case { name: "offset past the file", act: |peer| peer.region(4096, 1 << 16, 1, 16) },
        Case { name: "offset that wraps", act: |peer| peer.region(4096, u64::MAX - 4095, 1, 16) },
        Case { name: "offset inside a page", act: |peer| peer.region(4096, 64, 1, 16) },
        Case { name: "0 queues", act: |peer| peer.region(4096, 0, 0, 16) },
        Case { name: "queues of 0", act: |peer| peer.region(4096, 0, 1, 0) },
        Case { name: "65535 queues of 65535", act: |peer| peer.region(u64::MAX, 0, u16::MAX, u16::MAX) },
        Case {
            name: "no descriptor",
            act: |peer| peer.send(&inflight::message(code::SET_INFLIGHT_FD, 4096, 0, 1, 16), &[]),
        },
        Case {
            name: "a descriptor that is no file",
            act: |peer| {
                let event = eventfd(0, EventfdFlags::CLOEXEC)?;
                let message = inflight::message(code::SET_INFLIGHT_FD, 4096, 0, 1, 16);
                peer.send(&message, &[event.as_fd()])
            },
        },
        Case {
            name: "of another version",
            act: |peer| peer.ring_with_region(1, |region| region.write(0, 8, &[2, 0, 128, 0])),
        },
        Case {
            name: "of another queue size",
            act: |peer| peer.ring_with_region(1, |region| region.write(0, 8, &[1, 0, 64, 0])),
        },
        Case {
            name: "of a ring that is further on",
            act: |peer| peer.ring_with_region(1, |region| region.write(0, 8, &[1, 0, 128, 0, 0, 0, 9, 9])),
        },
        Case {
            name: "last batch outside the ring",
            act: |peer| {
                // Version, entries, head past the last, and one entry behind the ring's index, which is 0.
                let forge = |region: &Inflight| region.write(0, 8, &[1, 0, 128, 0, 128, 0, 255, 255]);
                peer.ring_with_region(1, forge)
            },
        },
    ]);
}

#[test]
fn wrong_config_requests_are_refused() {
    run_cases(&[
        Case { name: "size 0", act: |peer| get_config(peer, 0, 0, 0) },
        Case { name: "offset 2^32-1", act: |peer| get_config(peer, u32::MAX, 8, 8) },
        Case { name: "offset 4096", act: |peer| get_config(peer, 4096, 4, 4) },
        Case {
            name: "4-byte body",
            act: |peer| peer.wire.send(&Message::new(code::GET_CONFIG, &[0; 4]), &[]),
        },
        Case { name: "set capacity", act: |peer| set_config(peer, 0, &[0xff; 8]) },
        Case { name: "set past the end", act: |peer| set_config(peer, 4096, &[0; 8]) },
        Case { name: "set wraps", act: |peer| set_config(peer, u32::MAX - 3, &[0; 8]) },
    ]);
}

fn config_body(offset: u32, size: u32, bytes: &[u8]) -> Vec<u8> {
    [&[offset, size, 0].map(u32::to_le_bytes).concat(), bytes].concat()
}

fn get_config(peer: &Peer, offset: u32, size: u32, sent: usize) -> io::Result<()> {
    peer.wire.send(&Message::new(code::GET_CONFIG, &config_body(offset, size, &vec![0; sent])), &[])
}

fn set_config(peer: &Peer, offset: u32, bytes: &[u8]) -> io::Result<()> {
    let size = u32::try_from(bytes.len()).unwrap();
    peer.send(&Message::new(code::SET_CONFIG, &config_body(offset, size, bytes)), &[])
}

#[test]
fn features_that_are_not_offered_are_not_taken() {
    let mut stand = Stand::pair();
    for request in [code::SET_FEATURES, code::SET_PROTOCOL_FEATURES] {
        let guest = stand.raw("front");
        // Refused or ignored: in both cases a reader stays a reader and the backend stays.
        let _ = guest.front().acknowledged(&Message::u64(request, u64::MAX), &[]);
        drop(guest);
        let mut guest = stand.started("front");
        assert_eq!(guest.request(&Request::write(0, &[1; SECTOR])).status, status::IOERR);
        assert!(stand.backend().proc().is_running());
    }
}

#[test]
fn wrong_peers_leave_no_descriptors_behind() {
    let mut stand = Stand::pair();
    drop(stand.started("issuer"));
    let settled = settled_fds(&mut stand);
    let memory = Memory::new();
    for _ in 0..20 {
        let guest = stand.raw("issuer");
        let peer = Peer { wire: guest.into_wire(), memory: Memory::new() };
        refusal(surplus(&peer, 20), &peer.wire).unwrap();
        let wire = stand.raw("issuer").into_wire();
        wire.send_bytes(&[1, 0, 0], &[memory.fd(), memory.fd()]).unwrap();
    }
    drop(stand.started("issuer"));
    until("the backend to close what it was given", || (settled_fds(&mut stand) <= settled).then_some(()));
}

/// Descriptors of the backend once its number has stopped changing.
fn settled_fds(stand: &mut Stand) -> usize {
    let mut last = 0;
    until("the number of descriptors to settle", || {
        let now = stand.backend().proc().open_fds();
        let settled = now == last;
        last = now;
        settled.then_some(now)
    })
}
