//! Children of a test that do not outlive it, however it ends.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the kernel kill what `command` starts when the *thread* that starts it ends: so start it in the test's own thread.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let ask = || {
        // SAFETY: PR_SET_PDEATHSIG takes a signal number and no pointer.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: prctl is async-signal-safe and touches nothing that the parent owns.
    unsafe { command.pre_exec(ask) }
}
