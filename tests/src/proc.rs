//! A child process that cannot outlive the test.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::child::die_with_parent;
use crate::wait::{readable, until};

/// A running program; killed by its pid when dropped.
#[derive(Debug)]
pub struct Proc {
    child: Child,
    stderr: PathBuf,
}

/// How a program ended.
#[derive(Debug)]
pub struct Exit {
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it left a core dump.
    pub dumped_core: bool,
    /// All it wrote to standard error.
    pub stderr: String,
}

impl Proc {
    /// Starts `command` with its standard error in the file `stderr`.
    ///
    /// The kernel kills the child when the *thread* that started it ends, so start it in the test's own thread.
    pub fn spawn(command: &mut Command, stderr: &Path) -> Self {
        let log = fs::File::create(stderr).unwrap();
        let child = die_with_parent(command).stderr(Stdio::from(log)).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {:?}: {error}", command.get_program()));
        Self { child, stderr: stderr.to_owned() }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child's pipes, where the command asked for them.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap()).into_owned()
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.rustix_pid(), signal).unwrap();
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn wait(&mut self) -> Exit {
        if let Some(status) = self.child.try_wait().unwrap() {
            return self.exit(status);
        }
        let pidfd = pidfd_open(self.rustix_pid(), PidfdFlags::empty()).unwrap();
        assert!(readable(&pidfd), "pid {} does not end; it wrote: {}", self.pid(), self.stderr());
        let status = self.child.wait().unwrap();
        self.exit(status)
    }

    /// Processor time it has used, in clock ticks.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // After the name, which ends with the last bracket: state is field 3, user and system time are 14 and 15.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Times that any of its threads has left a processor, of its own will or not: a process that sleeps has no more.
    pub fn context_switches(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten();
        let of_task = |task: fs::DirEntry| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
            counts.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum::<u64>()
        };
        tasks.map(of_task).sum()
    }

    /// Memory that is its own and of its program, not of guests: theirs is shared memory.
    pub fn memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let kib = |line: &str| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        let own = |line: &str| line.strip_prefix("RssAnon:").or(line.strip_prefix("RssFile:")).map(kib);
        status.lines().filter_map(own).sum::<u64>() << 10
    }

    /// Waits until it uses no processor time: a process that spins never does.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        let mut last = None;
        until("the process to be idle", || {
            let now = self.cpu_ticks();
            let is_idle = last == Some(now);
            last = Some(now);
            std::thread::sleep(Duration::from_millis(30));
            is_idle.then_some(())
        });
    }

    /// Number of descriptors it holds.
    pub fn open_fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// The `/proc/PID/fdinfo` texts of the descriptors that lead to `file`.
    pub fn fdinfo_of(&self, file: &Path) -> Vec<String> {
        let file = fs::canonicalize(file).unwrap();
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().flatten();
        let matching = entries.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == file));
        let info = |name: &str| fs::read_to_string(format!("/proc/{}/fdinfo/{name}", self.pid()));
        matching.filter_map(|entry| info(&entry.file_name().to_string_lossy()).ok()).collect()
    }

    fn rustix_pid(&self) -> Pid {
        Pid::from_raw(self.pid().cast_signed()).unwrap()
    }

    fn exit(&self, status: ExitStatus) -> Exit {
        let (code, signal, dumped_core) = (status.code(), status.signal(), status.core_dumped());
        Exit { code, signal, dumped_core, stderr: self.stderr() }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- standard error of pid {} ---\n{}---", self.pid(), self.stderr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Scratch;

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let scratch = Scratch::new();
        let log = scratch.join("log");
        let start = move || Proc::spawn(Command::new("sleep").arg("600"), &log);
        let mut orphan = std::thread::spawn(start).join().unwrap();
        assert_eq!(orphan.wait().signal, Some(libc::SIGKILL));
    }
}
