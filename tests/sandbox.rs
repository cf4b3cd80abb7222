//! What a serving backend has given up. The calls it can no longer make are tried one by one in
//! `backend/src/sandbox/tests.rs`; that serving goes on is shown by all other tests, which run with the sandbox on.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Command;

use receiptdisk_tests::raw::{RawGuest, Request, Setup, status};
use receiptdisk_tests::{Ctl, Proc, Scratch, Serve, until};
use rustix::process::Signal;

/// "Nobody" and "nogroup" of Debian.
const NOBODY: u32 = 65534;

/// The lines of `/proc/PID/task/TID/status` that tell what each thread may do.
fn rights_of_threads(pid: u32) -> Vec<Vec<String>> {
    const NAMES: [&str; 7] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    // A thread may end between two looks.
    let status = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let rights = status.map(|status| {
        let wanted = |line: &&str| NAMES.iter().any(|name| line.split(':').next() == Some(*name));
        status.lines().filter(wanted).map(|line| line.replace('\t', " ")).collect()
    });
    rights.collect()
}

#[test]
fn every_thread_has_given_up_its_rights() {
    let scratch = Scratch::new();
    for engine in ["io_uring", "sync"] {
        let control = scratch.join("ctl.sock");
        let serve = Serve::image(&scratch.image(1 << 20)).rw("a").ro("b").arg("--control").arg(&control);
        let mut backend = serve.arg("--io-engine").arg(engine).start();
        let mut guests = ["a", "b"].map(|name| RawGuest::connect(&backend.socket(name)));
        guests.iter_mut().for_each(|guest| guest.start_queues(2));
        guests[0].assert_works();
        let threads = rights_of_threads(backend.proc().pid());
        assert!(threads.len() >= 6, "main, syncer, two workers, two sessions: {}", threads.len());
        let none = "0000000000000000";
        for rights in threads {
            for line in rights {
                let (name, value) = line.split_once(": ").unwrap();
                let expected = match name {
                    "NoNewPrivs" => "1",
                    "Seccomp" => "2",
                    _ => none,
                };
                assert_eq!(value, expected, "{name}");
            }
        }
        let said = &Ctl::new(control).ok(&["status"])["sandbox"];
        assert_eq!(said["seccomp"], true);
        let log = backend.proc().stderr();
        let is_said = said["landlock"] != "off" || log.contains("event=no-landlock");
        assert!(is_said, "what the kernel cannot do is said: {said} {log}");
        assert_eq!(backend.terminate().code, Some(0));
    }
}

#[test]
fn sandbox_can_be_left_off() {
    let scratch = Scratch::new();
    let control = scratch.join("ctl.sock");
    let serve = Serve::image(&scratch.image(1 << 20)).rw("a").arg("--control").arg(&control);
    let mut backend = serve.arg("--sandbox").arg("off").start();
    let threads = rights_of_threads(backend.proc().pid());
    assert!(threads.iter().flatten().any(|line| line == "Seccomp: 0"), "{threads:?}");
    let said = &Ctl::new(control).ok(&["status"])["sandbox"];
    assert_eq!((said["seccomp"].as_bool(), said["landlock"].as_str()), (Some(false), Some("off")));
    assert_eq!(backend.terminate().code, Some(0));
}

/// Whatever the process may dump, with the sandbox or without.
#[test]
fn guest_memory_is_in_no_core_dump() {
    let scratch = Scratch::new();
    for sandbox in ["on", "off"] {
        let serve = Serve::image(&scratch.image(1 << 20)).rw("a").arg("--sandbox").arg(sandbox);
        let mut backend = serve.run_by(&["prlimit", "--core=unlimited"]).start();
        let mut guest = RawGuest::connect(&backend.socket("a"));
        guest.start_queues(1);
        guest.assert_works();
        let maps = fs::read_to_string(format!("/proc/{}/smaps", backend.proc().pid())).unwrap();
        let (mut is_guest, mut found) = (false, 0);
        for line in maps.lines() {
            if line.contains("memfd:guest-memory") {
                is_guest = true;
            } else if is_guest && line.starts_with("VmFlags:") {
                assert!(line.split(' ').any(|flag| flag == "dd"), "{line}");
                (is_guest, found) = (false, found + 1);
            }
        }
        assert!(found > 0, "guest memory is mapped");
        if sandbox == "on" {
            backend.proc().signal(Signal::QUIT);
            let exit = backend.proc().wait();
            assert_eq!(exit.signal, Some(libc::SIGQUIT));
            assert!(!exit.dumped_core);
        }
    }
}

/// The state file is replaced, sockets are made and removed, the group of a socket is set: nothing needs root.
#[test]
fn an_unprivileged_user_can_run_it() {
    let scratch = Scratch::new();
    let image = scratch.image(1 << 20);
    for path in [scratch.path(), &image] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let control = scratch.join("ctl.sock");
    let user = NOBODY.to_string();
    let as_nobody = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--pdeathsig", "KILL"];
    let group = format!("access=standby,mode=0660,group={NOBODY}");
    let serve = || Serve::image(&image).rw("a").guest("b", &group).arg("--control").arg(&control);
    let mut backend = serve().run_by(&as_nobody).start();
    // The kernel gives the files of a process that must not dump core to root, so nobody else of its user looks into it.
    let process = fs::metadata(format!("/proc/{}/mem", backend.proc().pid())).unwrap();
    assert_eq!(process.uid(), 0);
    let ctl = Ctl::new(control.clone());
    let [mut a, mut b] = ["a", "b"].map(|name| RawGuest::connect(&backend.socket(name)));
    [&mut a, &mut b].into_iter().for_each(|guest| guest.start_queues(1));
    a.assert_works();
    assert_eq!(a.request(&Request::flush()).status, status::OK);
    ctl.ok(&["takeover", "b"]);
    b.assert_works();
    drop((a, b));
    let sockets = ["a", "b"].map(|name| backend.socket(name));
    assert_eq!(backend.terminate().code, Some(0));
    for socket in sockets.iter().chain([&control]) {
        assert!(!socket.exists(), "{} is left behind", socket.display());
    }
    let mut backend = serve().run_by(&as_nobody).start();
    assert_eq!(ctl.guest("b")["access"], "rw");
    assert_eq!(backend.terminate().code, Some(0));
}

/// As nobody, whose processes and threads are counted, and who may have so many of them at first.
fn run_as_nobody(serve: Serve, threads: Option<u64>) -> Serve {
    let user = NOBODY.to_string();
    let mut line: Vec<String> = threads.map(|most| format!("--nproc={most}:4096")).into_iter().collect();
    line.splice(0..0, threads.map(|_| "prlimit".to_owned()));
    let setpriv = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--pdeathsig", "KILL"];
    line.extend(setpriv.map(str::to_owned));
    serve.run_by(&line.iter().map(String::as_str).collect::<Vec<_>>())
}

fn ctl_fails(ctl: &Ctl) -> bool {
    !ctl.start(&["status"]).wait_with_output().unwrap().status.success()
}

/// Without threads operators are turned away, the process can still be stopped, and one that would take its place and finds none at
/// any moment of that costs no guest its disk.
#[test]
fn user_without_threads_left_loses_no_guest() {
    let scratch = Scratch::new();
    let image = scratch.image(1 << 20);
    for path in [scratch.path(), &image] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let control = scratch.join("ctl.sock");
    let serve = || Serve::image(&image).rw("a").arg("--control").arg(&control);
    let mut backend = run_as_nobody(serve(), None).start();
    let mut guest = RawGuest::connect(&backend.socket("a"));
    guest.start(Setup { is_tracked: true, ..Setup::default() });
    let ctl = Ctl::new(control.clone());
    let threads = fs::read_dir(format!("/proc/{}/task", backend.proc().pid())).unwrap().count() as u64;
    // At the first numbers it is one of its workers that is not to be had, then one of the threads that hear guests.
    let (mut failures, mut limit) = (0, 0);
    for more in 1.. {
        limit = threads + more;
        let mut fresh = run_as_nobody(serve().arg("--replace"), Some(limit)).spawn();
        until("one of the two to end", || {
            (!fresh.proc().is_running() || !backend.proc().is_running()).then_some(())
        });
        if !backend.proc().is_running() {
            assert_eq!(backend.proc().wait().code, Some(0));
            backend = fresh;
            break;
        }
        let exit = fresh.proc().wait();
        assert_eq!(exit.code, Some(2), "{exit:?}");
        failures += 1;
        guest.assert_works();
    }
    assert!(failures > 2, "{failures} failures");
    guest.assert_works();
    let idlers = || {
        let start = |_| {
            let mut idler = Command::new("setpriv");
            let user = NOBODY.to_string();
            idler.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--pdeathsig", "KILL"]);
            Proc::spawn(idler.args(["sleep", "1000"]), &scratch.join("idler.log"))
        };
        (0..limit).map(start).collect::<Vec<_>>()
    };
    let all = idlers();
    until("an operator to be turned away", || ctl_fails(&ctl).then_some(()));
    assert!(backend.log().contains("event=control-failed"), "{}", backend.log());
    guest.assert_works();
    drop(all);
    until("an operator to be heard", || (!ctl_fails(&ctl)).then_some(()));
    let _all = idlers();
    until("an operator to be turned away", || ctl_fails(&ctl).then_some(()));
    assert_eq!(backend.terminate().code, Some(0));
}

/// Root without its capabilities may not write into others' folders: said at the start, not when it matters.
#[test]
fn folder_that_cannot_be_written_is_said_at_the_start() {
    let scratch = Scratch::new();
    let state = scratch.join("state");
    fs::create_dir(&state).unwrap();
    chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    let serve = Serve::image(&scratch.image(1 << 20)).rw("a").arg("--state").arg(state.join("s"));
    let mut backend = serve.start();
    let log = backend.proc().stderr();
    let wanted = format!("event=folder-not-writable folder={}", state.display());
    assert_eq!(log.matches(&wanted).count(), 1, "{log}");
    assert_eq!(backend.terminate().code, Some(0));
}
