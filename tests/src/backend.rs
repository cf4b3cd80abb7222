//! `receiptdisk-backend serve` as a guard.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::bins::backend_binary;
use crate::disk::Scratch;
use crate::proc::{Exit, Proc};
use crate::seccomp::forbid;
use crate::wait::until;

/// A command line in the making.
#[derive(Debug, Clone)]
pub struct Serve {
    dir: PathBuf,
    sockets: Vec<PathBuf>,
    args: Vec<OsString>,
    run_by: Vec<OsString>,
    forbidden: Vec<(i64, i32)>,
}

/// A running backend; killed when dropped.
#[derive(Debug)]
pub struct Backend {
    proc: Proc,
    dir: PathBuf,
    sockets: Vec<PathBuf>,
}

impl Serve {
    /// Serves `image`, with the sockets in the image's folder.
    pub fn image(image: &Path) -> Self {
        let dir = image.parent().unwrap().to_owned();
        let serve =
            Self { dir, sockets: Vec::new(), args: Vec::new(), run_by: Vec::new(), forbidden: Vec::new() };
        serve.arg("serve").arg("--image").arg(image)
    }

    /// Has a program with its arguments start it, such as `prlimit`, in its own place.
    pub fn run_by(mut self, program: &[&str]) -> Self {
        self.run_by = program.iter().map(OsString::from).collect();
        self
    }

    /// Adds any argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds a guest that may write, listening on `NAME.sock`.
    pub fn rw(self, name: &str) -> Self {
        self.guest(name, "access=rw")
    }

    /// Adds a guest that may only read, listening on `NAME.sock`.
    pub fn ro(self, name: &str) -> Self {
        self.guest(name, "access=ro")
    }

    /// Adds a guest with the keys `rest` beside its name and socket.
    pub fn guest(mut self, name: &str, rest: &str) -> Self {
        let socket = self.dir.join(format!("{name}.sock"));
        let spec = format!("name={name},socket={},{rest}", socket.display());
        self.sockets.push(socket);
        self.arg("--guest").arg(spec)
    }

    /// Has the kernel answer every call of this number with `errno`, as a sandbox does.
    pub fn forbid(mut self, call: i64, errno: i32) -> Self {
        self.forbidden.push((call, errno));
        self
    }

    /// Starts it and waits until every socket is listened on.
    ///
    /// # Panics
    /// When it ends before that.
    #[track_caller]
    pub fn start(self) -> Backend {
        let mut backend = self.spawn();
        let sockets = backend.sockets.clone();
        until("the backend to listen", || {
            if !backend.proc.is_running() {
                panic!("the backend ended at start: {:?}", backend.proc.wait());
            }
            sockets.iter().all(|socket| is_listening(socket)).then_some(())
        });
        backend
    }

    /// Starts it and waits for nothing.
    pub fn spawn(self) -> Backend {
        let log = self.dir.join(format!("backend-{}.log", unique()));
        let line = [self.run_by, vec![backend_binary().into()], self.args].concat();
        let mut command = Command::new(&line[0]);
        for &(call, errno) in &self.forbidden {
            forbid(&mut command, call, errno);
        }
        let proc = Proc::spawn(command.args(&line[1..]), &log);
        Backend { proc, dir: self.dir, sockets: self.sockets }
    }

    /// As [`Serve::run_to_end`], for an image in a folder that is not the test's: a reader's socket and log go to
    /// `scratch`.
    #[track_caller]
    pub fn run_to_end_in(mut self, scratch: &Scratch) -> Exit {
        self.dir = scratch.path().to_owned();
        self.ro("front").run_to_end()
    }

    /// Runs it to its end: for command lines that must be refused.
    #[track_caller]
    pub fn run_to_end(self) -> Exit {
        self.spawn().proc.wait()
    }
}

impl Backend {
    /// The socket of a guest.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sock"))
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.proc.stderr()
    }

    /// The process.
    pub fn proc(&mut self) -> &mut Proc {
        &mut self.proc
    }

    /// Kills it and waits for the end.
    #[track_caller]
    pub fn kill(&mut self) -> Exit {
        self.proc.signal(Signal::KILL);
        self.proc.wait()
    }

    /// Ends it as an operator does and waits for the end.
    #[track_caller]
    pub fn terminate(&mut self) -> Exit {
        self.proc.signal(Signal::TERM);
        self.proc.wait()
    }
}

/// True when somebody listens on `socket`. Looked up, not tried: a connection would be a guest's.
fn is_listening(socket: &Path) -> bool {
    const ACCEPTS_CONNECTIONS: &str = "00010000";
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    let socket = socket.to_str().unwrap();
    table.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(3) == Some(ACCEPTS_CONNECTIONS) && fields.nth(3) == Some(socket)
    })
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
