//! `receipt mount`: receipts as files, on a store in a file. Each test needs root and `/dev/fuse`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use receipt_store::device::DeviceResult;
use receipt_store::error::{DeviceError, DeviceOp};
use receipt_store::expire::{ExpireEvent, ExpireOptions, expire};
use receipt_store::layout::block_offset;
use receipt_store::policy::{Hold, Policy};
use receipt_store::{
    Device, FormatOptions, Put, RawDevice, Reader, ReceiptPath, Stored, Term, Writer, WriterOptions, day,
    format,
};
use receiptdisk_tests::{DiskOp, FaultDisk, Mounted, Scratch, pattern, until};
use rustix::process::Signal;

/// A formatted store in a file, and its writer.
struct Store {
    writer: Writer<RawDevice>,
    image: PathBuf,
    scratch: Scratch,
}

fn receipt_path(text: &str) -> ReceiptPath {
    ReceiptPath::new(text).unwrap()
}

fn formatted(image: &Path, segment_bytes: Option<u64>) -> Writer<RawDevice> {
    let device = RawDevice::open_writer(image).unwrap();
    format(&device, &FormatOptions { force: true, segment_bytes, ..FormatOptions::default() }).unwrap();
    Writer::open(device, &WriterOptions::default()).unwrap()
}

impl Store {
    fn new() -> Self {
        Self::with(256 << 20, None)
    }

    fn with(bytes: u64, segment_bytes: Option<u64>) -> Self {
        let scratch = Scratch::new();
        let image = scratch.image(bytes);
        Self { writer: formatted(&image, segment_bytes), image, scratch }
    }

    fn mount(&self, options: &[&str]) -> Mounted {
        Mounted::start(&self.image, &self.scratch.join("mnt"), options)
    }

    fn put(&mut self, path: &str, data: &[u8]) -> Stored {
        let path = receipt_path(path);
        self.writer.put(&Put { is_new_version: true, ..Put::new(&path, data) }).unwrap()
    }

    /// Many receipts, in commits of 250.
    fn put_all(&mut self, receipts: impl Iterator<Item = (String, String)>) {
        let receipts: Vec<_> = receipts.map(|(path, data)| (receipt_path(&path), data)).collect();
        for batch in receipts.chunks(250) {
            let puts: Vec<_> = batch.iter().map(|(path, data)| Put::new(path, data.as_bytes())).collect();
            self.writer.commit(&puts).unwrap().into_iter().for_each(|stored| drop(stored.unwrap()));
        }
    }

    fn remove(&mut self, path: &str) {
        self.writer.remove(&receipt_path(path)).unwrap();
    }
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Bytes of a private mapping of the whole file.
fn mapped(file: &File) -> Vec<u8> {
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    // SAFETY: a fresh mapping of `len` bytes that nobody else knows; it is read only here and unmapped below.
    unsafe {
        let at =
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let bytes = std::slice::from_raw_parts(at.cast::<u8>(), len).to_vec();
        libc::munmap(at, len);
        bytes
    }
}

/// Bytes that the kernel sends from the file into another one.
fn sent(file: &File, scratch: &Scratch) -> Vec<u8> {
    let mut copy = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(scratch.join("copy"))
        .unwrap();
    let mut left = usize::try_from(file.metadata().unwrap().len()).unwrap();
    while left > 0 {
        // SAFETY: both descriptors are open, and no offset is passed.
        let count = unsafe { libc::sendfile(copy.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), left) };
        left -= usize::try_from(count).unwrap_or_else(|_| panic!("{}", io::Error::last_os_error()));
        assert!(count > 0, "the file is shorter than it says");
    }
    copy.rewind().unwrap();
    let mut bytes = Vec::new();
    copy.read_to_end(&mut bytes).unwrap();
    bytes
}

fn xattr(file: &Path, name: &str) -> String {
    let mut value = vec![0; 4096];
    let len = rustix::fs::getxattr(file, name, &mut value[..]).unwrap();
    String::from_utf8(value[..len].to_vec()).unwrap()
}

#[test]
fn receipt_is_an_ordinary_file() {
    let mut store = Store::with(512 << 20, Some(64 << 20));
    let mount = store.mount(&[]);
    for (path, len) in [("a.png", 1), ("2026/11/23/b.png", 100_000), ("回单/大.png", 32 << 20), ("empty", 0)]
    {
        let data = pattern(len as u64, 0, len);
        let stored = store.put(path, &data);
        let file = mount.path(path);
        assert!(fs::read(&file).unwrap() == data, "{path}");
        let stat =
            Reader::new(RawDevice::open_reader(&store.image).unwrap(), "image").stat(&receipt_path(path));
        let (meta, header) = (fs::metadata(&file).unwrap(), stat.unwrap().header);
        let recorded = i64::try_from(header.recorded_at_ms).unwrap();
        assert_eq!((meta.len(), meta.permissions().mode()), (len as u64, libc::S_IFREG | 0o444));
        assert_eq!((meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000, meta.nlink()), (recorded, 1));
        let seq = header.seq;
        assert_eq!(meta.ino(), if seq == 1 { 1 << 62 } else { seq }, "{path}");
        assert_eq!(xattr(&file, "user.receipt.seq"), seq.to_string());
        assert_eq!(xattr(&file, "user.receipt.locator"), stored.locator.to_string());
        let hash: String = header.data_hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(xattr(&file, "user.receipt.hash"), hash);
        if len > 0 {
            let open = File::open(&file).unwrap();
            assert!(mapped(&open) == data, "{path} mapped");
            assert!(sent(&open, &store.scratch) == data, "{path} sent");
            let mut middle = vec![0; len.div_ceil(3)];
            open.read_exact_at(&mut middle, len as u64 / 3).unwrap();
            assert!(middle[..] == data[len / 3..][..middle.len()], "{path} from its middle");
        }
    }
}

#[test]
fn nothing_can_be_changed_and_what_is_missing_is_missing() {
    let mut store = Store::new();
    store.put("a/b", b"precious");
    let mount = store.mount(&[]);
    assert_eq!(errno(File::options().write(true).open(mount.path("a/b"))), libc::EROFS);
    assert_eq!(errno(fs::write(mount.path("new"), b"x")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(mount.path("a/b"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(mount.path("folder"))), libc::EROFS);
    for missing in ["no", "a/no", "no/b", "a/b/c", "a/b@1.2.3.4"] {
        let expected = if missing == "a/b/c" { libc::ENOTDIR } else { libc::ENOENT };
        assert_eq!(errno(fs::metadata(mount.path(missing))), expected, "{missing}");
    }
    assert_eq!(fs::read(mount.path("a/b")).unwrap(), b"precious");
}

#[test]
fn folders_show_what_is_there_now() {
    let mut store = Store::new();
    let mut expected: BTreeSet<_> = (0..3000).map(|number| format!("{number:05}.png")).collect();
    store.put_all((0..3000).map(|number| (format!("day/{number:05}.png"), format!("receipt {number}"))));
    store.put(".id/0123", b"a gateway's");
    let mount = store.mount(&[]);
    store.put(".id/4567", b"a gateway's");
    let shown = |folder: &str| names(&mount.path(folder));
    assert_eq!(shown(""), ["day"]);
    assert!(shown("day").into_iter().eq(expected.iter().cloned()), "3000 names");
    // An open listing is of one moment; the next one is of now.
    let before = fs::read_dir(mount.path("day")).unwrap();
    store.put("day/new.png", b"new");
    store.remove("day/00007.png");
    store.put("other/day/x.png", b"x");
    store.put("day/00008.png", b"new version");
    assert_eq!(before.count(), 3000);
    expected.insert("new.png".into());
    expected.remove("00007.png");
    assert!(shown("day").into_iter().eq(expected.iter().cloned()), "after changes");
    assert_eq!((shown(""), shown("other")), (vec!["day".into(), "other".into()], vec!["day".into()]));
    assert_eq!(errno(fs::metadata(mount.path("day/00007.png"))), libc::ENOENT);
    for number in (0..3000).step_by(97).filter(|number| ![7, 8].contains(number)) {
        let data = fs::read(mount.path(&format!("day/{number:05}.png"))).unwrap();
        assert_eq!(data, format!("receipt {number}").as_bytes());
    }
    // The last receipt takes its folders with it; a name that is a folder, too, is the folder.
    store.remove("other/day/x.png");
    until("the empty folder to go", || fs::metadata(mount.path("other")).is_err().then_some(()));
    store.put("day/00001.png/page2", b"2");
    until("the folder to hide it", || {
        fs::metadata(mount.path("day/00001.png")).unwrap().is_dir().then_some(())
    });
    assert_eq!(shown("day").iter().filter(|name| *name == "00001.png").count(), 1);
    store.remove("day/00001.png/page2");
    until("the receipt to be shown again", || {
        fs::metadata(mount.path("day/00001.png")).unwrap().is_file().then_some(())
    });
    assert_eq!(fs::read(mount.path("day/00001.png")).unwrap(), b"receipt 1");
}

#[test]
fn listings_keep_to_their_memory() {
    let mut store = Store::new();
    store.put_all((0..40).map(|number| (format!("a/{number}"), "x".into())));
    store.put_all((0..10).map(|number| (format!("b/{number}/x"), "x".into())));
    let mount = store.mount(&["--names-max", "50"]);
    assert_eq!(errno(fs::read_dir(mount.path("a")).map(|_| ())), libc::EFBIG, "13 folders and 40 names");
    assert_eq!((names(&mount.path("b")).len(), names(&mount.path("b/3"))), (10, vec!["x".into()]));
    assert_eq!(fs::read(mount.path("a/39")).unwrap(), b"x", "reading needs no list");
}

/// Version `number` of a receipt: 8 bytes that name it, again and again, and a length of its own.
fn version(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(usize::try_from(1 + number * 977 % 12_000).unwrap())
}

/// The version that `data` is. Panics where it is none as a whole.
fn version_of(data: &[u8]) -> u64 {
    let number = u64::from_le_bytes(data[..8].try_into().unwrap());
    assert!(data == version(number), "{} bytes of version {number} are not that version", data.len());
    number
}

#[test]
fn open_shows_the_newest_version_and_keeps_it() {
    let mut store = Store::new();
    store.put("r.png", &version(0));
    let mount = store.mount(&[]);
    let mut open: Vec<(u64, File)> = Vec::new();
    for number in 1..200 {
        store.put("r.png", &version(number));
        let file = File::open(mount.path("r.png")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), version(number).len() as u64, "an old size");
        open.push((number, file));
        assert_eq!(version_of(&fs::read(mount.path("r.png")).unwrap()), number, "stale");
    }
    for (number, mut file) in open {
        assert_eq!(version_of(&mapped(&file)), number, "mapped");
        let mut data = Vec::new();
        file.read_to_end(&mut data).unwrap();
        assert_eq!(version_of(&data), number, "read");
    }
}

#[test]
fn readers_race_the_writer() {
    const PATHS: u64 = 4;
    let mut store = Store::new();
    let path = |number: u64| format!("race/{}.png", number % PATHS);
    (0..PATHS).for_each(|number| drop(store.put(&path(number), &version(number))));
    let mount = store.mount(&["--threads", "8"]);
    let (acknowledged, is_over) = (AtomicU64::new(PATHS - 1), AtomicBool::new(false));
    let reads: u64 = std::thread::scope(|scope| {
        let read = |number: u64| {
            let mut reads = 0;
            while !is_over.load(Ordering::Relaxed) {
                let newest = acknowledged.load(Ordering::SeqCst);
                let oldest_allowed = newest - (newest - number) % PATHS;
                let file = File::open(mount.path(&path(number))).unwrap();
                let data =
                    if reads % 2 == 0 { mapped(&file) } else { fs::read(mount.path(&path(number))).unwrap() };
                let seen = version_of(&data);
                assert!(
                    seen >= oldest_allowed && seen % PATHS == number,
                    "{seen}, not {oldest_allowed} or newer"
                );
                reads += 1;
            }
            reads
        };
        let readers: Vec<_> = (0..PATHS).map(|number| scope.spawn(move || read(number))).collect();
        for number in PATHS..500 {
            store.put(&path(number), &version(number));
            acknowledged.store(number, Ordering::SeqCst);
        }
        is_over.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    println!("{reads} reads");
    assert!(reads >= PATHS, "every reader read");
}

#[test]
fn memory_for_open_receipts_is_bounded() {
    let mut store = Store::new();
    let mount = store.mount(&["--open-max-mib", "1"]);
    let data = |number: usize| pattern(number as u64, 0, 700_000);
    let files: Vec<_> = (0..4)
        .map(|number| {
            store.put(&format!("{number}"), &data(number));
            File::open(mount.path(&format!("{number}"))).unwrap()
        })
        .collect();
    for (number, mut file) in files.into_iter().enumerate() {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes == data(number), "{number}");
    }
}

/// A device on which every write after a flush fails: records get there, the index does not.
struct CutOff {
    device: RawDevice,
    is_flushed: AtomicBool,
}

impl Device for CutOff {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        self.device.read(offset_bytes, buf)
    }

    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        if self.is_flushed.load(Ordering::Relaxed) {
            let source = io::Error::from_raw_os_error(libc::EIO);
            return Err(DeviceError { op: DeviceOp::Write, offset_bytes, len_bytes: buf.len(), source });
        }
        self.device.write(offset_bytes, buf)
    }

    fn flush(&self) -> DeviceResult<()> {
        self.device.flush()?;
        self.is_flushed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn pending_is_eagain_and_corrupt_is_eio() {
    let mut store = Store::new();
    let damaged = store.put("damaged", &pattern(1, 0, 10_000)).locator;
    store.put("whole", b"whole");
    let mount = store.mount(&[]);
    File::options()
        .write(true)
        .open(&store.image)
        .unwrap()
        .write_all_at(&[0; 9], block_offset(damaged.block) + 5000)
        .unwrap();
    assert_eq!(errno(fs::read(mount.path("damaged"))), libc::EIO);
    assert_eq!(fs::read(mount.path("whole")).unwrap(), b"whole");
    store.writer.close().unwrap(); // what else the store has outlives the mount
    let image = store.image;
    let device =
        CutOff { device: RawDevice::open_writer(&image).unwrap(), is_flushed: AtomicBool::new(false) };
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    device.is_flushed.store(false, Ordering::Relaxed);
    let path = receipt_path("pending");
    writer.put(&Put::new(&path, b"pending")).unwrap_err();
    assert_eq!(errno(fs::read(mount.path("pending"))), libc::EAGAIN);
    drop(writer);
    drop(device);
    drop(Writer::open(RawDevice::open_writer(&image).unwrap(), &WriterOptions::default()).unwrap());
    assert_eq!(fs::read(mount.path("pending")).unwrap(), b"pending", "recovered by the next writer");
}

#[test]
fn disk_that_fails_gives_errors_and_heals() {
    let scratch = Scratch::new();
    let image = scratch.join("disk.img");
    let disk = FaultDisk::new(&image, 32 << 20);
    let mut writer = formatted(&image, None);
    let path = receipt_path("a/r.png");
    let data = pattern(3, 0, 50_000);
    writer.put(&Put::new(&path, &data)).unwrap();
    let mount = Mounted::start(&image, &scratch.join("mnt"), &[]);
    let open = File::open(mount.path("a/r.png")).unwrap();
    disk.fail(DiskOp::Read, 0..u64::MAX, libc::EIO);
    assert_eq!(errno(File::open(mount.path("a/r.png"))), libc::EIO);
    assert_eq!(errno(fs::metadata(mount.path("missing"))), libc::EIO);
    assert_eq!(errno(fs::read_dir(mount.path("a")).map(|_| ())), libc::EIO);
    assert!(mapped(&open) == data, "what is open was read before");
    disk.heal();
    assert!(fs::read(mount.path("a/r.png")).unwrap() == data);
    assert_eq!((names(&mount.path("")), names(&mount.path("a"))), (vec!["a".into()], vec!["r.png".into()]));
}

#[test]
fn another_store_on_the_disk_is_estale() {
    let mut store = Store::new();
    store.put("x", b"1");
    let old = pattern(1, 0, 30_000);
    store.put("r.png", &old);
    let mount = store.mount(&[]);
    assert!(fs::read(mount.path("r.png")).unwrap() == old);
    store.writer.close().unwrap(); // what else the store has outlives the mount
    let mut writer = formatted(&store.image, None);
    for path in ["x", "r.png"] {
        writer.put(&Put::new(&receipt_path(path), b"of the new store")).unwrap();
    }
    until("the new store to be noticed", || match fs::read(mount.path("r.png")) {
        Ok(data) => {
            assert!(data == old, "bytes of another store");
            None
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
            Some(())
        }
    });
    assert_eq!(errno(fs::read_dir(mount.path("")).map(|_| ())), libc::ESTALE);
}

#[test]
fn ends_cleanly_and_starts_again_after_a_kill() {
    let mut store = Store::new();
    store.put("r.png", b"receipt");
    let mut mount = store.mount(&["--allow-other"]);
    assert_eq!(fs::read(mount.path("r.png")).unwrap(), b"receipt");
    mount.proc().signal(Signal::KILL);
    mount.proc().wait();
    assert_eq!(errno(fs::metadata(mount.path(""))), libc::ENOTCONN);
    let mut again = store.mount(&[]);
    assert_eq!(fs::read(again.path("r.png")).unwrap(), b"receipt");
    // Somebody stands in it: it is unmounted all the same.
    let inside = File::open(again.path("")).unwrap();
    rustix::mount::unmount(again.path("").as_path(), rustix::mount::UnmountFlags::empty()).unwrap_err();
    let exit = again.terminate();
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""));
    assert_eq!(names(&again.path("")), Vec::<String>::new(), "the folder beneath");
    drop(inside);
    let mut third = store.mount(&[]);
    assert_eq!(third.terminate().code, Some(0));
    assert_eq!(names(&third.path("")), Vec::<String>::new());
}

/// Puts of class 1, whose term is a year, issued long ago.
fn put_old(store: &mut Store, path: &str, data: &[u8]) {
    let path = receipt_path(path);
    let issued_day = Some(day::day_of(2015, 1, 1));
    store.writer.put(&Put { class: Some(1), issued_day, ..Put::new(&path, data) }).unwrap();
}

/// Expires what may expire; returns the segments that were retired.
fn run_expiry(store: &mut Store) -> u64 {
    let reader = Reader::new(RawDevice::open_reader(&store.image).unwrap(), "image");
    let today = day::day_of_ms(receipt_store::clock_ms());
    let options = ExpireOptions::of_day(today);
    let mut retired = 0;
    let report = |event: ExpireEvent<'_>| {
        retired += u64::from(matches!(event, ExpireEvent::Retired { .. }));
        Ok(())
    };
    expire(&reader, &mut |step| step(&mut store.writer), options, report).unwrap();
    retired
}

#[test]
fn erased_expired_held_and_moved_receipts_are_shown_as_they_are() {
    const MANY: u64 = 40;
    let mut store = Store::with(64 << 20, Some(1 << 20));
    let set_term = |policy: &mut Policy| {
        policy.terms[1] = Term::Years(1);
        Ok(())
    };
    store.writer.change_policy(set_term).unwrap();
    // The last of them are in a segment that stays open; the others fill segments of their own.
    let (kept, content) = (pattern(1, 0, 100_000), pattern(2, 0, 100_000));
    for number in 0..MANY {
        put_old(&mut store, &format!("old/{number}"), &content);
        if number % 10 == 0 {
            store.put(&format!("kept/{number}"), &kept);
        }
    }
    put_old(&mut store, "held/one", &content);
    store.put("erased/one", &content);
    store.put("erased/two", &content);
    store.writer.hold(&Hold { prefix: b"held/".to_vec(), until_day: None }).unwrap();
    let mount = store.mount(&[]);
    assert_eq!(names(&mount.path("")), ["erased", "held", "kept", "old"]);
    let mut open = File::open(mount.path("old/0")).unwrap();
    let mut open_erased = File::open(mount.path("erased/one")).unwrap();

    store.writer.erase(&receipt_path("erased/one"), "by order of a court").unwrap();
    assert_eq!(errno(fs::read(mount.path("erased/one"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(mount.path("erased/one"))), libc::ENOENT);
    assert_eq!(names(&mount.path("erased")), ["two"]);

    assert!(run_expiry(&mut store) > 0, "no segment was retired");
    for number in 0..MANY {
        assert_eq!(errno(fs::metadata(mount.path(&format!("old/{number}")))), libc::ENOENT);
    }
    // Under a hold nothing expires; what was copied out of a retired segment is the same file.
    assert_eq!(fs::read(mount.path("held/one")).unwrap(), content);
    for number in (0..MANY).step_by(10) {
        assert!(fs::read(mount.path(&format!("kept/{number}"))).unwrap() == kept, "kept/{number}");
    }
    assert_eq!(names(&mount.path("kept")).len(), 4);
    until("the folder without receipts to go", || {
        (names(&mount.path("")) == ["erased", "held", "kept"]).then_some(())
    });
    // Files that were open before are what they were, until they are closed.
    for file in [&mut open, &mut open_erased] {
        let mut data = Vec::new();
        file.read_to_end(&mut data).unwrap();
        assert!(data == content, "an open file has changed");
    }
    // Room that was used before holds other receipts now, and no old name leads to them.
    for number in 0..MANY * 2 {
        store.put(&format!("new/{number}"), &kept);
    }
    assert_eq!(errno(fs::read(mount.path("old/3"))), libc::ENOENT);
    assert!(fs::read(mount.path("new/3")).unwrap() == kept);
}
