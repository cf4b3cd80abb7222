//! What takes more than a second shows on a terminal how far it is.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use receiptdisk_tests::{DiskOp, FaultDisk, Scratch, die_with_parent, receipt_binary};

/// Nothing is shown in the first second.
const SHOWN_AFTER: Duration = Duration::from_millis(1100);

/// A pseudo terminal: the end that the program gets, and the one that shows what it writes.
fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let screen = openpt(flags).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let name = ptsname(&screen, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let end = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
    (File::from(screen), end)
}

/// A device for a store, and the program.
struct Store {
    device: PathBuf,
    scratch: Scratch,
}

impl Store {
    /// A store in a file with the receipts `r/0`, `r/1` and so on, of 8,000 bytes each; their files are in the folder `in`.
    fn filled(count: u32) -> Self {
        let scratch = Scratch::new();
        let store = Self { device: scratch.image(16 << 20), scratch };
        fs::create_dir(store.scratch.join("in")).unwrap();
        for number in 0..count {
            fs::write(store.scratch.join(&format!("in/{number}")), number.to_le_bytes().repeat(2000))
                .unwrap();
        }
        store.ok(&["format"]);
        store.ok(&["put", "--batch", store.scratch.join("in").to_str().unwrap(), "--prefix", "r/"]);
        store
    }

    /// A disk of which the test owns every operation.
    fn on_fault_disk() -> (Self, FaultDisk) {
        let scratch = Scratch::new();
        let device = scratch.join("disk.img");
        let disk = FaultDisk::new(&device, 16 << 20);
        (Self { device, scratch }, disk)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(receipt_binary());
        command.arg("--device").arg(&self.device).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        die_with_parent(&mut command);
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> Vec<u8> {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Starts a command on a terminal, which shows its standard error.
    fn on_terminal(&self, args: &[&str], stdin: Stdio) -> (Child, File) {
        let (screen, end) = terminal();
        (self.command(args).stdin(stdin).stderr(end).spawn().unwrap(), screen)
    }
}

/// All that a command showed until its end, which must be a good one.
#[track_caller]
fn shown(mut child: Child, mut screen: File) -> String {
    let mut bytes = Vec::new();
    let _ = screen.read_to_end(&mut bytes); // ends with an error when the program has gone
    assert!(child.wait().unwrap().success());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a command shows whose first operation of a kind takes longer than a second.
#[track_caller]
fn shown_on_slow_disk(store: &Store, disk: &FaultDisk, op: DiskOp, args: &[&str]) -> String {
    disk.hold(op);
    let (child, screen) = store.on_terminal(args, Stdio::null());
    disk.wait_for_held(op, 1);
    std::thread::sleep(SHOWN_AFTER);
    disk.release(op);
    shown(child, screen)
}

#[test]
fn formatting_shows_how_far_it_is() {
    let (store, disk) = Store::on_fault_disk();
    let screen = shown_on_slow_disk(&store, &disk, DiskOp::Write, &["format"]);
    assert!(screen.contains('#') && screen.contains(" bytes, ") && screen.contains("\x1b[K"), "{screen:?}");
}

#[test]
fn a_check_from_a_note_shows_how_far_it_is() {
    let (store, disk) = Store::on_fault_disk();
    store.ok(&["format"]);
    let note = store.scratch.join("note");
    fs::write(&note, store.ok(&["checkpoint"])).unwrap();
    for path in ["r/1", "r/2"] {
        store.ok(&["put", path, note.to_str().unwrap()]);
    }
    let args = ["verify", "--from", note.to_str().unwrap()];
    let screen = shown_on_slow_disk(&store, &disk, DiskOp::Read, &args);
    assert!(screen.contains('#') && screen.contains(" records, ") && screen.contains("\x1b[K"), "{screen:?}");
}

#[test]
fn a_check_shows_how_far_it_is_on_a_terminal_only() {
    let store = Store::filled(400); // 3.2 MiB of records
    for args in [["scrub", "--throttle", "2"].as_slice(), &["scrub", "--repair", "--throttle", "2"]] {
        let (child, screen) = store.on_terminal(args, Stdio::null());
        let screen = shown(child, screen);
        assert!(screen.contains('#') && screen.contains(" records, "), "{screen}");
        assert!(screen.contains("\x1b[K"), "it takes the line away: {screen}");
    }
    let output = store.command(&["scrub", "--throttle", "2"]).output().unwrap();
    assert!(!output.stderr.contains(&b'#'));
}

/// What a batch has done so far is shown when it lasts, on a terminal beside an output that goes elsewhere.
#[test]
fn a_batch_that_lasts_shows_how_far_it_is() {
    let store = Store::filled(1);
    let put = format!("x/1\t{0}\nx/2\t{0}\n", store.scratch.join("in/0").display());
    let to = store.scratch.join("out");
    let get = ["get", "--batch", "-", "--to", to.to_str().unwrap()];
    for (args, input) in [(["put", "--batch", "-"].as_slice(), put.as_str()), (&get, "x/1\nx/2\n")] {
        let (mut child, screen) = store.on_terminal(args, Stdio::piped());
        let mut stdin = child.stdin.take().unwrap();
        for line in input.lines() {
            std::thread::sleep(SHOWN_AFTER);
            writeln!(stdin, "{line}").unwrap();
        }
        drop(stdin);
        let screen = shown(child, screen);
        assert!(screen.contains("receipts"), "{args:?}: {screen:?}");
    }
}

/// Lines that nobody takes for a while: the list waits, and shows how far it is when it goes on.
#[test]
fn a_list_that_lasts_shows_how_far_it_is() {
    let store = Store::filled(1);
    let file = store.scratch.join("in/0");
    let long = "x".repeat(900);
    let manifest: String = (0..300).map(|number| format!("{long}/{number}\t{}\n", file.display())).collect();
    let list = store.scratch.join("list");
    fs::write(&list, manifest).unwrap();
    store.ok(&["put", "--batch", list.to_str().unwrap()]);
    for (args, unit) in [(["ls"].as_slice(), "paths"), (&["follow", "--from", "1", "--once"], "changes")] {
        let (mut child, screen) = store.on_terminal(args, Stdio::null());
        let mut lines = String::new();
        std::thread::sleep(SHOWN_AFTER);
        child.stdout.take().unwrap().read_to_string(&mut lines).unwrap();
        let screen = shown(child, screen);
        assert_eq!(lines.lines().count(), 301, "{args:?}");
        assert!(screen.contains(unit), "{args:?}: {screen:?}");
    }
}
