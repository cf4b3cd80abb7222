//! One image, one backend: the locks that QEMU takes too.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use receiptdisk_tests::{Scratch, Serve, Stand, StorageDaemon, until};

const SIZE: u64 = 1 << 20;

/// Another backend for `image`, its socket not in anybody's way.
fn another(image: &Path) -> Serve {
    Serve::image(image).rw("another")
}

#[test]
fn second_backend_is_refused_and_told_who_has_the_image() {
    let mut stand = Stand::pair();
    let exit = another(stand.image()).run_to_end();
    assert_eq!(exit.code, Some(2), "{exit:?}");
    let pid = stand.backend().proc().pid().to_string();
    let errors: Vec<_> = exit.stderr.lines().filter(|line| !line.starts_with('[')).collect();
    assert!(errors.len() == 1 && errors[0].contains(&pid), "pid {pid} is not named: {}", exit.stderr);
    assert!(!stand.socket("another").exists());
    stand.started("issuer").assert_works();
}

#[test]
fn second_backend_waits_for_a_lock_that_is_about_to_go() {
    let mut stand = Stand::pair();
    let image = stand.image().to_owned();
    let waiting = another(&image).spawn();
    stand.backend().proc().signal(rustix::process::Signal::KILL);
    stand.backend().proc().wait();
    let mut guest = receiptdisk_tests::raw::RawGuest::connect(&waiting.socket("another"));
    guest.start_queues(1);
    guest.assert_works();
}

/// A read of a killed process may still be on its way into a guest's memory; its descriptor has this byte until then.
#[test]
fn backend_waits_for_the_last_read_of_a_killed_one() {
    const READS_BESIDE_WRITER: i64 = 301;
    let scratch = Scratch::new();
    let image = scratch.image(SIZE);
    let killed = File::open(&image).unwrap();
    let read_lock = i16::try_from(libc::F_RDLCK).unwrap();
    let lock =
        libc::flock { l_type: read_lock, l_whence: 0, l_start: READS_BESIDE_WRITER, l_len: 1, l_pid: 0 };
    // SAFETY: the descriptor is open and the call only reads the structure.
    assert_eq!(unsafe { libc::fcntl(killed.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }, 0);
    let mut waiting = Serve::image(&image).rw("issuer").ro("front").spawn();
    until("the backend to wait", || waiting.proc().stderr().contains("wait-for-lock").then_some(()));
    assert!(!waiting.socket("front").exists());
    drop(killed);
    let mut guest = receiptdisk_tests::raw::RawGuest::connect(&waiting.socket("front"));
    guest.start_queues(1);
    guest.assert_readable();
}

#[test]
fn locks_are_where_qemu_looks_for_them() {
    let mut stand = Stand::pair();
    let image = stand.image().to_owned();
    let infos = stand.backend().proc().fdinfo_of(&image).join("\n");
    for byte in [100, 101, 201] {
        assert!(infos.lines().any(|line| locks_byte(line, byte)), "byte {byte} is not locked:\n{infos}");
    }
}

/// True for an fdinfo line such as `lock: 1: OFDLCK ADVISORY READ -1 fe:01:123 100 101` that covers `byte`.
fn locks_byte(line: &str, byte: u64) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [.., first, last] = fields.as_slice() else {
        return false;
    };
    let [Ok(first), Ok(last)] = [first.parse::<u64>(), last.parse::<u64>()] else {
        return false;
    };
    fields[0] == "lock:" && fields.contains(&"OFDLCK") && (first..=last).contains(&byte)
}

#[test]
fn qemu_is_refused_on_a_served_image() {
    let stand = Stand::pair();
    let exit = StorageDaemon::spawn(stand.image(), &stand.socket("qemu"), None).wait();
    assert_ne!(exit.code, Some(0), "{exit:?}");
    assert!(exit.stderr.contains("lock"), "{}", exit.stderr);
    stand.started("issuer").assert_works();
}

#[test]
fn backend_is_refused_on_an_image_that_qemu_has() {
    let scratch = Scratch::new();
    let image = scratch.image(SIZE);
    let socket = scratch.join("qemu.sock");
    let qemu = StorageDaemon::spawn(&image, &socket, None).wait_until_serving(std::slice::from_ref(&socket));
    let exit = another(&image).run_to_end();
    assert_eq!(exit.code, Some(2), "{exit:?}");
    assert!(exit.stderr.contains("lock") && exit.stderr.contains("disk.img"), "{}", exit.stderr);
    drop(qemu);
    another(&image).start();
}

#[test]
fn lock_ends_with_the_backend() {
    let scratch = Scratch::new();
    let image = scratch.image(SIZE);
    for _ in 0..3 {
        let mut backend = another(&image).start();
        assert_eq!(backend.terminate().code, Some(0));
    }
}
