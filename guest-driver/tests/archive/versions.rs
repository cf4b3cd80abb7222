//! `receipt export --all-versions`: every version comes back, in order, whatever ends it on the way.

use super::{Place, text};
use std::fs;
use std::process::{Child, Command};

/// Receipts of one to six versions, those of a path in different classes, some with the same data twice; removed and erased ones.
fn fill(place: &Place) {
    for version in 1..=6_u8 {
        for number in version..=6 {
            let name = format!("v/{version}/p/{number}");
            place.write(
                &name,
                format!("version {version} of {number} ").repeat(700 * usize::from(number)).as_bytes(),
            );
        }
        // Every second version has the bytes of the first.
        place.write(&format!("v/{version}/turns"), if version % 2 == 0 { b"even" } else { b"odd" });
        place.write(&format!("v/{version}/gone"), &[version; 99]);
        let class = (1 + version % 2).to_string();
        let issued = format!("2026-01-{version:02}");
        let from = format!("v/{version}");
        place.ok("a", &["put", "--batch", &from, "--new-version", "--class", &class, "--issued", &issued]);
    }
    place.ok("a", &["erase", "gone", "--reason", "court"]);
    place.write("again", b"after the erasure");
    place.ok("a", &["put", "gone", "again"]);
}

/// What is known of every version that a store can give back: path, number, bytes and the facts of the newest.
fn versions(place: &Place, disk: &str) -> Vec<(String, u64, String)> {
    place.ok(disk, &["verify"]);
    let mut all = Vec::new();
    for path in place.ok(disk, &["ls"]).lines() {
        let stat: serde_json::Value =
            serde_json::from_str(&place.ok(disk, &["stat", path, "--json"])).unwrap();
        let newest = stat["version"].as_u64().unwrap();
        for version in 1..=newest {
            let bytes = place.ok(disk, &["get", path, "--version", &version.to_string()]);
            all.push((path.to_owned(), version, bytes));
        }
        all.push((path.to_owned(), 0, format!("{} {}", stat["class"], stat["issued_day"])));
    }
    all.sort();
    all
}

fn kill_in_the_middle(mut child: Child) {
    let mut byte = [0];
    let _ = std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn all_versions_come_back_in_order() {
    let place = Place::new();
    fill(&place);
    let facts = versions(&place, "a");
    assert_eq!(facts.len(), 21 + 6 + 1 + 8, "versions, and the newest of eight paths");
    for way in ["folder", "out.tar", "-"] {
        fs::remove_file(place.path("b")).unwrap();
        place.empty("b");
        if way == "-" {
            let mut export = place.command("a", &["export", "--all-versions", "-"]).spawn().unwrap();
            let mut import = place.command("b", &["import", "-"]);
            let output = import.stdin(export.stdout.take().unwrap()).output().unwrap();
            assert!(export.wait().unwrap().success() && output.status.success(), "{output:?}");
        } else {
            let output = place.run("a", &["export", "--all-versions", way]);
            assert!(text(&output.stderr).contains("8 receipts in 28 versions"), "{output:?}");
            kill_in_the_middle(place.command("b", &["import", way]).spawn().unwrap());
            place.ok("b", &["import", way]);
        }
        assert_eq!(versions(&place, "b"), facts, "{way}");
        if way != "-" {
            // Again: all is there.
            let again = place.ok("b", &["import", way, "--json"]);
            assert_eq!((again.lines().count(), again.matches("\"new\":true").count()), (28, 0));
            assert_eq!(versions(&place, "b"), facts, "{way}");
        }
    }
    // The versions of a store that has a part of them are completed behind it.
    place.write("newer", b"version 7");
    for path in ["turns", "p/3"] {
        place.ok("a", &["put", path, "newer", "--new-version"]);
    }
    place.ok("a", &["export", "--all-versions", "folder"]);
    place.ok("b", &["import", "folder"]);
    assert_eq!(versions(&place, "b"), versions(&place, "a"));
}

#[test]
fn archive_of_all_versions_goes_on_from_any_byte() {
    let place = Place::new();
    fill(&place);
    place.ok("a", &["export", "--all-versions", "out.tar"]);
    let whole = fs::read(place.path("out.tar")).unwrap();
    for len in (0..whole.len()).step_by(whole.len() / 30) {
        place.write("out.tar.part", &whole[..len]);
        place.ok("a", &["export", "--all-versions", "out.tar"]);
        assert!(fs::read(place.path("out.tar")).unwrap() == whole, "cut at {len}");
    }
    // A path with a new version begins anew, the receipts before it are kept.
    fs::rename(place.path("out.tar"), place.path("out.tar.part")).unwrap();
    place.write("newer", b"version 7");
    place.ok("a", &["put", "p/5", "newer", "--new-version"]);
    place.ok("a", &["export", "--all-versions", "out.tar"]);
    place.ok("b", &["import", "out.tar"]);
    assert_eq!(versions(&place, "b"), versions(&place, "a"));
    // Other programs see the newest versions where those of any export are, the older ones beside them.
    let tar = Command::new("tar")
        .args(["xf", "out.tar", "--warning=no-unknown-keyword"])
        .current_dir(place.path(""))
        .status();
    assert!(tar.unwrap().success());
    assert_eq!(fs::read(place.path("receipts/p/5")).unwrap(), b"version 7");
    assert_eq!(fs::read(place.path("versions/2/p/5")).unwrap(), fs::read(place.path("v/2/p/5")).unwrap());
}

/// A version is never stored under the number of another one.
#[test]
fn version_that_is_missing_or_another_stops_those_behind_it() {
    let place = Place::new();
    fill(&place);
    place.ok("a", &["export", "--all-versions", "out"]);
    let second = place.path("out/versions/2/p/4");
    let good = fs::read(&second).unwrap();
    for bad in [None, Some(b"changed".as_slice())] {
        fs::remove_file(place.path("b")).unwrap();
        place.empty("b");
        match bad {
            None => fs::remove_file(&second).unwrap(),
            Some(bytes) => fs::write(&second, bytes).unwrap(),
        }
        let output = place.run("b", &["import", "out"]);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.lines().count() == 3, "{said}");
        assert!(said.contains("this would be version 2, not 3"), "{said}");
        assert!(said.lines().all(|line| line.contains("p/4")), "{said}");
        assert_eq!(place.ok("b", &["get", "p/4"]), place.ok("a", &["get", "p/4", "--version", "1"]));
    }
    fs::write(&second, good).unwrap();
    place.ok("b", &["import", "out"]);
    assert_eq!(versions(&place, "b"), versions(&place, "a"));
    // What is stored under a path by others is left alone.
    fs::remove_file(place.path("b")).unwrap();
    place.empty("b");
    place.write("other", b"another receipt");
    place.ok("b", &["put", "p/2", "other"]);
    let said = place.fails("b", &["import", "out"], 8);
    assert!(said.lines().count() == 2 && said.lines().all(|line| line.contains("p/2: other data")), "{said}");
    assert_eq!(place.ok("b", &["get", "p/2"]), "another receipt");
}

/// Older versions that expiry has taken are not there to be exported; the others count from 1 where they come.
#[test]
fn versions_that_have_gone_are_left_out() {
    let place = Place::new();
    place.ok("a", &["policy", "set", "1", "1"]);
    place.ok("a", &["policy", "set", "2", "50"]);
    let mut noise = 0_u32;
    let mut seal = |place: &Place| {
        // Enough to end a segment.
        for _ in 0..20 {
            noise += 1;
            place.write("noise", &noise.to_le_bytes().repeat(50_000));
            place.ok(
                "a",
                &["put", &format!("noise/{noise}"), "noise", "--class", "1", "--issued", "2020-01-01"],
            );
        }
    };
    place.write("one", b"first");
    place.write("two", b"second");
    place.ok("a", &["put", "p", "one", "--class", "1", "--issued", "2020-01-01"]);
    seal(&place);
    place.ok("a", &["put", "p", "two", "--class", "2", "--new-version"]);
    seal(&place);
    place.ok("a", &["expire", "--pace", "100"]);
    assert_eq!(place.run("a", &["get", "p", "--version", "1"]).status.code(), Some(3), "gone");
    place.ok("a", &["export", "--all-versions", "p", "out.tar"]);
    place.ok("b", &["import", "out.tar"]);
    assert_eq!(place.ok("b", &["get", "p"]), "second");
}
