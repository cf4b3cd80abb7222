//! The command line as a user meets it: what it prints, where, and its exit codes.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

#[path = "support/forge.rs"]
mod forge;
mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use support::{Store, text};

#[test]
fn put_get_stat_ls_info() {
    let store = Store::new();
    let image = store.file("a.png", &[7; 100_000]);
    assert_eq!(store.ok(&["put", "/2026/a.png", &image]), "2026/a.png\n");
    let locator = store.ok(&["put", "2026/b", &image, "--locator"]);
    assert!(locator.starts_with("2026/b@") && locator.ends_with(".2\n"), "{locator}");
    assert_eq!(store.run(&["get", "2026/a.png"]).stdout, [7; 100_000]);
    assert_eq!(store.run(&["get", locator.trim()]).stdout, [7; 100_000]);
    let copy = store.path("copy");
    assert_eq!(store.ok(&["get", "2026/a.png", "-o", copy.to_str().unwrap()]), "");
    assert_eq!(fs::read(copy).unwrap(), [7; 100_000]);
    let output = store.run_with_input(&["put", "stdin", "-"], b"typed");
    assert_eq!(text(&output.stdout), "stdin\n");
    assert_eq!(store.ok(&["get", "stdin"]), "typed");
    assert_eq!(store.ok(&["ls", "2026/"]), "2026/b\n2026/a.png\n");
    assert!(store.ok(&["stat", "2026/a.png"]).contains("size_bytes: 100000"));
    let info: serde_json::Value = serde_json::from_str(&store.ok(&["info", "--json"])).unwrap();
    assert_eq!((info["receipts"].as_u64(), info["last_seq"].as_u64()), (Some(3), Some(3)));
    assert_eq!(info["writer_is_open"], false);
    let stat: serde_json::Value = serde_json::from_str(&store.ok(&["stat", "stdin", "--json"])).unwrap();
    assert_eq!(stat["blake3"].as_str().unwrap(), blake3::hash(b"typed").to_hex().as_str());
}

#[test]
fn versions() {
    let store = Store::new();
    let (one, two) = (store.file("1", b"one"), store.file("2", b"two"));
    store.ok(&["put", "a", &one]);
    assert_eq!(store.ok(&["put", "a", &one]), "a\n", "the same data again is no error");
    assert!(store.fails(&["put", "a", &two], 8).contains("--new-version"));
    let line = store.ok(&["put", "a", &two, "--new-version", "--json"]);
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((line["version"].as_u64(), line["new"].as_bool()), (Some(2), Some(true)));
    assert_eq!(store.ok(&["get", "a"]), "two");
    assert_eq!(store.ok(&["get", "a", "--version", "1"]), "one");
    store.fails(&["get", "a", "--version", "3"], 3);
}

#[test]
fn rm_hides_a_path_and_keeps_its_locator() {
    let store = Store::new();
    let (one, two) = (store.file("1", b"one"), store.file("2", b"two"));
    let locator = store.ok(&["put", "a", &one, "--locator"]);
    store.ok(&["put", "b", &one]);
    let output = store.run(&["rm", "/a", "never"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(3), "a\n"));
    assert!(text(&output.stderr).contains("never: not found"));
    store.fails(&["get", "a"], 3);
    store.fails(&["stat", "a"], 3);
    store.fails(&["rm", "a"], 3);
    store.fails(&["rm"], 2);
    store.fails(&["rm", "../a"], 2);
    assert_eq!(store.ok(&["get", locator.trim()]), "one");
    assert_eq!(store.ok(&["ls"]), "b\n");
    let line: serde_json::Value = serde_json::from_str(&store.ok(&["rm", "b", "--json"])).unwrap();
    assert_eq!((line["path"].as_str(), line["version"].as_u64()), (Some("b"), Some(1)));
    store.ok(&["put", "a", &two]);
    assert_eq!(store.ok(&["get", "a"]), "two");
    store.ok(&["verify"]);
    let held = receipt_store::RawDevice::open_writer(&store.path("disk")).unwrap();
    store.fails(&["rm", "a"], 7);
    drop(held);
}

#[test]
fn a_head_note_finds_an_older_copy_of_the_disk() {
    let store = Store::new();
    let file = store.file("f", b"x");
    store.ok(&["put", "a", &file]);
    let copy = fs::read(store.path("disk")).unwrap();
    let old = store.file("old", store.ok(&["checkpoint"]).as_bytes());
    store.ok(&["put", "b", &file]);
    let printed = store.ok(&["checkpoint"]);
    let new = store.file("new", printed.as_bytes());
    assert_eq!(printed.lines().count(), 1);
    assert_eq!(store.ok(&["verify", "--from", &old]), printed);
    let line: serde_json::Value =
        serde_json::from_str(&store.ok(&["verify", "--from", &new, "--json"])).unwrap();
    assert_eq!((line["seq"].as_u64(), line["records"].as_u64()), (Some(2), Some(0)));
    store.fails(&["verify", "--from", "/no/such/file"], 1);
    store.fails(&["verify", "--from", &file], 2);
    fs::write(store.path("disk"), copy).unwrap();
    store.ok(&["verify"]);
    store.ok(&["verify", "--from", &old]);
    assert!(store.fails(&["verify", "--from", &new], 5).contains("older copy"));
    let other = Store::new();
    assert!(other.fails(&["verify", "--from", &new], 5).contains("another store"));
}

#[test]
fn follow_prints_changes_as_they_come_and_resumes() {
    use std::io::{BufRead, BufReader};
    let store = Store::new();
    let file = store.file("f", b"x");
    store.ok(&["put", "a", &file]);
    let mut child =
        store.command(&["follow", "--from", "1", "--poll-ms", "10"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "1\ta");
    store.ok(&["put", "b", &file]);
    assert_eq!(lines.next().unwrap().unwrap(), "2\tb");
    store.ok(&["rm", "a"]);
    assert_eq!(lines.next().unwrap().unwrap(), "3\ta\tremoved");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(store.ok(&["follow", "--from", "2", "--once"]), "2\tb\n3\ta\tremoved\n");
    assert_eq!(store.ok(&["follow", "--once"]), "");
    let line: serde_json::Value =
        serde_json::from_str(&store.ok(&["follow", "--from", "3", "--once", "--json"])).unwrap();
    assert_eq!((line["path"].as_str(), line["removed"].as_bool()), (Some("a"), Some(true)));
    store.fails(&["follow", "--from", "x"], 2);
}

#[test]
fn commands_go_through_the_running_writer_and_answer_alike() {
    use std::io::{BufRead, BufReader};
    let store = Store::new();
    let socket = store.path("sock");
    let socket = socket.to_str().unwrap();
    let (one, two) = (store.file("1", b"one"), store.file("2", b"two"));
    let mut server = store.command(&["serve", "--socket", socket]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready.trim(), socket);
    assert!(store.fails(&["put", "a", &one, "--socket", "/no/such/socket"], 7).contains("busy"));
    assert!(store.fails(&["serve", "--socket", socket], 7).contains("busy"));
    let large = store.file("large", &vec![1; (32 << 20) + 1]);
    let twice = |store: &Store, more: &[&str]| {
        let run = |args: &[&str]| {
            let output = store.run(&[args, more].concat());
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        vec![
            run(&["put", "a", &one, "--locator"]),
            run(&["put", "a", &one, "--json"]),
            run(&["put", "a", &two]),
            run(&["put", "a", &two, "--json"]),
            run(&["put", "a", &two, "--new-version", "--json"]),
            run(&["put", "large", &large]),
            run(&["rm", "a", "never"]),
            run(&["rm", "a", "--json"]),
            run(&["put", "a", &two]),
        ]
    };
    let through = twice(&store, &["--socket", socket]);
    let own = twice(&Store::new(), &[]);
    assert_eq!(through, own);
    let other = Store::new();
    let _held = receipt_store::RawDevice::open_writer(&other.path("disk")).unwrap();
    assert!(other.fails(&["put", "a", &one, "--socket", socket], 7).contains("another store"));
    for number in 0..600_u32 {
        store.file(&format!("in/{number}"), &number.to_le_bytes().repeat(3000));
    }
    let input = store.path("in");
    let args = ["put", "--batch", input.to_str().unwrap(), "--prefix", "x/", "--socket", socket];
    assert_eq!(store.ok(&args).lines().count(), 600);
    let mut garbage = std::os::unix::net::UnixStream::connect(socket).unwrap();
    garbage.write_all(&[0xff; 100]).unwrap();
    assert_eq!(store.ok(&["get", "a"]), "two");
    rustix::process::kill_process(rustix::process::Pid::from_child(&server), rustix::process::Signal::TERM)
        .unwrap();
    assert!(server.wait().unwrap().success());
    assert!(!Path::new(socket).exists());
    let info: serde_json::Value = serde_json::from_str(&store.ok(&["info", "--json"])).unwrap();
    assert_eq!(info["writer_is_open"], false, "it closed the store");
    store.ok(&["verify"]);
    store.ok(&["put", "own", &one, "--socket", socket]);
}

#[test]
fn batches_of_a_folder_and_of_a_list() {
    let store = Store::new();
    for number in 0..300_u32 {
        store.file(&format!("in/{}/{number}", number % 3), &number.to_le_bytes().repeat(500));
    }
    let input = store.path("in");
    let printed = store.ok(&["put", "--batch", input.to_str().unwrap(), "--prefix", "x/"]);
    assert_eq!(printed.lines().count(), 300);
    assert!(printed.lines().any(|line| line == "x/2/299"));
    let to = store.path("out");
    let args = ["get", "--batch", "-", "--to", to.to_str().unwrap()];
    let output = store.run_with_input(&args, printed.as_bytes());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), printed);
    for number in 0..300_u32 {
        let name = format!("{}/{number}", number % 3);
        assert_eq!(fs::read(to.join("x").join(&name)).unwrap(), fs::read(input.join(&name)).unwrap());
    }
    let list = format!(
        "m/a\t{0}/0/0\nbad line\nm/../b\t{0}/0/0\nm/c\t/no/such/file\nm/d\t{0}/1/1\n",
        input.display()
    );
    let manifest = store.file("list", list.as_bytes());
    let output = store.run(&["put", "--batch", &manifest]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), "m/a\nm/d\n"));
    assert_eq!(text(&output.stderr).lines().count(), 3);
}

#[test]
fn batch_of_a_folder_waits_for_no_pipe_and_follows_no_link() {
    let store = Store::new();
    store.file("in/a", b"a");
    let input = store.path("in");
    assert!(Command::new("mkfifo").arg(input.join("pipe")).status().unwrap().success());
    std::os::unix::fs::symlink(".", input.join("round")).unwrap();
    std::os::unix::fs::symlink("a", input.join("same")).unwrap();
    let output = store.run(&["put", "--batch", input.to_str().unwrap()]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), "a\n"));
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(["in/pipe", "in/round", "in/same"].iter().all(|name| said.contains(name)), "{said}");
}

#[test]
fn page_of_the_command_lists_every_command() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/receipt.md")).unwrap();
    let help = Store::new().ok(&["--help"]);
    let (_, commands) = help.split_once("Commands:").unwrap();
    let (commands, _) = commands.split_once("Options:").unwrap();
    let is_command = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let names = commands.lines().filter(is_command).map(|line| line.split_whitespace().next().unwrap());
    let names: Vec<&str> = names.filter(|name| *name != "help").collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("`{name}")), "docs/receipt.md does not list {name}");
    }
}

#[test]
fn ids_of_the_gateway_cannot_be_put() {
    let store = Store::new();
    let file = store.file("in/.id/0000", b"{}");
    let (input, inner) = (store.path("in"), store.path("in/.id"));
    let list = store.file("list", format!("/.id/0000\t{file}\n").as_bytes());
    for args in [
        &["put", ".id/0000", &file][..],
        &["put", "/.id/0000", &file],
        &["put", "--batch", input.to_str().unwrap()],
        &["put", "--batch", inner.to_str().unwrap(), "--prefix", ".id/"],
        &["put", "--batch", &list],
    ] {
        assert!(store.fails(args, 2).contains("business ids"), "{args:?}");
    }
    assert_eq!(store.ok(&["ls"]), "");
}

#[test]
fn serve_takes_the_place_of_no_file() {
    let store = Store::new();
    let file = store.file("precious", b"precious");
    assert!(store.fails(&["serve", "--socket", &file], 2).contains("no socket"));
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

/// Receipts of each group commit, by the flag of its first record.
fn commits(store: &Store, locators: &str) -> Vec<usize> {
    let device = receipt_store::RawDevice::open_reader(&store.path("disk")).unwrap();
    let reader = receipt_store::Reader::new(&device, "disk");
    let superblock = reader.superblock().unwrap();
    let mut sizes = Vec::new();
    for line in locators.lines() {
        let block = receipt_store::Locator::parse(line).unwrap().block;
        let (header, _) = receipt_store::log::read_header(&device, &superblock, block).unwrap().unwrap();
        if header.flags & receipt_store::record::FLAG_BATCH_START != 0 {
            sizes.push(0);
        }
        *sizes.last_mut().unwrap() += 1;
    }
    sizes
}

#[test]
fn batches_keep_the_limits_of_a_group_commit() {
    let store = Store::new();
    let folder = store.path("in");
    fs::create_dir(&folder).unwrap();
    for number in 0..6 {
        fs::write(folder.join(number.to_string()), [number; 1000]).unwrap();
    }
    let folder = folder.to_str().unwrap();
    let put = |prefix: &str, limits: &[&str]| {
        let args = ["put", "--batch", folder, "--prefix", prefix, "--locator"];
        commits(&store, &store.ok(&[&args, limits].concat()))
    };
    // A minute is for ever: what ends the wait is the limit, or the end of the batch.
    let wait = ["--batch-wait-ms", "60000"];
    assert_eq!(put("a/", &wait), [6]);
    assert_eq!(put("b/", &[&wait[..], &["--batch-records", "4"]].concat()), [4, 2]);
    assert_eq!(put("c/", &[&wait[..], &["--batch-bytes", "3K"]].concat()), [3, 3]);
    assert_eq!(put("d/", &["--batch-bytes", "1"]), [1; 6], "one larger receipt is a commit of its own");
    assert_eq!(put("e/", &["--batch-records", "0"]), [1; 6]);
}

#[test]
fn lists_cannot_write_outside_their_folder() {
    let store = Store::new();
    let to = store.path("deep/out");
    let args = ["get", "--batch", "-", "--to", to.to_str().unwrap()];
    let output = store.run_with_input(&args, b"../../escaped\n/etc/../x\nnope\n");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stderr).lines().count(), 3);
    assert!(!store.path("escaped").exists() && !to.exists());
}

#[test]
fn usage_and_missing_things() {
    let store = Store::new();
    let file = store.file("f", b"x");
    for bad in ["", "/", "a//b", "../a", "a/./b", "a\nb", &"x".repeat(1025)] {
        store.fails(&["put", bad, &file], 2);
        store.fails(&["get", bad], 2);
    }
    store.fails(&["put", "a"], 2);
    store.fails(&["frobnicate"], 2);
    store.fails(&["put", "a", "/no/such/file"], 1);
    store.fails(&["put", "--batch", "/no/such/folder"], 1);
    assert!(store.fails(&["get", "no"], 3).contains("no: not found"));
    store.fails(&["stat", "no"], 3);
    assert_eq!(store.ok(&["ls"]), "");
    let json = store.fails(&["get", "no", "--json"], 3);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["exit_code"], 3);
    for bad in
        [&["put", "a", "--json"][..], &["--json", "frobnicate"], &["expire", "--compact", "101", "--json"]]
    {
        let json: serde_json::Value = serde_json::from_str(&store.fails(bad, 2)).unwrap();
        assert!(json["exit_code"] == 2 && json["error"].as_str().unwrap().len() > 10, "{json}");
    }
}

#[test]
fn format_overwrites_nothing_by_itself() {
    let store = Store::new();
    assert!(store.fails(&["format"], 8).contains("--force"));
    store.ok(&["format", "--force", "--segment-size", "256K"]);
    let foreign = Store::empty(16 << 20);
    let mut bytes = vec![0; 4096];
    bytes[1080..1082].copy_from_slice(b"\x53\xef");
    fs::OpenOptions::new().write(true).open(foreign.path("disk")).unwrap().write_all(&bytes).unwrap();
    assert!(foreign.fails(&["format"], 8).contains("ext4"));
    let small = Store::empty(1 << 20);
    small.fails(&["format"], 2);
    small.fails(&["format", "--segment-size", "3M"], 2);
    small.fails(&["format", "--segment-size", "many"], 2);
    small.ok(&["format", "--segment-size", "256K"]);
}

#[test]
fn no_store_and_no_device() {
    let empty = Store::empty(16 << 20);
    assert!(empty.fails(&["get", "a"], 1).contains("receipt format"));
    empty.fails(&["info"], 1);
    let gone = Store::empty(0);
    gone.fails(&["info"], 1);
    fs::remove_file(gone.path("disk")).unwrap();
    assert!(gone.fails(&["get", "a"], 1).contains("cannot open"));
}

#[test]
fn newer_formats_are_refused_by_name() {
    use receipt_store::page::{Page, PageKind, encode_slot};
    let store = Store::new();
    let device = receipt_store::RawDevice::open_writer(&store.path("disk")).unwrap();
    let superblock = receipt_store::Superblock::read(&device, "disk").unwrap();
    let change = |at: usize, value: u8| {
        let mut page = Page { version: 2, ..superblock.encode() };
        page.body[at] = value;
        let slot = encode_slot(superblock.store_id(), 0, PageKind::Superblock, &page);
        receipt_store::Device::write(&device, 4096, slot.as_slice()).unwrap();
    };
    change(8, 2);
    assert!(store.fails(&["get", "a"], 1).contains("format 2.0"));
    change(20, 2);
    assert!(store.fails(&["get", "a"], 1).contains("features"));
    change(16, 1);
    store.fails(&["get", "a"], 3);
    drop(device);
    let file = store.file("f", b"x");
    assert!(store.fails(&["put", "a", &file], 7).contains("cannot be written"));
}

#[test]
fn one_writer_at_a_time() {
    let store = Store::new();
    let file = store.file("f", b"x");
    let held = receipt_store::RawDevice::open_writer(&store.path("disk")).unwrap();
    assert!(
        store
            .fails(&["put", "a", &file], 7)
            .contains("busy: another process of this machine writes to it; --wait")
    );
    assert!(!store.fails(&["put", "a", &file, "--wait", "1"], 7).contains("--wait"));
    store.fails(&["get", "a"], 3);
    let mut waiting = store.command(&["put", "a", &file, "--wait", "30"]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(waiting.try_wait().unwrap().is_none());
    drop(held);
    assert!(waiting.wait().unwrap().success());
}

#[test]
fn a_disk_that_is_full_or_cannot_be_written() {
    let store = Store::empty(1 << 20);
    store.ok(&["format", "--segment-size", "256K"]);
    let file = store.file("f", &[1; 100_000]);
    for number in 0..4 {
        store.ok(&["put", &format!("n/{number}"), &file]);
    }
    assert!(store.fails(&["put", "n/4", &file], 6).contains("no space"));
    let large = store.file("large", &vec![1; 260_000]);
    store.fails(&["put", "large", &large], 2);
    if Path::new("/sys/class/block").exists() && rustix::process::geteuid().is_root() {
        return; // root may write everything
    }
    let mut permissions = fs::metadata(store.path("disk")).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(store.path("disk"), permissions).unwrap();
    store.fails(&["put", "n/5", &file], 7);
    store.ok(&["get", "n/0"]);
}

#[test]
fn rot_is_exit_code_5_and_verify_names_the_path() {
    let store = Store::new();
    let file = store.file("f", &[1; 50_000]);
    for name in ["a", "b", "c"] {
        store.ok(&["put", name, &file]);
    }
    store.ok(&["verify"]);
    let stat: serde_json::Value = serde_json::from_str(&store.ok(&["stat", "b", "--json"])).unwrap();
    let mut bytes = fs::read(store.path("disk")).unwrap();
    bytes[usize::try_from(stat["block"].as_u64().unwrap()).unwrap() * 4096 + 20_000] ^= 1;
    fs::write(store.path("disk"), bytes).unwrap();
    let output = store.run(&["get", "b"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(5), 0), "no byte of it leaves");
    let output = store.run(&["verify"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(text(&output.stdout).starts_with("b\t"), "{}", text(&output.stdout));
    assert_eq!(text(&output.stdout).lines().count(), 1);
}

#[test]
fn every_printed_path_survives_kill() {
    let store = Store::new();
    let mut list = String::new();
    for number in 0..400 {
        let file = store.file(&format!("in/{number}"), &[u8::try_from(number % 251).unwrap(); 9000]);
        list += &format!("k/{number}\t{file}\n");
    }
    let manifest = store.file("list", list.as_bytes());
    let mut checked = 0;
    for round in 0..12_u64 {
        let printed = store.path("printed");
        let mut child = store
            .command(&["put", "--batch", &manifest, "--prefix", &format!("{round}/")])
            .stdout(fs::File::create(&printed).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(3 + round * 4));
        let _ = child.kill(); // it may have ended
        child.wait().unwrap();
        for path in fs::read_to_string(&printed).unwrap().lines() {
            let number: u32 = path.rsplit('/').next().unwrap().parse().unwrap();
            let data = store.run(&["get", path]).stdout;
            assert_eq!(data, vec![u8::try_from(number % 251).unwrap(); 9000], "{path}");
            checked += 1;
        }
        if checked > 600 {
            break;
        }
    }
    store.ok(&["verify"]);
}

/// The checksum is for accidents; who insists on the hash also notices bytes that were changed on purpose.
#[test]
fn get_with_hash_refuses_what_only_looks_right() {
    let store = Store::new();
    let file = store.file("f", &[7; 9000]);
    let locator = store.ok(&["put", "a", &file, "--locator"]);
    assert_eq!(store.run(&["get", "a", "--hash"]).stdout, [7; 9000]);
    let forged = forge::forge(&store.path("disk"), "a");
    assert_eq!(store.run(&["get", "a"]).stdout, forged);
    for args in [
        &["get", "a", "--hash"][..],
        &["get", locator.trim(), "--hash"],
        &["get", "a", "--version", "1", "--hash"],
    ] {
        assert!(store.fails(args, 5).contains("a: "), "{args:?}");
    }
    let to = store.path("to");
    std::fs::create_dir(&to).unwrap();
    let args = ["get", "--batch", "-", "--to", to.to_str().unwrap(), "--hash"];
    assert_eq!(store.run_with_input(&args, b"a\n").status.code(), Some(5));
    assert!(!to.join("a").exists());
    assert_eq!(store.run(&["verify"]).status.code(), Some(5));
}
