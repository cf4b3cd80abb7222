//! A store on a disk that the host has sealed: nobody changes what is there, the writer goes on, and room comes back when the host lets go of it.

use std::os::unix::fs::MetadataExt;

use receipt_store::expire::{ExpireOptions, expire};
use receipt_store::{
    Error, FormatOptions, Put, RawDevice, Reader, ReceiptPath, Term, Writer, WriterOptions, day, format,
};
use receiptdisk_tests::guest_disk::GuestDisk;
use receiptdisk_tests::{Backend, Ctl, Driver, Scratch, Serve};

const SIZE: u64 = 24 << 20;
const SEGMENT: u64 = 1 << 20;
const DATA: usize = 60_000;

/// A host with one writing guest.
struct Host {
    backend: Backend,
    scratch: Scratch,
}

impl Host {
    fn new() -> Self {
        let scratch = Scratch::new();
        scratch.image(SIZE);
        let backend = Self::serve(&scratch);
        Self { backend, scratch }
    }

    fn serve(scratch: &Scratch) -> Backend {
        let serve = Serve::image(&scratch.join("disk.img"));
        serve.arg("--control").arg(scratch.join("ctl.sock")).rw("issuer").arg("--seal").start()
    }

    fn driver(&self) -> Driver {
        Driver::connect(&self.backend.socket("issuer"))
    }

    fn writer(&self) -> Writer<GuestDisk> {
        Writer::open(GuestDisk::new(self.driver()), &WriterOptions::default()).unwrap()
    }

    fn ctl(&self) -> Ctl {
        Ctl::new(self.scratch.join("ctl.sock"))
    }

    /// The store as the host itself sees it: nothing of it goes through a guest.
    fn reader(&self) -> Reader<RawDevice> {
        Reader::new(RawDevice::open_reader(&self.scratch.join("disk.img")).unwrap(), "disk")
    }

    /// What an agent on the host does every minute.
    fn seal(&self) -> u64 {
        let spans: Vec<String> =
            self.reader().sealed_spans().unwrap().iter().map(ToString::to_string).collect();
        if !spans.is_empty() {
            let mut command = vec!["seal"];
            command.extend(spans.iter().map(String::as_str));
            self.ctl().ok(&command);
        }
        self.ctl().ok(&["status"])["sealed_bytes"].as_u64().unwrap()
    }

    fn allocated(&self) -> u64 {
        std::fs::metadata(self.scratch.join("disk.img")).unwrap().blocks() * 512
    }

    #[track_caller]
    fn assert_clean(&self, receipts: u64) {
        let totals = receipt_store::verify::verify(&self.reader(), |finding| panic!("{finding:?}")).unwrap();
        assert_eq!(totals.entries, receipts);
    }
}

fn path(number: u64) -> ReceiptPath {
    ReceiptPath::new(&format!("day/{number}.png")).unwrap()
}

fn data(number: u64) -> Vec<u8> {
    format!("{number} ").into_bytes().into_iter().cycle().take(DATA).collect()
}

fn put(writer: &mut Writer<GuestDisk>, number: u64, issued: &str) -> Result<(), Error> {
    let (path, data) = (path(number), data(number));
    let issued_day = Some(day::parse(issued).unwrap());
    let put = Put { class: Some(1), issued_day, ..Put::new(&path, &data) };
    writer.put(&put).map(drop)
}

fn run_expiry(host: &Host) -> receipt_store::expire::ExpireTotals {
    let mut writer = host.writer();
    let options =
        ExpireOptions { today: None, compact_percent: 0, ..ExpireOptions::of_day(writer.clock_day()) };
    let totals = expire(&host.reader(), &mut |step| step(&mut writer), options, |_| Ok(())).unwrap();
    writer.close().unwrap();
    totals
}

fn format_with_a_term(host: &Host) {
    let options = FormatOptions { segment_bytes: Some(SEGMENT), ..FormatOptions::default() };
    format(&GuestDisk::new(host.driver()), &options).unwrap();
    let mut writer = host.writer();
    writer
        .change_policy(|policy| {
            policy.terms[1] = Term::Years(1);
            Ok(())
        })
        .unwrap();
    writer.close().unwrap();
}

#[test]
fn root_in_the_writing_guest_cannot_change_what_the_host_has_sealed() {
    let mut host = Host::new();
    format_with_a_term(&host);
    assert_eq!(host.seal(), 0, "nothing is sealed before the log has closed a segment");
    let mut writer = host.writer();
    for number in 0..80 {
        put(&mut writer, number, "2026-01-01").unwrap();
        // Sealing in the midst of it disturbs nobody: the open segment is never among it.
        if number % 10 == 0 {
            host.seal();
        }
    }
    writer.close().unwrap();
    let sealed = host.seal();
    assert!(sealed >= 3 * SEGMENT, "{sealed} bytes");
    let before = std::fs::read(host.scratch.join("disk.img")).unwrap();
    // Root owns the device and writes wherever it likes.
    for _ in 0..2 {
        let mut root = host.driver();
        for span in host.reader().sealed_spans().unwrap() {
            for at in (span.start_bytes..span.end_bytes).step_by(64 << 10) {
                assert_eq!(root.write(at, &[0x66; 4096]), Err(-libc::EIO));
            }
            let len = span.end_bytes - span.start_bytes;
            assert_eq!(root.discard(span.start_bytes, len), Err(-libc::EIO));
            assert_eq!(root.write_zeroes(span.start_bytes, len, true), Err(-libc::EIO));
        }
        drop(root);
        // Nor after the backend was killed.
        host.backend.kill();
        host.backend = Host::serve(&host.scratch);
    }
    assert!(std::fs::read(host.scratch.join("disk.img")).unwrap() == before, "something has changed");
    host.assert_clean(80);
    let mut writer = host.writer();
    for number in 80..120 {
        put(&mut writer, number, "2026-01-01").unwrap();
    }
    // An erasure is not promised where it cannot be kept, and stops nobody.
    let refused = writer.erase(&path(3), "order 7").unwrap_err();
    assert!(matches!(&refused, Error::Refused(why) if why.contains("unseal")), "{refused}");
    put(&mut writer, 120, "2026-01-01").unwrap();
    writer.close().unwrap();
    host.assert_clean(121);
    // The host lets go of it: then it works, and is sealed again.
    let span = refused.to_string();
    let span = span
        .split_whitespace()
        .find(|word| word.contains('-') && !word.contains(|c: char| c.is_alphabetic()));
    host.ctl().ok(&["unseal", span.unwrap().trim_end_matches(',')]);
    let mut writer = host.writer();
    writer.erase(&path(3), "order 7").unwrap();
    writer.close().unwrap();
    assert!(host.seal() > sealed);
    assert!(matches!(host.reader().get(&path(3)), Err(Error::NotFound { .. })));
    host.assert_clean(120);
}

#[test]
fn room_comes_back_only_when_the_host_lets_go_of_it() {
    let host = Host::new();
    format_with_a_term(&host);
    let mut writer = host.writer();
    let mut count = 0;
    // Old ones, until the disk is nearly full, then some that are to be kept.
    while count < 200 {
        put(&mut writer, count, "2001-02-03").unwrap();
        count += 1;
    }
    for number in 1000..1040 {
        put(&mut writer, number, "2026-01-01").unwrap();
    }
    writer.close().unwrap();
    let sealed = host.seal();
    let full = host.allocated();
    let totals = run_expiry(&host);
    assert!(totals.segments > 5 && totals.expired >= 180, "{totals:?}");
    assert!(host.allocated() + SEGMENT > full, "what is sealed is still there, to be looked at");
    assert!(matches!(host.reader().get(&path(3)), Err(Error::NotFound { .. })), "though nobody finds it");
    // The writer takes what is free and not sealed, and says why there is no more.
    let mut writer = host.writer();
    let mut number = 2000;
    let error = loop {
        match put(&mut writer, number, "2026-01-01") {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
        assert!(number < 2400, "the disk is never full");
    };
    assert!(
        matches!(error, Error::NoSpace { refused_segments, .. } if refused_segments >= totals.segments),
        "{error}"
    );
    assert!(error.to_string().contains("unseal"), "{error}");
    writer.close().unwrap();
    let kept = host.reader().usage().unwrap().live;
    host.assert_clean(kept);
    // What the host sees before it lets go: everything there was issued long ago.
    let retired = host.reader().retired_segments().unwrap();
    assert_eq!(retired.len() as u64, totals.segments);
    assert_eq!(
        retired.iter().map(|one| one.newest_issue_day).max(),
        Some(Some(day::parse("2001-02-03").unwrap()))
    );
    assert!(retired.iter().map(|one| one.receipts).sum::<u64>() >= 150, "{retired:?}");
    for one in &retired {
        host.ctl().ok(&["unseal", &one.span.to_string()]);
    }
    assert!(host.ctl().ok(&["status"])["sealed_bytes"].as_u64().unwrap() < sealed);
    // The next expiry gives the room to the host, and the writer uses it.
    run_expiry(&host);
    assert!(host.allocated() + 4 * SEGMENT < full, "{} of {full} bytes", host.allocated());
    let mut writer = host.writer();
    for number in 3000..3060 {
        put(&mut writer, number, "2026-01-01").unwrap();
    }
    writer.close().unwrap();
    host.seal();
    host.assert_clean(kept + 60);
    for number in (1000..1040).chain(3000..3060) {
        assert_eq!(host.reader().get(&path(number)).unwrap().data(), data(number), "{number}");
    }
}
