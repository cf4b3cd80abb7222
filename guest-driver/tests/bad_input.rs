//! Devices and lists as nobody wants them, and what the commands say then: one clear line and an exit code, never a hang.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use support::{Store, text};

/// A file as a block device, for as long as this lives.
struct Loop(String);

impl Loop {
    /// `None` where there are no loop devices, or only root may make one.
    fn new(store: &Store, flags: &[&str]) -> Option<Self> {
        let output = Command::new("losetup")
            .args(flags)
            .args(["--find", "--show"])
            .arg(store.path("disk"))
            .output()
            .ok()?;
        output.status.success().then(|| Self(text(&output.stdout).trim().to_owned()))
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_receipt")).args(["--device", &self.0]).args(args).output().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status(); // the test's own failure says more
    }
}

#[test]
fn a_block_device_that_is_read_only_or_busy_is_exit_code_7() {
    let store = Store::new();
    let file = store.file("f", b"x");
    store.ok(&["put", "a", &file]);
    let Some(device) = Loop::new(&store, &["--read-only"]) else {
        println!("no loop devices here: only the read-only file is tested (tests/cli.rs)");
        return;
    };
    let writing: [&[&str]; 5] = [
        &["put", "b", &file],
        &["rm", "a"],
        &["scrub", "--repair"],
        &["serve", "--socket", "/no/such/socket"],
        &["format", "--force"],
    ];
    for args in writing {
        let output = device.run(args);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(7) && said.contains("read-only"), "{args:?}: {said}");
    }
    let reading: [&[&str]; 6] =
        [&["get", "a"], &["stat", "a"], &["ls"], &["verify"], &["checkpoint"], &["info"]];
    for args in reading {
        let output = device.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    }
    drop(device);

    let device = Loop::new(&store, &[]).unwrap();
    let held = receipt_store::RawDevice::open_writer(device.0.as_ref()).unwrap();
    let output = device.run(&["put", "b", &file, "--socket", "/no/such/socket"]);
    assert!(output.status.code() == Some(7) && text(&output.stderr).contains("busy"));
    assert_eq!(device.run(&["get", "a"]).stdout, b"x");
    drop(held);
    assert!(device.run(&["put", "b", &file]).status.success());
    drop(device);
    assert_eq!(store.ok(&["ls"]), "b\na\n");
}

#[test]
fn what_is_neither_a_file_nor_a_disk_is_refused_at_once() {
    let store = Store::new();
    let pipe = store.path("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for name in [pipe.to_str().unwrap(), "/dev/null", "/dev/zero", store.dir.path().to_str().unwrap()] {
        for command in ["info", "format"] {
            let args = ["--device", name, command];
            let output = Command::new(env!("CARGO_BIN_EXE_receipt")).args(args).output().unwrap();
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{name}: {said}");
            assert!(said.contains(&format!("cannot open {name}: Block device required")), "{said}");
        }
    }
}

#[test]
fn a_disk_of_another_size() {
    let store = Store::new();
    let file = store.file("f", &[3; 5000]);
    store.ok(&["put", "a", &file]);
    let disk = fs::OpenOptions::new().write(true).open(store.path("disk")).unwrap();
    for size_bytes in [(16 << 20) + 1, 20 << 20, (20 << 20) + 1] {
        disk.set_len(size_bytes).unwrap(); // larger is no harm
        assert_eq!(store.run(&["get", "a"]).stdout, [3; 5000]);
        store.ok(&["put", &format!("{size_bytes}"), &file]);
        store.ok(&["verify"]);
    }
    let store = Store::new();
    store.ok(&["put", "a", &file]);
    let disk = fs::OpenOptions::new().write(true).open(store.path("disk")).unwrap();
    for size_bytes in [(16 << 20) - 1, 15 << 20, 2 << 20] {
        disk.set_len(size_bytes).unwrap();
        let commands: [&[&str]; 4] =
            [&["get", "a"], &["put", "b", &file], &["verify"], &["scrub", "--repair"]];
        for args in commands {
            assert!(store.fails(args, 2).contains("segments"), "{args:?}");
        }
    }
}

/// A line that is wrong in any way is named, and the lines behind it are stored.
#[test]
fn a_list_with_bad_lines_loses_none_of_the_others() {
    let store = Store::new();
    let file = store.file("f", b"x");
    let long = "x".repeat(1025);
    let mut list = Vec::new();
    for (number, path) in
        [b"\xff/a".as_slice(), b"a\0b", b"a//b", b"..", long.as_bytes(), b""].into_iter().enumerate()
    {
        for path in [path, format!("good/{number}").as_bytes()] {
            list.extend([path, b"\t", file.as_bytes(), b"\r\n"].concat());
        }
    }
    let output = store.run_with_input(&["put", "--batch", "-"], &list);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let good: String = (0..6).map(|number| format!("good/{number}\n")).collect();
    assert_eq!(text(&output.stdout), good);
    assert_eq!(text(&output.stderr).lines().count(), 6, "{}", text(&output.stderr));
    let output =
        store.run_with_input(&["put", "--batch", "-", "--prefix", "p/"], format!("/q\t{file}\n").as_bytes());
    assert_eq!(text(&output.stdout), "p/q\n");
    let to = store.path("to");
    let args = ["get", "--batch", "-", "--to", to.to_str().unwrap()];
    let output = store.run_with_input(&args, b"\xff\ngood/1\n\na\0b\ngood/2");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), "good/1\ngood/2\n"));
    // Not a list at all: an end, before it has filled the memory.
    let zeroes = store.file("zeroes", &[0; 100_000]);
    assert!(store.fails(&["put", "--batch", &zeroes], 2).contains("longer than"));
}

#[test]
fn names_of_files_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let store = Store::new();
    let name = std::ffi::OsStr::from_bytes(b"bad\xff");
    fs::create_dir_all(store.path("in")).unwrap();
    fs::write(store.path("in").join(name), b"1").unwrap();
    fs::write(store.path("in/good"), b"2").unwrap();
    let output = store.run(&["put", "--batch", store.path("in").to_str().unwrap()]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), "good\n"));
    assert!(text(&output.stderr).contains("not UTF-8"));
    // A list can still name the file.
    let mut line = b"named\t".to_vec();
    line.extend(store.path("in").join(name).as_os_str().as_bytes());
    assert_eq!(text(&store.run_with_input(&["put", "--batch", "-"], &line).stdout), "named\n");
    for command in ["put", "get", "stat", "rm", "ls"] {
        assert_eq!(store.command(&[command]).arg(name).output().unwrap().status.code(), Some(2), "{command}");
    }
}

/// Every line of every command is one object, also that of an error.
#[test]
fn every_command_speaks_json() {
    let store = Store::empty(16 << 20);
    let file = store.file("in/f", b"x");
    let input = store.path("in");
    let note = store.path("note");
    let to = store.path("to");
    let (note, to) = (note.to_str().unwrap(), to.to_str().unwrap());
    let commands: [&[&str]; 19] = [
        &["format"],
        &["put", "a", &file],
        &["put", "b", &file, "--locator"],
        &["put", "--batch", input.to_str().unwrap(), "--prefix", "in/"],
        &["get", "a", "-o", to],
        &["stat", "a"],
        &["ls"],
        &["follow", "--from", "1", "--once"],
        &["rm", "b"],
        &["checkpoint"],
        &["verify"],
        &["verify", "--from", note],
        &["scrub"],
        &["scrub", "--repair"],
        &["info"],
        &["get", "b"],
        &["stat", "b"],
        &["rm", "b"],
        &["verify", "--from", &file],
    ];
    for args in commands {
        let output = store.run(&[args, &["--json"]].concat());
        let printed = text(if output.status.success() { &output.stdout } else { &output.stderr });
        assert!(!printed.is_empty(), "{args:?}");
        for line in printed.lines() {
            let line: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{args:?}: {line}: {error}"));
            assert!(line.is_object());
            let code = line["exit_code"].as_i64();
            assert_eq!(code, output.status.code().filter(|code| *code != 0).map(i64::from), "{args:?}");
        }
        if args == ["checkpoint"] {
            fs::write(note, store.ok(&["checkpoint"])).unwrap();
        }
    }
    let socket = store.path("socket");
    let args = ["serve", "--json", "--socket", socket.to_str().unwrap()];
    let mut server = store.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(ready["socket"].as_str(), socket.to_str());
}
