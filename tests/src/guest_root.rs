//! A file system for a guest, made of files of the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::disk::Scratch;

/// What is left free in it.
const FREE_BYTES: u64 = 48 << 20;

/// One in the making.
#[derive(Debug)]
pub struct GuestRoot {
    root: PathBuf,
    bytes: u64,
}

/// Programs of the host and the libraries that they need.
pub fn with_libraries(programs: &[&Path]) -> Vec<PathBuf> {
    let output = Command::new("ldd").args(programs).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let libraries =
        text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let mut files: Vec<PathBuf> = libraries.map(|file| file.trim_end_matches(':').into()).collect();
    files.extend(programs.iter().map(|program| program.to_path_buf()));
    files.sort_unstable();
    files.dedup();
    files
}

impl GuestRoot {
    /// With these files at the places that they have on the host.
    pub fn of(scratch: &Scratch, files: &[PathBuf]) -> Self {
        let mut root = Self { root: scratch.join("root"), bytes: FREE_BYTES };
        for folder in ["dev", "etc", "proc", "run", "sys", "tmp", "var/lib"] {
            fs::create_dir_all(root.root.join(folder)).unwrap();
        }
        // As distributions have it by now, whichever of both a program or library is looked for in.
        for folder in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(root.root.join("usr").join(folder)).unwrap();
            symlink(Path::new("usr").join(folder), root.root.join(folder)).unwrap();
        }
        for file in files {
            root.add(file, file);
        }
        root
    }

    /// Adds a file of the host.
    pub fn add(&mut self, file: &Path, place: &Path) {
        self.bytes += fs::copy(file, self.place(place)).unwrap();
    }

    /// Adds a file with this content.
    pub fn write(&mut self, place: &str, text: &str) {
        fs::write(self.place(Path::new(place)), text).unwrap();
    }

    /// An image of it, in ext4.
    pub fn pack(self) -> PathBuf {
        let image = self.root.with_extension("img");
        let mut make = Command::new("/sbin/mke2fs");
        make.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&self.root).arg(&image);
        let made = make.arg(format!("{}k", self.bytes >> 10)).stdout(Stdio::null()).status().unwrap();
        assert!(made.success(), "mke2fs");
        fs::remove_dir_all(&self.root).unwrap();
        image
    }

    fn place(&self, place: &Path) -> PathBuf {
        let place = self.root.join(place.strip_prefix("/").unwrap());
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        place
    }
}
