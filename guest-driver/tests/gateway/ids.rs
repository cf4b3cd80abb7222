//! Business ids: any text, one path each, all or nothing.

use crate::image;
use crate::stand::Stand;
use proptest::prelude::*;

/// Percent-encodes every byte.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

#[test]
fn any_text_is_an_id() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let (front, alone) = (stand.front(&issuer, &[]), stand.start("front", &[]));
    let mut ids: Vec<String> = [
        "回单 42",
        "../../etc/passwd",
        "a/b",
        "a\0b\n",
        "%41",
        "A",
        "a",
        "é",
        "e\u{301}",
        "😀",
        ".",
        " ",
        "id@1.2.3.4",
        "\"<&>'",
    ]
    .map(str::to_owned)
    .into();
    ids.push("x".repeat(512));
    let runner = &mut proptest::test_runner::TestRunner::deterministic();
    for _ in 0..40 {
        let tree = proptest::string::string_regex("(?s).{1,40}").unwrap().new_tree(runner).unwrap();
        ids.push(proptest::strategy::ValueTree::current(&tree));
    }
    ids.dedup();
    for (number, id) in ids.iter().enumerate() {
        let target = format!("/receipts/n/{number}?id={}", encoded(id));
        let answer = issuer.put(&target, number.to_string().as_bytes());
        assert_eq!(answer.expect(201).json()["id"], id.as_str());
    }
    for (number, id) in ids.iter().enumerate() {
        let target = format!("/receipts?id={}", encoded(id));
        for gateway in [&front, &alone] {
            assert_eq!(gateway.get(&target).expect(200).text(), number.to_string(), "{id:?}");
        }
        let path = issuer.get(&format!("/?{}", encoded(id))).expect(204);
        assert_eq!(path.header("p"), Some(format!("n/{number}").as_str()));
        let known = issuer.get(&format!("/paths/{}", encoded(id))).expect(200).json();
        assert_eq!((&known["id"], &known["path"]), (&id.as_str().into(), &format!("n/{number}").into()));
        assert!(known["locator"].as_str().unwrap().starts_with(&format!("n/{number}@")), "{known}");
    }
}

#[test]
fn an_id_has_one_path_and_a_refused_put_leaves_nothing() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    issuer.put("/receipts/one?id=X", b"1").expect(201);
    issuer.send("PUT", "/receipts/one", &[("receipt-id", "X")], b"1").expect(200);
    // The id is taken: the receipt is not stored either.
    assert_eq!(issuer.put("/receipts/two?id=X", b"2").expect(409).code(), "id_taken");
    front.get("/receipts/two").expect(404);
    // The path is taken: the id is not given either.
    assert_eq!(issuer.put("/receipts/one?id=Y", b"other").expect(409).code(), "exists");
    front.get("/receipts?id=Y").expect(404);
    // A second id for the same receipt is fine, and a new version keeps its ids.
    issuer.put("/receipts/one?id=Y", b"1").expect(200);
    issuer.put("/receipts/one?id=X&new_version=1", b"1b").expect(201);
    for id in ["X", "Y"] {
        assert_eq!(front.get(&format!("/receipts?id={id}")).expect(200).text(), "1b");
    }
    let both = issuer.send("PUT", "/receipts/three?id=Z", &[("receipt-id", "Z")], b"3");
    assert_eq!(both.expect(400).code(), "bad_request");
    let twice = [("receipt-id", "Z"), ("receipt-id", "A")];
    assert_eq!(issuer.send("PUT", "/receipts/three", &twice, b"3").expect(400).code(), "bad_request");
    front.get("/receipts/three").expect(404);
    // A path that was removed takes its ids along.
    assert!(stand.receipt(&["rm", "one"]).status.success());
    front.get("/receipts?id=X").expect(404);
    issuer.get("/paths/X").expect(404);
    // It stays that of the path.
    assert_eq!(issuer.get("/?X").expect(204).header("p"), Some("one"));
}

#[test]
fn paths_of_any_letters_come_through() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    for (number, path) in ["回单/张三.png", " a b ", "100%", "a@1.2.3.4x", "\"<&>'"].into_iter().enumerate()
    {
        let target = format!("/receipts/{}?id={number}", encoded(path));
        issuer.put(&target, path.as_bytes()).expect(201);
        assert_eq!(front.get(&format!("/receipts?id={number}")).expect(200).text(), path);
    }
}

#[test]
fn concurrent_puts_of_one_id_store_one_receipt() {
    let stand = Stand::new();
    let issuer = stand.issuer(&["--batch-wait-ms", "20"]);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let puts: Vec<_> = (0..16_u8)
            .map(|number| {
                let issuer = &issuer;
                scope.spawn(move || {
                    issuer.put(&format!("/receipts/{number}?id=same"), &image(100, number)).status
                })
            })
            .collect();
        puts.into_iter().map(|put| put.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 15, "{statuses:?}");
    let mut paths = Vec::new();
    stand
        .reader()
        .list("", |locator| {
            paths.push(locator.path.to_string());
            Ok(())
        })
        .unwrap();
    assert_eq!(paths.len(), 2, "the receipt and its id: {paths:?}");
}

#[test]
fn records_of_ids_are_no_receipts() {
    let stand = Stand::new();
    // One that somebody wrote by hand and that names another id.
    let device = receipt_store::RawDevice::open_writer(&stand.disk()).unwrap();
    let mut writer = receipt_store::Writer::open(device, &receipt_store::WriterOptions::default()).unwrap();
    let forged = format!(".id/{}", blake3::hash(b"Y").to_hex());
    let forged = receipt_store::ReceiptPath::new(&forged).unwrap();
    writer.put(&receipt_store::Put::new(&forged, br#"{"id":"X","path":"one"}"#)).unwrap();
    writer.close().unwrap();
    let issuer = stand.issuer(&[]);
    issuer.put("/receipts/one?id=X", b"1").expect(201);
    let record = format!(".id/{}", blake3::hash(b"X").to_hex());
    let front = stand.front(&issuer, &[]);
    front.get(&format!("/receipts/{record}")).expect(404);
    front.get(&format!("/view/{record}")).expect(404);
    front.get(&format!("/receipts/{}", record.replace('.', "%2e"))).expect(404);
    let locator = stand.reader().stat(&receipt_store::ReceiptPath::new(&record).unwrap()).unwrap().locator();
    front.get(&format!("/receipts/{locator}")).expect(404);
    let list = front.get("/receipts?prefix=").expect(200).json();
    assert_eq!(list["receipts"].as_array().unwrap().len(), 1);
    let feed = issuer.get("/paths?since=0").expect(200).json();
    assert_eq!(feed["changes"].as_array().unwrap().len(), 1);
    // The one that was forged leads nowhere, and no command forges another.
    std::fs::write(stand.path("more"), b"{}").unwrap();
    let more = stand.path("more").display().to_string();
    assert_eq!(stand.receipt(&["put", &format!(".id/{}", "0".repeat(64)), &more]).status.code(), Some(2));
    for target in ["/paths/Y", "/?Y"] {
        assert_eq!(issuer.get(target).expect(500).code(), "corrupt");
    }
    assert_eq!(front.get("/receipts?id=Y").expect(502).code(), "issuer_failed");
}
