//! The HTTP server of both gateways: connections and requests are bounded in number and time, a stop ends them in order.

use super::answer::{Fault, Reply};
use super::body::drain;
use super::log::Log;
use super::metrics::{Metrics, Text};
use super::stream::{Stream, Traffic};
use super::{args, limits};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use receipt_store::stop::StopSignals;
use receipt_store::{Error, Result};
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// One of the gateways.
#[derive(Clone, Debug)]
pub enum App {
    /// Stores.
    Issuer(Arc<super::issuer::Issuer>),
    /// Shows.
    Front(Arc<super::front::Front>),
}

/// A request, its body apart.
#[derive(Debug)]
pub struct Asked {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// Headers.
    pub headers: HeaderMap,
}

/// An answer and the name of what answered, for the metrics.
pub type Answered = (&'static str, std::result::Result<Reply, Fault>);

impl App {
    async fn answer(&self, asked: &Asked, body: &mut Incoming) -> Answered {
        match self {
            Self::Issuer(issuer) => issuer.answer(asked, body).await,
            Self::Front(front) => front.answer(asked).await,
        }
    }

    /// A fault as this gateway says it.
    fn complain(&self, asked: &Asked, fault: &Fault) -> Reply {
        match self {
            Self::Issuer(_) => fault.json(),
            Self::Front(front) => front.complain(asked, fault),
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub struct Server {
    app: App,
    log: Log,
    has_access_log: bool,
    common: Arc<Common>,
    requests: Semaphore,
    connections: Arc<Semaphore>,
    request_time: Duration,
    idle_time: Duration,
    shutdown_time: Duration,
}

/// Counters that an app shows, too.
#[derive(Debug, Default)]
pub struct Common {
    metrics: Metrics,
    traffic: Arc<Traffic>,
    /// Connections that are open.
    open: AtomicU64,
    /// Requests that are being answered.
    running: AtomicU64,
    /// Connections that were refused because there were too many.
    refused: AtomicU64,
}

/// One more while it lives.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Common {
    /// The counters as Prometheus text.
    pub fn write(&self, text: &mut Text, log: &Log) {
        self.metrics.write(text);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        text.single("received_bytes_total", "counter", "Bytes from clients.", count(&self.traffic.received));
        text.single("sent_bytes_total", "counter", "Bytes to clients.", count(&self.traffic.sent));
        text.single("connections", "gauge", "Open connections.", count(&self.open));
        text.single("requests_running", "gauge", "Requests that are being answered.", count(&self.running));
        text.single(
            "refused_connections_total",
            "counter",
            "Connections over the limit.",
            count(&self.refused),
        );
        text.single("dropped_log_lines_total", "counter", "Log lines that had no room.", log.dropped());
    }
}

impl Server {
    /// A server of `app`.
    pub fn new(app: App, args: &args::Server, log: Log, common: Arc<Common>) -> Self {
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            app,
            log,
            has_access_log: !args.no_access_log,
            common,
            requests: Semaphore::new(size(args.max_requests)),
            connections: Arc::new(Semaphore::new(size(args.max_connections))),
            request_time: args.request_time(),
            idle_time: Duration::from_secs(args.idle_timeout),
            shutdown_time: Duration::from_secs(args.shutdown_timeout),
        }
    }

    /// Serves until `stop` says so and the running requests are done or out of time.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let mut tasks = JoinSet::new();
        let to_connections = stop.clone();
        loop {
            tokio::select! {
                () = told(&mut stop) => break,
                Some(_) = tasks.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((tcp, peer)) => self.clone().begin(&mut tasks, tcp, peer, &to_connections),
                    // No descriptors left, most likely.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        }
        drop(listener);
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.shutdown_time, all).await.is_err() {
            self.log.say(format!("warn: {} connections did not end in time and are cut", tasks.len()));
            tasks.shutdown().await;
        }
    }

    fn begin(
        self: Arc<Self>,
        tasks: &mut JoinSet<()>,
        tcp: TcpStream,
        peer: SocketAddr,
        stop: &watch::Receiver<bool>,
    ) {
        let Ok(place) = self.connections.clone().try_acquire_owned() else {
            self.common.refused.fetch_add(1, Ordering::Relaxed);
            // What does not fit into an empty socket buffer is not worth a wait.
            let _ = tcp.try_write(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n");
            return;
        };
        let stop = stop.clone();
        tasks.spawn(async move {
            let _open = Counted::new(&self.common.open);
            self.converse(tcp, peer, stop).await;
            drop(place);
        });
    }

    async fn converse(&self, tcp: TcpStream, peer: SocketAddr, mut stop: watch::Receiver<bool>) {
        let _ = tcp.set_nodelay(true); // slower without, but right
        let stream = Stream::new(tcp, self.common.traffic.clone(), self.request_time);
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.one(request, peer).await) });
        let is_front = matches!(self.app, App::Front(_));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.idle_time)
            .max_headers(limits::HEADERS)
            .max_header_size(limits::HEADER_BYTES)
            .max_buf_size(limits::BUFFER_BYTES)
            // A client may end its side when it has asked all it wants.
            .half_close(true)
            // The issuer's answers are a few dozen bytes: a date would be a third of them.
            .auto_date_header(is_front)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        tokio::select! {
            // A connection that ends with an error has nobody left to tell.
            _ = connection.as_mut() => return,
            () = told(&mut stop) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    /// One request.
    async fn one(&self, request: Request<Incoming>, peer: SocketAddr) -> Reply {
        let start = Instant::now();
        let (parts, body) = request.into_parts();
        let asked = Asked { method: parts.method, uri: parts.uri, headers: parts.headers };
        let (route, answer) = self.admitted(&asked, body).await;
        let reply = match answer {
            Ok(reply) => reply,
            Err(fault) => {
                if let Some(detail) = &fault.detail {
                    self.log.say(format!("error: {} {}: {}", asked.method, fault.code, clean(detail)));
                }
                self.app.complain(&asked, &fault)
            }
        };
        let time = start.elapsed();
        self.common.metrics.count(route, reply.status().as_u16(), time);
        if self.has_access_log {
            let bytes = reply.body().size_hint().exact().unwrap_or_default();
            self.log.say(format!(
                "access: peer={} method={} target={:?} status={} bytes={bytes} ms={:.1}",
                peer.ip(),
                asked.method,
                asked.uri.path_and_query().map_or("", |target| target.as_str()),
                reply.status().as_u16(),
                time.as_secs_f64() * 1000.0
            ));
        }
        reply
    }

    async fn admitted(&self, asked: &Asked, mut body: Incoming) -> Answered {
        let Ok(_place) = self.requests.try_acquire() else {
            return ("refused", Err(Fault::unavailable("too_many_requests", "too many requests at a time")));
        };
        let _running = Counted::new(&self.common.running);
        let answer = tokio::time::timeout(self.request_time, self.app.answer(asked, &mut body)).await;
        let Ok((route, answer)) = answer else {
            let message = "the request took too long; what it was to store may be stored: repeat it";
            return ("timeout", Err(Fault::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)));
        };
        // Somebody whose body did not come in time is not waited for.
        if answer.as_ref().is_err_and(|fault| fault.status != StatusCode::REQUEST_TIMEOUT) {
            drain(&asked.headers, &mut body).await;
        }
        (route, answer)
    }
}

/// Waits until the gateway is told to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|is_stopping| *is_stopping).await; // without a sender it stops, too
}

/// One line, whatever was in it.
fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// Listens, and says where on standard output as soon as it does.
pub fn listen(address: SocketAddr) -> Result<std::net::TcpListener> {
    let failed = |source| Error::File { name: format!("cannot listen on {address}"), source };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Says where it listens, for people and for scripts that asked for port 0.
fn announce(listener: &std::net::TcpListener) {
    if let Ok(address) = listener.local_addr() {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "http://{address}").and_then(|()| out.flush()); // nobody listens: fine
    }
}

/// Serves until a signal and until the running requests are done; nothing of the server is left then.
pub fn serve(
    server: Server,
    listener: std::net::TcpListener,
    runtime: &tokio::runtime::Runtime,
    (stop, stopped): (&watch::Sender<bool>, watch::Receiver<bool>),
    signals: &StopSignals,
) -> Result<()> {
    let shutdown_time = server.shutdown_time;
    let _guard = runtime.enter();
    let socket = tokio::net::TcpListener::from_std(listener.try_clone().map_err(no_listener)?);
    let running = runtime.spawn(Arc::new(server).serve(socket.map_err(no_listener)?, stopped));
    announce(&listener);
    drop(listener);
    signals.wait();
    let bound = shutdown_time + limits::CLOSING_TIME;
    std::thread::spawn(move || {
        std::thread::sleep(bound);
        // A disk that answers nothing keeps the writer: what was acknowledged is safe, the next opening recovers.
        eprintln!("receipt-gateway: the store could not be closed within {} seconds", bound.as_secs());
        std::process::exit(1);
    });
    let _ = stop.send(true);
    let _ = runtime.block_on(running);
    Ok(())
}

fn no_listener(source: std::io::Error) -> Error {
    Error::File { name: "the listening socket".to_owned(), source }
}

/// GET and HEAD alone.
pub fn only_get(asked: &Asked) -> std::result::Result<(), Fault> {
    match asked.method {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Fault::method("GET, HEAD")),
    }
}
