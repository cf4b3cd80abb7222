//! Guests that come, go, are cut off and come again; a backend that is told to stop.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};

use receiptdisk_tests::raw::{Message, RawGuest, Request, Setup, code, status};
use receiptdisk_tests::{Ctl, Scratch, Serve, Stand, pattern, readable, until};

const REQUEST: usize = 64 << 10;

fn write_of(index: u64) -> Request {
    Request::write(index * 128, &pattern(index, 0, REQUEST))
}

#[test]
fn guests_come_and_go_200_times_without_a_leak() {
    let mut stand = Stand::pair();
    let mut reader = stand.started("front");
    come_and_go(&stand, 4);
    let settled = settled_fds(&mut stand);
    for round in 0..200 {
        come_and_go(&stand, round % 8);
        reader.assert_readable();
    }
    until("the number of descriptors to return", || (settled_fds(&mut stand) <= settled).then_some(()));
    let threads = fs::read_dir(format!("/proc/{}/task", stand.backend().proc().pid())).unwrap().count();
    assert!(threads < 200, "{threads} threads");
}

/// One guest's life; `way` says how far it gets and how it ends.
fn come_and_go(stand: &Stand, way: u16) {
    let mut guest = stand.raw("issuer");
    if way == 0 {
        return;
    }
    guest.start_queues(way);
    guest.assert_works();
    match way {
        1 => drop(guest.submit(0, &write_of(5))),
        2 => drop(guest.stop_queue(1)),
        3 => guest.front().wire().send(&Message::new(code::GET_FEATURES, &[]), &[]).unwrap(),
        _ => {}
    }
}

/// What a guest does at a reboot, at unbind and bind of its driver, and at kexec, as a front end without RESET_DEVICE tells it:
/// rings stopped, disabled or the owner reset; then features, memory, an in-flight region and rings anew.
#[test]
fn driver_sets_its_rings_up_1000_times_without_a_leak() {
    let mut stand = Stand::pair();
    let mut reader = stand.started("front");
    let mut front = stand.raw("issuer").into_wire();
    let mut before = None;
    for life in 0..1000_u16 {
        let mut guest = RawGuest::greet(front);
        let queues = 1 + life % 4;
        guest.start(Setup { queues, size: 64, is_tracked: true, ..Setup::default() });
        for queue in 0..queues {
            guest.submit(queue.into(), &write_of(u64::from(life % 64)));
        }
        (0..queues).for_each(|queue| assert_eq!(guest.wait_used(queue.into()).1.status, status::OK));
        if life % 50 == 0 {
            reader.assert_readable();
        }
        match life % 3 {
            0 => (0..queues).for_each(|queue| {
                guest.stop_queue(queue);
            }),
            1 => guest.front().must(&Message::new(code::RESET_OWNER, &[]), &[]),
            _ => {
                let disable = |queue: u16| Message::vring(code::SET_VRING_ENABLE, queue.into(), 0);
                (0..queues).for_each(|queue| guest.front().must(&disable(queue), &[]));
            }
        }
        front = guest.into_wire();
        // What the first lives have made stays for the next ones.
        if life == 99 {
            before = Some(held(&mut stand));
        }
    }
    let (fds, threads, memory) = before.unwrap();
    let now = held(&mut stand);
    assert_eq!((now.0, now.1), (fds, threads), "descriptors and threads");
    assert!(now.2 <= memory + (1 << 20), "{memory} bytes have become {}", now.2);
    drop(front);
    stand.started("issuer").assert_works();
}

/// Descriptors, threads and bytes of the backend's own.
fn held(stand: &mut Stand) -> (usize, usize, u64) {
    let fds = settled_fds(stand);
    let proc = stand.backend().proc();
    let threads = fs::read_dir(format!("/proc/{}/task", proc.pid())).unwrap().count();
    (fds, threads, proc.memory_bytes())
}

fn settled_fds(stand: &mut Stand) -> usize {
    let mut last = 0;
    until("the number of descriptors to settle", || {
        let now = stand.backend().proc().open_fds();
        let settled = now == last;
        last = now;
        settled.then_some(now)
    })
}

#[test]
fn guest_cut_off_amid_io_leaves_the_disk_to_the_next() {
    let mut stand = Stand::pair();
    let mut reader = stand.started("front");
    for _ in 0..10 {
        let mut guest = stand.raw("issuer");
        guest.start(Setup { queues: 2, size: 256, ..Setup::default() });
        for index in 0..60 {
            guest.publish(usize::from(index % 2 == 0), &write_of(index));
        }
        guest.kick(0);
        guest.kick(1);
        drop(guest);
        reader.assert_readable();
        stand.started("issuer").assert_works();
    }
    assert!(stand.backend().proc().is_running());
}

#[test]
fn second_connection_does_not_disturb_the_first() {
    let stand = Stand::pair();
    let mut first = stand.started("issuer");
    first.assert_works();
    let second = receiptdisk_tests::raw::Wire::connect(&stand.socket("issuer")).unwrap();
    second.send(&Message::new(code::GET_FEATURES, &[]), &[]).unwrap();
    for _ in 0..100 {
        first.assert_works();
    }
    drop(second);
    first.assert_works();
    drop(first);
    stand.started("issuer").assert_works();
}

#[test]
fn second_connection_is_served_once_the_first_is_gone_or_told_to_go() {
    let stand = Stand::pair();
    let first = stand.started("issuer");
    let second = receiptdisk_tests::raw::Wire::connect(&stand.socket("issuer")).unwrap();
    second.send(&Message::new(code::GET_FEATURES, &[]), &[]).unwrap();
    drop(first);
    if let Ok((reply, _)) = second.receive() {
        assert_eq!(reply.request, code::GET_FEATURES);
        let mut second = RawGuest::greet(second);
        second.start_queues(1);
        second.assert_works();
    } else {
        stand.started("issuer").assert_works();
    }
}

#[test]
fn silent_connection_of_one_guest_does_not_hold_up_another() {
    let stand = Stand::pair();
    let _silent = receiptdisk_tests::raw::Wire::connect(&stand.socket("issuer")).unwrap();
    stand.started("front").assert_readable();
}

#[test]
fn backend_connects_where_it_is_told_to_and_again() {
    let scratch = Scratch::new();
    let socket = scratch.join("qemu.sock");
    let spec = format!("name=issuer,connect={},access=rw", socket.display());
    let mut backend = Serve::image(&scratch.image(Stand::SIZE)).arg("--guest").arg(spec).ro("front").start();
    // It runs and serves before anybody listens there.
    RawGuest::connect(&backend.socket("front"));
    for _ in 0..3 {
        let listener = UnixListener::bind(&socket).unwrap();
        for _ in 0..3 {
            assert!(readable(&listener), "the backend does not connect");
            let mut guest = RawGuest::over(listener.accept().unwrap().0);
            guest.start_queues(2);
            guest.assert_works();
        }
        fs::remove_file(&socket).unwrap();
    }
    assert_eq!(backend.terminate().code, Some(0));
}

#[test]
fn terminated_backend_exits_0_and_removes_its_sockets() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut stand = Stand::pair();
        let idle = stand.started("front");
        stand.backend().proc().signal(signal);
        let exit = stand.backend().proc().wait();
        assert_eq!(exit.code, Some(0), "{exit:?}");
        assert!(!stand.socket("issuer").exists() && !stand.socket("front").exists());
        drop(idle);
    }
}

#[test]
fn terminated_backend_leaves_every_accepted_write_on_disk() {
    for _ in 0..5 {
        let mut stand = Stand::pair();
        let mut guest = stand.raw("issuer");
        guest.start(Setup { size: 256, ..Setup::default() });
        let heads: Vec<u16> = (0..80).map(|index| guest.publish(0, &write_of(index))).collect();
        guest.kick(0);
        let mut used = vec![guest.wait_used(0)];
        let exit = stand.backend().terminate();
        assert_eq!(exit.code, Some(0), "{exit:?}");
        used.extend(std::iter::from_fn(|| guest.poll_used(0)));
        let image = fs::File::open(stand.image()).unwrap();
        for (head, outcome) in used {
            assert_eq!(outcome.status, status::OK);
            let index = heads.iter().position(|submitted| *submitted == head).unwrap() as u64;
            let mut bytes = vec![0; REQUEST];
            image.read_exact_at(&mut bytes, index * REQUEST as u64).unwrap();
            assert!(bytes == pattern(index, 0, REQUEST), "write {index} was answered and is not on the disk");
        }
    }
}

#[test]
fn unlinked_image_goes_on() {
    let stand = Stand::pair();
    let mut guest = stand.started("issuer");
    fs::remove_file(stand.image()).unwrap();
    guest.assert_works();
    assert_eq!(guest.request(&Request::flush()).status, status::OK);
}

#[test]
fn reader_alone_never_has_the_image_open_for_writing() {
    let mut stand = Stand::serve(Scratch::new(), |serve| serve.ro("front").ro("back"));
    stand.started("front").assert_readable();
    let image = stand.image().to_owned();
    let infos = stand.backend().proc().fdinfo_of(&image);
    assert!(!infos.is_empty());
    for info in infos {
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let access_mode = flags.trim().chars().last();
        assert_eq!(access_mode, Some('0'), "O_RDONLY: {info}");
    }
}

/// Operators that say nothing, stop amid a line, or read no answer.
#[test]
fn idle_operators_hold_up_no_stop() {
    let scratch = Scratch::new();
    let control = scratch.join("ctl.sock");
    let mut backend =
        Serve::image(&scratch.image(Stand::SIZE)).rw("a").arg("--control").arg(&control).start();
    let connect = || UnixStream::connect(&control).unwrap();
    let (_silent, mut amid, mut deaf) = (connect(), connect(), connect());
    amid.write_all(b"{\"command\":").unwrap();
    deaf.set_nonblocking(true).unwrap();
    while deaf.write(b"{\"command\":\"status\"}\n").is_ok() {}
    // Heard after all of them.
    Ctl::new(control.clone()).ok(&["status"]);
    let exit = backend.terminate();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(exit.stderr.contains("event=stopped"), "{exit:?}");
}

/// A socket whose last close waits until its data is read, which is never: whoever closes it is stuck.
fn socket_that_nobody_can_close() -> (TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let receiver = listener.accept().unwrap().0;
    sender.set_nonblocking(true).unwrap();
    while sender.write(&[0; 1 << 16]).is_ok() {}
    sender.set_nonblocking(false).unwrap();
    rustix::net::sockopt::set_socket_linger(&sender, Some(std::time::Duration::from_secs(3600))).unwrap();
    (sender, receiver)
}

/// Whether a thread of the process is in `close(2)`.
fn is_closing(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let call = format!("{} ", libc::SYS_close);
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("syscall")).ok())
        .any(|text| text.starts_with(&call))
}

/// A front end hands over descriptors that block whoever closes them.
#[test]
fn descriptors_that_nobody_can_close_hold_up_only_who_brought_them() {
    let scratch = Scratch::new();
    let control = scratch.join("ctl.sock");
    let serve = || {
        let serve = Serve::image(&scratch.join("disk.img")).arg("--control").arg(&control);
        serve.arg("--multi-writer").rw("hostile").rw("polite")
    };
    scratch.image(Stand::SIZE);
    let mut backend = serve().start();
    let mut polite = RawGuest::connect(&backend.socket("polite"));
    polite.start(Setup { is_tracked: true, ..Setup::default() });
    let mut hostile = RawGuest::connect(&backend.socket("hostile"));
    hostile.start_queues(1);
    hostile.assert_works();
    // As the way back to it, which operators use, and then replaced.
    let (sender, receiver) = socket_that_nobody_can_close();
    let channel = Message::new(code::SET_BACKEND_REQ_FD, &[]);
    hostile.front().must(&channel, &[sender.as_fd()]);
    drop(sender);
    let (_own, other) = UnixStream::pair().unwrap();
    hostile.front().wire().send(&channel, &[other.as_fd()]).unwrap();
    until("the descriptor to be closed", || is_closing(backend.proc().pid()).then_some(()));
    Ctl::new(control.clone()).ok(&["resize", "64M"]);
    polite.assert_works();
    // Its place cannot be taken while that is so, and whose fault that is is said.
    let exit = serve().arg("--replace").run_to_end();
    assert_eq!(exit.code, Some(2), "{exit:?}");
    let log = backend.log();
    assert!(log.contains("event=not-replaced error=\"the front end of guest hostile is amid"), "{log}");
    polite.assert_works();
    // Its requests are answered like anybody's, and the process stops as it should.
    assert_eq!(hostile.request(&Request::write(0, &pattern(1, 0, 4096))).status, status::OK);
    let exit = backend.terminate();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(exit.stderr.contains("guest=hostile event=front-end-stuck"), "{}", exit.stderr);
    assert!(exit.stderr.contains("event=stopped"), "{}", exit.stderr);
    drop((receiver, hostile));
    let backend = serve().start();
    polite.reconnect(&backend.socket("polite"));
    polite.assert_works();
}
