//! Limits: each has an answer, none takes the gateway down. Slow and broken clients cost nobody else anything.

use crate::image;
use crate::stand::{Gateway, Stand, until};

fn still_works(gateway: &Gateway) {
    gateway.get("/health").expect(200);
}

#[test]
fn bodies_over_the_limit_of_the_store_are_refused() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let limit = 1 << 20; // of a segment: the data limit is a little below
    assert_eq!(issuer.put("/receipts/a", &vec![0; limit]).expect(413).code(), "too_large");
    // Announced and never sent: the answer does not wait for it.
    let mut client = issuer.client();
    client.write(b"PUT /receipts/a HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n").unwrap();
    assert_eq!(client.answer(false).expect(413).code(), "too_large");
    // Of unknown length: cut where the limit is.
    let mut client = issuer.client();
    client.write(b"PUT /receipts/a HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    for _ in 0..17 {
        client.write(b"10000\r\n").unwrap();
        client.write(&[0; 0x10000]).unwrap();
        client.write(b"\r\n").unwrap();
    }
    client.write(b"0\r\n\r\n").unwrap();
    assert_eq!(client.answer(false).expect(413).code(), "too_large");
    stand.front(&issuer, &[]).get("/receipts/a").expect(404);
    still_works(&issuer);
}

#[test]
fn headers_have_limits() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    for gateway in [&issuer, &front] {
        let large = "x".repeat(17 << 10);
        assert_eq!(gateway.send("GET", "/health", &[("x", &large)], b"").status, 431);
        assert!([414, 431].contains(&gateway.get(&format!("/receipts/{large}")).status));
        let many: Vec<(String, String)> = (0..70).map(|n| (format!("x-{n}"), n.to_string())).collect();
        let many: Vec<(&str, &str)> =
            many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(gateway.send("GET", "/health", &many, b"").status, 431);
        for broken in [
            &b"GARBAGE\r\n\r\n"[..],
            b"GET / HTTP/9.9\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET  /\r\n\r\n",
        ] {
            let mut client = gateway.client();
            client.write(broken).unwrap();
            client.write(&[b'\n'; 64]).unwrap_or_default();
            let text = String::from_utf8_lossy(&client.end()).into_owned();
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
        }
        still_works(gateway);
    }
}

#[test]
fn connections_that_bring_no_request_are_closed() {
    let stand = Stand::new();
    let issuer = stand.issuer(&["--idle-timeout", "1"]);
    // Silent from the start; silent after a request; a byte of a header now and then.
    let silent = issuer.client();
    let mut idle = issuer.client();
    idle.send("GET", "/health", &[], b"").expect(200);
    let mut slow = issuer.client();
    slow.write(b"GET /health HTTP/1.1\r\nx: ").unwrap();
    until("the slow connection to be closed", || {
        slow.write(b"x").is_err().then_some(()) // its writes fail once it is closed
    });
    assert!(silent.end().is_empty());
    assert!(idle.end().is_empty());
    still_works(&issuer);
}

#[test]
fn a_body_that_does_not_come_is_given_up() {
    let stand = Stand::new();
    let issuer = stand.issuer(&["--request-timeout", "1"]);
    let mut client = issuer.client();
    client.write(b"PUT /receipts/a HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
    assert_eq!(client.answer(false).expect(408).code(), "timeout");
    // Half a request and the end of the connection.
    let mut client = issuer.client();
    client.write(b"PUT /receipts/b HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
    drop(client);
    let mut client = issuer.client();
    client.write(b"PUT /receipts/c HT").unwrap();
    drop(client);
    until("all of them to be gone", || (issuer.metric("requests_running") <= 1.0).then_some(()));
    let front = stand.front(&issuer, &[]);
    for path in ["a", "b", "c"] {
        front.get(&format!("/receipts/{path}")).expect(404);
    }
    still_works(&issuer);
}

#[test]
fn a_client_that_has_asked_everything_may_end_its_side() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let mut client = issuer.client();
    let mut requests = Vec::new();
    for number in 0..20 {
        requests.extend(
            format!("PUT /receipts/{number} HTTP/1.1\r\nhost: t\r\ncontent-length: 3\r\n\r\nabc").bytes(),
        );
    }
    client.write(&requests).unwrap();
    client.end_requests();
    for _ in 0..20 {
        client.answer(false).expect(201);
    }
    assert!(client.end().is_empty());
    until("the connection to be gone", || (issuer.metric("connections") <= 1.0).then_some(()));
}

#[test]
fn a_client_that_does_not_read_is_cut() {
    let stand = Stand::with(256 << 20, 64 << 20);
    let issuer = stand.issuer(&[]);
    issuer.put("/receipts/large", &image(30 << 20, 1)).expect(201);
    let front = stand.front(&issuer, &["--request-timeout", "1"]);
    let mut client = front.client();
    client.write(b"GET /receipts/large HTTP/1.1\r\nhost: t\r\n\r\n").unwrap();
    until("the answer to begin", || (front.metric("sent_bytes_total") > 100_000.0).then_some(()));
    until("the connection to be cut", || (front.metric("connections") <= 1.0).then_some(()));
    still_works(&front);
}

#[test]
fn too_many_requests_and_connections_are_told_to_come_back() {
    let stand = Stand::new();
    let issuer = stand.issuer(&["--max-requests", "1"]);
    let mut busy = issuer.client();
    busy.write(b"PUT /receipts/a HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        .unwrap();
    busy.answer(false).expect(100); // it is being answered
    let refused = issuer.get("/health");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.expect(503).code(), "too_many_requests");
    busy.write(b"half").unwrap();
    busy.answer(false).expect(201);
    still_works(&issuer);

    let front = stand.front(&issuer, &["--max-connections", "2"]);
    let (mut one, mut two) = (front.client(), front.client());
    for client in [&mut one, &mut two] {
        client.send("GET", "/receipts/a", &[], b"").expect(200);
    }
    let mut three = front.client();
    assert_eq!(three.answer(false).expect(503).header("retry-after"), Some("1"));
    three.end();
    drop(one);
    until("a place to be free", || {
        let mut client = front.client();
        (client.send("GET", "/receipts/a", &[], b"").status == 200).then_some(())
    });
    two.send("GET", "/receipts/a", &[], b"").expect(200);
}

#[test]
fn bodies_share_a_bounded_memory() {
    let stand = Stand::with(256 << 20, 64 << 20);
    let issuer = stand.issuer(&["--body-memory-mib", "33", "--request-timeout", "2"]);
    // One slow body has announced all of it: another waits, and is told so when its time is over.
    let mut slow = issuer.client();
    slow.write(
        format!("PUT /receipts/slow HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\nx", 32 << 20).as_bytes(),
    )
    .unwrap();
    let answer = issuer.put("/receipts/waits", &image(2 << 20, 1));
    assert!([201, 408].contains(&answer.status), "{answer:?}");
    slow.answer(false).expect(408);
    issuer.put("/receipts/later", &image(2 << 20, 1)).expect(201);
}

#[test]
fn clients_that_take_large_images_slowly_hold_up_nobody_else() {
    const SLOW: usize = 24; // more than reads at a time
    let stand = Stand::with(512 << 20, 32 << 20);
    let issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &["--body-memory-mib", "33"]);
    issuer.put("/receipts/large", &vec![7; 20 << 20]).expect(201);
    issuer.put("/receipts/small", b"small").expect(201);
    let mut slow: Vec<_> = (0..SLOW).map(|_| front.client()).collect();
    for client in &mut slow {
        client.write(b"GET /receipts/large HTTP/1.1\r\nhost: t\r\n\r\n").unwrap();
    }
    until("them to be waited for", || (front.metric("requests_running") >= SLOW as f64).then_some(()));
    front.get("/health").expect(200);
    // The one that has the memory is not over yet.
    assert!(front.metric("connections") >= SLOW as f64);
    assert_eq!(front.get("/receipts/large").expect(503).code(), "busy");
    until("those without memory to be refused", || (front.metric("requests_running") <= 2.0).then_some(()));
    assert_eq!(front.get("/receipts/small").expect(200).body, b"small");
    drop(slow);
    until("the memory to be free", || (front.get("/receipts/large").status == 200).then_some(()));
}
