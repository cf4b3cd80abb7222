//! Front ends that use up what there is, take back what they gave, or change everything under load. A polite guest writes and
//! reads all the while, and the next front end is welcome.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use receiptdisk_tests::raw::{
    Desc, GUEST_BASE, Inflight, Memory, Message, RawGuest, Region, Request, SegmentFlags, code, desc_flags,
    kind, mem_table, status,
};
use receiptdisk_tests::rng::Rng;
use receiptdisk_tests::{
    Ctl, DiskOp, FaultDisk, FaultStand, FileSystem, Polite, SECTOR, Scratch, Serve, Stand, pattern, until,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Where the polite guest works: nobody else does.
const POLITE_SECTOR: u64 = 32768;

/// A hostile guest and a polite one, both of which may write.
struct Scene {
    polite: Polite,
    stand: Stand,
}

impl Scene {
    fn new(configure: fn(Serve) -> Serve) -> Self {
        let serve = |serve: Serve| configure(serve.rw("hostile").rw("polite").arg("--multi-writer"));
        let stand = Stand::serve(Scratch::new(), serve);
        let polite = Polite::start(stand.started("polite"), POLITE_SECTOR);
        Self { polite, stand }
    }

    fn plain() -> Self {
        Self::new(|serve| serve)
    }

    /// After all it was put through: nobody is hurt and nothing is left.
    #[track_caller]
    fn assert_unhurt(&mut self) {
        assert!(self.stand.backend().proc().is_running(), "the backend ended");
        self.polite.assert_goes_on();
        self.stand.started("hostile").assert_works();
    }
}

/// The descriptors of the backend, once they are no more than `most`.
#[track_caller]
fn wait_for_fds(stand: &mut Stand, most: usize) {
    until("the backend to close what it was given", || {
        (stand.backend().proc().open_fds() <= most).then_some(())
    });
}

fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

#[test]
fn kicks_may_be_taken_back_and_replaced() {
    let mut scene = Scene::plain();
    let mut guest = scene.stand.started("hostile");
    for _ in 0..3000 {
        guest.kick(0);
        let [kick, _] = guest.kick_and_call(0);
        let mut polled = [rustix::event::PollFd::new(&kick, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut polled, Some(&rustix::event::Timespec::default())).unwrap() > 0 {
            rustix::io::read(kick, &mut [0; 8]).unwrap();
        }
    }
    guest.assert_works();
    for _ in 0..50 {
        let fresh = new_eventfd();
        guest.front().set_vring_fd(code::SET_VRING_KICK, 0, fresh.as_fd());
        let old = guest.replace_kick(0, fresh);
        rustix::io::write(&old, &1_u64.to_ne_bytes()).unwrap();
        guest.assert_works();
    }
    drop(guest);
    scene.assert_unhurt();
}

/// An eventfd at its maximum blocks whoever writes to it, unless he is careful.
#[test]
fn call_that_would_block_is_not_waited_for() {
    let mut scene = Scene::plain();
    let mut guest = scene.stand.started("hostile");
    for round in 0..50 {
        let [_, call] = guest.kick_and_call(0);
        guest.take_calls(0);
        rustix::io::write(call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let flags = rustix::fs::fcntl_getfl(call).unwrap();
        rustix::fs::fcntl_setfl(call, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
        for sector in 0..8 {
            guest.submit(0, &Request::write(sector, &[round; SECTOR]));
        }
        for _ in 0..8 {
            let used = until("the answer that cannot be called for", || guest.poll_used(0));
            assert_eq!(used.1.status, status::OK);
        }
    }
    drop(guest);
    scene.assert_unhurt();
}

#[test]
fn answers_that_are_never_read_hold_up_nobody_else() {
    let mut scene = Scene::plain();
    let wire = scene.stand.raw("hostile").into_wire();
    wire.stream().set_nonblocking(true).unwrap();
    let question = Message::new(code::GET_FEATURES, &[]).bytes();
    // Until both directions are full.
    let full = |sent: std::io::Result<usize>| {
        sent.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let mut times_full = 0;
    while times_full < 20 {
        if full((&mut wire.stream()).write(&question)) {
            times_full += 1;
            scene.polite.assert_goes_on();
        }
    }
    drop(wire);
    scene.assert_unhurt();
}

/// A connection that does not wait for its place in the queue.
fn try_connect(path: &std::path::Path) -> Option<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).is_ok().then(|| socket.into())
}

#[test]
fn hundreds_of_silent_connections_hold_up_nobody_else() {
    let mut scene = Scene::plain();
    drop(scene.stand.started("hostile"));
    let before = scene.stand.backend().proc().open_fds();
    let socket = scene.stand.socket("hostile");
    let silent: Vec<_> = (0..300).map(|_| try_connect(&socket)).collect();
    scene.polite.assert_goes_on();
    assert!(silent.iter().flatten().count() > 100, "some wait");
    drop(silent);
    scene.assert_unhurt();
    wait_for_fds(&mut scene.stand, before + 1);
}

/// A process of 64 descriptors: a front end that takes them all loses its connection, and the others notice nothing.
#[test]
fn process_out_of_descriptors_recovers() {
    let mut scene = Scene::new(|serve| serve.run_by(&["prlimit", "--nofile=64:64"]));
    for _ in 0..5 {
        let guest = scene.stand.raw("hostile");
        let memory = Memory::new();
        let regions = memory.regions(128);
        let add = |region: &Region| {
            let message = Message::new(code::ADD_MEM_REG, &[vec![0; 8], region.bytes()].concat());
            guest.front().acknowledged(&message, &[memory.fd()])
        };
        let taken = regions.iter().take_while(|region| matches!(add(region), Ok(0))).count();
        assert!((10..64).contains(&taken), "{taken} regions of a process with 64 descriptors");
        scene.polite.assert_goes_on();
        // Others that wait to be accepted meanwhile.
        let waiting: Vec<_> = (0..100).map(|_| try_connect(&scene.stand.socket("hostile"))).collect();
        scene.polite.assert_goes_on();
        drop((guest, waiting));
        scene.assert_unhurt();
    }
}

/// One front end takes all descriptors that there are; an operator who connects then is heard once it has gone.
#[test]
fn operator_of_a_process_out_of_descriptors_waits() {
    let scratch = Scratch::new();
    let control = scratch.join("ctl.sock");
    let serve =
        Serve::image(&scratch.image(Stand::SIZE)).arg("--multi-writer").arg("--control").arg(&control);
    let mut backend = serve.run_by(&["prlimit", "--nofile=64:64"]).rw("hostile").rw("polite").start();
    let mut guest = RawGuest::connect(&backend.socket("polite"));
    guest.start_queues(1);
    let polite = Polite::start(guest, POLITE_SECTOR);
    let memory = Memory::new();
    let regions = memory.regions(128);
    let add = |guest: &RawGuest, region: &Region| {
        let message = Message::new(code::ADD_MEM_REG, &[vec![0; 8], region.bytes()].concat());
        guest.front().acknowledged(&message, &[memory.fd()])
    };
    let guest = RawGuest::connect(&backend.socket("hostile"));
    let most = regions.iter().take_while(|region| matches!(add(&guest, region), Ok(0))).count();
    drop(guest);
    let guest = RawGuest::connect(&backend.socket("hostile"));
    regions[..most].iter().for_each(|region| assert_eq!(add(&guest, region).unwrap(), 0));
    let ctl = Ctl::new(control);
    let waiting = ctl.start(&["status"]);
    until("the operator to be turned away", || backend.log().contains("event=control-failed").then_some(()));
    (0..50).for_each(|_| polite.assert_goes_on());
    drop(guest);
    assert!(Ctl::answer(&waiting.wait_with_output().unwrap()).unwrap()["pid"].is_u64());
    assert!(backend.log().matches("event=control-failed").count() < 100, "the log is filled");
    drop(polite);
    assert_eq!(backend.terminate().code, Some(0));
}

#[test]
fn memory_regions_end_at_the_limit() {
    let mut scene = Scene::plain();
    drop(scene.stand.started("hostile"));
    let before = scene.stand.backend().proc().open_fds();
    let guest = scene.stand.raw("hostile");
    let memory = Memory::new();
    let regions: Vec<Region> = (0..2000)
        .map(|at| Region {
            guest: at << 21,
            size: 1 << 16,
            user: (1 << 45) + (at << 21),
            offset: (at % 4096) << 16,
        })
        .collect();
    let add = |region: &Region| {
        let message = Message::new(code::ADD_MEM_REG, &[vec![0; 8], region.bytes()].concat());
        guest.front().acknowledged(&message, &[memory.fd()])
    };
    let limit = usize::try_from(guest.front().get(code::GET_MAX_MEM_SLOTS).unwrap()).unwrap();
    let taken = regions.iter().take_while(|region| matches!(add(region), Ok(0))).count();
    assert_eq!(taken, limit);
    drop(guest);
    scene.assert_unhurt();
    wait_for_fds(&mut scene.stand, before + 1);
}

#[test]
fn live_memory_may_go_and_come_back() {
    let mut scene = Scene::plain();
    for _ in 0..20 {
        let mut guest = scene.stand.started("hostile");
        guest.assert_works();
        let region = guest.memory().regions(1)[0];
        let remove = Message::new(code::REM_MEM_REG, &[vec![0; 8], region.bytes()].concat());
        // Refused or done: its rings are gone either way, and a kick finds nothing.
        let _ = guest.front().acknowledged(&remove, &[]);
        guest.publish(0, &Request::get_id());
        guest.kick(0);
        scene.polite.assert_goes_on();
        assert!(guest.poll_used(0).is_none(), "memory that was taken back is still used");
    }
    scene.assert_unhurt();
}

/// Keeps writes and reads in flight and has `disturb` done in between; every request is answered, and rightly.
fn under_load(scene: &mut Scene, rounds: u64, disturb: impl Fn(&mut RawGuest)) {
    let mut guest = scene.stand.started("hostile");
    for round in 0..rounds {
        for sector in 0..16 {
            guest.publish(0, &Request::write(sector * 256, &pattern(round, sector, 64 << 10)));
        }
        guest.kick(0);
        disturb(&mut guest);
        for _ in 0..16 {
            assert_eq!(until("a lost request", || guest.poll_used(0)).1.status, status::OK);
        }
        let sector = round % 16;
        let read = guest.request(&Request::read(sector * 256, 64 << 10));
        assert!(read.data == pattern(round, sector, 64 << 10), "round {round}");
    }
    drop(guest);
    scene.assert_unhurt();
}

#[test]
fn memory_is_told_again_under_load() {
    under_load(&mut Scene::plain(), 100, |guest| guest.tell_memory(1));
}

#[test]
fn queue_is_disabled_and_enabled_under_load() {
    under_load(&mut Scene::plain(), 150, |guest| {
        for enable in [0, 1, 0, 0, 1, 1] {
            guest.front().must(&Message::vring(code::SET_VRING_ENABLE, 0, enable), &[]);
        }
    });
}

#[test]
fn owner_is_reset_under_load() {
    under_load(&mut Scene::plain(), 100, |guest| {
        guest.front().must(&Message::new(code::RESET_OWNER, &[]), &[]);
        guest.front().must(&Message::new(code::SET_OWNER, &[]), &[]);
        guest.front().must(&Message::vring(code::SET_VRING_ENABLE, 0, 1), &[]);
    });
}

#[test]
fn queue_may_be_asked_for_its_index_at_any_time() {
    let mut scene = Scene::plain();
    let mut guest = scene.stand.raw("hostile");
    for queue in [0, 1, 63, 0] {
        assert_eq!(guest.front().get_vring_base(queue).unwrap(), 0);
    }
    guest.start_queues(1);
    guest.assert_works();
    assert_eq!([guest.stop_queue(0), guest.stop_queue(0)], [2, 2]);
    guest.kick(0);
    guest.restart_queue(0, 2);
    guest.assert_works();
    drop(guest);
    scene.assert_unhurt();
}

#[test]
fn rings_on_one_another_harm_nobody_else() {
    let mut scene = Scene::plain();
    for places in [[0, 0, 0], [0, 16, 32], [64, 0, 4], [0, 2048, 2044]] {
        let guest = scene.stand.raw("hostile");
        let memory = Memory::new();
        let front = guest.front();
        front.must(&Message::u64(code::SET_FEATURES, guest.features()), &[]);
        front.must(&mem_table(&memory.regions(1)), &[memory.fd()]);
        front.must(&Message::vring(code::SET_VRING_NUM, 0, 128), &[]);
        let noise: Vec<u8> = (0..8192_usize).map(|at| [0, 1, 2, 0x80][at * 7 % 4]).collect();
        memory.write(GUEST_BASE, &noise);
        let addresses = places.map(|at| (Memory::user_address(GUEST_BASE) + at).to_le_bytes()).concat();
        let body = [vec![0; 8], addresses, vec![0; 8]].concat();
        let kick = new_eventfd();
        for (message, fds) in [
            (Message::new(code::SET_VRING_ADDR, &body), vec![]),
            (Message::u64(code::SET_VRING_KICK, 0), vec![kick.as_fd()]),
            (Message::vring(code::SET_VRING_ENABLE, 0, 1), vec![]),
        ] {
            // Taken or refused.
            let _ = front.acknowledged(&message, &fds);
        }
        for index in 0..200_u16 {
            memory.write(GUEST_BASE + places[2] + 2, &index.wrapping_mul(37).to_le_bytes());
            rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
        }
        scene.polite.assert_goes_on();
    }
    scene.assert_unhurt();
}

/// A guest that may only read rewrites its descriptors, headers and tables while the backend reads them.
#[test]
fn what_changes_while_it_is_read_is_read_once() {
    let configure = |serve: Serve| serve.ro("hostile").rw("polite");
    let mut stand = Stand::serve(Scratch::new(), configure);
    let mut writer = stand.started("polite");
    let secret = pattern(5, 0, 1 << 20);
    assert_eq!(writer.request(&Request::write(0, &secret)).status, status::OK);
    let polite = Polite::start(writer, POLITE_SECTOR);
    let mut guest = stand.started("hostile");
    let mut memory = std::mem::take(guest.memory());
    let [header, data, last, table] = [16, 4096, 1, 4096].map(|len| memory.take(len));
    let mut rng = Rng::new(7);
    let desc = |rng: &mut Rng| Desc {
        addr: rng.pick(&[header, data, last, table, GUEST_BASE - 1, 1 << 50, u64::MAX - 7]),
        len: rng.pick(&[0, 1, 15, 16, 17, 512, 4096, 65536, u32::MAX]),
        flags: rng.pick(&[
            0,
            desc_flags::NEXT,
            desc_flags::NEXT | desc_flags::WRITE,
            desc_flags::WRITE,
            desc_flags::INDIRECT,
        ]),
        next: rng.pick(&[0, 1, 2, 3, 127, 128]),
    };
    for round in 0..20_000_u32 {
        let kind = rng.pick(&[kind::IN, kind::OUT, kind::WRITE_ZEROES, kind::DISCARD, kind::FLUSH, 99]);
        let sector: u64 = rng.pick(&[0, 1, 2047, 1 << 55, u64::MAX]);
        memory.write(header, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        for index in 0..4_u16 {
            let (one, other) = (desc(&mut rng), desc(&mut rng));
            guest.ring(0).write_desc(&memory, index, one);
            memory.write(table + u64::from(index) * 16, &other.bytes());
        }
        if round % 4 == 0 {
            guest.ring(0).publish(&memory, rng.pick(&[0, 1, 2, 3]));
            guest.kick(0);
        }
    }
    assert!(stand.backend().proc().is_running());
    polite.assert_goes_on();
    drop((guest, polite));
    let read = stand.started("polite").request(&Request::read(0, 1 << 20));
    assert!(read.data == secret, "a reader has changed the disk");
}

/// Everybody's admission looks at all ranges in flight, so one guest may not have many more than it has requests.
#[test]
fn requests_of_many_ranges_hold_up_nobody_else() {
    let mut scene = Scene::plain();
    let mut guest = scene.stand.raw("hostile");
    guest.start(receiptdisk_tests::raw::Setup { queues: 4, size: 256, ..Default::default() });
    for queue in 0..4 {
        for at in 0..60 {
            let first = (queue * 60 + at) * 64;
            let ranges: Vec<(u64, u32)> = (0..16).map(|part| (first + part * 4, 1)).collect();
            guest.publish(
                usize::try_from(queue).unwrap(),
                &Request::write_zeroes(&ranges, SegmentFlags::default()),
            );
        }
    }
    for queue in 0..4 {
        guest.kick(queue);
    }
    scene.polite.assert_goes_on();
    for queue in 0..4 {
        for _ in 0..60 {
            assert_eq!(guest.wait_used(queue).1.status, status::OK);
        }
    }
    drop(guest);
    scene.assert_unhurt();
}

#[test]
fn ranges_in_flight_end_at_the_limit() {
    let stand = FaultStand::serve(|serve| serve.rw("hostile").ro("polite"));
    let mut guest = stand.guest("hostile", 2);
    let mut polite = stand.guest("polite", 1);
    // The thread that zeroes is busy, so all of it waits.
    stand.disk().hold(DiskOp::Sync);
    let flush = polite.submit(0, &Request::flush());
    stand.disk().wait_for_held(DiskOp::Sync, 1);
    let ranges: Vec<(u64, u32)> = (0..16).map(|part| (part * 16, 8)).collect();
    let zeroes = Request::write_zeroes(&ranges, SegmentFlags::default()).indirect();
    for _ in 0..64 {
        guest.publish(0, &zeroes);
    }
    guest.kick(0);
    until("all of a queue to be taken", || (stand.ctl().stats("hostile")["parked"] == 63).then_some(()));
    // 64 requests of 16 ranges are 1,024: what is on the other queue is not even looked at.
    let next = guest.submit(1, &Request::get_id());
    for _ in 0..100 {
        let read = polite.submit(0, &Request::read(1024, 4096));
        assert_eq!(polite.wait_used(0).0, read);
    }
    assert!(guest.poll_used(1).is_none(), "more ranges are in flight than there may be");
    stand.disk().release(DiskOp::Sync);
    assert_eq!(polite.wait_used(0).0, flush);
    assert_eq!(guest.wait_used(1).0, next);
    for _ in 0..64 {
        assert_eq!(guest.wait_used(0).1.status, status::OK);
    }
}

#[test]
fn control_socket_takes_anything() {
    let scratch = Scratch::new();
    let control = scratch.join("ctl.sock");
    let serve = Serve::image(&scratch.image(32 << 20)).rw("polite").arg("--control").arg(&control);
    let mut backend = serve.start();
    let mut guest = RawGuest::connect(&backend.socket("polite"));
    guest.start_queues(1);
    let polite = Polite::start(guest, POLITE_SECTOR);
    let connect = || UnixStream::connect(&control).unwrap();
    let before = backend.proc().open_fds();
    for line in [
        &b"\n"[..],
        b"{}\n",
        b"{\"command\":\"fence\"}\n",
        b"[[[[[[[[\n",
        b"\xff\xfe\n",
        b"\0\0\0\0\n",
        &[b'['; 100_000],
    ] {
        let mut stream = connect();
        // It may hang up before all is sent.
        let _ = stream.write_all(line);
    }
    let deep = [vec![b'['; 4000], vec![b'\n']].concat();
    let _ = connect().write_all(&deep);
    until("all of them to be gone", || (backend.proc().open_fds() <= before).then_some(()));
    // Answers that nobody reads, and connections that say nothing: as many as there may be, and more.
    let mut deaf: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    for stream in &mut deaf {
        stream.set_nonblocking(true).unwrap();
        while stream.write(b"{\"command\":\"status\"}\n").is_ok() {}
    }
    let silent: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
    polite.assert_goes_on();
    drop((deaf, silent));
    let heard = || Ctl::new(control.clone()).start(&["status"]).wait_with_output().unwrap().status.success();
    until("an operator to be heard", || heard().then_some(()));
    polite.assert_goes_on();
    drop(polite);
    assert_eq!(backend.terminate().code, Some(0));
}

/// Kernels and containers forbid io_uring: said once, and served without it, unless it was asked for.
#[test]
fn io_uring_that_is_forbidden_is_done_without() {
    let forbidden = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup"];
    let forbidden = [&forbidden[..], &["-e", "inject=io_uring_setup:error=EPERM"]].concat();
    let scratch = Scratch::new();
    let serve = || Serve::image(&scratch.image(32 << 20)).rw("a").ro("b").run_by(&forbidden);
    let mut backend = serve().start();
    let mut guest = RawGuest::connect(&backend.socket("a"));
    guest.start_queues(1);
    guest.assert_works();
    assert_eq!(backend.proc().stderr().matches("event=no-io-uring").count(), 1);
    drop(guest);
    assert_eq!(backend.terminate().code, Some(0));
    let exit = serve().arg("--io-engine").arg("io_uring").run_to_end();
    assert_eq!(exit.code, Some(2));
    assert!(exit.stderr.contains("--io-engine sync"), "{}", exit.stderr);
}

/// Another process answers for the pages of such a file, and may never do so: a request of a guest with that memory would hold
/// its range of the disk for as long.
#[test]
fn memory_that_another_process_answers_for_is_refused() {
    let mut scene = Scene::plain();
    let scratch = Scratch::new();
    let path = scratch.join("memory");
    let disk = FaultDisk::new(&path, 1 << 20);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let region = Region { guest: 0, size: 1 << 20, user: 0, offset: 0 };
    let guest = scene.stand.raw("hostile");
    let told = guest.front().acknowledged(&mem_table(&[region]), &[file.as_fd()]).unwrap();
    assert_ne!(told, 0, "taken as memory");
    let inflight = Inflight::of_file(file.try_clone().unwrap().into(), 1 << 20, 1, 128);
    let told = guest.front().acknowledged(&inflight.message(), &[file.as_fd()]).unwrap();
    assert_ne!(told, 0, "taken as an in-flight region");
    let log = scene.stand.backend().log();
    assert_eq!(log.matches("another process or host may answer").count(), 2, "{log}");
    drop((guest, inflight, file, disk));
    scene.assert_unhurt();
}

/// Who answers for a page is told by the file system's device: a block device's is the kernel's own matter.
#[test]
fn memory_in_a_file_is_taken_from_block_devices_and_from_nowhere_else() {
    let mut scene = Scene::plain();
    let scratch = Scratch::new();
    let create = |system: &FileSystem, name: &str| {
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(system.path().join(name)).unwrap();
        file.set_len(1 << 20).unwrap();
        file
    };
    let ext4 = FileSystem::make(&scratch, "ext4", "/sbin/mke2fs", 64 << 20);
    let mut guest = scene.stand.raw("hostile").with_memory(Memory::of_file(create(&ext4, "memory")));
    guest.start_queues(1);
    guest.assert_works();
    let inflight = Inflight::of_file(create(&ext4, "inflight").into(), 1 << 20, 1, 128);
    assert_eq!(guest.front().acknowledged(&inflight.message(), &[inflight.file().as_fd()]).unwrap(), 0);
    guest.assert_works();
    drop(guest);
    let mut others = vec![FileSystem::overlay(&scratch)];
    if std::fs::read_to_string("/proc/filesystems").unwrap().contains("\tbtrfs\n") {
        others.push(FileSystem::make(&scratch, "btrfs", "mkfs.btrfs", 128 << 20));
    }
    for (system, is_taken) in [(&ext4, true)].into_iter().chain(others.iter().map(|other| (other, false))) {
        let guest = scene.stand.raw("hostile");
        let region = Region { guest: 0, size: 1 << 20, user: 0, offset: 0 };
        let file = create(system, "other");
        let told = guest.front().acknowledged(&mem_table(&[region]), &[file.as_fd()]).unwrap();
        assert_eq!(told == 0, is_taken, "{}", system.path().display());
    }
    scene.assert_unhurt();
}
