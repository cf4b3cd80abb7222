//! A program for the guests: keeps requests of 4 KiB in flight past the page cache and says, when asked, for how long it had no
//! answer. It needs the standard library alone.
//!
//! ```text
//! pauses DEVICE FIRST_BYTE BYTES THREADS both|read
//! ```
//!
//! Each thread has one request in flight, at a random place of the range; with `both` every other one is a write. For each line of
//! input it prints the longest time between two answers since the last line, in microseconds; it ends with the input, or with
//! status 1 at the first request that fails.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const O_DIRECT: i32 = 0x4000;
const BLOCK: usize = 4096;

/// When the last answer came, and the longest silence, in microseconds since the start.
static LAST: AtomicU64 = AtomicU64::new(0);
static LONGEST: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, first_byte, bytes, threads, mode] = &arguments[..] else { return usage() };
    let (Ok(first_byte), Ok(bytes), Ok(threads)) = (first_byte.parse(), bytes.parse(), threads.parse()) else {
        return usage();
    };
    let mut options = OpenOptions::new();
    let file = match options.read(true).write(mode == "both").custom_flags(O_DIRECT).open(device) {
        Ok(file) => file,
        Err(error) => {
            println!("pauses: {device}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let start = Instant::now();
    for seed in 0..threads {
        let file = file.try_clone().expect("a descriptor");
        let writes = mode == "both";
        std::thread::spawn(move || {
            if let Err(error) = work(&file, first_byte, bytes, seed, writes, start) {
                println!("pauses: {error}");
                std::process::exit(1);
            }
        });
    }
    for _ in io::stdin().lock().lines() {
        println!("{}", LONGEST.swap(0, Ordering::AcqRel));
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("pauses DEVICE FIRST_BYTE BYTES THREADS both|read");
    ExitCode::from(2)
}

fn work(file: &File, first_byte: u64, bytes: u64, seed: u64, writes: bool, start: Instant) -> io::Result<()> {
    let mut memory = vec![0; 2 * BLOCK];
    let at = memory.as_ptr().align_offset(BLOCK);
    let block = &mut memory[at..at + BLOCK];
    let mut random = seed + 1;
    loop {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let offset = first_byte + random % (bytes / BLOCK as u64) * BLOCK as u64;
        if writes && random >> 63 == 1 {
            file.write_all_at(block, offset)?;
        } else {
            file.read_exact_at(block, offset)?;
        }
        let now = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let before = LAST.fetch_max(now, Ordering::AcqRel);
        LONGEST.fetch_max(now.saturating_sub(before), Ordering::AcqRel);
    }
}
