//! Terms, holds, erasure, expiry and growth as a user of the command line meets them, alone and beside `receipt serve`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

#[path = "support/child.rs"]
mod child;

use child::die_with_parent;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    fn new(size_bytes: u64) -> Self {
        let store = Self { dir: tempfile::tempdir().unwrap() };
        fs::File::create(store.path("disk")).unwrap().set_len(size_bytes).unwrap();
        store.ok(&["format"]);
        store
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_receipt"));
        command.arg("--device").arg(self.path("disk")).arg("--socket").arg(self.path("socket")).args(args);
        die_with_parent(command.stdin(Stdio::null()));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }

    /// Stores receipts of 100,000 bytes of one class, issued on a day.
    fn put_many(&self, prefix: &str, count: usize, class: &str, issued: &str) {
        let tree = self.path(prefix);
        fs::create_dir_all(&tree).unwrap();
        for number in 0..count {
            let data: Vec<u8> =
                format!("{prefix} {number} ").into_bytes().into_iter().cycle().take(100_000).collect();
            fs::write(tree.join(format!("{number:04}")), data).unwrap();
        }
        let dir = tree.to_str().unwrap();
        self.ok(&[
            "put",
            "--batch",
            dir,
            "--prefix",
            &format!("{prefix}/"),
            "--class",
            class,
            "--issued",
            issued,
        ]);
    }

    /// Holds the writer until it is dropped.
    fn serve(&self) -> Serving {
        let mut child = self.command(&["serve"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("socket"), "{line}");
        Serving(child)
    }
}

struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status(); // it may have ended already
        self.0.wait().unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn terms_holds_and_erasure(store: &Store) {
    store.fails(&["put", "x", "/dev/null", "--class", "1"], 2);
    store.ok(&["policy", "set", "1", "10"]);
    store.ok(&["policy", "set", "2", "5", "--from-year-end"]);
    store.ok(&["policy", "set", "3", "forever"]);
    let listed = store.ok(&["policy"]);
    assert!(listed.contains("class 1: 10 years from the day of issue"), "{listed}");
    fs::write(store.path("image"), vec![7; 50_000]).unwrap();
    let image = store.path("image").to_str().unwrap().to_owned();
    store.ok(&["put", "new", &image, "--class", "1"]);
    store.ok(&["put", "old", &image, "--class", "1", "--issued", "2001-02-03"]);
    let stat: serde_json::Value = serde_json::from_str(&store.ok(&["stat", "old", "--json"])).unwrap();
    assert_eq!((&stat["class"], &stat["issued"]), (&1.into(), &"2001-02-03".into()));
    store.ok(&["put", "none", &image]);
    assert!(store.fails(&["rm", "new"], 8).contains("kept until"));
    store.fails(&["put", "y", &image, "--issued", "2001-02-30"], 2);
    // A slip of the pen would keep it for a thousand years.
    let said = store.fails(&["put", "y", &image, "--class", "1", "--issued", "2999-01-01"], 8);
    assert!(said.contains("2999-01-01") && said.contains("after today"), "{said}");
    store.fails(&["stat", "y"], 3);
    // And this one would end every term at once.
    let said = store.fails(&["policy", "set", "1", "0"], 2);
    assert!(said.contains("none"), "{said}");
    assert!(store.ok(&["policy"]).contains("class 1: 10 years"), "as it was");
    store.ok(&["policy", "set", "4", "0", "--from-year-end"]);
    let said = store.fails(&["expire", "--today", "2020-01-01"], 8);
    assert!(said.contains("confirmed already") && said.contains("leave `--today` out"), "{said}");
    assert!(store.fails(&["hold", "ol", "--until", "2020-01-01"], 2).contains("2020-01-01 is over"));
    store.ok(&["hold", "ol"]);
    store.ok(&["hold", "/none", "--until", "2999-01-01"]);
    assert!(store.fails(&["rm", "old"], 8).contains("on hold"));
    assert!(store.fails(&["rm", "none"], 8).contains("on hold"));
    assert!(store.ok(&["hold"]).contains("hold ol: until it is released"));
    assert!(store.fails(&["erase", "old", "--reason", "order 1"], 8).contains("on hold"));
    store.ok(&["release", "ol"]);
    store.fails(&["release", "ol"], 3);
    assert_eq!(store.ok(&["erase", "new", "--reason", "order 2"]), "new\n");
    store.fails(&["get", "new"], 3);
    store.ok(&["rm", "old"]);
    store.ok(&["verify"]);
    assert_eq!(store.ok(&["ls"]), "none\n");
}

#[test]
fn terms_holds_and_erasure_alone() {
    terms_holds_and_erasure(&Store::new(16 << 20));
}

#[test]
fn terms_holds_and_erasure_beside_a_running_writer() {
    let store = Store::new(16 << 20);
    let _serving = store.serve();
    terms_holds_and_erasure(&store);
}

#[test]
fn expiry_gives_room_back_to_the_file_system() {
    let store = Store::new(64 << 20);
    store.ok(&["policy", "set", "1", "5"]);
    store.ok(&["policy", "set", "2", "forever"]);
    store.put_many("gone", 250, "1", "2015-01-01");
    store.put_many("kept", 30, "2", "2015-01-01");
    let note = store.path("note");
    fs::write(&note, store.ok(&["checkpoint"])).unwrap();
    let used = || fs::metadata(store.path("disk")).unwrap().blocks() * 512;
    let before = used();
    assert!(before > 26 << 20, "{before}");
    let would = store.ok(&["expire", "--dry-run"]);
    assert_eq!(store.ok(&["ls"]).lines().count(), 280, "a dry run changes nothing");
    let serving = store.serve();
    let gone = store.ok(&["expire"]);
    drop(serving);
    assert_eq!(would, gone, "a dry run says what will go");
    let count = gone.lines().count();
    assert!(count > 200, "{count}");
    assert!(used() < before - 18 * (1 << 20), "{} of {before} bytes are still used", used());
    assert_eq!(store.ok(&["ls"]).lines().count(), 280 - count);
    store.fails(&["get", "gone/0000"], 3);
    store.ok(&["get", "kept/0029", "-o", store.path("out").to_str().unwrap()]);
    store.ok(&["verify"]);
    store.ok(&["verify", "--from", note.to_str().unwrap()]);
    let info = store.ok(&["info"]);
    for name in ["live_bytes", "dead_bytes", "index_percent"] {
        assert!(info.contains(name), "{info}");
    }
}

#[test]
fn a_larger_device_is_taken_over_by_the_next_writer_and_by_a_running_one() {
    let store = Store::new(16 << 20);
    let resize =
        |bytes| OpenOptions::new().write(true).open(store.path("disk")).unwrap().set_len(bytes).unwrap();
    let segments = || {
        let info = store.ok(&["info", "--json"]);
        serde_json::from_str::<serde_json::Value>(&info).unwrap()["segments"].as_u64().unwrap()
    };
    assert_eq!(segments(), 16);
    resize(20 << 20);
    assert!(store.ok(&["grow", "--json"]).contains("\"segments\":20"));
    let serving = store.serve();
    resize(40 << 20);
    let start = std::time::Instant::now();
    while segments() != 40 {
        assert!(start.elapsed().as_secs() < 60, "the running writer does not notice");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    drop(serving);
    resize(44 << 20);
    store.ok(&["put", "a", "/dev/null"]);
    assert_eq!(segments(), 44, "the next opening takes over");
    store.ok(&["verify"]);
}

#[test]
fn a_killed_expiry_is_finished_by_the_next_one() {
    let store = Store::new(64 << 20);
    store.ok(&["policy", "set", "1", "5"]);
    store.put_many("gone", 300, "1", "2015-01-01");
    store.put_many("kept", 60, "0", "2015-01-01");
    let mut random: u64 = 88_172_645_463_325_252;
    for _ in 0..20 {
        let mut child =
            store.command(&["expire"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(std::time::Duration::from_micros(random % 60_000));
        let _ = child.kill(); // it may have ended
        child.wait().unwrap();
        for number in 0..60 {
            assert!(store.ok(&["stat", &format!("kept/{number:04}")]).contains("100000"));
        }
    }
    store.ok(&["expire"]);
    store.ok(&["verify"]);
    assert_eq!(store.ok(&["ls", "kept"]).lines().count(), 60);
}

/// As large as the file system of the folder takes: tmpfs 100 TiB, ext4 a block less than 16.
fn largest_file_in(dir: &std::path::Path) -> (tempfile::TempDir, u64) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let file = fs::File::create(dir.path().join("disk")).unwrap();
    let sizes = [100 << 40, (16 << 40) - 4096];
    let size_bytes = sizes.into_iter().find(|size_bytes| file.set_len(*size_bytes).is_ok());
    (dir, size_bytes.expect("a large sparse file"))
}

#[test]
fn a_store_of_a_hundred_terabytes_takes_no_more_room_and_few_operations() {
    for place in ["/dev/shm", env!("CARGO_TARGET_TMPDIR")] {
        let (dir, size_bytes) = largest_file_in(place.as_ref());
        let store = Store { dir };
        store.ok(&["format"]);
        let data = store.path("data");
        fs::write(&data, [7; 100_000]).unwrap();
        for number in 0..3 {
            store.ok(&["put", &format!("a/{number}"), data.to_str().unwrap()]);
        }
        store.ok(&["get", "a/1", "-o", store.path("out").to_str().unwrap()]);
        assert_eq!(fs::read(store.path("out")).unwrap(), [7; 100_000]);
        assert_eq!(store.ok(&["ls"]), "a/2\na/1\na/0\n");
        store.ok(&["rm", "a/0"]);
        store.fails(&["get", "a/0"], 3);
        let info: serde_json::Value = serde_json::from_str(&store.ok(&["--json", "info"])).unwrap();
        let free_bytes = info["free_bytes"].as_u64().unwrap();
        assert!(free_bytes > size_bytes / 100 * 98, "{place}: {free_bytes} of {size_bytes} bytes are free");
        let used_bytes = store.path("disk").metadata().unwrap().blocks() * 512;
        assert!(used_bytes < 4 << 20, "{place}: {used_bytes} bytes on the host for three receipts");
    }
}
