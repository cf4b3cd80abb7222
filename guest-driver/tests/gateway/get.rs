//! What the front end answers: the very bytes, and each kind of trouble by its own status.

use crate::image;
use crate::stand::{OtherMachine, Stand};
use receipt_store::{Put, ReceiptPath, Writer, WriterOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

const IMMUTABLE: &str = "private, max-age=31536000, immutable";

#[test]
fn images_by_path_by_locator_by_version_and_by_id() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    let (one, two) = (image(50_000, 1), image(60_000, 7));
    let stored = issuer.put("/receipts/d/r.png?id=R", &one).expect(201).json();
    issuer.put("/receipts/d/r.png?new_version=1", &two).expect(201);
    let locator = stored["locator"].as_str().unwrap().to_owned();
    let hash = |body: &[u8]| blake3::hash(body).to_hex().to_string();
    let etag = |body: &[u8]| format!("\"{}\"", hash(body));
    for (target, body, caching) in [
        ("/receipts/d/r.png", &two, "private, no-cache"),
        ("/receipts?id=R", &two, "private, no-cache"),
        ("/receipts/d/r.png?version=1", &one, "private, no-cache"),
        (&format!("/receipts/{locator}"), &one, "private, no-cache"),
        (&format!("/receipts/{locator}?hash={}", hash(&one)), &one, IMMUTABLE),
        (&format!("/receipts/d/r.png?hash={}", hash(&two)), &two, IMMUTABLE),
        ("/receipts/d%2Fr.png", &two, "private, no-cache"),
    ] {
        let answer = front.get(target).expect(200);
        assert!(answer.body == *body, "{target}");
        assert_eq!(answer.header("etag"), Some(etag(body).as_str()), "{target}");
        assert_eq!(answer.header("cache-control"), Some(caching), "{target}");
        assert_eq!(answer.header("content-type"), Some("image/png"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("content-disposition"), Some("inline; filename*=UTF-8''r.png"));
        let head = front.send("HEAD", target, &[], b"").expect(200);
        assert_eq!(head.header("content-length"), Some(body.len().to_string().as_str()), "{target}");
        let known = front.send("GET", target, &[("if-none-match", &format!("\"x\", W/{}", etag(body)))], b"");
        assert_eq!(known.expect(304).header("etag"), Some(etag(body).as_str()));
        front.send("GET", target, &[("if-none-match", "\"x\"")], b"").expect(200);
    }
    let saved = front.get("/receipts/d/r.png?download=1").expect(200);
    assert_eq!(saved.header("content-disposition"), Some("attachment; filename*=UTF-8''r.png"));
    front.get("/receipts/d/r.png?version=3").expect(404);
    front.get("/receipts/d/r.png?version=0").expect(404);
    front.get("/receipts/d/r.png?version=70000").expect(404);
    // A locator that fits no more falls back to its path.
    assert!(front.get("/receipts/d/r.png@999999.1.1.1").expect(200).body == two);
    for other in [format!("/receipts/d/r.png?hash={}", hash(&one)), format!("/receipts/{locator}?hash=0")] {
        assert_eq!(front.get(&other).expect(412).code(), "changed", "{other}");
    }
}

/// The store is made anew, and a receipt gets the path, the place and the sequence of another one: what a browser keeps is that other one.
#[test]
fn nothing_is_kept_for_ever_that_another_store_may_name_alike() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let stored = issuer.put("/receipts/r", &image(9000, 1)).expect(201).json();
    let by_locator = format!("/receipts/{}", stored["locator"].as_str().unwrap());
    let by_hash = format!("{by_locator}?hash={}", stored["hash"].as_str().unwrap());
    let front = stand.front(&issuer, &[]);
    assert_eq!(front.get(&by_hash).expect(200).header("cache-control"), Some(IMMUTABLE));
    let kept = front.get(&by_locator).expect(200);
    assert!(issuer.stop().success() && front.stop().success());
    assert!(stand.receipt(&["format", "--force", "--segment-size", "1M"]).status.success());
    let issuer = stand.issuer(&[]);
    let again = issuer.put("/receipts/r", &image(9000, 2)).expect(201).json();
    assert_eq!(again["locator"], stored["locator"], "the case that is meant");
    let front = stand.front(&issuer, &[]);
    assert_eq!(kept.header("cache-control"), Some("private, no-cache"));
    let headers = [("if-none-match", kept.header("etag").unwrap())];
    assert!(front.send("GET", &by_locator, &headers, b"").expect(200).body == image(9000, 2));
    front.get(&by_hash).expect(412);
}

#[test]
fn types_are_told_by_the_first_bytes() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    for (name, body, content_type, disposition) in [
        ("a.png", &b"\xff\xd8\xff\xe0 jpeg"[..], "image/jpeg", "inline"),
        ("b", b"%PDF-1.7 ...", "application/pdf", "inline"),
        ("c.png", b"<html><script>alert(1)</script>", "application/octet-stream", "attachment"),
        ("d.png", b"", "application/octet-stream", "attachment"),
    ] {
        issuer.put(&format!("/receipts/{name}"), body).expect(201);
        let answer = front.get(&format!("/receipts/{name}")).expect(200);
        assert_eq!(answer.header("content-type"), Some(content_type));
        let expected = format!("{disposition}; filename*=UTF-8''{name}");
        assert_eq!(answer.header("content-disposition"), Some(expected.as_str()));
        assert_eq!(answer.body, body);
    }
}

#[test]
fn ranges_of_one_version() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    let body = image(1000, 1);
    issuer.put("/receipts/r", &body).expect(201);
    let len = body.len();
    let get = |headers: &[(&str, &str)]| front.send("GET", "/receipts/r", headers, b"");
    front.send("HEAD", "/receipts/r", &[("range", "bytes=10-19")], b"").expect(200);
    let part = get(&[("range", "bytes=10-19")]).expect(206);
    assert_eq!(part.body, body[10..20]);
    assert_eq!(part.header("content-range"), Some(format!("bytes 10-19/{len}").as_str()));
    assert_eq!(get(&[("range", "bytes=-5")]).expect(206).body, body[len - 5..]);
    assert_eq!(get(&[("range", "bytes=1000-99999")]).expect(206).body, body[1000..]);
    let beyond = get(&[("range", &format!("bytes={len}-"))]).expect(416);
    assert_eq!(beyond.header("content-range"), Some(format!("bytes */{len}").as_str()));
    for whole in ["bytes=0-1,3-4", "bytes=9-3", "rows=1-2", "bytes=x"] {
        assert_eq!(get(&[("range", whole)]).expect(200).body, body, "{whole}");
    }
    let etag = get(&[]).header("etag").unwrap().to_owned();
    assert_eq!(get(&[("range", "bytes=0-3"), ("if-range", &etag)]).expect(206).body, body[..4]);
    get(&[("range", "bytes=0-3"), ("if-range", "\"other\"")]).expect(200);
    get(&[("range", "bytes=0-3"), ("if-range", &format!("W/{etag}"))]).expect(200);
    get(&[("range", "bytes=0-3"), ("if-range", "Thu, 26 Nov 2026 07:01:40 GMT")]).expect(200);
    get(&[("range", "bytes=0-3"), ("if-none-match", &etag)]).expect(304);
    // Whoever has a part of this version is not given a part of the next one.
    for same in [&etag[..], "*", &format!("\"x\", {etag}")] {
        assert_eq!(get(&[("range", "bytes=4-7"), ("if-match", same)]).expect(206).body, body[4..8]);
    }
    issuer.put("/receipts/r?new_version=1", &image(1000, 7)).expect(201);
    for method in ["GET", "HEAD"] {
        let headers = [("range", "bytes=4-7"), ("if-match", &etag[..])];
        let answer = front.send(method, "/receipts/r", &headers, b"").expect(412);
        assert!(answer.header("etag").is_some_and(|now| now != etag), "{method}");
    }
    get(&[("if-match", &format!("W/{etag}"))]).expect(412);
}

#[test]
fn not_found_pending_corrupt_and_refused_are_told_apart() {
    let stand = Stand::new();
    let path = ReceiptPath::new("pending.png").unwrap();
    {
        let machine = OtherMachine::new(&stand.disk());
        let mut writer = Writer::open(&machine, &WriterOptions::default()).unwrap();
        let rotten = ReceiptPath::new("rotten.png").unwrap();
        let locator = writer.put(&Put::new(&rotten, &image(9000, 1))).unwrap().locator;
        let file = std::fs::File::options().write(true).open(stand.disk()).unwrap();
        writer.close().unwrap();
        file.write_all_at(b"rot", locator.block * 4096 + 5000).unwrap();
        let mut writer = Writer::open(&machine, &WriterOptions::default()).unwrap();
        writer.put(&Put::new(&ReceiptPath::new("fine.png").unwrap(), b"fine")).unwrap();
        machine.writes.store(1, Ordering::Relaxed); // the record, and none of its pages
        writer.put(&Put::new(&path, &image(9000, 2))).unwrap_err();
    }
    let front = stand.start("front", &[]);
    let pending = front.get("/receipts/pending.png").expect(409);
    assert_eq!((pending.code().as_str(), pending.header("retry-after")), ("pending", Some("1")));
    assert_eq!(front.get("/receipts/rotten.png").expect(500).code(), "corrupt");
    assert_eq!(front.get("/receipts/nothing.png").expect(404).code(), "not_found");
    assert_eq!(front.get("/receipts?id=nothing").expect(404).code(), "not_found");
    for (method, target, status) in [
        ("GET", "/receipts/a/../b", 400),
        ("GET", "/receipts/%2e%2e/%2e%2e/etc/passwd", 400),
        ("GET", "/receipts/a%00", 400),
        ("GET", "/receipts/%c3%28", 400),
        ("GET", "/receipts/", 400),
        ("GET", "/receipts", 400),
        ("GET", "/receipts?id=", 400),
        ("GET", "/receipts?id=a&prefix=b", 400),
        ("GET", "/receipts/a?versio=1", 400),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/nothing", 404),
        ("PUT", "/receipts/a", 405),
        ("DELETE", "/receipts/a", 405),
        ("OPTIONS", "/", 405),
    ] {
        let answer = front.send(method, target, &[], b"").expect(status);
        assert_eq!(answer.header("content-type"), Some("application/json"), "{method} {target}");
    }
    // The next writer recovers what was durable: then it is there.
    let issuer = stand.issuer(&[]);
    assert_eq!(front.get("/receipts/pending.png").expect(200).body, image(9000, 2));
    assert!(issuer.stop().success());
}

#[test]
fn a_disk_without_a_store_is_said() {
    let stand = Stand::new();
    std::fs::File::create(stand.disk()).unwrap().set_len(16 << 20).unwrap();
    let front = stand.start("front", &[]);
    assert_eq!(front.get("/receipts/a").expect(503).code(), "no_store");
    assert_eq!(front.get("/health").expect(503).code(), "no_store");
    assert!(stand.receipt(&["format"]).status.success());
    front.get("/receipts/a").expect(404);
    front.get("/health").expect(200);
}

#[test]
fn lists_by_prefix_come_newest_first_and_in_pages() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    let mut client = issuer.client();
    for number in 0..230 {
        client
            .send("PUT", &format!("/receipts/2026/11/23/{number:03}.png?id={number}"), &[], b"x")
            .expect(201);
    }
    client.send("PUT", "/receipts/2026/11/24/other.png", &[], b"x").expect(201);
    let mut seen = Vec::new();
    loop {
        let target = format!("/receipts?prefix=2026/11/23/&skip={}", seen.len());
        let page = front.get(&target).expect(200).json();
        for receipt in page["receipts"].as_array().unwrap() {
            seen.push(receipt["path"].as_str().unwrap().to_owned());
        }
        if page["more"] == false {
            break;
        }
    }
    let expected: Vec<String> = (0..230).rev().map(|n| format!("2026/11/23/{n:03}.png")).collect();
    assert_eq!(seen, expected);
    front.get("/receipts?prefix=&skip=100001").expect(400);
    front.get(&format!("/receipts?prefix={}", "x".repeat(1025))).expect(400);
}
