//! The folders that the paths of the receipts make, and the names in those folders that were read lately. No IO.
//!
//! Invariants: a folder other than the root is there exactly while a receipt that was listed or followed lies beneath it; ids are never
//! used twice; at most `names_max` names are kept, folders included.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Id of the root.
pub const ROOT: u64 = 1;

/// More folders than names may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyNames;

/// A receipt in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName {
    /// The last part of its path.
    pub name: Box<str>,
    /// Sequence of its newest version.
    pub seq: u64,
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The path is new.
    Added,
    /// The path has a new version.
    Replaced,
    /// The path was removed.
    Removed,
}

/// One acknowledged change.
#[derive(Clone, Debug)]
pub struct Change {
    /// Path.
    pub path: Box<str>,
    /// Sequence of the record.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What it did.
    pub fate: Fate,
}

#[derive(Debug, Default)]
struct Folder {
    parent: u64,
    /// Whole path, empty for the root.
    path: Box<str>,
    children: BTreeMap<Box<str>, u64>,
    /// Receipts beneath, at any depth.
    receipts: u64,
    /// Receipts in the folder itself.
    own_receipts: u64,
    changed_ms: u64,
    files: Option<Files>,
}

/// The receipts of a folder, sorted by name.
#[derive(Debug)]
struct Files {
    names: Arc<Vec<FileName>>,
    used_at: u64,
}

/// What a folder holds, as it was at one moment.
#[derive(Clone, Debug)]
pub struct Content {
    /// The folder that it lies in.
    pub parent: u64,
    /// Folders: name and id.
    pub folders: Vec<(Box<str>, u64)>,
    /// Receipts. One with the name of a folder is not shown.
    pub files: Arc<Vec<FileName>>,
}

/// See the module.
#[derive(Debug)]
pub struct Tree {
    folders: HashMap<u64, Folder>,
    next_id: u64,
    clock: u64,
    names: usize,
    names_max: usize,
}

impl Tree {
    /// The root alone.
    #[must_use]
    pub fn new(names_max: usize) -> Self {
        let root = Folder { parent: ROOT, ..Folder::default() };
        Self { folders: HashMap::from([(ROOT, root)]), next_id: ROOT + 1, clock: 0, names: 0, names_max }
    }

    /// Path of a folder, empty for the root.
    #[must_use]
    pub fn path(&self, id: u64) -> Option<&str> {
        self.folders.get(&id).map(|folder| &*folder.path)
    }

    /// When something beneath was changed last, in milliseconds since 1970.
    #[must_use]
    pub fn changed_ms(&self, id: u64) -> Option<u64> {
        self.folders.get(&id).map(|folder| folder.changed_ms)
    }

    /// The folder `name` in the folder `id`.
    #[must_use]
    pub fn child(&self, id: u64, name: &str) -> Option<u64> {
        self.folders.get(&id)?.children.get(name).copied()
    }

    /// Receipts beneath the root, and folders.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let receipts = self.folders.get(&ROOT).map_or(0, |root| root.receipts);
        (receipts, self.folders.len() as u64)
    }

    /// Forgets every number and every name, but no folder: a new listing follows, and then [`Tree::drop_empty`].
    pub fn begin_listing(&mut self) {
        self.names = self.folders.len();
        for folder in self.folders.values_mut() {
            folder.receipts = 0;
            folder.own_receipts = 0;
            folder.files = None;
        }
    }

    /// Counts a receipt that a listing at `at_ms` shows.
    ///
    /// # Errors
    /// More folders than names may be kept.
    pub fn count(&mut self, path: &str, at_ms: u64) -> Result<(), TooManyNames> {
        self.add(path, at_ms)
    }

    /// Removes the folders without receipts.
    pub fn drop_empty(&mut self) {
        let empty = |(id, folder): (&u64, &Folder)| (folder.receipts == 0 && *id != ROOT).then_some(*id);
        let empty: Vec<u64> = self.folders.iter().filter_map(empty).collect();
        empty.into_iter().for_each(|id| self.remove_folder(id));
    }

    /// Takes over changes, in their order.
    ///
    /// # Errors
    /// More folders than names may be kept.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), TooManyNames> {
        let mut by_folder: HashMap<u64, BTreeMap<&str, Option<u64>>> = HashMap::new();
        for change in changes {
            match change.fate {
                Fate::Added => self.add(&change.path, change.at_ms)?,
                Fate::Replaced => self.touch(&change.path, change.at_ms),
                Fate::Removed => self.subtract(&change.path, change.at_ms),
            }
            let (folder, name) = split(&change.path);
            let seq = (change.fate != Fate::Removed).then_some(change.seq);
            if let Some(id) = self.find(folder) {
                by_folder.entry(id).or_default().insert(name, seq);
            }
        }
        by_folder.into_iter().for_each(|(id, names)| self.update_files(id, names));
        self.drop_empty_beside(changes);
        Ok(())
    }

    /// Whether the names of the folder are known. `None`: no such folder.
    #[must_use]
    pub fn is_listed(&self, id: u64) -> Option<bool> {
        self.folders.get(&id).map(|folder| folder.files.is_some() || folder.own_receipts == 0)
    }

    /// Keeps the names of a folder; those used longest ago go where there are too many. A folder that alone has too many is refused.
    ///
    /// # Errors
    /// As said.
    pub fn keep_files(&mut self, id: u64, mut files: Vec<FileName>) -> Result<(), TooManyNames> {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        self.forget_files(id);
        while self.names + files.len() > self.names_max {
            if !self.forget_oldest() {
                return Err(TooManyNames);
            }
        }
        self.clock += 1;
        let used_at = self.clock;
        if let Some(folder) = self.folders.get_mut(&id) {
            self.names += files.len();
            folder.files = Some(Files { names: Arc::new(files), used_at });
        }
        Ok(())
    }

    /// What a listed folder holds.
    pub fn content(&mut self, id: u64) -> Option<Content> {
        self.clock += 1;
        let folder = self.folders.get_mut(&id)?;
        let names = match folder.files.as_mut() {
            Some(files) => {
                files.used_at = self.clock;
                Arc::clone(&files.names)
            }
            None if folder.own_receipts == 0 => Arc::default(),
            None => return None,
        };
        let folders = folder.children.iter().map(|(name, id)| (name.clone(), *id)).collect();
        Some(Content { parent: folder.parent, folders, files: names })
    }

    /// The folder of `path`.
    fn find(&self, path: &str) -> Option<u64> {
        parts(path).try_fold(ROOT, |id, part| self.child(id, part))
    }

    fn add(&mut self, path: &str, at_ms: u64) -> Result<(), TooManyNames> {
        let mut id = ROOT;
        for part in parts(split(path).0) {
            if self.child(id, part).is_none() {
                self.new_folder(id, part)?;
            }
            id = self.child(id, part).unwrap_or(ROOT);
        }
        self.change_along(path, at_ms, |receipts| receipts + 1);
        Ok(())
    }

    fn touch(&mut self, path: &str, at_ms: u64) {
        self.change_along(path, at_ms, |receipts| receipts);
    }

    fn subtract(&mut self, path: &str, at_ms: u64) {
        self.change_along(path, at_ms, |receipts| receipts.saturating_sub(1));
    }

    /// Changes the numbers of every folder on the way to `path`.
    fn change_along(&mut self, path: &str, at_ms: u64, change: impl Fn(u64) -> u64) {
        let mut names = parts(split(path).0);
        let mut id = Some(ROOT);
        while let Some(folder) = id.and_then(|id| self.folders.get_mut(&id)) {
            folder.receipts = change(folder.receipts);
            folder.changed_ms = folder.changed_ms.max(at_ms);
            let Some(name) = names.next() else {
                folder.own_receipts = change(folder.own_receipts);
                return;
            };
            id = folder.children.get(name).copied();
        }
    }

    fn new_folder(&mut self, parent: u64, name: &str) -> Result<u64, TooManyNames> {
        while self.names >= self.names_max {
            if !self.forget_oldest() {
                return Err(TooManyNames);
            }
        }
        let Some(above) = self.folders.get_mut(&parent) else { return Ok(ROOT) };
        let id = self.next_id;
        above.children.insert(name.into(), id);
        let path = if above.path.is_empty() { name.into() } else { format!("{}/{name}", above.path).into() };
        let is_new = self.folders.insert(id, Folder { parent, path, ..Folder::default() }).is_none();
        assert!(is_new, "ids are never used twice");
        self.next_id += 1;
        self.names += 1;
        Ok(id)
    }

    /// Removes a folder without receipts, and the folders in it, which have none either.
    fn remove_folder(&mut self, id: u64) {
        self.forget_files(id);
        let Some(folder) = self.folders.remove(&id) else { return };
        assert_eq!(folder.receipts, 0, "no receipt is hidden");
        self.names -= 1;
        folder.children.values().for_each(|child| self.remove_folder(*child));
        let name = split(&folder.path).1;
        if let Some(above) = self.folders.get_mut(&folder.parent) {
            above.children.remove(name);
        }
    }

    /// Removes the folders that `changes` have emptied.
    fn drop_empty_beside(&mut self, changes: &[Change]) {
        for change in changes.iter().filter(|change| change.fate == Fate::Removed) {
            let mut folder = split(&change.path).0;
            while let Some(id) = self.find(folder).filter(|id| *id != ROOT) {
                if self.folders.get(&id).is_some_and(|folder| folder.receipts == 0) {
                    self.remove_folder(id);
                }
                folder = split(folder).0;
            }
        }
    }

    fn update_files(&mut self, id: u64, names: BTreeMap<&str, Option<u64>>) {
        let Some(files) = self.folders.get_mut(&id).and_then(|folder| folder.files.as_mut()) else { return };
        let before = files.names.len();
        let list = Arc::make_mut(&mut files.names);
        list.retain(|file| !names.contains_key(&*file.name));
        let added =
            names.into_iter().filter_map(|(name, seq)| Some(FileName { name: name.into(), seq: seq? }));
        list.extend(added);
        list.sort_by(|a, b| a.name.cmp(&b.name)); // two sorted runs: linear
        self.names = self.names + list.len() - before;
        if self.names > self.names_max {
            self.forget_oldest();
        }
    }

    fn forget_files(&mut self, id: u64) {
        if let Some(files) = self.folders.get_mut(&id).and_then(|folder| folder.files.take()) {
            self.names -= files.names.len();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let listed =
            self.folders.iter().filter_map(|(id, folder)| Some((folder.files.as_ref()?.used_at, *id)));
        let Some((_, oldest)) = listed.min() else { return false };
        self.forget_files(oldest);
        true
    }
}

/// A path without its last part, and the last part.
#[must_use]
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
