//! What docs/security.md claims of the code is so.

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
