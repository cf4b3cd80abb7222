//! Starting, stopping, and the other side's absence.

use crate::image;
use crate::stand::{OtherMachine, Stand, until};
use receipt_store::control::Control;
use receipt_store::{Writer, WriterOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

fn is_closed(stand: &Stand) -> bool {
    let reader = stand.reader();
    Control::read(reader.device(), &reader.superblock().unwrap()).unwrap().is_closed()
}

#[test]
fn a_stop_finishes_the_requests_that_run_and_closes_the_store() {
    let stand = Stand::new();
    let mut issuer = stand.issuer(&[]);
    let mut idle = issuer.client();
    idle.send("GET", "/health", &[], b"").expect(200);
    let mut running = issuer.client();
    running.write(b"PUT /receipts/last HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nha").unwrap();
    until("the put to run", || (issuer.metric("requests_running") >= 2.0).then_some(()));
    issuer.terminate();
    until("new connections to be refused", || TcpStream::connect(issuer.address).err());
    assert!(idle.end().is_empty());
    running.write(b"lf").unwrap();
    running.answer(false).expect(201);
    assert!(running.end().is_empty());
    assert!(issuer.wait().success());
    assert!(is_closed(&stand));
    assert!(!stand.socket().exists());
    let path = receipt_store::ReceiptPath::new("last").unwrap();
    assert_eq!(stand.reader().get(&path).unwrap().data(), b"half");
}

#[test]
fn a_stop_has_a_bound() {
    let stand = Stand::new();
    let mut issuer = stand.issuer(&["--shutdown-timeout", "1"]);
    let mut stuck = issuer.client();
    stuck.write(b"PUT /receipts/never HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nha").unwrap();
    until("the put to run", || (issuer.metric("requests_running") >= 2.0).then_some(()));
    let mut waiting = issuer.client();
    waiting.write(b"GET /paths?wait=25 HTTP/1.1\r\nhost: t\r\n\r\n").unwrap();
    until("the feed to wait", || (issuer.metric("requests_running") >= 3.0).then_some(()));
    issuer.terminate();
    waiting.answer(false).expect(200); // at once: it waits for nothing any more
    stuck.end();
    assert!(issuer.wait().success());
    assert!(issuer.log().contains("1 connections did not end in time"), "{}", issuer.log());
    assert!(is_closed(&stand));
}

#[test]
fn the_socket_of_the_issuer_takes_what_receipt_put_sends() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let file = stand.path("file");
    std::fs::write(&file, image(5000, 1)).unwrap();
    let put = stand.receipt(&["put", "by/command", file.to_str().unwrap(), "--locator"]);
    assert!(put.status.success(), "{put:?}");
    let front = stand.front(&issuer, &[]);
    assert_eq!(front.get("/receipts/by/command").expect(200).body, image(5000, 1));
    // Another issuer on the same disk is refused, and disturbs nothing.
    let output = Command::new(env!("CARGO_BIN_EXE_receipt-gateway"))
        .args(["issuer", "--listen", "127.0.0.1:0", "--device", stand.disk().to_str().unwrap()])
        .args(["--socket", stand.path("other").to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    issuer.put("/receipts/by/http", b"x").expect(201);
}

#[test]
fn the_front_end_works_for_every_path_while_the_issuer_is_away() {
    let stand = Stand::new();
    let mut issuer = stand.issuer(&[]);
    let front = stand.front(&issuer, &[]);
    let stored = issuer.put("/receipts/d/one.png?id=one", &image(5000, 1)).expect(201).json();
    front.get("/receipts?id=one").expect(200);
    let address = issuer.address.to_string();
    issuer.kill();
    let locator = stored["locator"].as_str().unwrap();
    for target in
        ["/receipts/d/one.png", &format!("/receipts/{locator}"), "/view/d/one.png", "/receipts?prefix=d/"]
    {
        front.get(target).expect(200);
    }
    for target in ["/receipts?id=one", "/view?id=one"] {
        assert_eq!(front.get(target).expect(502).code(), "issuer_down", "{target}");
    }
    front.get("/health").expect(200);
    // It comes back at the same place: the kept connections are old, the question is not lost.
    let issuer = stand.issuer(&["--listen", &address]);
    for _ in 0..3 {
        front.get("/receipts?id=one").expect(200);
    }
    assert!(issuer.stop().success());
    front.get("/receipts?id=one").expect(502);
    let _issuer = stand.issuer(&["--listen", &address]);
    front.get("/receipts?id=one").expect(200);
}

/// Passes connections on to `to`, and keeps what went each way.
fn relay(to: SocketAddr) -> (SocketAddr, [Arc<Mutex<Vec<u8>>>; 2]) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen: [Arc<Mutex<Vec<u8>>>; 2] = Default::default();
    let kept = seen.clone();
    std::thread::spawn(move || {
        for front in listener.incoming() {
            let front = front.unwrap();
            let issuer = TcpStream::connect(to).unwrap();
            let ways = [(&front, &issuer), (&issuer, &front)];
            for ((from, to), seen) in ways.into_iter().zip(&kept) {
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let seen = seen.clone();
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(len @ 1..) = from.read(&mut buffer) {
                        seen.lock().unwrap().extend_from_slice(&buffer[..len]);
                        to.write_all(&buffer[..len]).unwrap();
                    }
                });
            }
        }
    });
    (address, seen)
}

/// How the first question on a connection begins.
const HEALTH: &str = "GET /health HTTP/1.1\r\n";

#[test]
fn an_issuer_of_another_store_is_not_believed() {
    let (own, other) = (Stand::new(), Stand::new());
    let (issuer, stranger) = (own.issuer(&[]), other.issuer(&[]));
    // The same path, and another customer.
    issuer.put("/receipts/2026/1.png?id=mine", b"mine").expect(201);
    stranger.put("/receipts/2026/1.png?id=yours", b"yours").expect(201);
    let front = own.front(&stranger, &[]);
    for _ in 0..2 {
        assert_eq!(front.get("/receipts?id=yours").expect(502).code(), "other_store");
    }
    assert_eq!(front.get("/receipts/2026/1.png").expect(200).body, b"mine");
    assert!(front.log().contains("other_store"), "{}", front.log());
    assert_eq!(own.front(&issuer, &[]).get("/receipts?id=mine").expect(200).body, b"mine");
}

#[test]
fn asking_for_a_path_costs_a_few_dozen_bytes_and_one_connection() {
    const COUNT: usize = 50;
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let (address, [asked, answered]) = relay(issuer.address);
    let front = stand.start("front", &["--issuer", &format!("http://{address}")]);
    let (id, path) = ("HT2026112300000042", "2026/11/23/HT2026112300000042.png");
    issuer.put(&format!("/receipts/{path}?id={id}"), &image(5000, 1)).expect(201);
    let mut client = front.client();
    for _ in 0..COUNT {
        client.send("GET", &format!("/receipts?id={id}"), &[], b"").expect(200);
    }
    assert_eq!(front.metric("issuer_connections_total"), 1.0);
    // Every byte that went over the socket, both ways.
    let text = |seen: &Mutex<Vec<u8>>| String::from_utf8(seen.lock().unwrap().clone()).unwrap();
    let questions = format!("GET /?{id} HTTP/1.1\r\nhost: \r\n\r\n").repeat(COUNT);
    let answers = format!("HTTP/1.1 204 \r\np: {path}\r\n\r\n").repeat(COUNT);
    // The connection began with the question which store it is.
    assert_eq!(text(&asked), format!("{HEALTH}host: \r\n\r\n{questions}"));
    let answered = text(&answered);
    let health = answered.strip_suffix(&answers).unwrap_or_else(|| panic!("{answered}"));
    assert!(health.contains("\"store\":\"") && health.ends_with("}\n"), "{health}");
    let connecting = health.len() + HEALTH.len() + "host: \r\n\r\n".len();
    let bytes = (questions.len() + answers.len()) / COUNT;
    println!("{connecting} bytes of HTTP a connection");
    println!("{bytes} bytes of HTTP a receipt, {} of them id and path", id.len() + path.len());
    assert!(bytes <= id.len() + path.len() + 50, "{bytes}");
    let counted = ["sent", "received"]
        .map(|way| front.metric(&format!("issuer_bytes_total{{direction=\"{way}\"}}")))
        .iter()
        .sum::<f64>();
    assert_eq!(counted, (connecting + bytes * COUNT) as f64);
    // With the path given, the issuer is not asked.
    client.send("GET", &format!("/receipts/{path}"), &[], b"").expect(200);
    assert_eq!(front.metric("issuer_questions_total"), COUNT as f64);
}

#[test]
fn an_issuer_that_is_named_is_asked_by_its_name() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    let (address, [asked, _]) = relay(issuer.address);
    let url = format!("http://localhost:{}", address.port());
    let front = stand.start("front", &["--issuer", &url]);
    front.get("/receipts?id=x").expect(404);
    let text = String::from_utf8(asked.lock().unwrap().clone()).unwrap();
    let host = format!("host: localhost:{}\r\n\r\n", address.port());
    assert_eq!(text, format!("{HEALTH}{host}GET /?x HTTP/1.1\r\n{host}"));
}

#[test]
fn an_issuer_that_another_one_has_replaced_says_so_and_stores_nothing() {
    let stand = Stand::new();
    let issuer = stand.issuer(&[]);
    issuer.put("/receipts/before", b"x").expect(201);
    let machine = OtherMachine::new(&stand.disk());
    let writer = Writer::open(&machine, &WriterOptions::default()).unwrap();
    let health = issuer.get("/health").expect(503).json();
    assert_eq!((&health["status"], &health["writable"]), (&"fenced".into(), &false.into()));
    assert_eq!(issuer.put("/receipts/after", b"x").expect(503).code(), "fenced");
    assert_eq!(issuer.put("/receipts/later", b"x").expect(503).code(), "not_writable");
    assert_eq!(issuer.metric("writable"), 0.0);
    writer.close().unwrap();
    let front = stand.front(&issuer, &[]);
    front.get("/receipts/before").expect(200);
    front.get("/receipts/after").expect(404);
}

#[test]
fn wrong_options_are_one_line_and_exit_2() {
    let stand = Stand::new();
    let disk = stand.disk().display().to_string();
    for args in [
        &["front", "--device", &disk, "--issuer", "https://192.168.77.1"][..],
        &["front", "--device", &disk, "--issuer", "192.168.77.1:8080"],
        &["front", "--device", &disk, "--issuer", "http://a/b"],
        &["front", "--device", &disk, "--listen", "nowhere"],
        &["front", "--device", &disk, "--max-requests", "0"],
        &["issuer", "--device", &disk, "--font-dir", "/nonexistent"],
        &["issuer", "--device", &disk, "--body-memory-mib", "1"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_receipt-gateway")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
    for kind in ["issuer", "front"] {
        let help =
            Command::new(env!("CARGO_BIN_EXE_receipt-gateway")).args([kind, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(help.contains("[default: 127.0.0.1:8080]"), "nobody else unless told so: {help}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_receipt-gateway"))
        .args(["front", "--device", &disk, "--listen", &address])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
