//! What the pages claim of the code is so: tests, files and headings that they name are there.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use receiptdisk_tests::repository;

fn page() -> String {
    fs::read_to_string(repository().join("docs/security.md")).unwrap()
}

/// All Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    let files = entries.flat_map(of);
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn page_of_security_counts_every_unsafe_block() {
    let root = repository().join("backend/src");
    let mut in_code = BTreeMap::new();
    for path in sources(&root) {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        if name.ends_with("tests.rs") || name == "fuzz.rs" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let blocks = lines.map(|line| line.matches("unsafe {").count()).sum::<usize>();
        if blocks > 0 {
            in_code.insert(name, blocks);
        }
    }
    let page = page();
    let (_, table) = page.split_once("| File | Blocks | Why |").unwrap();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.trim_end_matches('`').to_owned(), cells.next()?.parse::<usize>().ok()?))
    };
    let on_page: BTreeMap<String, usize> = table.lines().filter_map(row).collect();
    assert_eq!(in_code, on_page);
}

#[test]
fn page_of_security_names_tests_that_exist() {
    let [tests, backend] = ["tests", "backend/src"].map(|folder| sources(&repository().join(folder)));
    let all: String = tests.iter().chain(&backend).map(|path| fs::read_to_string(path).unwrap()).collect();
    let functions: HashSet<&str> =
        all.split("fn ").skip(1).map(|rest| rest.split(['(', '<']).next().unwrap()).collect();
    let page = page();
    let (_, tried) = page.split_once("## What was tried").unwrap();
    let (tried, _) = tried.split_once("## Invented input").unwrap();
    let mut count = 0;
    for row in tried.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Input")) {
        let proof = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let names: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test: {row}");
        for name in names {
            let is_test = match name.strip_suffix('*') {
                Some(prefix) => functions.iter().any(|function| function.starts_with(prefix)),
                None => functions.contains(name),
            };
            assert!(is_test, "{name} is no test: {row}");
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}

/// README and its like, the pages of docs/ and of qemu-configs/: path and text.
fn pages() -> Vec<(PathBuf, String)> {
    let root = repository();
    let mut all = Vec::new();
    for folder in [root.clone(), root.join("docs"), root.join("qemu-configs"), root.join("guest-driver/fuzz")]
    {
        let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        all.extend(files.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    assert!(all.len() > 14, "{all:?}");
    all.into_iter().map(|path| (path.clone(), fs::read_to_string(&path).unwrap())).collect()
}

/// What stands between single backquotes on each line outside of blocks of code.
fn quoted(text: &str) -> Vec<&str> {
    let mut is_prose = true;
    let mut all = Vec::new();
    for line in text.lines() {
        is_prose ^= line.starts_with("```");
        if is_prose && !line.starts_with("    ") {
            all.extend(line.split('`').skip(1).step_by(2));
        }
    }
    all
}

/// Functions with `#[test]` above them.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[test]").skip(1).filter_map(|rest| {
        let (_, rest) = rest.split_once("fn ")?;
        rest.split(['(', '<']).next()
    })
}

#[test]
fn every_page_names_tests_that_exist() {
    let root = repository();
    let code: Vec<String> = ["tests", "backend/src", "guest-driver/src", "guest-driver/tests"]
        .iter()
        .flat_map(|folder| sources(&root.join(folder)))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let tests: HashSet<&str> = code.iter().flat_map(|text| tests_in(text)).collect();
    let is_plain =
        |word: &str| word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let mut count = 0;
    for (path, text) in pages() {
        for word in quoted(&text) {
            let name = word.strip_suffix('*').unwrap_or(word);
            let words = name.split('_').count();
            // Shorter names are those of fields, errors and counters; the longest of a counter and of a number of bytes are excepted.
            let is_name = is_plain(name) && words > 1 && (words > 3 || word.ends_with('*'));
            if !is_name || name.ends_with("_total") || name.ends_with("_bytes") {
                continue;
            }
            let is_test = match word.ends_with('*') {
                true => tests.iter().any(|test| test.starts_with(name)),
                false => tests.contains(name),
            };
            assert!(is_test, "{}: {word} is no test", path.display());
            count += 1;
        }
    }
    assert!(count > 120, "{count}");
}

#[test]
fn every_page_names_files_and_headings_that_exist() {
    let root = repository();
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect::<String>()
    };
    let mut count = 0;
    for (path, text) in pages() {
        for word in quoted(&text) {
            let folders = ["tests/", "backend/", "guest-driver/", "qemu-configs/", "docs/"];
            let is_path =
                folders.iter().any(|folder| word.starts_with(folder)) && !word.contains([' ', '*', '<']);
            assert!(!is_path || root.join(word).exists(), "{}: {word} is not there", path.display());
            count += usize::from(is_path);
        }
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", path.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let is_there = headings.any(|line| anchor(line.trim_start_matches(['#', ' '])) == heading);
                assert!(is_there, "{}: {link} names no heading", path.display());
            }
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}
