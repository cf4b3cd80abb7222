//! A program for the guests: random reads, writes, syncs, holes and cuts on a device or a file, each checked against what must
//! be there, as fsx and fio --verify do. It needs the standard library alone, so `rustc` makes a static program of it.
//!
//! ```text
//! exercise TARGET FIRST_BYTE BYTES THREADS SEED OPERATIONS|UNTIL_FILE direct|buffered
//! ```
//!
//! Each thread has its own part of `BYTES` from `FIRST_BYTE` on. `direct` is for devices: whole blocks of 4096 bytes past the page cache.
//! `buffered` is for files: any bytes, holes, and the file's size when there is one thread. It ends after so many operations
//! a thread, or once the file is there; prints the number of operations; status 1 and what is wrong if anything is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const O_DIRECT: i32 = 0x4000;
const FALLOC_FL_KEEP_SIZE: i32 = 1;
const FALLOC_FL_PUNCH_HOLE: i32 = 2;
const ALIGNMENT: usize = 4096;
const LONGEST: usize = 128 << 10;

unsafe extern "C" {
    fn fallocate(fd: RawFd, mode: i32, offset: i64, len: i64) -> i32;
}

#[derive(Clone)]
struct Plan {
    target: PathBuf,
    first_byte: u64,
    bytes: usize,
    threads: usize,
    seed: u64,
    until: Until,
    is_direct: bool,
}

#[derive(Clone)]
enum Until {
    Operations(u64),
    File(PathBuf),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(plan) = Plan::parse(&arguments) else {
        eprintln!("exercise TARGET FIRST_BYTE BYTES THREADS SEED OPERATIONS|UNTIL_FILE direct|buffered");
        return ExitCode::from(2);
    };
    let threads: Vec<_> = (0..plan.threads)
        .map(|thread| {
            let plan = plan.clone();
            std::thread::spawn(move || Part::new(&plan, thread).and_then(|mut part| part.run(&plan.until)))
        })
        .collect();
    let ends: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("a thread that ends")).collect();
    let mut operations = 0;
    for end in ends {
        match end {
            Ok(count) => operations += count,
            Err(error) => {
                println!("exercise: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{operations}");
    ExitCode::SUCCESS
}

impl Plan {
    fn parse(arguments: &[String]) -> Option<Self> {
        let [target, first_byte, bytes, threads, seed, until, mode] = arguments else { return None };
        let is_direct = mode == "direct";
        let until = until.parse().map_or_else(|_| Until::File(until.into()), Until::Operations);
        let plan = Self {
            target: target.into(),
            first_byte: first_byte.parse().ok()?,
            bytes: bytes.parse().ok()?,
            threads: threads.parse().ok().filter(|threads| *threads > 0)?,
            seed: seed.parse().ok()?,
            until,
            is_direct,
        };
        (is_direct || mode == "buffered").then_some(plan)
    }
}

/// What one thread works on.
struct Part {
    file: File,
    first_byte: u64,
    /// What must be there.
    model: Vec<u8>,
    buffer: Vec<u8>,
    random: u64,
    is_direct: bool,
    /// Whether the file ends with the model.
    is_whole_file: bool,
    most: usize,
}

impl Part {
    fn new(plan: &Plan, thread: usize) -> io::Result<Self> {
        let bytes = plan.bytes / plan.threads / ALIGNMENT * ALIGNMENT;
        let first_byte = plan.first_byte + (thread * bytes) as u64;
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if plan.is_direct {
            options.custom_flags(O_DIRECT);
        } else {
            options.create(true).truncate(false);
        }
        let file = options.open(&plan.target)?;
        let mut part = Self {
            file,
            first_byte,
            model: Vec::new(),
            buffer: vec![0; LONGEST.max(bytes) + ALIGNMENT],
            random: plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (thread as u64 + 1),
            is_direct: plan.is_direct,
            is_whole_file: !plan.is_direct && plan.threads == 1,
            most: bytes,
        };
        if part.is_whole_file {
            part.file.set_len(0)?;
        } else {
            part.model = part.read(0, bytes)?.to_vec();
        }
        Ok(part)
    }

    fn run(&mut self, until: &Until) -> io::Result<u64> {
        let mut count = 0;
        loop {
            let is_over = match until {
                Until::Operations(operations) => count >= *operations,
                Until::File(path) => Path::exists(path),
            };
            if is_over {
                let len = self.model.len();
                self.check(0, len)?;
                return Ok(count);
            }
            self.step()?;
            count += 1;
        }
    }

    fn step(&mut self) -> io::Result<()> {
        match self.below(16) {
            0 => self.file.sync_data(),
            1 if !self.is_direct => self.punch(),
            2 if self.is_whole_file => self.cut(),
            3..=8 => self.write(),
            _ => {
                let (at, len) = self.place(self.model.len());
                self.check(at, len)
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let (at, len) = self.place(self.most);
        let mark = self.next();
        if self.model.len() < at + len {
            self.model.resize(at + len, 0);
        }
        for (index, byte) in self.model[at..at + len].iter_mut().enumerate() {
            *byte = mark.rotate_left((index % 64) as u32).to_le_bytes()[0] ^ index.to_le_bytes()[1];
        }
        let start = self.aligned();
        self.buffer[start..start + len].copy_from_slice(&self.model[at..at + len]);
        self.file.write_all_at(&self.buffer[start..start + len], self.first_byte + at as u64)
    }

    /// A hole in a file reads as zeroes.
    fn punch(&mut self) -> io::Result<()> {
        let (at, len) = self.place(self.model.len());
        if len == 0 {
            return Ok(());
        }
        let offset = i64::try_from(self.first_byte + at as u64).map_err(io::Error::other)?;
        let mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open; the call touches no memory of this program.
        if unsafe { fallocate(self.file.as_raw_fd(), mode, offset, len as i64) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.model[at..at + len].fill(0);
        Ok(())
    }

    /// Shorter or longer; what is new reads as zeroes.
    fn cut(&mut self) -> io::Result<()> {
        let len = self.below(self.most + 1);
        self.file.set_len(len as u64)?;
        self.model.resize(len, 0);
        Ok(())
    }

    fn check(&mut self, at: usize, len: usize) -> io::Result<()> {
        let expected = self.model[at..at + len].to_vec();
        let place = self.first_byte + at as u64;
        let found = self.read(at, len)?;
        match found.iter().zip(&expected).position(|(found, expected)| found != expected) {
            None => Ok(()),
            Some(index) => {
                let (found, expected) = (found[index], expected[index]);
                let byte = place + index as u64;
                Err(io::Error::other(format!("byte {byte} is {found:#x} and must be {expected:#x}")))
            }
        }
    }

    fn read(&mut self, at: usize, len: usize) -> io::Result<&[u8]> {
        let start = self.aligned();
        self.file.read_exact_at(&mut self.buffer[start..start + len], self.first_byte + at as u64)?;
        Ok(&self.buffer[start..start + len])
    }

    /// Where in the buffer direct IO may begin.
    fn aligned(&self) -> usize {
        self.buffer.as_ptr().align_offset(ALIGNMENT)
    }

    /// A place of at most [`LONGEST`] bytes in the first `within`.
    fn place(&mut self, within: usize) -> (usize, usize) {
        let unit = if self.is_direct { ALIGNMENT } else { 1 };
        let units = within / unit;
        if units == 0 {
            return (0, 0);
        }
        let len = 1 + self.below(units.min(LONGEST / unit));
        let len = len.min(units);
        (self.below(units - len + 1) * unit, len * unit)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// xorshift64*
    fn next(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
