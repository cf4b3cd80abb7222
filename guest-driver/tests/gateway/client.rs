//! A small HTTP/1.1 client over a plain socket, so that the tests see the very bytes. It keeps its connection; [`Client::send`] is for servers that
//! must answer, [`Client::try_send`] for those that may go away at any time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Far longer than anything here takes: only a defect runs into it.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection at a time to a server.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header by its name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The code of a fault.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Itself, if its status is the expected one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?} {}", self.headers, self.text());
        self
    }
}

impl Client {
    /// Nothing is connected yet.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: None }
    }

    /// Connects at once.
    pub fn connect(address: SocketAddr) -> Self {
        let mut client = Self::new(address);
        client.stream().unwrap();
        client
    }

    fn stream(&mut self) -> io::Result<&mut BufReader<TcpStream>> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        Ok(self.stream.insert(stream))
    }

    /// Writes bytes; the other side may have closed already.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream()?.get_mut().write_all(bytes)
    }

    /// Says that no more requests come.
    pub fn end_requests(&mut self) {
        self.stream().unwrap().get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// Sends a request that must be answered.
    #[track_caller]
    pub fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_send(method, target, headers, body)
            .unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Whatever breaks the connection; the next request makes a new one. A broken request may have been carried out.
    pub fn try_send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        let mut text = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "PUT" || method == "POST" {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(body);
        self.stream()?; // a refused connection is an error, a refused body is not:
        let _ = self.write(&bytes); // an early refusal closes, its answer is there all the same
        self.try_answer(method == "HEAD")
    }

    /// Reads an answer that must come.
    #[track_caller]
    pub fn answer(&mut self, is_head: bool) -> Answer {
        self.try_answer(is_head).unwrap()
    }

    fn try_answer(&mut self, is_head: bool) -> io::Result<Answer> {
        let answer = read_answer(self.stream()?, is_head);
        if !answer.as_ref().is_ok_and(|answer| answer.header("connection") != Some("close")) {
            self.stream = None;
        }
        answer
    }

    /// Waits until the other side closes; an unclean end is one, too.
    pub fn end(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let Some(stream) = &mut self.stream else { return rest };
        match stream.read_to_end(&mut rest) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("it does not close"),
            _ => rest,
        }
    }
}

fn read_answer(stream: &mut BufReader<TcpStream>, is_head: bool) -> io::Result<Answer> {
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        // Half a line is the end of a server that was killed, not the end of the headers.
        if line.ends_with('\n') { Ok(line) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) }
    };
    let first = line()?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no status line: {first:?}")))?;
    let mut headers = Vec::new();
    while let Some((name, value)) = line()?.trim_end().split_once(':') {
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer { status, headers, body: Vec::new() };
    let len = answer.header("content-length").and_then(|len| len.parse::<usize>().ok()).unwrap_or(0);
    if !is_head && status != 304 {
        answer.body = vec![0; len];
        stream.read_exact(&mut answer.body)?;
    }
    Ok(answer)
}
