//! What the issuer stores and refuses.

use crate::image;
use crate::stand::Stand;
use receipt_store::{Locator, ReceiptPath};
use std::sync::Barrier;

#[test]
fn put_is_stored_once_and_other_data_is_refused_until_asked_for() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let first = image(100_000, 1);
    let stored = issuer.put("/receipts/2026/11/a%20b/%E5%9B%9E%E5%8D%95.png", &first).expect(201).json();
    assert_eq!(stored["path"], "2026/11/a b/回单.png");
    assert_eq!(stored["hash"], blake3::hash(&first).to_hex().as_str());
    assert_eq!((&stored["version"], &stored["new"]), (&1.into(), &true.into()));
    let locator = Locator::parse(stored["locator"].as_str().unwrap()).unwrap();
    assert_eq!(stored["seq"], locator.seq);
    assert_eq!(stand.reader().get_locator(&locator).unwrap().data(), first);

    let target = "/receipts/2026/11/a%20b/%E5%9B%9E%E5%8D%95.png";
    let again = issuer.put(target, &first).expect(200).json();
    assert_eq!((&again["locator"], &again["new"]), (&stored["locator"], &false.into()));
    assert_eq!(issuer.put(target, b"other").expect(409).code(), "exists");
    let second = issuer.put(&format!("{target}?new_version=1"), b"other").expect(201).json();
    assert_eq!(second["version"], 2);
    assert_eq!(stand.reader().get(&locator.path).unwrap().data(), b"other");

    let empty = issuer.put("/receipts/empty", b"").expect(201).json();
    assert_eq!(empty["bytes"], 0);
    let chunked = b"PUT /receipts/chunked HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let mut client = issuer.client();
    client.write(chunked).unwrap();
    client.answer(false).expect(201);
    let path = ReceiptPath::new("chunked").unwrap();
    assert_eq!(stand.reader().get(&path).unwrap().data(), b"abcde");
    assert!(issuer.stop().success());
    assert!(stand.receipt(&["verify"]).status.success());
}

#[test]
fn what_is_wrong_with_a_request_is_said() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    for (method, target, status, code) in [
        ("PUT", "/receipts/", 400, "bad_path"),
        ("PUT", "/receipts/a/../b", 400, "bad_path"),
        ("PUT", "/receipts/%2e%2e/etc/passwd", 400, "bad_path"),
        ("PUT", "/receipts/a%00b", 400, "bad_path"),
        ("PUT", "/receipts/a%0Ab", 400, "bad_path"),
        ("PUT", "/receipts//a", 400, "bad_path"),
        ("PUT", "/receipts/a/", 400, "bad_path"),
        ("PUT", "/receipts/%ff", 400, "bad_path"),
        ("PUT", "/receipts/%zz", 400, "bad_path"),
        ("PUT", "/receipts/a@1.2.3.4", 400, "bad_path"),
        ("PUT", "/receipts/.id/0000", 400, "bad_path"),
        ("PUT", &format!("/receipts/{}", "x".repeat(1025)), 400, "bad_path"),
        ("PUT", "/receipts/a?newversion=1", 400, "bad_request"),
        ("PUT", "/receipts/a?new_version=yes", 400, "bad_request"),
        ("PUT", "/receipts/a?id=", 400, "bad_request"),
        ("PUT", "/receipts/a?id=1&id=2", 400, "bad_request"),
        ("PUT", &format!("/receipts/a?id={}", "x".repeat(513)), 400, "bad_request"),
        ("GET", "/receipts/a", 405, "method"),
        ("DELETE", "/receipts/a", 405, "method"),
        ("POST", "/paths/a", 405, "method"),
        ("PUT", "/issue", 405, "method"),
        ("POST", "/issue", 501, "no_fonts"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/paths/", 400, "bad_request"),
        ("GET", "/paths/unknown", 404, "not_found"),
        ("GET", "/?unknown", 404, "not_found"),
        ("GET", "/?", 400, "bad_request"),
        ("GET", "/?%zz", 400, "bad_request"),
        ("GET", "/", 404, "not_found"),
        ("POST", "/?a", 405, "method"),
        ("GET", "/paths?since=x", 400, "bad_request"),
    ] {
        let body: &[u8] = if method == "PUT" { b"data" } else { b"" };
        let answer = issuer.send(method, target, &[], body).expect(status);
        assert_eq!(answer.code(), code, "{method} {target}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{method} {target}");
    }
    let coded = issuer.send("PUT", "/receipts/a", &[("content-encoding", "gzip")], b"data");
    assert_eq!(coded.expect(415).code(), "content_encoding");
    let twice = [("content-encoding", "identity"), ("content-encoding", "gzip")];
    assert_eq!(issuer.send("PUT", "/receipts/a", &twice, b"data").expect(415).code(), "content_encoding");
    // Chunks of bytes that were compressed for the way: what would be stored is not what was meant.
    for codings in
        ["transfer-encoding: gzip, chunked", "transfer-encoding: gzip\r\ntransfer-encoding: chunked"]
    {
        let mut client = issuer.client();
        let request =
            format!("PUT /receipts/a HTTP/1.1\r\nhost: t\r\n{codings}\r\n\r\n4\r\ndata\r\n0\r\n\r\n");
        client.write(request.as_bytes()).unwrap();
        assert_eq!(client.answer(false).expect(501).code(), "transfer_encoding", "{codings}");
    }
    for (name, value) in [
        ("content-range", "bytes 0-3/10"),
        ("if-match", "\"0\""),
        ("if-none-match", "*"),
        ("if-unmodified-since", "Thu, 26 Nov 2026 00:00:00 GMT"),
    ] {
        let answer = issuer.send("PUT", "/receipts/a", &[(name, value)], b"data");
        assert_eq!(answer.expect(400).code(), "bad_request", "{name}");
    }
    let mut client = issuer.client();
    client.write(b"PUT /receipts/a HTTP/1.1\r\nhost: t\r\n\r\n").unwrap();
    assert_eq!(client.answer(false).expect(411).code(), "no_body");
    let mut paths = Vec::new();
    stand
        .reader()
        .list("", |locator| {
            paths.push(locator);
            Ok(())
        })
        .unwrap();
    assert!(paths.is_empty(), "something was stored: {paths:?}");
}

#[test]
fn concurrent_puts_share_commits_and_all_are_there() {
    const THREADS: u8 = 32;
    const PUTS: u8 = 8;
    let stand = Stand::new();
    let issuer = stand.issuer(&["--batch-wait-ms", "5"]);
    let start = Barrier::new(usize::from(THREADS));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (issuer, start) = (&issuer, &start);
            scope.spawn(move || {
                let mut client = issuer.client();
                start.wait();
                for number in 0..PUTS {
                    let target = format!("/receipts/{thread}/{number}?id=id-{thread}-{number}");
                    client.send("PUT", &target, &[], &image(5000, thread)).expect(201);
                }
            });
        }
    });
    let puts = f64::from(THREADS) * f64::from(PUTS);
    let commits = issuer.metric("commits_total");
    assert!(commits < puts / 2.0, "{puts} puts took {commits} commits");
    let front = stand.front(&issuer, &[]);
    let mut client = front.client();
    for thread in 0..THREADS {
        for number in 0..PUTS {
            let answer = client.send("GET", &format!("/receipts?id=id-{thread}-{number}"), &[], b"");
            assert_eq!(answer.expect(200).body, image(5000, thread));
        }
    }
    assert!(issuer.stop().success());
    assert!(stand.receipt(&["verify"]).status.success());
}

#[test]
fn a_full_disk_refuses_and_keeps_what_it_has() {
    let stand = Stand::with(8 << 20, 1 << 20);
    let issuer = stand.issuer(&[]);
    let body = image(900_000, 3);
    let mut client = issuer.client();
    let mut stored = 0;
    let refused = loop {
        let answer = client.send("PUT", &format!("/receipts/{stored}?id={stored}"), &[], &body);
        if answer.status != 201 {
            break answer;
        }
        stored += 1;
    };
    assert_eq!(refused.expect(507).code(), "no_space");
    assert!(stored > 2);
    assert_eq!(issuer.get("/health").expect(200).json()["writable"], true);
    let front = stand.front(&issuer, &[]);
    for number in 0..stored {
        assert_eq!(front.get(&format!("/receipts?id={number}")).expect(200).body, body);
    }
    front.get(&format!("/receipts?id={stored}")).expect(404);
}

#[test]
fn the_largest_receipt_with_an_id_is_one_commit() {
    let stand = Stand::with(256 << 20, 64 << 20);
    let issuer = stand.issuer(&[]);
    let body = image((32 << 20) - 8, 5);
    issuer.put("/receipts/large?id=large", &body).expect(201);
    assert_eq!(issuer.metric("commits_total"), 1.0);
    let front = stand.front(&issuer, &[]);
    assert!(front.get("/receipts?id=large").expect(200).body == body);
    assert_eq!(issuer.put("/receipts/larger", &[0; (32 << 20) + 1]).expect(413).code(), "too_large");
    assert!(issuer.stop().success());
    assert!(stand.receipt(&["verify"]).status.success());
}

#[test]
fn records_are_drawn_stored_and_found_by_their_serial() {
    let stand = Stand::new();
    let issuer = stand.issuer(&["--font-dir", "/usr/share/fonts"]);
    let record = |amount: &str| {
        serde_json::json!({
            "serial": "HT2026112300000042", "issued_at": "2026-11-23T14:05:09", "bank_name": "海棠银行",
            "bank_name_en": "HAITANG BANK", "currency": "CNY", "amount": amount, "payer_name": "青禾纸业有限公司",
            "payer_account": "6200 1", "payer_bank": "海棠银行栖霞路支行", "payee_name": "Tarn & Fell <Ltd>",
            "payee_account": "6200 2", "payee_bank": "Northmoor Bank", "business": "转账汇款 Transfer",
            "purpose": "货款 Payment"
        })
        .to_string()
    };
    let json = ("content-type", "application/json; charset=utf-8");
    let post = |body: &str| issuer.send("POST", "/issue", &[json], body.as_bytes());
    // What any page in a browser of this network may send.
    let simple = issuer.send("POST", "/issue", &[("content-type", "text/plain")], record("1").as_bytes());
    assert_eq!(simple.expect(415).code(), "content_type");
    let stored = post(&record("1234.56")).expect(201).json();
    assert_eq!(stored["path"], "2026/11/23/HT2026112300000042.png");
    assert_eq!(stored["id"], "HT2026112300000042");
    assert_eq!(post(&record("1234.56")).expect(200).json()["locator"], stored["locator"]);
    assert_eq!(post(&record("1234.57")).expect(409).code(), "exists");
    assert_eq!(post(&record("-1")).expect(422).code(), "bad_record");
    assert_eq!(post(&record("1").replace("青禾", "\u{10900}")).expect(422).code(), "bad_record");
    assert_eq!(post("{}").expect(400).code(), "bad_request");
    assert_eq!(post("no json").expect(400).code(), "bad_request");
    assert_eq!(post(&" ".repeat(20_000)).expect(413).code(), "too_large");
    let front = stand.front(&issuer, &[]);
    let image = front.get("/receipts?id=HT2026112300000042").expect(200);
    assert_eq!(image.header("content-type"), Some("image/png"));
    assert_eq!(image.body.len(), stored["bytes"]);
}
