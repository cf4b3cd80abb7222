//! SIGTERM and SIGINT as something to wait for, for programs that hold a writer and must close it.

/// The signals that end the program, held back until [`StopSignals::wait`] takes one.
#[derive(Debug)]
pub struct StopSignals(libc::sigset_t);

impl StopSignals {
    /// Holds SIGINT and SIGTERM back in this thread and in those that it starts later: call it first.
    #[must_use]
    pub fn block() -> Self {
        // SAFETY: a signal set is plain data that `sigemptyset` initialises; all pointers are to locals.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            Self(set)
        }
    }

    /// Waits for one of them.
    pub fn wait(&self) {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right types.
        while unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } != 0 {}
    }
}
