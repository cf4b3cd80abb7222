//! Answers: bodies, faults, and the one place that turns an error of the store into a status.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use receipt_store::Error;
use serde_json::{Value, json};

/// What a request gets.
pub type Reply = Response<Full<Bytes>>;

/// Why a request was not done.
#[derive(Debug)]
pub struct Fault {
    /// HTTP status.
    pub status: StatusCode,
    /// One word for programs.
    pub code: &'static str,
    /// One line for people.
    pub message: String,
    /// Only for the log.
    pub detail: Option<String>,
    /// More headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Fault {
    /// A fault.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), detail: None, headers: Vec::new() }
    }

    /// 400.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 503 with a time to try again.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message).with(RETRY_AFTER, "1")
    }

    /// The method is not one of `allowed`.
    pub fn method(allowed: &'static str) -> Self {
        let message = format!("only {allowed} here");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method", message).with(hyper::header::ALLOW, allowed)
    }

    /// Adds a header.
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.extend(HeaderValue::from_str(value).map(|value| (name, value)));
        self
    }

    /// Adds what only the log says.
    pub fn because(mut self, detail: impl std::fmt::Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    /// As JSON.
    pub fn json(&self) -> Reply {
        let body = json!({ "error": { "code": self.code, "message": self.message } });
        self.dress(json_reply(self.status, &body))
    }

    /// Gives `reply` the headers of this fault.
    pub fn dress(&self, mut reply: Reply) -> Reply {
        reply.headers_mut().extend(self.headers.iter().cloned());
        reply
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let hidden = |status, code, message: &str| Self::new(status, code, message).because(&text);
        match &error {
            Error::NotFound { .. } => Self::not_found(text),
            Error::Pending { .. } => Self::new(StatusCode::CONFLICT, "pending", text).with(RETRY_AFTER, "1"),
            Error::Exists { path, seq } => {
                let text = format!(
                    "{path}: other data is stored under this path already (sequence {seq}); ?new_version=1 adds a version"
                );
                Self::new(StatusCode::CONFLICT, "exists", text)
            }
            Error::TooManyVersions { .. } => Self::new(StatusCode::CONFLICT, "too_many_versions", text),
            Error::BadPath { .. } => Self::new(StatusCode::BAD_REQUEST, "bad_path", text),
            Error::Usage(_) => Self::bad(text),
            Error::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text),
            Error::NoSpace { .. } | Error::IndexFull { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "no_space", text)
            }
            Error::CorruptReceipt { .. } | Error::Corrupt(_) | Error::CorruptLog { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "corrupt", text.clone()).because(text)
            }
            Error::Fenced { .. } => Self::unavailable("fenced", text.clone()).because(text),
            Error::Busy { .. } | Error::ReadOnly { .. } | Error::WriterStopped | Error::NotReached => {
                Self::unavailable("not_writable", "the store cannot be written now").because(text)
            }
            Error::NoStore { .. } | Error::NewerFormat { .. } | Error::UnknownFeature { .. } => {
                let message = "the disk holds no store that this program can read";
                Self::unavailable("no_store", message).because(text)
            }
            _ => {
                hidden(StatusCode::INTERNAL_SERVER_ERROR, "device", "the disk cannot be read or written now")
            }
        }
    }
}

/// A JSON object and a line feed.
pub fn json_reply(status: StatusCode, value: &Value) -> Reply {
    let mut reply = text_reply(status, "application/json", format!("{value}\n"));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// A text of a type.
pub fn text_reply(status: StatusCode, content_type: &'static str, text: String) -> Reply {
    let mut reply = bare_reply(status, text);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers_mut().insert(hyper::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// A body without a single header of ours: for programs that know what comes.
pub fn bare_reply(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply
}
