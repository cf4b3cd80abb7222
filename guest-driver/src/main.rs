//! `receipt`: stores and reads receipts by path on the shared disk. Exit codes: 0 ok, 1 other error, 2 usage, 3 not
//! found, 4 pending, 5 corrupt, 6 no space, 7 device busy or read-only, 8 refused by policy.

mod cli;

use clap::Parser;
use std::process::ExitCode;

/// Makes glibc give the memory of each receipt back at once: `put --batch` needs a third of the memory for it.
fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
    }
}

/// Takes the place of glibc's, which reads `/proc/self/maps` with `sscanf` and so brings 110 KB of number parsing into the static program.
/// The standard library asks it for nothing but the guard page of the stack, and goes on without: a stack that overflows still ends the
/// program with SIGSEGV, only without a line that says so.
#[cfg(target_feature = "crt-static")]
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(_: libc::pthread_t, _: *mut libc::pthread_attr_t) -> libc::c_int {
    libc::ENOSYS
}

fn main() -> ExitCode {
    return_freed_memory();
    let args = match cli::args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            if code != 0 && std::env::args_os().any(|arg| arg == "--json") {
                eprintln!("{}", cli::usage_as_json(&error.to_string(), code));
            } else {
                let _ = error.print(); // nowhere to report a closed terminal
            }
            return ExitCode::from(code);
        }
    };
    ExitCode::from(cli::run(&args))
}
