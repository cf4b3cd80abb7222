//! The tree against the set of paths that it should show.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn names(tree: &mut Tree, id: u64) -> (Vec<String>, Vec<String>) {
    let content = tree.content(id).unwrap();
    let folders = content.folders.iter().map(|(name, _)| name.to_string()).collect();
    (folders, content.files.iter().map(|file| file.name.to_string()).collect())
}

/// All folders that `paths` make, the root included.
fn folders_of(paths: &BTreeSet<String>) -> BTreeSet<String> {
    let mut all = BTreeSet::from([String::new()]);
    for path in paths {
        all.extend(path.match_indices('/').map(|(at, _)| path[..at].to_owned()));
    }
    all
}

/// Lists a folder as the store would.
fn list(tree: &mut Tree, id: u64, paths: &BTreeSet<String>) {
    let folder = tree.path(id).unwrap().to_owned();
    let files = paths.iter().filter(|path| split(path).0 == folder);
    let files = files.map(|path| FileName { name: split(path).1.into(), seq: 1 }).collect();
    tree.keep_files(id, files).unwrap();
}

fn change(path: &str, seq: u64, fate: Fate) -> Change {
    Change { path: path.into(), seq, at_ms: seq, fate }
}

proptest! {
    /// After any changes, in steps of any size, every folder and every listing is that of the paths that are left.
    #[test]
    fn shows_the_paths_that_are_left(steps in prop::collection::vec((0..40_u32, 0..3_u8, any::<bool>()), 1..200)) {
        let mut tree = Tree::new(1000);
        let mut paths = BTreeSet::new();
        let mut pending = Vec::new();
        for (seq, (number, kind, ends)) in (1..).zip(steps) {
            // Up to three levels, and names that are both folder and receipt.
            let path = match number % 4 {
                0 => format!("{}", number / 4),
                1 => format!("{}/{}", number % 3, number / 4),
                2 => format!("{}/{}/{}", number % 3, number % 2, number / 4),
                _ => format!("{}/{}", number / 8, number % 2),
            };
            let fate = match (kind, paths.contains(&path)) {
                (0, true) => Fate::Removed,
                (_, true) => Fate::Replaced,
                (_, false) => Fate::Added,
            };
            if fate == Fate::Removed { paths.remove(&path) } else { paths.insert(path.clone()) };
            pending.push(change(&path, seq, fate));
            if !ends {
                continue;
            }
            tree.apply(&std::mem::take(&mut pending)).unwrap();
            let folders = folders_of(&paths);
            prop_assert_eq!(tree.totals(), (paths.len() as u64, folders.len() as u64));
            for folder in &folders {
                let id = tree.find(folder).expect("a folder with receipts is there");
                if !tree.is_listed(id).unwrap() {
                    list(&mut tree, id, &paths);
                }
                let (_, files) = names(&mut tree, id);
                let expected: Vec<_> = paths.iter().filter(|path| split(path).0 == folder).collect();
                let expected: Vec<_> = expected.into_iter().map(|path| split(path).1.to_owned()).collect();
                prop_assert_eq!(files, expected, "{}", folder);
            }
        }
    }
}

#[test]
fn keeps_no_more_names_than_it_may() {
    let mut tree = Tree::new(10);
    for path in ["a/1", "b/1", "c/1"] {
        tree.count(path, 0).unwrap();
    }
    let files = |count: u32| (0..count).map(|n| FileName { name: n.to_string().into(), seq: 1 }).collect();
    let [a, b] = ["a", "b"].map(|name| tree.child(ROOT, name).unwrap());
    tree.keep_files(a, files(5)).unwrap();
    tree.keep_files(b, files(5)).unwrap();
    assert_eq!([a, b].map(|id| tree.is_listed(id)), [Some(false), Some(true)], "the oldest listing goes");
    assert_eq!(tree.keep_files(a, files(8)), Err(TooManyNames), "3 folders and 8 names");
    for path in ["d/1", "e/1", "f/1", "g/1", "h/1", "i/1", "j/1"] {
        tree.count(path, 0).unwrap();
    }
    assert_eq!(tree.count("k/1", 0), Err(TooManyNames));
}

#[test]
fn a_new_listing_drops_what_is_gone_and_keeps_the_ids_of_the_rest() {
    let mut tree = Tree::new(100);
    tree.count("a/x/1", 0).unwrap();
    tree.count("b/1", 0).unwrap();
    let a = tree.child(ROOT, "a").unwrap();
    tree.begin_listing();
    tree.count("a/2", 7).unwrap();
    tree.drop_empty();
    assert_eq!((tree.child(ROOT, "a"), tree.child(ROOT, "b")), (Some(a), None));
    assert_eq!((tree.child(a, "x"), tree.changed_ms(a), tree.totals()), (None, Some(7), (1, 2)));
}
