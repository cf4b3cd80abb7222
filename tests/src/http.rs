//! A plain HTTP/1.1 client that keeps its connection, for servers that may go away at any time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Longer than any server here takes for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One connection at a time to a port of this host.
#[derive(Debug)]
pub struct HttpClient {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

/// A port of 127.0.0.1 that nobody uses now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

impl HttpClient {
    /// Nothing is connected yet.
    pub fn new(port: u16) -> Self {
        Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), stream: None }
    }

    /// Status and body.
    ///
    /// # Errors
    /// Whatever breaks the connection; the next request makes a new one. A broken request may have been carried out.
    pub fn request(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect_timeout(&self.address, TIMEOUT)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let head =
            format!("{method} {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let (status, len, is_last) = read_head(&mut stream)?;
        let mut body = vec![0; len];
        stream.read_exact(&mut body)?;
        if !is_last {
            self.stream = Some(stream);
        }
        Ok((status, body))
    }
}

/// Status, content length, and whether the server closes the connection.
fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<(u16, usize, bool)> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut line = || {
        let mut line = String::new();
        match stream.read_line(&mut line)? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            _ => Ok(line.trim_end().to_ascii_lowercase()),
        }
    };
    let status = line()?.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let (mut len, mut is_last) = (None, false);
    loop {
        let line = line()?;
        match line.split_once(": ") {
            Some(("content-length", value)) => len = value.parse().ok(),
            Some(("connection", value)) => is_last = value == "close",
            Some(_) => {}
            None => return Ok((status, len.ok_or_else(bad)?, is_last)),
        }
    }
}
