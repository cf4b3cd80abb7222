//! The bytes of format version 1 are fixed: an image made from fixed input has a fixed hash. If this fails, old stores
//! may not be readable any more: raise the format version and keep the old reader, do not change the hash.

use receipt_store::{FormatOptions, Put, RawDevice, Reader, ReceiptPath, Writer, WriterOptions, format};

const GOLDEN_BLAKE3: &str = "6d6b1b31aaf1744461c884b74e7f4c072e9725c7bf0caa0c7761ce6eaf30ed4f";

#[test]
fn an_image_of_format_1_is_byte_exact() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    std::fs::File::create(&file).unwrap().set_len(2 << 20).unwrap();
    let device = RawDevice::open_writer(&file).unwrap();
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
    for (name, len) in [("a", 10), ("b/c.png", 70_000), ("回单/1", 200_000), ("d", 4096)] {
        let path = ReceiptPath::new(name).unwrap();
        writer.put(&Put::new(&path, &vec![0x5a; len])).unwrap();
    }
    let path = ReceiptPath::new("a").unwrap();
    writer.put(&Put { is_new_version: true, ..Put::new(&path, b"second") }).unwrap();
    writer.close().unwrap();
    assert_eq!(Reader::new(&device, "disk").get(&path).unwrap().data(), b"second");
    let hash = blake3::hash(&std::fs::read(&file).unwrap());
    assert_eq!(hash.to_hex().as_str(), GOLDEN_BLAKE3);
}
