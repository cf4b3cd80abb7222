//! What takes more than a second shows on a terminal how far it is.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;
use support::{Store, text};

/// A pseudo terminal: the end that the program gets, and the one that shows what it writes.
fn terminal() -> (fs::File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let screen = openpt(flags).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let name = ptsname(&screen, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let end = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
    (fs::File::from(screen), end)
}

fn shown(mut screen: fs::File) -> String {
    let mut bytes = Vec::new();
    let _ = screen.read_to_end(&mut bytes); // ends with an error when the program has gone
    text(&bytes)
}

#[test]
fn a_check_shows_how_far_it_is_on_a_terminal_only() {
    let store = Store::filled(400); // 3.2 MiB of records
    for args in [["scrub", "--throttle", "2"].as_slice(), &["scrub", "--repair", "--throttle", "2"]] {
        let (screen, end) = terminal();
        let mut child = store.command(args).stdout(Stdio::piped()).stderr(Stdio::from(end)).spawn().unwrap();
        let screen = shown(screen);
        assert!(child.wait().unwrap().success());
        assert!(screen.contains("#") && screen.contains(" records, "), "{screen}");
        assert!(screen.contains("\x1b[K"), "it takes the line away: {screen}");
    }
    let output = store.run(&["scrub", "--throttle", "2"]);
    assert!(!text(&output.stderr).contains('#'));
}

/// What a batch has done so far is shown when it lasts, on a terminal beside an output that goes elsewhere.
#[test]
fn a_batch_that_lasts_shows_how_far_it_is() {
    let store = Store::filled(1);
    let file = store.path("in/0");
    let put = format!("x/1\t{0}\nx/2\t{0}\n", file.display());
    let to = store.path("out");
    let get = ["get", "--batch", "-", "--to", to.to_str().unwrap()];
    for (args, input, unit) in
        [(["put", "--batch", "-"].as_slice(), put.as_str(), "receipts"), (&get, "x/1\nx/2\n", "receipts")]
    {
        let (screen, end) = terminal();
        let mut command = store.command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::from(end)).spawn().unwrap();
        drop(command); // its end of the terminal
        let mut stdin = child.stdin.take().unwrap();
        for line in input.lines() {
            std::thread::sleep(Duration::from_millis(1100)); // nothing is shown in the first second
            writeln!(stdin, "{line}").unwrap();
        }
        drop(stdin);
        let screen = shown(screen);
        assert!(child.wait().unwrap().success());
        assert!(screen.contains(unit), "{args:?}: {screen:?}");
    }
}

/// Lines that nobody takes for a while: the list waits, and shows how far it is when it goes on.
#[test]
fn a_list_that_lasts_shows_how_far_it_is() {
    let store = Store::filled(1);
    let file = store.path("in/0");
    let long = "x".repeat(900);
    let list: String = (0..300).map(|number| format!("{long}/{number}\t{}\n", file.display())).collect();
    let list = store.file("list", list.as_bytes());
    store.ok(&["put", "--batch", &list]);
    for (args, unit) in [(["ls"].as_slice(), "paths"), (&["follow", "--from", "1", "--once"], "changes")] {
        let (screen, end) = terminal();
        let mut command = store.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::from(end)).spawn().unwrap();
        drop(command); // its end of the terminal
        let mut lines = String::new();
        std::thread::sleep(Duration::from_millis(1100)); // nothing is shown in the first second
        child.stdout.take().unwrap().read_to_string(&mut lines).unwrap();
        let screen = shown(screen);
        assert!(child.wait().unwrap().success());
        assert_eq!(lines.lines().count(), 301, "{args:?}");
        assert!(screen.contains(unit), "{args:?}: {screen:?}");
    }
}
