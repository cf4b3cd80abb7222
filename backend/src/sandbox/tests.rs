//! Each call is tried by a process of its own: this very test program, run again for one test that does not end well.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;

/// Names the call to try in the process that tries it, and the folder it may change.
const CALL: &str = "RECEIPTDISK_TEST_CALL";
const FOLDER: &str = "RECEIPTDISK_TEST_FOLDER";

/// How a call ends in the sandbox.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Works,
    Fails(i32),
    Killed(i32),
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap()
}

/// 0 or an errno.
fn errno_of<T>(result: io::Result<T>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap(), |_| 0)
}

/// Makes the call and returns 0 or its errno.
fn try_call(name: &str, folder: &Path) -> i32 {
    let path = folder.join("state");
    // SAFETY: none of the calls is given memory of this process; each fails, ends the process or does nothing to it.
    let call = |number: libc::c_long, arguments: [libc::c_long; 4]| unsafe {
        let [a, b, c, d] = arguments;
        if libc::syscall(number, a, b, c, d, -1, 0) < 0 { errno() } else { 0 }
    };
    match name {
        "nothing" => 0,
        "run a program" => errno_of(Command::new("/bin/true").spawn()),
        "fork" => call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]),
        "clone3" => call(libc::SYS_clone3, [0; 4]),
        "make a thread" => {
            errno_of(std::thread::Builder::new().name("t".into()).spawn(|| ()).map(|t| t.join().unwrap()))
        }
        "internet" => errno_of(std::net::TcpStream::connect("127.0.0.1:9")),
        "internet by udp" => errno_of(std::net::UdpSocket::bind("127.0.0.1:0")),
        "netlink" => call(libc::SYS_socket, [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0, 0]),
        "unix socket" => call(libc::SYS_socket, [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0]),
        "ptrace" => call(libc::SYS_ptrace, [16, 1, 0, 0]),
        "memory of another process" => call(libc::SYS_process_vm_readv, [1, 0, 0, 0]),
        "another io_uring" => call(libc::SYS_io_uring_setup, [8, 0, 0, 0]),
        "mount" => call(libc::SYS_mount, [0; 4]),
        "namespace" => call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0]),
        "become root" => call(libc::SYS_setuid, [0; 4]),
        "code in memory" => call(libc::SYS_mmap, [0, 4096, (libc::PROT_READ | libc::PROT_EXEC).into(), 0x22]),
        "data in memory" => {
            call(libc::SYS_mmap, [0, 4096, (libc::PROT_READ | libc::PROT_WRITE).into(), 0x22])
        }
        "terminal" => call(libc::SYS_ioctl, [0, 0x5412, 0, 0]),
        "kill another process" => call(libc::SYS_kill, [1, 0, 0, 0]),
        "read another file" => errno_of(File::open("/etc/passwd")),
        "list another folder" => errno_of(File::open("/etc")),
        "write another file" => errno_of(File::create(folder.with_extension("outside"))),
        "replace a file" => errno_of(crate::state::StateFile::new(path).save(&Default::default())),
        "remove a file" => errno_of(fs::write(&path, "x").and_then(|()| fs::remove_file(&path))),
        "make a folder" => errno_of(fs::create_dir(path)),
        "descriptors" => errno_of(fs::read_link("/proc/self/fd/0")),
        other => panic!("what is {other}?"),
    }
}

/// The other half of the tests below: does nothing unless it is told which call to try.
#[test]
fn sandboxed_process() {
    let (Ok(name), Ok(folder)) = (std::env::var(CALL), std::env::var(FOLDER)) else { return };
    let folder = PathBuf::from(folder);
    let sandbox = filter_calls(give_up_rights(std::slice::from_ref(&folder)).unwrap());
    assert!(sandbox.seccomp);
    let result = match name.as_str() {
        "landlock" if sandbox.landlock == Landlock::Off => libc::EOPNOTSUPP,
        "landlock" => 0,
        name => try_call(name, &folder),
    };
    std::process::exit(result);
}

fn end_of(name: &str) -> End {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "sandbox::tests::sandboxed_process", "--nocapture"]);
    child.env(CALL, name).env(FOLDER, folder.path().join("inside"));
    fs::create_dir(folder.path().join("inside")).unwrap();
    let output = child.stdin(Stdio::null()).output().unwrap();
    match (output.status.code(), output.status.signal()) {
        (Some(0), _) => End::Works,
        (Some(101), _) => panic!("{name}: {}", String::from_utf8_lossy(&output.stderr)),
        (Some(code), _) => End::Fails(code),
        (None, Some(signal)) => End::Killed(signal),
        (None, None) => unreachable!(),
    }
}

#[track_caller]
fn check(cases: &[(&str, End)]) {
    for (name, expected) in cases {
        assert_eq!(end_of(name), *expected, "{name}");
    }
}

#[test]
fn what_no_backend_does_ends_the_process() {
    const KILLED: End = End::Killed(libc::SIGSYS);
    check(&[
        ("run a program", KILLED),
        ("fork", KILLED),
        ("internet", KILLED),
        ("internet by udp", KILLED),
        ("netlink", KILLED),
        ("ptrace", KILLED),
        ("memory of another process", KILLED),
        ("another io_uring", KILLED),
        ("mount", KILLED),
        ("namespace", KILLED),
        ("become root", KILLED),
    ]);
}

#[test]
fn what_is_not_needed_fails() {
    check(&[
        ("clone3", End::Fails(libc::ENOSYS)),
        ("code in memory", End::Fails(libc::ENOSYS)),
        ("terminal", End::Fails(libc::ENOSYS)),
        ("kill another process", End::Fails(libc::ENOSYS)),
        ("make a folder", End::Fails(libc::ENOSYS)),
    ]);
    if end_of("landlock") == End::Fails(libc::EOPNOTSUPP) {
        return println!("this kernel has no Landlock: paths are not restricted");
    }
    check(&[
        ("read another file", End::Fails(libc::EACCES)),
        ("list another folder", End::Fails(libc::EACCES)),
        ("write another file", End::Fails(libc::EACCES)),
    ]);
}

#[test]
fn what_is_needed_works() {
    check(&[
        ("nothing", End::Works),
        ("make a thread", End::Works),
        ("unix socket", End::Works),
        ("data in memory", End::Works),
        ("replace a file", End::Works),
        ("remove a file", End::Works),
        ("descriptors", End::Works),
    ]);
}
