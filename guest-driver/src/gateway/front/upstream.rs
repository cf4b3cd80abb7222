//! The issuer as the front end sees it: one question, the path of an id, over connections that are kept.
//!
//! Invariant: no path is taken from an issuer of another store. There, it may be the path of another receipt on this machine's disk.

use crate::answer::Fault;
use crate::disk::{Disk, Outcome};
use crate::ids::{Id, PATH_HEADER};
use crate::limits::{ISSUER_ANSWER_BYTES, ISSUER_CONNECTIONS, ISSUER_TIME};
use crate::metrics::Text;
use crate::stream::{Stream, Traffic};
use crate::target::{decode, encode};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderMap};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use receipt_store::{Error, Reader, ReceiptPath, Result, hex};
use serde_json::Value;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;

type Sender = SendRequest<Empty<Bytes>>;

/// Why a question has no answer: with the connection, or for good.
enum Trouble {
    /// A kept connection had ended meanwhile: another one may do.
    Stale,
    /// The fault of the request.
    Fault(Fault),
}

/// The issuer.
#[derive(Debug)]
pub struct Upstream {
    authority: String,
    /// What the requests say in `Host`, which HTTP/1.1 demands. An issuer that is named by its address alone shares that with no other site,
    /// so the header stays empty there: every byte of it would cross the network for every receipt.
    host: String,
    /// This machine's view of the disk.
    disk: Arc<Disk>,
    idle: Mutex<Vec<Sender>>,
    traffic: Arc<Traffic>,
    questions: AtomicU64,
    connections: AtomicU64,
}

fn down(detail: impl std::fmt::Display) -> Fault {
    let message = "the issuer does not answer; receipts whose path is known can still be read";
    Fault::new(StatusCode::BAD_GATEWAY, "issuer_down", message).because(detail)
}

impl Upstream {
    /// The issuer at `http://HOST:PORT`, for readers of `disk`.
    pub fn new(url: &str, disk: Arc<Disk>) -> Result<Self> {
        let bad =
            |why| Error::Usage(format!("--issuer {url}: {why}; it looks like http://192.168.77.1:8080"));
        let uri: Uri = url.parse().map_err(|_| bad("no URL"))?;
        let is_plain = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
        let authority = uri.authority().filter(|_| is_plain).ok_or_else(|| bad("only http://HOST:PORT"))?;
        if authority.as_str().contains('@') {
            return Err(bad("no user name here"));
        }
        let name = authority.host();
        let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let host = if is_address { String::new() } else { authority.to_string() };
        let authority = format!("{name}:{}", authority.port_u16().unwrap_or(80));
        Ok(Self {
            authority,
            host,
            disk,
            idle: Mutex::default(),
            traffic: Arc::default(),
            questions: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        })
    }

    /// Asks for the path of `id`.
    pub async fn path_of(&self, id: &Id) -> Outcome<ReceiptPath> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        tokio::time::timeout(ISSUER_TIME, self.ask(id))
            .await
            .unwrap_or_else(|_| Err(down("no answer in time")))
    }

    async fn ask(&self, id: &Id) -> Outcome<ReceiptPath> {
        if let Some(sender) = self.kept() {
            match self.ask_on(sender, id).await {
                Err(Trouble::Stale) => self.forget(), // the others are as old
                Err(Trouble::Fault(fault)) => return Err(fault),
                Ok(path) => return Ok(path),
            }
        }
        let sender = self.connect().await?;
        self.ask_on(sender, id).await.map_err(|trouble| match trouble {
            Trouble::Stale => down("the connection ended before the answer"),
            Trouble::Fault(fault) => fault,
        })
    }

    fn kept(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    fn forget(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < ISSUER_CONNECTIONS {
            idle.push(sender);
        }
    }

    async fn connect(&self) -> Outcome<Sender> {
        let tcp = TcpStream::connect(&self.authority).await.map_err(down)?;
        let _ = tcp.set_nodelay(true); // slower without, but right
        self.connections.fetch_add(1, Ordering::Relaxed);
        let stream = Stream::new(tcp, self.traffic.clone(), ISSUER_TIME);
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(down)?;
        tokio::spawn(async move {
            let _ = connection.await; // its end shows in the sender
        });
        self.check_store(&mut sender).await?;
        Ok(sender)
    }

    /// The first question on a connection: which store the issuer writes.
    async fn check_store(&self, sender: &mut Sender) -> Outcome<()> {
        let own = self.disk.look(Reader::superblock).await?;
        sender.ready().await.map_err(down)?;
        let response = sender.send_request(self.request("/health")?).await.map_err(down)?;
        let body = Limited::new(response.into_body(), ISSUER_ANSWER_BYTES).collect().await.map_err(down)?;
        let health: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        let store = health["store"].as_str().ok_or_else(|| down("it does not say which store it writes"))?;
        if store == hex(&own.uuid) {
            return Ok(());
        }
        let message = "the issuer writes another store than this machine reads";
        Err(Fault::new(StatusCode::BAD_GATEWAY, "other_store", message)
            .because(format!("it says {store}, the disk {}", hex(&own.uuid))))
    }

    fn request(&self, target: &str) -> Outcome<Request<Empty<Bytes>>> {
        Request::get(target).header(HOST, &self.host).body(Empty::new()).map_err(down)
    }

    async fn ask_on(&self, mut sender: Sender, id: &Id) -> std::result::Result<ReceiptPath, Trouble> {
        let request = self.request(&format!("/?{}", encode(id.as_str(), ""))).map_err(Trouble::Fault)?;
        sender.ready().await.map_err(|_| Trouble::Stale)?;
        let response = sender.send_request(request).await.map_err(|_| Trouble::Stale)?;
        let (answer, body) = response.into_parts();
        // Refusals have one; the connection is of use again only when it has come.
        let body = Limited::new(body, ISSUER_ANSWER_BYTES);
        body.collect().await.map_err(|error| Trouble::Fault(down(error)))?;
        self.keep(sender);
        read_answer(answer.status, &answer.headers, id).map_err(Trouble::Fault)
    }

    /// Counters.
    pub fn write(&self, text: &mut Text) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let names = ["issuer_questions_total", "issuer_connections_total"];
        text.single(names[0], "counter", "Ids that the issuer was asked for.", count(&self.questions));
        text.single(names[1], "counter", "Connections to the issuer.", count(&self.connections));
        text.family("issuer_bytes_total", "counter", "Bytes of HTTP to and from the issuer.");
        text.sample("issuer_bytes_total", "{direction=\"sent\"}", count(&self.traffic.sent));
        text.sample("issuer_bytes_total", "{direction=\"received\"}", count(&self.traffic.received));
    }
}

fn read_answer(status: StatusCode, headers: &HeaderMap, id: &Id) -> Outcome<ReceiptPath> {
    match status {
        StatusCode::NO_CONTENT => {
            let text = headers.get(PATH_HEADER).and_then(|value| decode(value.to_str().ok()?));
            let path = text.and_then(|text| ReceiptPath::new(&text).ok());
            let strange = || {
                let message = "the issuer's answer makes no sense";
                Fault::new(StatusCode::BAD_GATEWAY, "issuer_failed", message)
            };
            path.ok_or_else(strange)
        }
        StatusCode::NOT_FOUND => Err(Fault::not_found(format!("id {:?}: not found", id.as_str()))),
        StatusCode::CONFLICT => {
            let message = format!("id {:?}: pending (not acknowledged yet; try again)", id.as_str());
            let fault = Fault::new(StatusCode::CONFLICT, "pending", message);
            Err(fault.with(hyper::header::RETRY_AFTER, "1"))
        }
        status => {
            let message = "the issuer could not say where the receipt is";
            let fault = Fault::new(StatusCode::BAD_GATEWAY, "issuer_failed", message);
            Err(fault.because(format!("it answered {status}")))
        }
    }
}
