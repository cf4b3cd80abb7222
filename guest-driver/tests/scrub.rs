//! `receipt verify` and `scrub` as a user meets them: what they print, their exit codes, and what a repair does beside others.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

mod support;

use receipt_store::page::{Page, PageKind, encode_slot};
use receipt_store::{Device, RawDevice, Reader, ReceiptPath, Superblock, Writer, WriterOptions};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Duration;
use support::{Store, text};

/// A store with the receipts `r/0`, `r/1` and so on, of 8,000 bytes each.
fn filled(count: u32) -> Store {
    let store = Store::new();
    for number in 0..count {
        store.file(&format!("in/{number}"), &number.to_le_bytes().repeat(2000));
    }
    store.ok(&["put", "--batch", store.path("in").to_str().unwrap(), "--prefix", "r/"]);
    store
}

/// Rots both slots of the index page of a path.
fn damage(store: &Store, name: &str) {
    let reader = Reader::new(RawDevice::open_reader(&store.path("disk")).unwrap(), "disk");
    let superblock = reader.superblock().unwrap();
    let hash = superblock.path_hash(name.as_bytes());
    let page = superblock.geometry.home_page(&superblock.geometry.regions[0], hash.bucket);
    let disk = fs::OpenOptions::new().write(true).open(store.path("disk")).unwrap();
    for slot in 0..2 {
        disk.write_all_at(&[0x5a; 90], page * 8192 + slot * 4096 + 100).unwrap();
    }
}

#[test]
fn a_repair_mends_the_index_and_says_so() {
    let store = filled(40);
    assert_eq!(store.ok(&["scrub"]), "");
    assert_eq!(store.ok(&["scrub", "--repair"]), "");
    damage(&store, "r/7");
    store.fails(&["get", "r/7"], 5);
    for command in ["verify", "scrub"] {
        let output = store.run(&[command]);
        assert_eq!(output.status.code(), Some(5));
        assert!(
            text(&output.stdout).lines().any(|line| line.starts_with("r/7\t")),
            "{}",
            text(&output.stdout)
        );
    }
    store.fails(&["get", "r/7"], 5);
    let printed = store.ok(&["scrub", "--repair"]);
    assert!(
        printed.lines().any(|line| line.starts_with("r/7\t"))
            && printed.lines().all(|l| l.ends_with("\tmended"))
    );
    assert_eq!(store.run(&["get", "r/7"]).stdout, 7_u32.to_le_bytes().repeat(2000));
    assert_eq!(store.ok(&["verify"]), "");
    assert_eq!(store.ok(&["ls"]).lines().count(), 40);
    let line: serde_json::Value = serde_json::from_str(&store.ok(&["scrub", "--json"])).unwrap();
    assert_eq!((line["records"].as_u64(), line["findings"].as_u64()), (Some(40), Some(0)));
}

#[test]
fn what_cannot_be_mended_is_named_and_stays_exit_code_5() {
    let store = filled(10);
    let stat: serde_json::Value = serde_json::from_str(&store.ok(&["stat", "r/3", "--json"])).unwrap();
    let disk = fs::OpenOptions::new().write(true).open(store.path("disk")).unwrap();
    disk.write_all_at(&[0; 9], stat["block"].as_u64().unwrap() * 4096 + 6000).unwrap();
    damage(&store, "r/5");
    let output = store.run(&["scrub", "--repair", "--json"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    let lines: Vec<serde_json::Value> =
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (totals, findings) = lines.split_last().unwrap();
    assert_eq!(totals["findings"].as_u64(), Some(1));
    let left: Vec<_> = findings.iter().filter(|line| line["mended"] == false).collect();
    assert_eq!((left.len(), left[0]["path"].as_str()), (1, Some("r/3")));
    assert_eq!(totals["mended"].as_u64(), Some(findings.len() as u64 - 1));
    store.ok(&["get", "r/5"]);
    store.fails(&["get", "r/3"], 5);
}

#[test]
fn a_repair_goes_through_the_running_writer() {
    let store = filled(20);
    let socket = store.path("sock");
    let socket = socket.to_str().unwrap();
    let mut server = store.command(&["serve", "--socket", socket]).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    assert!(store.fails(&["scrub", "--repair", "--socket", "/no/such/socket"], 7).contains("busy"));
    assert_eq!(store.ok(&["scrub", "--repair", "--socket", socket]), "");
    damage(&store, "r/7");
    let printed = store.ok(&["scrub", "--repair", "--socket", socket, "--json"]);
    assert!(printed.lines().next().unwrap().contains("\"mended\":true"), "{printed}");
    store.ok(&["get", "r/7"]);
    let file = store.file("new", b"new");
    store.ok(&["put", "r/new", &file, "--socket", socket]);
    let other = Store::new();
    let _held = RawDevice::open_writer(&other.path("disk")).unwrap();
    assert!(other.fails(&["scrub", "--repair", "--socket", socket], 7).contains("another store"));
    rustix::process::kill_process(rustix::process::Pid::from_child(&server), rustix::process::Signal::TERM)
        .unwrap();
    assert!(server.wait().unwrap().success());
    assert_eq!(store.ok(&["verify"]), "");
}

#[test]
fn stores_that_may_not_be_written_are_not_mended() {
    let store = filled(5);
    damage(&store, "r/1");
    let device = RawDevice::open_writer(&store.path("disk")).unwrap();
    store.fails(&["scrub", "--repair"], 7);
    let superblock = Superblock::read(&device, "disk").unwrap();
    let mut page = Page { version: 9, ..superblock.encode() };
    page.body[16] = 1; // a feature that a writer must know
    for page_no in [0, superblock.geometry.superblock_copy_page()] {
        let slot = encode_slot(superblock.store_id(), page_no, PageKind::Superblock, &page);
        device.write(page_no * 8192 + 4096, slot.as_slice()).unwrap();
    }
    drop(device);
    let before = fs::read(store.path("disk")).unwrap();
    assert!(store.fails(&["scrub", "--repair"], 7).contains("features"));
    assert_eq!(store.run(&["scrub"]).status.code(), Some(5));
    assert!(before == fs::read(store.path("disk")).unwrap(), "nothing was written");
    let cut = filled(5);
    fs::OpenOptions::new().write(true).open(cut.path("disk")).unwrap().set_len(9 << 20).unwrap();
    assert!(cut.fails(&["scrub", "--repair"], 2).contains("segments"));
    Store::empty(16 << 20).fails(&["scrub", "--repair"], 1);
    store.fails(&["scrub", "--throttle", "0"], 2);
}

#[test]
fn a_repair_that_is_killed_is_taken_up_again() {
    let store = filled(60);
    for round in 0..8_u64 {
        for number in 0..40 {
            damage(&store, &format!("r/{number}"));
        }
        let mut child = store
            .command(&["scrub", "--repair"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(2 + 5 * round));
        let _ = child.kill(); // it may have ended
        child.wait().unwrap();
        for number in 0..60_u32 {
            let output = store.run(&["get", &format!("r/{number}")]);
            let is_right = output.stdout == number.to_le_bytes().repeat(2000);
            assert!(is_right || output.status.code() == Some(5), "{number}: {}", text(&output.stderr));
        }
        let output = store.run(&["scrub", "--repair"]);
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(store.ok(&["verify"]), "");
    }
}

#[test]
fn a_batch_of_gets_follows_no_link() {
    let store = filled(3);
    let outside = store.path("outside");
    fs::create_dir_all(&outside).unwrap();
    let kept = store.file("kept", b"kept");
    let to = store.path("to");
    fs::create_dir_all(to.join("s")).unwrap();
    std::os::unix::fs::symlink(&outside, to.join("r")).unwrap();
    std::os::unix::fs::symlink(&kept, to.join("s/0")).unwrap();
    store.ok(&["put", "s/0", store.path("in/0").to_str().unwrap()]);
    store.ok(&["put", "s/1", store.path("in/1").to_str().unwrap()]);
    let args = ["get", "--batch", "-", "--to", to.to_str().unwrap()];
    let output = store.run_with_input(&args, b"r/0\ns/0\ns/1\n");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), "s/1\n"));
    assert!(text(&output.stderr).contains("r/0") && text(&output.stderr).contains("s/0"));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read(kept).unwrap(), b"kept");
    // The folder that was named may be a link itself.
    let link = store.path("link");
    std::os::unix::fs::symlink(&to, &link).unwrap();
    let args = ["get", "--batch", "-", "--to", link.to_str().unwrap()];
    assert!(store.run_with_input(&args, b"s/1\n").status.success());
}

/// A batch from standard input ends with the writer, though its input stays open.
#[test]
fn a_batch_does_not_wait_for_input_when_the_writer_has_ended() {
    let store = filled(1);
    let file = store.path("in/0").display().to_string();
    let mut child = store
        .command(&["put", "--batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    writeln!(stdin, "a\t{file}").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "a");
    // Another machine takes the store over: its lease and head appear on the disk.
    fs::copy(store.path("disk"), store.path("copy")).unwrap();
    let device = RawDevice::open_writer(&store.path("copy")).unwrap();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    let path = ReceiptPath::new("other").unwrap();
    writer.put(&receipt_store::Put::new(&path, b"x")).unwrap();
    let mut control = vec![0; 16384];
    fs::File::open(store.path("copy")).unwrap().read_exact_at(&mut control, 8192).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(store.path("disk"))
        .unwrap()
        .write_all_at(&control, 8192)
        .unwrap();
    writeln!(stdin, "b\t{file}").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("fenced by epoch"), "{said}");
    drop(stdin);
}
