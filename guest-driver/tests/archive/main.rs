//! `receipt export` and `import`: what comes back is what was there, whatever ends them on the way, and nothing gets out of its folder or store.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

#[path = "../support/child.rs"]
mod child;
mod resume;
mod versions;

use child::die_with_parent;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A folder with two empty stores, `a` and `b`, which know two classes.
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        ["a", "b"].iter().for_each(|disk| place.empty(disk));
        place
    }

    fn empty(&self, disk: &str) {
        fs::File::create(self.path(disk)).unwrap().set_len(64 << 20).unwrap();
        self.ok(disk, &["format"]);
        self.ok(disk, &["policy", "set", "1", "5"]);
        self.ok(disk, &["policy", "set", "2", "10"]);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, disk: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_receipt"));
        command.arg("--device").arg(self.path(disk)).args(args).current_dir(self.dir.path());
        command.arg("--socket").arg(self.path("no socket"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_parent(&mut command);
        command
    }

    fn run(&self, disk: &str, args: &[&str]) -> Output {
        self.command(disk, args).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, disk: &str, args: &[&str]) -> String {
        let output = self.run(disk, args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    #[track_caller]
    fn fails(&self, disk: &str, args: &[&str], code: i32) -> String {
        let output = self.run(disk, args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    }

    fn write(&self, name: &str, data: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    /// Receipts of several sizes, classes, days and versions, some with long and odd names.
    fn fill(&self) {
        for number in 0..60_usize {
            self.write(&format!("in/{}/{number}.png", number % 4), &data(number));
        }
        self.write(&format!("in/{}/{}", "l".repeat(200), "ü".repeat(100)), b"long");
        self.write("in/empty", b"");
        self.ok("a", &["put", "--batch", "in", "--class", "1", "--issued", "2024-02-29"]);
        self.write("other", b"the second version");
        self.ok("a", &["put", "--new-version", "0/4.png", "other", "--class", "2", "--issued", "2025-12-31"]);
        self.ok("a", &["put", "now", "other"]);
    }

    /// Something else in another store.
    fn fill_other(&self, disk: &str) {
        self.write("elsewhere", b"of another store");
        self.ok(disk, &["put", "elsewhere", "elsewhere"]);
    }

    /// What is known of every receipt of a store but where it lies.
    fn facts(&self, disk: &str) -> Vec<(String, String, String)> {
        self.ok(disk, &["verify"]);
        let list = self.ok(disk, &["ls"]);
        let mut facts: Vec<_> = list
            .lines()
            .map(|path| {
                let stat: serde_json::Value =
                    serde_json::from_str(&self.ok(disk, &["stat", path, "--json"])).unwrap();
                (path.to_owned(), stat["blake3"].to_string(), stat["issued_day"].to_string())
            })
            .collect();
        facts.sort();
        facts
    }
}

fn data(number: usize) -> Vec<u8> {
    let len = [0, 1, 511, 512, 513, 4096, 70_000][number % 7] + number;
    format!("receipt {number} ").into_bytes().into_iter().cycle().take(len).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn files_below(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}

#[test]
fn what_is_exported_comes_back_by_folder_archive_and_pipe() {
    for way in ["folder", "out.tar", "-"] {
        let place = Place::new();
        place.fill();
        if way == "-" {
            let mut export = place.command("a", &["export", "-"]).spawn().unwrap();
            let mut import = place.command("b", &["import", "-"]);
            let output = import.stdin(export.stdout.take().unwrap()).output().unwrap();
            assert!(export.wait().unwrap().success() && output.status.success(), "{output:?}");
        } else {
            place.ok("a", &["export", way]);
            place.ok("b", &["import", way]);
        }
        let facts = place.facts("a");
        assert_eq!(facts.len(), 63);
        assert_eq!(place.facts("b"), facts, "{way}");
        // The classes are there, too: they decide what may be removed.
        for path in ["0/0.png", "0/4.png"] {
            let [kept, again] = ["a", "b"].map(|disk| place.fails(disk, &["rm", path], 8));
            assert_eq!(kept, again);
            assert!(kept.contains("kept until"), "{kept}");
        }
        place.ok("b", &["rm", "now"]);
        if way != "-" {
            // Again: nothing is stored twice, what was removed comes back.
            let before = place.ok("b", &["checkpoint"]);
            let again = place.ok("b", &["import", way, "--json"]);
            assert_eq!(again.lines().filter(|line| line.contains("\"new\":true")).count(), 1);
            assert_ne!(place.ok("b", &["checkpoint"]), before);
            assert_eq!(place.facts("b"), facts, "{way}");
        }
    }
}

#[test]
fn a_prefix_exports_only_that() {
    let place = Place::new();
    place.fill();
    for (target, files) in [("p", 15), ("p.tar", 15)] {
        assert_eq!(place.ok("a", &["export", "/3/", target]).lines().count(), files);
    }
    assert_eq!(files_below(&place.path("p/receipts")), 15);
    place.ok("b", &["import", "p"]);
    assert_eq!(place.facts("b").len(), 15);
}

#[test]
fn changed_exports_are_found_out() {
    let place = Place::new();
    place.fill();
    place.ok("a", &["export", "out"]);
    place.ok("a", &["export", "out.tar"]);
    // One byte of one receipt.
    let mut bytes = data(9);
    bytes[7] ^= 1;
    place.write("out/receipts/1/9.png", &bytes);
    let said = place.fails("b", &["import", "out"], 5);
    assert!(said.contains("1/9.png") && said.lines().count() == 1, "{said}");
    assert_eq!(place.facts("b").len(), 62, "all but that one");
    let mut tar = fs::read(place.path("out.tar")).unwrap();
    let at = tar.windows(20).position(|some| some == b"receipt 13 receipt 1").unwrap();
    tar[at] ^= 1;
    place.write("changed.tar", &tar);
    assert!(place.fails("b", &["import", "changed.tar"], 5).contains("1/13.png"));
    // A part that is missing: a line, the end, the end of an archive at any block.
    let lines = fs::read_to_string(place.path("out/manifest.jsonl")).unwrap();
    for left_out in [3, lines.lines().count() - 1] {
        let less: Vec<&str> =
            lines.lines().enumerate().filter(|(at, _)| *at != left_out).map(|(_, line)| line).collect();
        place.write("out/manifest.jsonl", less.join("\n").as_bytes());
        assert!(place.fails("b", &["import", "out"], 2).contains("missing"), "{left_out}");
    }
    for len in [512, 2048, tar.len() / 2 / 512 * 512, tar.len() / 2 + 100, tar.len() - 2048] {
        place.write("short.tar", &tar[..len]);
        let output = place.run("b", &["import", "short.tar"]);
        assert!(!output.status.success(), "{len} of {}", tar.len());
    }
}

/// An archive of entries: type, name, data, link.
fn archive(entries: &[(tar::EntryType, &[u8], &[u8], &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, name, data, link) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        // As an attacker writes it: the library refuses such names.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn hostile_archives_store_nothing_but_their_good_files() {
    use tar::EntryType as Kind;
    let place = Place::new();
    let entries: &[(Kind, &[u8], &[u8], &str)] = &[
        (Kind::Regular, b"good/1", b"one", ""),
        (Kind::Regular, b"../up", b"x", ""),
        (Kind::Regular, b"good/../../up", b"x", ""),
        (Kind::Regular, b"/etc/absolute", b"x", ""),
        (Kind::Regular, b"a//b", b"x", ""),
        (Kind::Regular, b"\xff\xfe", b"x", ""),
        (Kind::Symlink, b"good/link", b"", "/etc/passwd"),
        (Kind::Link, b"good/hard", b"", "good/1"),
        (Kind::Char, b"good/null", b"", ""),
        (Kind::Block, b"good/sda", b"", ""),
        (Kind::Fifo, b"good/pipe", b"", ""),
        (Kind::Regular, b"good/1", b"another one under the same name", ""),
        (Kind::Directory, b"good", b"", ""),
        (Kind::Regular, b"./good/2", b"two", ""),
    ];
    place.write("bad.tar", &archive(entries));
    let output = place.run("b", &["import", "bad.tar", "--issued", "changed"]);
    assert!(!output.status.success());
    assert_eq!(text(&output.stderr).lines().count(), 11, "a line each: {}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "good/1\ngood/2\n");
    let issued = receipt_store::day::day_of_ms(1_700_000_000_000).to_string();
    let facts = place.facts("b");
    assert_eq!(
        facts.iter().map(|fact| (fact.0.as_str(), &fact.2)).collect::<Vec<_>>(),
        [("good/1", &issued), ("good/2", &issued)]
    );
}

#[test]
fn archives_that_promise_too_much_cost_nothing() {
    let place = Place::new();
    // A name of 8 GiB, and a PAX header of as much: only announced.
    for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(8 << 30);
        header.set_cksum();
        let mut import = place.command("b", &["import", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = import.stdin.take().unwrap();
        input.write_all(header.as_bytes()).unwrap();
        while input.write_all(&[b'a'; 1 << 16]).is_ok() {} // until nobody reads any more
        let output = import.wait_with_output().unwrap();
        assert!(text(&output.stderr).contains("too long"), "{output:?}");
    }
    // A receipt that is too large is named, and the next one stored.
    let large = vec![1; (32 << 20) + 1];
    let kind = tar::EntryType::Regular;
    place.write("large.tar", &archive(&[(kind, b"large", &large, ""), (kind, b"small", b"x", "")]));
    assert!(place.fails("b", &["import", "large.tar"], 2).contains("large"));
    assert_eq!(place.ok("b", &["ls"]), "small\n");
    for garbage in [&b"no archive at all"[..], &[0xff; 4096], &[]] {
        place.write("garbage.tar", garbage);
        place.run("b", &["import", "garbage.tar"]);
        assert_eq!(place.ok("b", &["ls"]), "small\n");
    }
}

#[test]
fn folders_with_links_are_neither_followed_nor_written_through() {
    let place = Place::new();
    place.write("outside/secret", b"secret");
    place.write("tree/good", b"good");
    place.write("tree/sub/good", b"good, too");
    symlink(place.path("outside/secret"), place.path("tree/file")).unwrap();
    symlink(place.path("outside"), place.path("tree/folder")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.path("tree/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let output = place.run("a", &["import", "tree", "--prefix", "share/", "--class", "1"]);
    assert_eq!(text(&output.stdout), "share/good\nshare/sub/good\n");
    assert_eq!((output.status.code(), text(&output.stderr).lines().count()), (Some(2), 3), "{output:?}");
    // Out: a link in the way of a file, and of a folder.
    for (link, target) in [("share", "outside"), ("share/good", "outside/secret")] {
        let _ = fs::remove_dir_all(place.path("out"));
        fs::create_dir_all(place.path("out/receipts").join(link).parent().unwrap()).unwrap();
        symlink(place.path(target), place.path("out/receipts").join(link)).unwrap();
        let output = place.run("a", &["export", "out"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains("not complete"), "{output:?}");
        assert!(!place.path("out/manifest.jsonl").exists());
        assert_eq!(fs::read(place.path("outside/secret")).unwrap(), b"secret");
        assert_eq!(files_below(&place.path("outside")), 1);
    }
}

/// What no folder can hold goes into an archive.
#[test]
fn receipts_that_are_no_files_are_named() {
    let place = Place::new();
    place.write("one", b"1");
    let long = "n".repeat(300);
    for path in ["a", "a/b", long.as_str(), "good"] {
        place.ok("a", &["put", path, "one"]);
    }
    let said = place.fails("a", &["export", "out"], 1);
    assert!(said.contains(&long) && said.contains("not complete"), "{said}");
    assert_eq!(fs::read(place.path("out/receipts/good")).unwrap(), b"1");
    place.ok("a", &["export", "out.tar"]);
    place.ok("b", &["import", "out.tar"]);
    assert_eq!(place.facts("b"), place.facts("a"));
}

#[test]
fn other_programs_read_the_archive_and_ours_reads_theirs() {
    let place = Place::new();
    place.fill();
    place.ok("a", &["export", "out.tar"]);
    let tar = |args: &[&str]| {
        let output = Command::new("tar").args(args).current_dir(place.dir.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    };
    fs::create_dir(place.path("unpacked")).unwrap();
    tar(&["xf", "out.tar", "-C", "unpacked", "--warning=no-unknown-keyword"]);
    assert_eq!(files_below(&place.path("unpacked/receipts")), 63);
    assert_eq!(fs::read(place.path("unpacked/receipts/1/9.png")).unwrap(), data(9));
    for format in ["gnu", "pax", "ustar", "v7"] {
        let name = format!("{format}.tar");
        // The old formats hold no long names.
        let folder =
            if format == "gnu" || format == "pax" { "unpacked/receipts" } else { "unpacked/receipts/2" };
        tar(&["cf", &name, "--format", format, "-C", folder, "."]);
        place.ok("b", &["import", &name, "--prefix", &format!("{format}/"), "--class", "2"]);
        let files = files_below(&place.path(folder));
        assert_eq!(place.ok("b", &["ls", &format!("{format}/")]).lines().count(), files, "{format}");
    }
    place.ok("b", &["verify"]);
}

/// Ids travel with their receipts, and cannot be made up.
#[test]
fn ids_come_from_an_export_only() {
    let place = Place::new();
    {
        let device = receipt_store::RawDevice::open_writer(&place.path("a")).unwrap();
        let mut writer =
            receipt_store::Writer::open(device, &receipt_store::WriterOptions::default()).unwrap();
        let path = receipt_store::ReceiptPath::new(".id/0000").unwrap();
        writer.put(&receipt_store::Put::new(&path, b"{}")).unwrap();
        writer.close().unwrap();
    }
    place.ok("a", &["export", "out"]);
    place.ok("b", &["import", "out"]);
    assert_eq!(place.ok("b", &["ls"]), ".id/0000\n");
    place.write("tree/.id/1111", b"{}");
    let made_up = Command::new("tar")
        .args(["-cf", "tree.tar", "-C", "tree", "."])
        .current_dir(place.dir.path())
        .status();
    assert!(made_up.unwrap().success());
    for source in ["tree", "tree.tar"] {
        assert!(place.fails("b", &["import", source], 2).contains("business ids"), "{source}");
    }
    assert!(place.fails("b", &["import", "tree/.id", "--prefix", ".id/"], 2).contains("business ids"));
    assert_eq!(place.ok("b", &["ls"]), ".id/0000\n");
}
