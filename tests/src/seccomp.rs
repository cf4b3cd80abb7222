//! System calls that a child process may not make.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Offset of the number in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;

/// Has the kernel answer each call of this number with `errno`, in the process that `command` starts.
pub fn forbid(command: &mut Command, call: i64, errno: i32) {
    let filter = filter(u32::try_from(call).unwrap(), u32::try_from(errno).unwrap());
    // SAFETY: prctl is async-signal-safe; the filter was made before.
    unsafe { command.pre_exec(move || install(&filter)) };
}

/// Number equals `call`: `errno`; anything else: allowed.
fn filter(call: u32, errno: u32) -> [libc::sock_filter; 4] {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NUMBER_AT),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn install(filter: &[libc::sock_filter; 4]) -> io::Result<()> {
    let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
    // SAFETY: both take plain numbers and a pointer to a program that lives until the call returns; the kernel copies it.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}
