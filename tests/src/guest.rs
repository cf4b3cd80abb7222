//! A QEMU guest driven over its serial console. The machine is the one of `qemu-configs/`; nothing of it is repeated here.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use crate::bins::{repository, static_receipt_binary};
use crate::proc::{Exit, Proc};
use crate::wait::readable;

/// A port of 127.0.0.1 that nobody uses now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A booted guest with a shell; killed when dropped.
#[derive(Debug)]
pub struct Guest {
    name: String,
    proc: Proc,
    stdin: ChildStdin,
    stdout: ChildStdout,
    /// What came from the console and was not asked for yet.
    unread: Vec<u8>,
    commands: u32,
}

/// What a command in a guest gave.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// All it printed, standard error included.
    pub text: String,
    /// Its exit status.
    pub code: i32,
}

/// What a guest boots: kernel, and an initramfs with the static `receipt` in it.
#[derive(Debug)]
pub struct GuestImage {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl GuestImage {
    /// With other programs in `/bin`, by their file names, and kernel modules.
    pub fn make(programs: &[PathBuf], modules: &[&str]) -> Self {
        let receipt = static_receipt_binary();
        let mut args = vec!["--receipt".to_owned(), receipt.to_str().unwrap().to_owned()];
        for program in programs {
            let name = program.file_name().unwrap().to_str().unwrap();
            args.extend(["--add".to_owned(), format!("{}:/bin/{name}", program.display())]);
        }
        args.extend(modules.iter().flat_map(|module| ["--module".to_owned(), (*module).to_owned()]));
        Self::of(&args)
    }

    /// As the arguments of `make-initramfs.sh` say.
    pub fn of(args: &[String]) -> Self {
        let kernel = script("get-kernel.sh", &[]).join("vmlinuz");
        Self { kernel, initramfs: script("make-initramfs.sh", args) }
    }

    /// The kernel.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The programs of the guest.
    pub fn initramfs(&self) -> &Path {
        &self.initramfs
    }

    /// With nothing else; made once for all tests of a program.
    fn plain() -> &'static Self {
        static PLAIN: OnceLock<GuestImage> = OnceLock::new();
        PLAIN.get_or_init(|| Self::make(&[], &[]))
    }
}

impl Guest {
    /// Starts guest `name` on the socket `NAME.sock` in `run_dir`. It boots on its own; [`Guest::ready`] waits for that.
    pub fn start(name: &str, run_dir: &Path) -> Self {
        Self::boot(name, run_dir, GuestImage::plain(), &["--memory", "192M"])
    }

    /// As [`Guest::start`], with an image and arguments for `run-guest.sh`.
    pub fn boot(name: &str, run_dir: &Path, files: &GuestImage, args: &[&str]) -> Self {
        let mut command = Command::new(repository().join("qemu-configs/run-guest.sh"));
        command.args([name, "--accel", "tcg", "--cpus", "1", "--append"]);
        command.arg("receiptdisk.console=script").arg("--run-dir").arg(run_dir);
        command.arg("--kernel").arg(&files.kernel).arg("--initrd").arg(&files.initramfs).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut proc = Proc::spawn(&mut command, &run_dir.join(format!("{name}.qemu.log")));
        let [stdin, stdout] =
            [proc.child_mut().stdin.take().map(Ok), proc.child_mut().stdout.take().map(Err)];
        let (Some(Ok(stdin)), Some(Err(stdout))) = (stdin, stdout) else { panic!("no pipes") };
        Self { name: name.to_owned(), proc, stdin, stdout, unread: Vec::new(), commands: 0 }
    }

    /// Waits until the guest has booted.
    #[track_caller]
    pub fn ready(mut self) -> Self {
        self.wait_until_ready();
        self
    }

    /// [`Guest::ready`] after a reboot.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let ready = format!("receiptdisk guest {} ready\n", self.name);
        self.text_until(&ready);
    }

    /// The QEMU process.
    pub fn proc(&self) -> &Proc {
        &self.proc
    }

    /// Runs a shell command.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> Output {
        self.commands += 1;
        let marker = format!("@done-{}@", self.commands);
        // In two parts, so that an echo of the line could not be taken for its end.
        let (head, tail) = marker.split_at(3);
        self.type_line(&format!("{{ {command}\n}} 2>&1; echo '{head}''{tail}' $?"));
        let text = self.text_until(&marker);
        let code = self.line().trim().parse().expect("an exit status");
        Output { text, code }
    }

    /// Runs a shell command that must succeed; returns what it printed.
    #[track_caller]
    pub fn ok(&mut self, command: &str) -> String {
        let output = self.run(command);
        assert_eq!(output.code, 0, "{}: {command}: {}", self.name, output.text);
        output.text
    }

    /// Types one line: input for a command that reads the console.
    pub fn type_line(&mut self, line: &str) {
        self.stdin.write_all(line.as_bytes()).unwrap();
        self.stdin.write_all(b"\n").unwrap();
    }

    /// Ends the input of a command that reads the console.
    pub fn end_of_input(&mut self) {
        const END_OF_TRANSMISSION: u8 = 4;
        self.stdin.write_all(&[END_OF_TRANSMISSION]).unwrap();
    }

    /// The next line on the console.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.text_until("\n")
    }

    /// Pulls the plug: kills QEMU and waits for its end.
    #[track_caller]
    pub fn kill(&mut self) {
        self.proc.signal(rustix::process::Signal::KILL);
        self.proc.wait();
    }

    /// Ends the shell; the guest powers off and QEMU ends.
    #[track_caller]
    pub fn power_off(mut self) -> Exit {
        self.type_line("exit");
        self.proc.wait()
    }

    /// All text before `end`, which is taken too.
    #[track_caller]
    fn text_until(&mut self, end: &str) -> String {
        loop {
            let found = self.unread.windows(end.len()).position(|bytes| bytes == end.as_bytes());
            if let Some(at) = found {
                let text: Vec<u8> = self.unread.drain(..at + end.len()).take(at).collect();
                return String::from_utf8_lossy(&text).replace('\r', "");
            }
            self.read_more(end);
        }
    }

    #[track_caller]
    fn read_more(&mut self, awaited: &str) {
        let so_far = |unread: &[u8]| String::from_utf8_lossy(unread).into_owned();
        assert!(
            readable(&self.stdout),
            "{} is silent, {awaited:?} expected after: {}",
            self.name,
            so_far(&self.unread)
        );
        let mut buffer = [0; 4096];
        let count = self.stdout.read(&mut buffer).unwrap();
        assert!(count > 0, "{} ended, {awaited:?} expected after: {}", self.name, so_far(&self.unread));
        self.unread.extend(&buffer[..count]);
    }
}

/// Runs a script of `qemu-configs/` that prints the path of what it made.
fn script(name: &str, args: &[String]) -> PathBuf {
    let output = Command::new(repository().join("qemu-configs").join(name)).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
    let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end());
    assert!(fs::metadata(&path).is_ok(), "{name} names {}", path.display());
    path
}
