//! `receipt serve` on a device that fails: it says so, ends, and what was acknowledged is there when it is started again.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

#[allow(dead_code)] // other tests use the rest
mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use support::{Store, text};

/// Starts `receipt serve`; no write of it can reach beyond `limit_bytes` of the file.
fn serve(store: &Store, socket: &str, limit_bytes: u64) -> Child {
    let mut command: Command = store.command(&["serve", "--socket", socket]);
    let limit = move || {
        let limit = libc::rlimit { rlim_cur: limit_bytes, rlim_max: limit_bytes };
        // SAFETY: the first call changes one signal's action to "ignore", the second reads a local.
        let done = unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN) != libc::SIG_ERR
                && libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: both calls are async-signal-safe and touch nothing that the parent owns.
    unsafe { command.pre_exec(limit) };
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready.trim(), socket);
    server
}

#[test]
fn a_writer_that_has_stopped_holds_the_device_no_longer() {
    let store = Store::new();
    let socket = store.path("sock").to_str().unwrap().to_owned();
    let image = store.file("image", &[5; 200_000]);
    let server = serve(&store, &socket, 6 << 20);
    let mut stored = 0;
    let failed = loop {
        let output = store.run(&["put", &format!("r/{stored}"), &image, "--socket", &socket]);
        match output.status.code() {
            Some(0) => stored += 1,
            code => break (code, text(&output.stderr)),
        }
        assert!(stored < 100, "the device never failed");
    };
    assert_eq!(failed.0, Some(1), "{}", failed.1);
    assert!(failed.1.contains("device write") && stored > 5, "{stored}: {}", failed.1);
    let output = server.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("device write"), "{}", text(&output.stderr));
    // Another one has all that was acknowledged, and goes on.
    let mut again = serve(&store, &socket, libc::RLIM_INFINITY);
    store.ok(&["put", &format!("r/{stored}"), &image, "--socket", &socket]);
    for number in 0..=stored {
        assert_eq!(store.run(&["get", &format!("r/{number}")]).stdout, [5; 200_000]);
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&again), rustix::process::Signal::TERM)
        .unwrap();
    assert!(again.wait().unwrap().success());
    store.ok(&["verify"]);
}
