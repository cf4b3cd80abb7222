//! Counters as Prometheus text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the histogram of request times, in milliseconds.
const BUCKETS_MS: [u64; 9] = [1, 2, 5, 10, 50, 100, 500, 1000, 5000];

/// Counters of requests.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<&'static str, Route>>);

#[derive(Debug, Default)]
struct Route {
    by_status: BTreeMap<u16, u64>,
    /// Cumulative: each counts what was at most so long.
    buckets: [u64; BUCKETS_MS.len()],
    count: u64,
    total: Duration,
}

impl Metrics {
    /// Counts a request.
    pub fn count(&self, route: &'static str, status: u16, time: Duration) {
        let mut routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let route = routes.entry(route).or_default();
        *route.by_status.entry(status).or_default() += 1;
        route.count += 1;
        route.total += time;
        for (bucket, limit) in route.buckets.iter_mut().zip(BUCKETS_MS) {
            *bucket += u64::from(time <= Duration::from_millis(limit));
        }
    }

    /// All counters of requests.
    pub fn write(&self, text: &mut Text) {
        let routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.family("requests_total", "counter", "Requests that were answered.");
        for (name, route) in routes.iter() {
            for (status, count) in &route.by_status {
                text.sample("requests_total", &format!("{{route=\"{name}\",status=\"{status}\"}}"), *count);
            }
        }
        text.family("request_seconds", "histogram", "Time to the first byte of the answer.");
        for (name, route) in routes.iter() {
            for (count, limit) in route.buckets.iter().zip(BUCKETS_MS) {
                let labels =
                    format!("{{route=\"{name}\",le=\"{}\"}}", Duration::from_millis(limit).as_secs_f64());
                text.sample("request_seconds_bucket", &labels, *count);
            }
            text.sample("request_seconds_bucket", &format!("{{route=\"{name}\",le=\"+Inf\"}}"), route.count);
            let labels = format!("{{route=\"{name}\"}}");
            text.sample("request_seconds_sum", &labels, route.total.as_secs_f64());
            text.sample("request_seconds_count", &labels, route.count);
        }
    }
}

/// Prometheus text that grows.
#[derive(Debug, Default)]
pub struct Text(pub String);

impl Text {
    /// Begins a family.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ =
            writeln!(self.0, "# HELP receipt_gateway_{name} {help}\n# TYPE receipt_gateway_{name} {kind}");
    }

    /// One value.
    pub fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "receipt_gateway_{name}{labels} {value}");
    }

    /// A family of one value.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, "", value);
    }
}
