//! Sockets that another process listens on, as systemd does: a restart refuses nobody.

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

use receiptdisk_tests::raw::RawGuest;
use receiptdisk_tests::{Backend, Exit, Proc, Scratch, Serve, Stand};
use rustix::io::FdFlags;

/// As systemd starts a service: the sockets are descriptors from 3 on, and variables name them.
const START: &str =
    "exec 3<&\"$1\" && export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=\"$2\" && shift 2 && exec \"$@\"";

fn command(scratch: &Scratch, socket: &UnixListener, name: &str) -> Serve {
    rustix::io::fcntl_setfd(socket, FdFlags::empty()).unwrap();
    let fd = socket.as_raw_fd().to_string();
    Serve::image(&scratch.join("disk.img")).rw("issuer").run_by(&["bash", "-c", START, "bash", &fd, name])
}

fn greet(stream: UnixStream) -> RawGuest {
    let mut guest = RawGuest::over(stream);
    guest.start_queues(1);
    guest
}

#[test]
fn connections_wait_for_the_next_backend() {
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let path = scratch.join("issuer.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let spawn = || -> Backend { command(&scratch, &socket, "issuer").spawn() };

    let early = UnixStream::connect(&path).unwrap();
    let mut backend = spawn();
    greet(early).assert_works();
    for is_killed in [true, false, true] {
        if is_killed {
            backend.kill();
        } else {
            assert_eq!(backend.terminate().code, Some(0));
        }
        assert!(path.exists(), "the socket is not the backend's");
        let meanwhile = UnixStream::connect(&path).expect("nobody is refused");
        backend = spawn();
        greet(meanwhile).assert_works();
    }
}

/// QEMU's convention: the parent has the socket and says which descriptor it is.
#[test]
fn socket_may_be_handed_over_as_fd() {
    const START: &str = "exec 3<&\"$1\" && shift && exec \"$@\"";
    let scratch = Scratch::new();
    let image = scratch.image(Stand::SIZE);
    let path = scratch.join("qemu.sock");
    let socket = UnixListener::bind(&path).unwrap();
    rustix::io::fcntl_setfd(&socket, FdFlags::empty()).unwrap();
    let fd = socket.as_raw_fd().to_string();
    let log = scratch.join("log");
    let start = |given: &str| {
        let mut command = std::process::Command::new("bash");
        command.args(["-c", START, "bash", &fd]).arg(receiptdisk_tests::backend_binary());
        Proc::spawn(command.arg(format!("--fd={given}")).arg("--blk-file").arg(&image), &log)
    };
    let early = UnixStream::connect(&path).unwrap();
    let mut backend = start("3");
    greet(early).assert_works();
    greet(UnixStream::connect(&path).unwrap()).assert_works();
    backend.signal(rustix::process::Signal::TERM);
    assert_eq!(backend.wait().code, Some(0));
    assert!(path.exists(), "the socket is not the backend's");
    for wrong in ["0", "2", "77", "-1"] {
        let exit = start(wrong).wait();
        assert!(exit.code == Some(2) && exit.stderr.contains("descriptor"), "{wrong}: {exit:?}");
    }
}

#[test]
fn sockets_that_are_nobodys_are_refused() {
    let scratch = Scratch::new();
    scratch.image(Stand::SIZE);
    let socket = UnixListener::bind(scratch.join("other.sock")).unwrap();
    for name in ["other", "", "issuer:front"] {
        let exit: Exit = command(&scratch, &socket, name).run_to_end();
        assert_eq!(exit.code, Some(2), "{name}: {exit:?}");
        assert!(exit.stderr.contains("LISTEN_FDNAMES"), "{name}: {}", exit.stderr);
    }
}
