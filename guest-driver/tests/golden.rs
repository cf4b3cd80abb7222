//! The bytes of format version 1 are fixed: an image made from fixed input is the one in `tests/golden`, and every later version of the
//! program opens that one. If the bytes differ, old stores may not be readable any more: raise the format version and keep the old
//! reader, do not replace the image.

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

/// What the golden image holds.
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

/// Unpacks the golden image.
fn unpack(file: &Path) {
    let output = Command::new("gzip").arg("-dc").arg(golden("format-1.img.gz")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(file, output.stdout).unwrap();
}

#[test]
fn an_image_of_format_1_is_byte_exact() {
    let dir = tempfile::tempdir().unwrap();
    let (made, kept) = (dir.path().join("format-1.img"), dir.path().join("kept"));
    make(&made);
    unpack(&kept);
    let sum = Command::new("sha256sum").arg("format-1.img").current_dir(dir.path()).output().unwrap();
    let expected = std::fs::read_to_string(golden("format-1.img.sha256")).unwrap();
    assert_eq!(String::from_utf8_lossy(&sum.stdout), expected, "the made image");
    assert!(std::fs::read(&made).unwrap() == std::fs::read(&kept).unwrap(), "the kept image");
}

#[test]
fn the_golden_image_is_read_verified_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    unpack(&file);
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
    assert_eq!(Reader::new(&device, "disk").get(&path("new")).unwrap().data(), b"by this version");
}
