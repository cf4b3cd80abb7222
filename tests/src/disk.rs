//! Scratch folders, images and test data.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A folder that vanishes with the test, with one disk image in it.
#[derive(Debug)]
pub struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    /// A folder in the system's place for temporary files.
    pub fn new() -> Self {
        Self::in_folder(&std::env::temp_dir())
    }

    /// A folder on tmpfs, where the host itself gives no atomicity and no direct IO.
    pub fn on_tmpfs() -> Self {
        Self::in_folder(Path::new("/dev/shm"))
    }

    /// A folder in `parent`.
    pub fn in_folder(parent: &Path) -> Self {
        // Named after the run of tests/run.sh, which looks for what is left of it and of no other.
        let run = std::env::var_os("RECEIPTDISK_TEST_RUN").unwrap_or_default();
        let run = Path::new(&run).file_name().unwrap_or("receiptdisk-test".as_ref());
        let prefix = format!("{}-", run.display());
        Self { dir: tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).unwrap() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A name in the folder.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A zeroed image of `bytes`.
    pub fn image(&self, bytes: u64) -> PathBuf {
        let path = self.join("disk.img");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    /// An image whose every sector tells its own number: [`pattern`] of seed 0.
    pub fn patterned_image(&self, bytes: usize) -> PathBuf {
        let path = self.join("disk.img");
        fs::write(&path, pattern(0, 0, bytes)).unwrap();
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes that differ for every seed and every position: what stands at `offset` tells where it belongs.
pub fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let word = |index: u64| (seed ^ (index << 20)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let start = usize::try_from(offset % 8).unwrap();
    let words = (offset / 8..).flat_map(word);
    words.skip(start).take(len).collect()
}
