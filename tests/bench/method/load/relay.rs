//! The servers: the issuer of the HTTP peers, a front end for any peer, and the two ends of "issued -> readable".

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::get::{Getter, Message};
use crate::http::{self, Answer};
use crate::meter::Meter;
use crate::put::Putter;
use crate::receipts::{Receipts, id_of, path};
use crate::timed;

/// `/json/ID`, `/raw/ID` and `/?ID`, the path, from memory.
pub fn serve(listen: &str, bytes: u64) {
    let receipts = Receipts::new(bytes);
    http::serve(
        listen,
        || (),
        |(), target| {
            if let Some(id) = target.strip_prefix("/?") {
                return Answer::Path(path(id.parse().unwrap()));
            }
            let (kind, id) = target[1..].split_once('/').unwrap();
            let id = id.parse().unwrap();
            match kind {
                "raw" => Answer::Body(receipts.get(id)),
                "json" => {
                    let image = STANDARD.encode(receipts.get(id));
                    Answer::Body(serde_json::to_vec(&Message { id, image: &image }).unwrap())
                }
                _ => panic!("unknown target {target}"),
            }
        },
    );
}

/// `/PATH` from any peer: the HTTP server that a customer's browser would talk to.
pub fn front(getter: &Getter, listen: &str) {
    http::serve(
        listen,
        || getter.connect(),
        |connection, target| Answer::Body(connection.get(id_of(target), <[u8]>::to_vec)),
    );
}

/// Gets every receipt whose path is told, and answers with a byte.
pub fn show(getter: &Getter, listen: &str, count: u64, receipts: &Receipts) {
    let mut connection = getter.connect();
    let listener = TcpListener::bind(listen).unwrap();
    println!("listening");
    let (stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    for _ in 0..count {
        line.clear();
        stream.read_line(&mut line).unwrap();
        let id = id_of(line.trim_end());
        connection.get(id, |data| receipts.check(id, data));
        stream.get_mut().write_all(b"+").unwrap();
    }
}

/// Stores receipts and tells their paths to [`show`], one at a time; the time runs from before the put until the answer.
pub fn issue(putter: &Putter, show: &str, first: u64, count: u64, receipts: &Receipts) {
    let mut connection = putter.connect();
    let stream = TcpStream::connect(show).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut stream = BufReader::new(stream);
    let meter = Meter::start();
    let mut issue = |id: u64| {
        connection.put(id, &receipts.get(id));
        stream.get_mut().write_all(format!("{}\n", path(id)).as_bytes()).unwrap();
        let answer = stream.fill_buf().unwrap().len();
        assert_eq!(answer, 1, "one answer for one path");
        stream.consume(answer);
    };
    let latencies = (first..first + count).map(|id| timed(|| issue(id))).collect();
    meter.print(latencies);
}
