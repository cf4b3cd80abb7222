//! What a command leaves where its output cannot go, or when its input is odd: it never says that all is done when it is not.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

#[allow(dead_code)] // other tests use the rest
mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Stdio;
use support::{Store, text};

/// Runs a command whose output nobody reads; its exit code and what it says of it.
fn unread(store: &Store, args: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = store.command(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), text(&output.stderr))
}

#[test]
fn work_that_stops_because_nobody_reads_its_output_is_no_success() {
    let store = Store::new();
    for number in 0..600 {
        store.file(&format!("in/{number}"), b"x");
    }
    let (input, list) = (store.path("in"), store.file("list", b"one\n"));
    let (input, out) = (input.to_str().unwrap(), store.path("out"));
    let one = store.file("one", b"1");
    store.ok(&["put", "one", &one]);
    for args in [
        &["put", "--batch", input][..],
        &["put", "two", &one],
        &["rm", "0"],
        &["get", "--batch", &list, "--to", out.to_str().unwrap()],
    ] {
        let (code, said) = unread(&store, args);
        assert_eq!(code, Some(1), "{args:?}: {said}");
        assert!(said.contains("standard output"), "{args:?}: {said}");
    }
    for args in [&["ls"][..], &["get", "one"], &["stat", "one"], &["info"], &["follow", "--from", "1"]] {
        assert_eq!(
            unread(&store, args),
            (Some(0), String::new()),
            "{args:?}: whoever reads it has seen enough"
        );
    }
    let stat: serde_json::Value = serde_json::from_str(&store.ok(&["stat", "one", "--json"])).unwrap();
    let disk = fs::File::options().write(true).open(store.path("disk")).unwrap();
    disk.write_all_at(b"rot", stat["block"].as_u64().unwrap() * 4096 + 152).unwrap();
    let (code, said) = unread(&store, &["verify"]);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(store.run(&["verify"]).status.code(), Some(5));
}

#[test]
fn a_list_does_not_read_standard_input_for_a_file() {
    let store = Store::new();
    let output = store.run_with_input(&["put", "--batch", "-"], b"a\t-\n");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("names files"), "{}", text(&output.stderr));
    let list = store.file("list", b"a\t-\nb\t-\n");
    let output = store.run_with_input(&["put", "--batch", &list], b"typed");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""));
    assert_eq!(store.ok(&["ls"]), "");
}

#[test]
fn a_locator_is_asked_for_like_its_path() {
    let store = Store::new();
    let (one, two) = (store.file("1", b"one"), store.file("2", b"two"));
    store.ok(&["put", "a", &one]);
    let locator = store.ok(&["put", "a", &two, "--new-version", "--locator"]);
    assert_eq!(store.ok(&["get", locator.trim()]), "two");
    assert_eq!(store.ok(&["get", locator.trim(), "--version", "1"]), "one");
    assert!(store.fails(&["get", locator.trim(), "--version", "3"], 3).contains("a version 3: not found"));
    assert!(store.fails(&["get", "gone@512.1.1.1"], 3).contains("gone: not found"));
}

#[test]
fn files_appear_whole() {
    let store = Store::new();
    let (one, two) = (store.file("1", &[1; 50_000]), store.file("2", &[2; 100]));
    store.ok(&["put", "d/a", &one]);
    let out = store.path("out");
    let get = |args: &[&str]| store.run_with_input(&[&["get"][..], args].concat(), b"d/a\n");
    assert!(get(&["--batch", "-", "--to", out.to_str().unwrap()]).status.success());
    let file = out.join("d/a");
    assert_eq!(fs::read(&file).unwrap(), [1; 50_000]);
    // What has the file open, or has it by another name, keeps the bytes of before.
    fs::hard_link(&file, out.join("other name")).unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    store.ok(&["put", "d/a", &two, "--new-version"]);
    assert!(get(&["--batch", "-", "--to", out.to_str().unwrap()]).status.success());
    assert_eq!(fs::read(&file).unwrap(), [2; 100]);
    assert_eq!(fs::read(out.join("other name")).unwrap(), [1; 50_000]);
    assert_ne!(fs::metadata(&file).unwrap().ino(), inode);
    let fresh = out.join("fresh");
    store.ok(&["get", "d/a", "-o", fresh.to_str().unwrap()]);
    assert_eq!(fs::read(&fresh).unwrap(), [2; 100]);
    let names = |folder: &std::path::Path| fs::read_dir(folder).unwrap().count();
    assert_eq!((names(&out), names(&out.join("d"))), (3, 1), "nothing else is left");
    // No room for all of it: no file. A limit of the process says the same as a full disk.
    let mut full = std::process::Command::new("sh");
    full.args(["-c", "ulimit -f 8; trap '' XFSZ; exec \"$0\" \"$@\""]).arg(env!("CARGO_BIN_EXE_receipt"));
    full.arg("--device").arg(store.path("disk")).args(["get", "d/a", "--version", "1", "-o"]);
    let cut = out.join("cut");
    let output = full.arg(&cut).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!((cut.exists(), names(&out)), (false, 3));
}
