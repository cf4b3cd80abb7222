//! The system calls of a backend that serves guests. Two filters: what no code here ever asks for ends the process, and
//! what is not known here fails as on a kernel that does not have it, which the C library can deal with.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Filters the calls of all threads, for good.
///
/// # Errors
/// When the kernel has no filters, or this processor is not known.
pub fn install() -> Result<(), Error> {
    let errno = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    // In this order: the second does not allow a third. Where both match, the kernel takes the harsher.
    apply_filter_all_threads(&compile(deadly()?, SeccompAction::Allow, SeccompAction::KillProcess)?)?;
    apply_filter_all_threads(&compile(allowed()?, errno, SeccompAction::Allow)?)
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, matched, TargetArch::try_from(ARCH)?)?.try_into()
}

/// A rule on the low 32 bits of one argument.
fn argument(index: u8, operator: SeccompCmpOp, value: u32) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value.into())?])
}

/// Calls that end the process: other programs, other processes, other rights, other address families.
fn deadly() -> Result<Rules, BackendError> {
    let mut rules: Rules = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_setuid,
        libc::SYS_setresuid,
        libc::SYS_setgid,
        libc::SYS_setresgid,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_open_by_handle_at,
        libc::SYS_io_uring_setup,
        libc::SYS_add_key,
        libc::SYS_keyctl,
    ]
    .map(|call| (call, Vec::new()))
    .into();
    #[cfg(target_arch = "x86_64")]
    rules.extend([libc::SYS_fork, libc::SYS_vfork].map(|call| (call, Vec::new())));
    let thread = bits(libc::CLONE_THREAD);
    rules.insert(libc::SYS_clone, vec![argument(0, SeccompCmpOp::MaskedEq(thread.into()), 0)?]);
    rules.insert(libc::SYS_socket, vec![argument(0, SeccompCmpOp::Ne, bits(libc::AF_UNIX))?]);
    Ok(rules)
}

/// Everything that serving guests, the control socket and the end of the process take.
fn allowed() -> Result<Rules, BackendError> {
    let calls = [&MEMORY_AND_THREADS[..], &FILES[..], &SOCKETS_AND_EVENTS[..], ONLY_HERE].concat();
    let mut rules: Rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let no_code = || argument(2, SeccompCmpOp::MaskedEq(u64::from(bits(libc::PROT_EXEC))), 0);
    rules.insert(libc::SYS_mmap, vec![no_code()?]);
    rules.insert(libc::SYS_mprotect, vec![no_code()?]);
    rules.insert(libc::SYS_prctl, vec![argument(0, SeccompCmpOp::Eq, bits(libc::PR_SET_NAME))?]);
    let controls = [libc::FIONBIO, BLKGETSIZE64];
    let controls = controls.into_iter().filter_map(|request| u32::try_from(request).ok());
    let controls = controls.map(|request| argument(1, SeccompCmpOp::Eq, request));
    rules.insert(libc::SYS_ioctl, controls.collect::<Result<_, _>>()?);
    Ok(rules)
}

/// `linux/fs.h`: the size of a block device.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

fn bits(number: i32) -> u32 {
    number.cast_unsigned()
}

/// `clone3` is not there: its flags cannot be looked at, and the C library then takes `clone`.
const MEMORY_AND_THREADS: [c_long; 36] = [
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_clone,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
];

const FILES: [c_long; 33] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_faccessat,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_readlinkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
];

const SOCKETS_AND_EVENTS: [c_long; 20] = [
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_socketpair,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_memfd_create,
];

/// Older forms of the same, which other processors do not have.
#[cfg(target_arch = "x86_64")]
const ONLY_HERE: &[c_long] = &[
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ONLY_HERE: &[c_long] = &[];
