//! `receipt mount` as a guard: a store in a file, shown as files.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::bins::receipt_mount_binary;
use crate::fuse::own_mounts;
use crate::proc::{Exit, Proc};

/// A mounted store; unmounted when dropped. Only the thread that mounts it and what that starts see it.
#[derive(Debug)]
pub struct Mounted {
    proc: Proc,
    dir: PathBuf,
}

impl Mounted {
    /// Mounts the store on `device` at `dir`, which is made if it is missing. Root is needed.
    #[track_caller]
    pub fn start(device: &Path, dir: &Path, options: &[&str]) -> Self {
        own_mounts();
        let _ = std::fs::create_dir(dir); // it is there already when a store is mounted again
        let mut command = Command::new(receipt_mount_binary());
        command.arg("--device").arg(device).arg(dir).args(options).stdout(Stdio::piped());
        let mut proc = Proc::spawn(&mut command, &dir.with_extension("log"));
        let stdout = proc.child_mut().stdout.take().unwrap();
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), dir.to_str().unwrap(), "not mounted: {}", proc.stderr());
        Self { proc, dir: dir.to_owned() }
    }

    /// A name in the mounted folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The process that serves the files.
    pub fn proc(&mut self) -> &mut Proc {
        &mut self.proc
    }

    /// Ends it as an operator does.
    #[track_caller]
    pub fn terminate(&mut self) -> Exit {
        self.proc.signal(Signal::TERM);
        self.proc.wait()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.dir.as_path(), UnmountFlags::DETACH);
    }
}
