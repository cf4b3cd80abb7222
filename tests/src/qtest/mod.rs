//! A QEMU whose processor does nothing: the test itself does what a guest's driver does, over the socket of `-qtest`.
//!
//! Distributions do not build the accelerator of that name, so the processor is an emulated one that halts at its first instruction.
//!
//! [`Machine`] reads and writes ports and memory, [`pci::Function`] finds a virtio device on the PCI bus, [`disk::PciDisk`]
//! drives a disk there. What QEMU's own device tests do goes through the same three layers.

pub mod disk;
pub mod pci;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::disk::Scratch;
use crate::proc::{Exit, Proc};
use crate::qmp::Qmp;
use crate::wait::{SAFETY_NET, listening};

/// Where the driver puts its rings and buffers: above what firmware would use, below the end of memory.
const FIRST_FREE: u64 = 16 << 20;

/// Firmware of which every instruction stops the processor until an interrupt, and none is enabled.
const HALT: u8 = 0xf4;
const FIRMWARE_BYTES: usize = 64 << 10;

/// A QEMU; killed when dropped.
#[derive(Debug)]
pub struct Machine {
    proc: Proc,
    qmp: Qmp,
    stream: UnixStream,
    answers: BufReader<UnixStream>,
    next_free: u64,
}

impl Machine {
    /// One with the old PC's board, whose bus takes devices at any time, and 64 MiB that backends may share.
    #[track_caller]
    pub fn start(scratch: &Scratch, arguments: &[String]) -> Self {
        let [qtest, qmp] = ["qtest.sock", "qmp.sock"].map(|name| scratch.join(name));
        let firmware = scratch.join("halt.bin");
        std::fs::write(&firmware, [HALT; FIRMWARE_BYTES]).unwrap();
        let socket = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-no-user-config", "-nodefaults", "-display", "none", "-accel", "tcg", "-bios"])
            .arg(&firmware);
        command.args(["-machine", "pc,memory-backend=ram", "-m", "64M"]);
        command.args(["-object", "memory-backend-memfd,id=ram,size=64M,share=on"]);
        command
            .args(["-qtest", &socket(&qtest), "-qtest-log", "none", "-qmp", &socket(&qmp)])
            .args(arguments);
        let proc = Proc::spawn(command.stdin(Stdio::null()), &scratch.join("qemu.log"));
        let stream = listening(|| UnixStream::connect(&qtest));
        stream.set_read_timeout(Some(SAFETY_NET)).unwrap();
        let answers = BufReader::new(stream.try_clone().unwrap());
        Self { proc, qmp: Qmp::connect(&qmp), stream, answers, next_free: FIRST_FREE }
    }

    /// QEMU's own operator.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Ends it as an operator does.
    #[track_caller]
    pub fn terminate(&mut self) -> Exit {
        self.proc.signal(Signal::TERM);
        self.proc.wait()
    }

    /// Memory that nobody else uses, at a whole page.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let at = self.next_free;
        self.next_free += (bytes as u64).next_multiple_of(4096);
        at
    }

    /// Reads from a port.
    #[track_caller]
    pub fn in_u32(&mut self, port: u16) -> u32 {
        let answer = self.command(&format!("inl {port:#x}"));
        u32::try_from(number(&answer)).unwrap()
    }

    /// Writes to a port.
    #[track_caller]
    pub fn out_u32(&mut self, port: u16, value: u32) {
        self.command(&format!("outl {port:#x} {value:#x}"));
    }

    /// One access of `bytes` (1, 2, 4 or 8), as devices want it.
    #[track_caller]
    pub fn load(&mut self, at: u64, bytes: usize) -> u64 {
        let answer = self.command(&format!("read{} {at:#x}", width(bytes)));
        number(&answer)
    }

    /// One access of `bytes` (1, 2, 4 or 8).
    #[track_caller]
    pub fn store(&mut self, at: u64, bytes: usize, value: u64) {
        self.command(&format!("write{} {at:#x} {value:#x}", width(bytes)));
    }

    /// Reads memory.
    #[track_caller]
    pub fn read(&mut self, at: u64, bytes: usize) -> Vec<u8> {
        let answer = self.command(&format!("read {at:#x} {bytes:#x}"));
        let digits = answer.strip_prefix("0x").expect("bytes");
        (0..bytes).map(|n| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).unwrap()).collect()
    }

    /// Writes memory.
    #[track_caller]
    pub fn write(&mut self, at: u64, data: &[u8]) {
        use std::fmt::Write as _;
        let mut digits = String::with_capacity(2 * data.len());
        data.iter().for_each(|byte| write!(digits, "{byte:02x}").unwrap());
        self.command(&format!("write {at:#x} {:#x} 0x{digits}", data.len()));
    }

    #[track_caller]
    fn command(&mut self, line: &str) -> String {
        writeln!(self.stream, "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let answer = answer.trim_end();
        let rest =
            answer.strip_prefix("OK").unwrap_or_else(|| panic!("{line}: {answer:?}; {}", self.proc.stderr()));
        rest.trim_start().to_owned()
    }
}

fn width(bytes: usize) -> char {
    match bytes {
        1 => 'b',
        2 => 'w',
        4 => 'l',
        _ => 'q',
    }
}

#[track_caller]
fn number(answer: &str) -> u64 {
    u64::from_str_radix(answer.trim_start_matches("0x"), 16)
        .unwrap_or_else(|error| panic!("{answer}: {error}"))
}
