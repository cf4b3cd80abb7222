//! A program for the guests: starts another kernel from this one, without a reset of the machine. It needs the standard library
//! alone.
//!
//! ```text
//! kexec KERNEL INITRAMFS
//! ```
//!
//! The new kernel gets the command line of this one. Returns only if there was an error.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

const SYS_KEXEC_FILE_LOAD: i64 = 320;
const RB_KEXEC: i32 = 0x4558_4543;

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn reboot(how: i32) -> i32;
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs] = &arguments[..] else {
        eprintln!("kexec KERNEL INITRAMFS");
        return ExitCode::from(2);
    };
    eprintln!("kexec: {}", start(kernel, initramfs));
    ExitCode::FAILURE
}

fn start(kernel: &str, initramfs: &str) -> io::Error {
    match load(kernel, initramfs) {
        // SAFETY: takes a number; what runs here ends with it, as it should.
        Ok(()) => unsafe {
            reboot(RB_KEXEC);
            io::Error::last_os_error()
        },
        Err(error) => error,
    }
}

fn load(kernel: &str, initramfs: &str) -> io::Result<()> {
    let [kernel, initramfs] = [File::open(kernel)?, File::open(initramfs)?];
    let line = CString::new(std::fs::read_to_string("/proc/cmdline")?.trim_end())?;
    let bytes = line.as_bytes_with_nul().len();
    // SAFETY: two open descriptors, and a string with its length, which ends with a zero as the kernel wants it.
    let loaded = unsafe {
        syscall(SYS_KEXEC_FILE_LOAD, kernel.as_raw_fd(), initramfs.as_raw_fd(), bytes, line.as_ptr(), 0_i64)
    };
    if loaded == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
