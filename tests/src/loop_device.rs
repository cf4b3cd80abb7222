//! Block devices and file systems that live in a file. They need root and loop devices.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::disk::Scratch;
use crate::fuse::own_mounts;

/// A block device of the bytes of a file, set free when dropped.
#[derive(Debug)]
pub struct LoopDevice(String);

impl LoopDevice {
    /// A device of `file`.
    pub fn new(file: &Path) -> Self {
        Self(run("losetup", &["--find", "--show", file.to_str().unwrap()]).trim().to_owned())
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// Has it look again how long its file is.
    pub fn adopt_size(&self) {
        run("losetup", &["--set-capacity", &self.0]);
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.0]);
    }
}

/// A folder with a file system of its own, for the thread that mounts it and what that starts.
#[derive(Debug)]
pub struct FileSystem {
    at: PathBuf,
    /// Goes after the mount.
    device: Option<LoopDevice>,
}

impl FileSystem {
    /// A fresh file system of this kind in a file of `bytes`, made by `program`.
    pub fn make(scratch: &Scratch, kind: &str, program: &str, bytes: u64) -> Self {
        let file = scratch.join(&format!("{kind}.img"));
        std::fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        run(program, &["-q", file.to_str().unwrap()]);
        let device = LoopDevice::new(&file);
        Self::mount(scratch, kind, device.path(), "").with(device)
    }

    /// An overlay of two folders of `scratch`.
    pub fn overlay(scratch: &Scratch) -> Self {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| scratch.join(name));
        [&lower, &upper, &work].into_iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        let [lower, upper, work] = [&lower, &upper, &work].map(|folder| folder.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        Self::mount(scratch, "overlay", "overlay", &options)
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        &self.at
    }

    fn mount(scratch: &Scratch, kind: &str, source: &str, options: &str) -> Self {
        own_mounts();
        let at = scratch.join(kind);
        std::fs::create_dir(&at).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount(source, at.as_path(), kind, MountFlags::empty(), options.as_c_str()).unwrap();
        Self { at, device: None }
    }

    fn with(mut self, device: LoopDevice) -> Self {
        self.device = Some(device);
        self
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = unmount(self.at.as_path(), UnmountFlags::DETACH);
        drop(self.device.take());
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?} (loop devices need root): {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
