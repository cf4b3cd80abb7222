//! The command line: what is refused, in one clear line and with exit status 2, and what `--create` makes.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Signal;

use receiptdisk_tests::{Exit, Proc, Scratch, Serve, backend_binary};

const SIZE: u64 = 1 << 20;

/// Asserts exit status 2 and one line on standard error (beside the log's) that says each of `words`.
#[track_caller]
fn assert_refused(exit: &Exit, words: &[&str]) {
    assert_eq!(exit.code, Some(2), "{exit:?}");
    let lines = exit.stderr.lines().filter(|line| !line.starts_with('[') && !line.trim().is_empty());
    assert_eq!(lines.count(), 1, "one line: {}", exit.stderr);
    let said = exit.stderr.to_lowercase();
    for word in words {
        assert!(said.contains(&word.to_lowercase()), "it does not say {word:?}: {}", exit.stderr);
    }
}

/// Serves a good image with the guests `specs`; `DIR` in them is the scratch folder.
fn serve_guests(scratch: &Scratch, specs: &[&str]) -> Exit {
    let dir = scratch.path().to_str().unwrap();
    let serve = Serve::image(&scratch.image(SIZE));
    let guests = specs.iter().map(|spec| spec.replace("DIR", dir));
    guests.fold(serve, |serve, spec| serve.arg("--guest").arg(spec)).run_to_end()
}

/// Serves `image` to a reader.
fn serve_image(image: &Path) -> Exit {
    Serve::image(image).ro("front").run_to_end()
}

#[test]
fn missing_image_is_refused() {
    let scratch = Scratch::new();
    assert_refused(&serve_image(&scratch.join("none.img")), &["none.img", "no such file"]);
}

#[test]
fn folder_as_image_is_refused() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("folder")).unwrap();
    assert_refused(&serve_image(&scratch.join("folder")), &["folder", "directory"]);
}

#[test]
fn fifo_as_image_is_refused_at_once() {
    let scratch = Scratch::new();
    let fifo = scratch.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert_refused(&serve_image(&fifo), &["fifo"]);
}

#[test]
fn character_device_as_image_is_refused() {
    let scratch = Scratch::new();
    std::os::unix::fs::symlink("/dev/null", scratch.join("null")).unwrap();
    assert_refused(&serve_image(&scratch.join("null")), &["null"]);
}

#[test]
fn sizes_that_are_no_sectors_are_refused() {
    let scratch = Scratch::new();
    for bytes in [0, 1, 511, 513, SIZE + 1] {
        let image = scratch.image(bytes);
        let exit = serve_image(&image);
        let word = if bytes == 0 { "empty" } else { "512" };
        assert_refused(&exit, &["disk.img", word]);
        assert_eq!(fs::metadata(&image).unwrap().len(), bytes, "a refused image is left alone");
    }
}

#[test]
fn bad_sets_of_guests_are_refused() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["guest"]),
        (&["name=a,socket=DIR/a,access=rw", "name=a,socket=DIR/b,access=ro"], &["a", "name"]),
        (&["name=a,socket=DIR/a,access=rw", "name=b,socket=DIR/a,access=ro"], &["/a", "socket"]),
        (&["name=a,socket=DIR/a,access=rw", "name=b,socket=DIR/b,access=rw"], &["multi-writer"]),
        (&["name=a,socket=DIR/a,access=write"], &["write", "access"]),
        (&["name=a,socket=DIR/a,access=rw,colour=red"], &["colour"]),
        (&["name=a,access=rw"], &["socket"]),
        (&["socket=DIR/a,access=rw"], &["name"]),
        (&["name=,socket=DIR/a,access=rw"], &["name"]),
        (&["name=a,socket=,access=rw"], &["socket"]),
        (&["name=a,socket=DIR/a,connect=DIR/b,access=rw"], &["connect"]),
        (&["name=a,socket=DIR/a,socket=DIR/b,access=rw"], &["socket"]),
        (&["nonsense"], &["nonsense"]),
    ];
    for (specs, words) in cases {
        let scratch = Scratch::new();
        let exit = serve_guests(&scratch, specs);
        assert_refused(&exit, words);
        assert!(!scratch.join("a").exists(), "{specs:?}: a refused start leaves no socket");
    }
}

#[test]
fn guests_end_at_the_limit() {
    let scratch = Scratch::new();
    let spec =
        |at: usize| format!("name=g{at},socket={},access=ro", scratch.join(&format!("{at}.sock")).display());
    let specs: Vec<String> = (0..17).map(spec).collect();
    let exit = serve_guests(&scratch, &specs.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(exit.code, Some(2));
    assert!(exit.stderr.contains("17 guests: 16 are possible"), "{}", exit.stderr);
}

#[test]
fn bad_socket_paths_are_refused() {
    let scratch = Scratch::new();
    let long = format!("name=a,access=rw,socket=DIR/{}", "x".repeat(110));
    assert_refused(&serve_guests(&scratch, &[&long]), &["socket", "107"]);
    fs::write(scratch.join("file"), "precious").unwrap();
    let exit = serve_guests(&scratch, &["name=a,socket=DIR/file,access=rw"]);
    assert_refused(&exit, &["file", "socket"]);
    assert_eq!(fs::read(scratch.join("file")).unwrap(), b"precious");
    let exit = serve_guests(&scratch, &["name=a,socket=DIR/none/a.sock,access=rw"]);
    assert_refused(&exit, &["none/a.sock", "no such file"]);
}

#[test]
fn folder_that_cannot_be_written_is_refused() {
    let scratch = Scratch::new();
    let folder = scratch.join("locked");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, PermissionsExt::from_mode(0o555)).unwrap();
    let words: &[&str] = if rustix::process::geteuid().is_root() {
        // Root may write everywhere but here.
        let exit = serve_guests(&scratch, &["name=a,socket=/proc/a.sock,access=rw"]);
        return assert_refused(&exit, &["/proc/a.sock"]);
    } else {
        &["locked/a.sock", "permission denied"]
    };
    assert_refused(&serve_guests(&scratch, &["name=a,socket=DIR/locked/a.sock,access=rw"]), words);
}

#[test]
fn live_socket_is_refused_and_left_working() {
    let scratch = Scratch::new();
    let _live = UnixListener::bind(scratch.join("live.sock")).unwrap();
    let exit = serve_guests(&scratch, &["name=a,socket=DIR/live.sock,access=rw"]);
    assert_refused(&exit, &["live.sock", "listens"]);
    std::os::unix::net::UnixStream::connect(scratch.join("live.sock")).unwrap();
}

#[test]
fn stale_socket_is_replaced() {
    let scratch = Scratch::new();
    drop(UnixListener::bind(scratch.join("front.sock")).unwrap());
    assert!(fs::metadata(scratch.join("front.sock")).unwrap().file_type().is_socket());
    let backend = Serve::image(&scratch.image(SIZE)).ro("front").start();
    receiptdisk_tests::Driver::connect(&backend.socket("front")).read(0, 512).unwrap();
}

#[test]
fn create_allocates_the_whole_file() {
    let scratch = Scratch::new();
    let image = scratch.join("new.img");
    for (text, bytes) in [("1M", 1 << 20), ("65536", 65536), ("512K", 512 << 10)] {
        let backend = Serve::image(&image).arg("--create").arg(text).ro("front").start();
        let made = fs::metadata(&image).unwrap();
        assert_eq!(made.len(), bytes, "--create {text}");
        assert!(made.blocks() * 512 >= bytes, "{} blocks for --create {text}", made.blocks());
        drop(backend);
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn create_leaves_what_exists_alone() {
    let scratch = Scratch::new();
    let image = scratch.patterned_image(65536);
    let before = fs::read(&image).unwrap();
    let mut backend = Serve::image(&image).arg("--create").arg("1M").ro("front").start();
    assert_eq!(backend.terminate().code, Some(0));
    assert!(fs::read(&image).unwrap() == before);
}

#[test]
fn bad_create_sizes_are_refused_and_make_nothing() {
    let scratch = Scratch::new();
    for size in ["0", "513", "1X", "-1", "", "M", "1.5M", "99999999999G", "18446744073709551616"] {
        let image = scratch.join("new.img");
        let exit = Serve::image(&image).arg(format!("--create={size}")).ro("front").run_to_end();
        assert_refused(&exit, &[]);
        assert!(!image.exists(), "--create {size}");
    }
}

#[test]
fn create_in_a_missing_folder_is_refused() {
    let scratch = Scratch::new();
    let image = scratch.join("none/new.img");
    let exit = Serve::image(&image).arg("--create").arg("1M").run_to_end_in(&scratch);
    assert_refused(&exit, &["none/new.img", "no such file"]);
}

#[test]
fn wrong_arguments_are_named() {
    let scratch = Scratch::new();
    let log = scratch.join("log");
    let cases: &[(&[&str], &[&str])] = &[
        (&["serve", "--nonsense"], &["--nonsense"]),
        (&["nonsense"], &["nonsense"]),
        (&["serve"], &["--image", "--guest"]),
        (&["ctl"], &["command is missing", "status"]),
        (&["serve", "--guest", "name=a,socket=/a,access=ro"], &["--image"]),
        (&["serve", "--image", "x", "--guest", "name=a,socket=/a", "--cache", "none"], &["--cache", "none"]),
        (&["serve", "--image", "x", "--guest", "name=a,socket=/a", "--queues", "0"], &["--queues"]),
        (&["serve", "--image", "x", "--guest", "name=a,socket=/a", "--queue-size", "100"], &["--queue-size"]),
        (&["serve", "--image", "x", "--guest", "name=a,socket=/a", "--poll-us", "1000001"], &["--poll-us"]),
    ];
    for (args, words) in cases {
        assert_refused(&Proc::spawn(Command::new(backend_binary()).args(*args), &log).wait(), words);
    }
}

#[test]
fn image_without_permission_is_refused() {
    let scratch = Scratch::new();
    let image = scratch.image(SIZE);
    fs::set_permissions(&image, PermissionsExt::from_mode(0o000)).unwrap();
    if File::open(&image).is_ok() {
        // Root reads everything; what root cannot write is an immutable place.
        return assert_refused(
            &Serve::image(Path::new("/proc/version")).run_to_end_in(&scratch),
            &["/proc/version"],
        );
    }
    assert_refused(&serve_image(&image), &["disk.img", "permission denied"]);
}

/// Each would otherwise write over the image, or take another's socket from it.
#[test]
fn files_and_sockets_at_one_place_are_refused() {
    let scratch = Scratch::new();
    let image = scratch.image(SIZE);
    std::os::unix::fs::symlink("disk.img", scratch.join("link")).unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--record", "DIR/disk.img"], &["image", "--record"]),
        (&["--record", "DIR/link"], &["image", "--record"]),
        (&["--state", "DIR/./disk.img"], &["image", "state file"]),
        (&["--control", "DIR/../DIR_NAME/front.sock"], &["control socket", "front"]),
        (&["--guest", "name=b,access=ro,socket=DIR/../DIR_NAME/front.sock"], &["guest front", "guest b"]),
        (&["--record", "DIR/disk.img.receiptdisk.running"], &["running", "--record"]),
    ];
    let dir = scratch.path().to_str().unwrap();
    let dir_name = scratch.path().file_name().unwrap().to_str().unwrap();
    for (args, words) in cases {
        let arg = |text: &&str| text.replace("DIR_NAME", dir_name).replace("DIR", dir);
        let serve = args.iter().map(arg).fold(Serve::image(&image).ro("front"), Serve::arg);
        let exit = serve.run_to_end();
        assert_refused(&exit, words);
        assert!(exit.stderr.contains("cannot be both"), "{}", exit.stderr);
        assert!(!scratch.join("front.sock").exists(), "{args:?}: a refused start leaves no socket");
    }
    assert_eq!(fs::metadata(&image).unwrap().len(), SIZE);
}

#[test]
fn record_writes_over_nothing() {
    let scratch = Scratch::new();
    let log = scratch.join("precious");
    fs::write(&log, "precious").unwrap();
    let exit = Serve::image(&scratch.image(SIZE)).ro("front").arg("--record").arg(&log).run_to_end();
    assert_refused(&exit, &["precious", "--record", "new name"]);
    assert_eq!(fs::read(&log).unwrap(), b"precious");
}

#[test]
fn folders_that_are_missing_are_named() {
    let scratch = Scratch::new();
    for (option, what) in [("--state", "state file"), ("--record", "log"), ("--control", "socket")] {
        let path = scratch.join("none/file");
        let exit = Serve::image(&scratch.image(SIZE)).ro("front").arg(option).arg(path).run_to_end();
        assert_refused(&exit, &[what, "none/file", "make the folder"]);
    }
}

#[test]
fn replacing_nobody_says_so() {
    let scratch = Scratch::new();
    let control = scratch.join("control.sock");
    drop(UnixListener::bind(&control).unwrap());
    let serve = Serve::image(&scratch.image(SIZE)).ro("front").arg("--control").arg(&control);
    assert_refused(&serve.arg("--replace").run_to_end(), &["no backend", "start without --replace"]);
}

/// `ctl status | head -1` and a full disk are no reason to panic.
#[test]
fn output_that_cannot_be_written_is_no_panic() {
    let scratch = Scratch::new();
    let control = scratch.join("control.sock");
    let _backend = Serve::image(&scratch.image(SIZE)).ro("front").arg("--control").arg(&control).start();
    let ctl = |out: Stdio| {
        let mut command = Command::new(backend_binary());
        command.arg("ctl").arg("--control").arg(&control).arg("status").stdout(out);
        command.output().unwrap()
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let closed = ctl(writer.into());
    assert_eq!((closed.status.code(), &closed.stderr[..]), (Some(0), &b""[..]));
    let full = ctl(File::options().write(true).open("/dev/full").unwrap().into());
    assert_eq!(full.status.code(), Some(1));
    let said = String::from_utf8(full.stderr).unwrap();
    assert!(said.lines().count() == 1 && said.contains("No space left"), "{said}");
}

/// A backend that is stopped, or whose socket is full of others who wait, is said to be silent; one that runs again answers.
#[test]
fn operator_of_a_backend_that_is_stopped_is_told_so() {
    let scratch = Scratch::new();
    let control = scratch.join("ctl.sock");
    let mut backend = Serve::image(&scratch.image(SIZE)).ro("front").arg("--control").arg(&control).start();
    let ctl = |args: &[&str]| {
        let mut command = Command::new(backend_binary());
        command.arg("ctl").arg("--control").arg(&control).args(args).output().unwrap()
    };
    assert!(ctl(&["--timeout", "30", "status"]).status.success());
    assert_eq!(ctl(&["status", "--timeout", "0"]).status.code(), Some(2));
    backend.proc().signal(Signal::STOP);
    let assert_silent = || {
        let output = ctl(&["--timeout", "1", "fence", "front"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("no answer within 1 seconds; the backend is stopped, or busy"), "{said}");
    };
    assert_silent();
    let address = SocketAddrUnix::new(&control).unwrap();
    let connect_at_once = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        connect(&socket, &address).map(|()| socket)
    };
    let waiting: Vec<OwnedFd> = std::iter::from_fn(|| connect_at_once().ok()).collect();
    assert!(waiting.len() > 100, "{} may wait", waiting.len());
    assert_silent();
    drop(waiting);
    backend.proc().signal(Signal::CONT);
    assert!(ctl(&["status"]).status.success());
}
