//! As little HTTP/1.1 as the peers need, kept alive: what is measured is the way of the bytes, not a web framework.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

/// A connection to a server.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::with_capacity(64 << 10, stream) }
    }

    /// The body of a GET that is answered 200.
    pub fn get(&mut self, target: &str) -> Vec<u8> {
        self.request(&format!("GET {target} HTTP/1.1\r\nHost: i\r\n\r\n"), &[])
    }

    /// The header `p` of a GET that is answered 204.
    pub fn get_path(&mut self, target: &str) -> String {
        let request = format!("GET {target} HTTP/1.1\r\nHost: i\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut self.stream).expect("an answer");
        assert!(head.first.contains(" 204"), "{} to {request}", head.first);
        head.path.expect("a path")
    }

    /// A PUT that is answered 200 or 201.
    pub fn put(&mut self, target: &str, body: &[u8]) {
        let head = format!("PUT {target} HTTP/1.1\r\nHost: i\r\nContent-Length: {}\r\n\r\n", body.len());
        self.request(&head, body);
    }

    fn request(&mut self, head: &str, body: &[u8]) -> Vec<u8> {
        let mut message = Vec::with_capacity(head.len() + body.len());
        message.extend_from_slice(head.as_bytes());
        message.extend_from_slice(body);
        self.stream.get_mut().write_all(&message).unwrap();
        let Head { first, len, .. } = read_head(&mut self.stream).expect("an answer");
        let mut answer = vec![0; len];
        self.stream.read_exact(&mut answer).unwrap();
        let is_ok = first.contains(" 200 ") || first.contains(" 201 ");
        assert!(is_ok, "{first} to {head}: {}", String::from_utf8_lossy(&answer));
        answer
    }
}

/// What stands before a body.
struct Head {
    first: String,
    len: usize,
    /// The header `p`.
    path: Option<String>,
}

/// The head of a message; `None` at the end of the stream.
fn read_head(stream: &mut impl BufRead) -> Option<Head> {
    let mut first = String::new();
    if stream.read_line(&mut first).unwrap_or(0) == 0 {
        return None;
    }
    let (mut len, mut path) = (0, None);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                len = value.trim().parse().unwrap()
            }
            Some(("p", value)) => path = Some(value.trim().to_owned()),
            Some(_) => {}
            None => return Some(Head { first: first.trim_end().to_owned(), len, path }),
        }
    }
}

/// What a GET is answered with.
pub enum Answer {
    /// 200 and a body.
    Body(Vec<u8>),
    /// 204 and a path in the header `p`: the fewest bytes that HTTP allows.
    Path(String),
}

/// Answers GETs, a thread a connection; `connect` makes what a connection needs, `answer` the answer for a target.
pub fn serve<C>(
    listen: &str,
    connect: impl Fn() -> C + Sync,
    answer: impl Fn(&mut C, &str) -> Answer + Sync,
) {
    let listener = TcpListener::bind(listen).unwrap_or_else(|error| panic!("{listen}: {error}"));
    println!("listening");
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let (connect, answer) = (&connect, &answer);
            scope.spawn(move || {
                let mut context = connect();
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let mut stream = BufReader::new(stream);
                while let Some(Head { first, .. }) = read_head(&mut stream) {
                    let message = match answer(&mut context, first.split(' ').nth(1).unwrap()) {
                        Answer::Path(path) => format!("HTTP/1.1 204 \r\np: {path}\r\n\r\n").into_bytes(),
                        Answer::Body(body) => {
                            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                            [head.as_bytes(), &body].concat()
                        }
                    };
                    if stream.get_mut().write_all(&message).is_err() {
                        return;
                    }
                }
            });
        }
    });
}
