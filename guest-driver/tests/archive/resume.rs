//! Exports and imports that are ended on the way, at any byte, and go on.

use super::{Place, data, files_below, text};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Child;

#[test]
fn killed_export_is_gone_on_with_and_says_that_it_is_not_complete() {
    let place = Place::new();
    place.fill();
    let mut export = place.command("a", &["export", "out"]).spawn().unwrap();
    // Killed at the first path that it says.
    let mut byte = [0];
    export.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    export.kill().unwrap();
    export.wait().unwrap();
    if !place.path("out/manifest.jsonl").exists() {
        assert!(place.fails("b", &["import", "out"], 2).contains("did not finish"));
    }
    // One that was half written when the host went down, one that is longer, one that is another.
    let receipts = place.path("out/receipts");
    fs::create_dir_all(receipts.join("1")).unwrap();
    fs::write(receipts.join("1/1.png"), b"").unwrap();
    fs::write(receipts.join("1/5.png"), [data(5), b"x".to_vec()].concat()).unwrap();
    fs::write(receipts.join("now"), b"the wrong version.").unwrap();
    let output = place.run("a", &["export", "out"]);
    assert!(output.status.success() && text(&output.stderr).contains("63 receipts"), "{output:?}");
    assert_eq!(files_below(&receipts), 63);
    assert!(!place.path("out/receipt.part").exists() && !place.path("out/manifest.jsonl.part").exists());
    place.ok("b", &["import", "out"]);
    assert_eq!(place.facts("b"), place.facts("a"));
    // A third time nothing is left to do.
    let output = place.run("a", &["export", "out"]);
    assert!(text(&output.stderr).contains("63 of them were there"), "{output:?}");
}

#[test]
fn killed_import_is_gone_on_with() {
    let place = Place::new();
    place.fill();
    for (round, source) in ["out", "out.tar"].iter().enumerate() {
        place.ok("a", &["export", source]);
        for _ in 0..3 {
            let mut import = place.command("b", &["import", source]).spawn().unwrap();
            let mut byte = [0];
            let _ = import.stdout.as_mut().unwrap().read_exact(&mut byte);
            import.kill().unwrap();
            import.wait().unwrap();
        }
        place.ok("b", &["import", source]);
        assert_eq!(place.facts("b"), place.facts("a"), "{round}");
    }
}

/// How many receipts an export has found there already.
fn found(stderr: &[u8]) -> u64 {
    let said = text(stderr);
    let (_, after) = said.split_once("exported, ").unwrap_or_else(|| panic!("{said}"));
    after.split(' ').next().unwrap().parse().unwrap()
}

fn resume(place: &Place, what: &[&str]) -> u64 {
    let output = place.run("a", &[&["export"], what].concat());
    assert!(output.status.success(), "{output:?}");
    found(&output.stderr)
}

/// Waits until `child` has written so much of `name`, which it goes on doing only when somebody reads what it says.
fn wait_for_bytes(place: &Place, name: &str, len_bytes: u64, child: &mut Child) {
    while fs::metadata(place.path(name)).map_or(0, |meta| meta.len()) < len_bytes {
        assert!(child.try_wait().unwrap().is_none(), "it ended before {len_bytes} bytes");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Names so long that those of a quarter of the receipts fill the pipe of the paths: the export waits, and is killed in the middle.
fn fill_with_long_names(place: &Place) {
    for number in 0..256_usize {
        let name = format!("in/{0}/{0}/{0}/{0}/{number}", "n".repeat(240));
        place.write(&name, format!("{number} ").repeat(2000).as_bytes());
    }
    place.ok("a", &["put", "--batch", "in"]);
}

#[test]
fn archive_export_that_was_killed_is_gone_on_with() {
    let place = Place::new();
    fill_with_long_names(&place);
    for name in ["out.tar", "all.tar"] {
        let options: &[&str] = if name == "all.tar" { &["--all-versions", name] } else { &[name] };
        let part = format!("{name}.part");
        let mut export = place.command("a", &[&["export"], options].concat()).spawn().unwrap();
        wait_for_bytes(&place, &part, 256 << 10, &mut export);
        // Nobody else may write to it meanwhile.
        assert!(place.fails("a", &[&["export"], options].concat(), 7).contains(&part));
        export.kill().unwrap();
        export.wait().unwrap();
        assert!(!place.path(name).exists());
        let there = resume(&place, options);
        assert!((10..256).contains(&there), "{there} were there");
        assert!(!place.path(&part).exists());
    }
    place.ok("b", &["import", "out.tar"]);
    assert_eq!(place.facts("b"), place.facts("a"));
    assert_eq!(place.ok("b", &["import", "all.tar", "--json"]).matches("\"new\":false").count(), 256);
}

/// Cut anywhere, with holes and rot behind: the same bytes as without.
#[test]
fn archive_export_goes_on_from_any_byte() {
    let place = Place::new();
    place.fill();
    place.ok("a", &["export", "out.tar"]);
    let whole = fs::read(place.path("out.tar")).unwrap();
    let mut most = 0;
    let mut again = |bytes: &[u8], story: &str| {
        place.write("out.tar.part", bytes);
        most = most.max(resume(&place, &["out.tar"]));
        assert!(fs::read(place.path("out.tar")).unwrap() == whole, "{story}");
    };
    let step = whole.len() / 40;
    for len in (0..=whole.len()).step_by(step).chain([1, 511, 512, 1024, whole.len() - 1024, whole.len()]) {
        let cut = &whole[..len];
        again(cut, &format!("cut at {len}"));
        // What a host that went down has left of the end: nothing, or something else.
        again(&[cut, &vec![0; whole.len() - len]].concat(), &format!("zeroes from {len}"));
        again(&[cut, &vec![0xa5; 5000]].concat(), &format!("garbage from {len}"));
    }
    // A changed byte of a receipt in the middle: it and all behind it are written again.
    let mut rotten = whole.clone();
    let at = whole.windows(20).position(|some| some == b"receipt 13 receipt 1").unwrap();
    rotten[at] ^= 1;
    again(&rotten, "rot");
    assert_eq!(most, 63, "a whole one lacks only its name");
    // The beginning of another export.
    for (options, name) in [(&["3/"][..], "out.tar"), (&["--all-versions"], "out.tar"), (&[], "out.tar")] {
        place.write("out.tar.part", &whole);
        let expected = if options.is_empty() { 63 } else { 0 };
        assert_eq!(resume(&place, &[options, &[name]].concat()), expected, "{options:?}");
    }
    // A disk that was set back has another receipt under the sequence of one in the archive.
    fs::copy(place.path("a"), place.path("before")).unwrap();
    place.ok("a", &["put", "last", "other"]);
    place.ok("a", &["export", "later.tar"]);
    fs::rename(place.path("later.tar"), place.path("later.tar.part")).unwrap();
    fs::rename(place.path("before"), place.path("a")).unwrap();
    place.write("another", b"another");
    place.ok("a", &["put", "last", "another"]);
    assert_eq!(resume(&place, &["later.tar"]), 0, "the first entry is another one");
    place.ok("b", &["import", "later.tar"]);
    assert_eq!(place.ok("b", &["get", "last"]), "another");
    place.fill_other("b");
    place.write("out.tar.part", &whole);
    let output = place.run("b", &["export", "out.tar"]);
    assert_eq!(found(&output.stderr), 0, "of another store");
}

/// What an unfinished archive holds and the store does no more must not be in the finished one.
#[test]
fn archive_export_that_goes_on_holds_nothing_that_was_replaced_or_removed() {
    for change in ["replace", "remove", "erase", "add"] {
        let place = Place::new();
        place.fill();
        place.ok("a", &["export", "out.tar"]);
        fs::rename(place.path("out.tar"), place.path("out.tar.part")).unwrap();
        match change {
            "replace" => drop(place.ok("a", &["put", "--new-version", "1/9.png", "other"])),
            "remove" => drop(place.ok("a", &["rm", "now"])),
            "erase" => drop(place.ok("a", &["erase", "2/22.png", "--reason", "court"])),
            _ => drop(place.ok("a", &["put", "new", "other"])),
        }
        let there = resume(&place, &["out.tar"]);
        assert!(if change == "add" { there == 63 } else { there < 63 }, "{change}: {there}");
        place.ok("b", &["import", "out.tar"]);
        assert_eq!(place.facts("b"), place.facts("a"), "{change}");
        let archive = fs::read(place.path("out.tar")).unwrap();
        let is_there = archive.windows(20).any(|some| some == b"receipt 22 receipt 2");
        assert_eq!(is_there, change != "erase", "{change}");
    }
}

/// Somebody else's link under the name of the unfinished archive would have been written through.
#[test]
fn unfinished_archive_follows_no_link() {
    let place = Place::new();
    place.fill();
    for is_hard in [false, true] {
        place.write("precious", b"precious");
        if is_hard {
            fs::hard_link(place.path("precious"), place.path("out.tar.part")).unwrap();
        } else {
            symlink("precious", place.path("out.tar.part")).unwrap();
        }
        place.ok("a", &["export", "out.tar"]);
        assert_eq!(fs::read(place.path("precious")).unwrap(), b"precious");
    }
    // One that everybody may read becomes this user's own.
    fs::rename(place.path("out.tar"), place.path("out.tar.part")).unwrap();
    fs::set_permissions(place.path("out.tar.part"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(resume(&place, &["out.tar"]), 63);
    let mode = fs::metadata(place.path("out.tar")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "receipts are for who exported them");
    place.ok("b", &["import", "out.tar"]);
    assert_eq!(place.facts("a"), place.facts("b"));
}
