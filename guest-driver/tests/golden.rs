//! The bytes of format version 1 are fixed: an image made from fixed input is the newest one in `tests/golden`, and every later version of the
//! program opens all of them. If the bytes differ, old stores may not be readable any more: keep the old reader and raise the format version, or
//! show that an old program reads the new bytes and add an image; do not replace one.

#![allow(clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

use receipt_store::{FormatOptions, Put, RawDevice, Reader, ReceiptPath, Writer, WriterOptions, format};
use std::path::{Path, PathBuf};
use std::process::Command;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn path(text: &str) -> ReceiptPath {
    ReceiptPath::new(text).unwrap()
}

/// Images of format 1, the newest last: from before records had checksums, and with them.
const IMAGES: [&str; 2] = ["format-1", "format-1-checksums"];

/// What each holds.
const RECEIPTS: [(&str, usize); 5] =
    [("a", 10), ("b/c.png", 70_000), ("回单/1", 200_000), ("d", 4096), ("gone", 9000)];

fn make(file: &Path) {
    std::fs::File::create(file).unwrap().set_len(2 << 20).unwrap();
    let device = RawDevice::open_writer(file).unwrap();
    let options = FormatOptions {
        segment_bytes: Some(256 << 10),
        fixed_identity: Some(([0x11; 16], [0x22; 32])),
        fixed_clock_ms: Some(1_700_000_000_000),
        ..FormatOptions::default()
    };
    format(&device, &options).unwrap();
    let options = WriterOptions {
        guest_name: "golden".to_owned(),
        fixed_clock_ms: Some(1_700_000_001_000),
        fixed_uuid: Some([0x33; 16]),
        ..WriterOptions::default()
    };
    let mut writer = Writer::open(&device, &options).unwrap();
    for (name, len) in RECEIPTS {
        writer.put(&Put::new(&path(name), &vec![0x5a; len])).unwrap();
    }
    writer.put(&Put { is_new_version: true, ..Put::new(&path("a"), b"second") }).unwrap();
    writer.remove(&path("gone")).unwrap();
    writer.close().unwrap();
}

/// Unpacks a golden image.
fn unpack(image: &str, file: &Path) {
    let output = Command::new("gzip").arg("-dc").arg(golden(&format!("{image}.img.gz"))).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(file, output.stdout).unwrap();
}

#[test]
fn an_image_of_format_1_is_byte_exact() {
    let dir = tempfile::tempdir().unwrap();
    let sum = |file: &str| {
        let sum = Command::new("sha256sum").arg(file).current_dir(dir.path()).output().unwrap();
        String::from_utf8(sum.stdout).unwrap()
    };
    for image in IMAGES {
        let file = format!("{image}.img");
        unpack(image, &dir.path().join(&file));
        assert_eq!(sum(&file), std::fs::read_to_string(golden(&format!("{file}.sha256"))).unwrap());
    }
    let newest = format!("{}.img", IMAGES[IMAGES.len() - 1]);
    let (made, kept) = (dir.path().join("made"), dir.path().join(newest));
    make(&made);
    assert!(std::fs::read(&made).unwrap() == std::fs::read(&kept).unwrap(), "the made image");
}

#[test]
fn golden_images_are_read_verified_and_written() {
    for image in IMAGES {
        is_read_verified_and_written(image);
    }
}

fn is_read_verified_and_written(image: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    unpack(image, &file);
    let device = RawDevice::open_writer(&file).unwrap();
    let reader = Reader::new(&device, "disk");
    for (name, len) in &RECEIPTS[1..4] {
        assert_eq!(reader.get(&path(name)).unwrap().data(), vec![0x5a; *len], "{name}");
    }
    assert_eq!(reader.get(&path("a")).unwrap().data(), b"second");
    assert_eq!(reader.get_version(&path("a"), 1).unwrap().data(), [0x5a; 10]);
    assert_eq!(reader.get(&path("gone")).unwrap_err().exit_code(), 3);
    let totals = receipt_store::verify::verify(&reader, |finding| panic!("{finding:?}")).unwrap();
    assert_eq!(totals.entries, 4);
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    writer.put(&Put::new(&path("new"), b"by this version")).unwrap();
    writer.close().unwrap();
    let has_checksum = |name| reader.stat(&path(name)).unwrap().header.has_checksum();
    assert!(has_checksum("new"), "an old store gets new records");
    assert_eq!(has_checksum("d"), image != "format-1");
    assert_eq!(Reader::new(&device, "disk").get(&path("new")).unwrap().data(), b"by this version");
}
