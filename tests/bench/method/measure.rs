//! One measurement.

use serde_json::Value;

/// What is done; the number is that of concurrent requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Stores receipts in the issuer guest.
    Put(u64),
    /// Gets them in the front guest.
    Get(u64),
    /// Gets them in the front guest over HTTP from its own front end.
    Customer(u64),
    /// From before the put until the other guest has read the receipt and said so.
    Issue,
}

impl Phase {
    /// For tables and JSON.
    pub fn name(self) -> String {
        match self {
            Self::Put(threads) => format!("put, {threads} at a time"),
            Self::Get(threads) => format!("get, {threads} at a time"),
            Self::Customer(threads) => format!("get through a front end, {threads} at a time"),
            Self::Issue => "issued -> readable".to_owned(),
        }
    }
}

/// What was seen, per receipt where nothing else is said.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub net_bytes: f64,
    /// Processor time of the guest that asks, and of the other one, as their kernels count it.
    pub cpu_ms: f64,
    pub other_cpu_ms: f64,
    /// Processor time of both QEMUs and of the daemons between them.
    pub host_cpu_ms: f64,
}

impl Measured {
    /// From the line that the load program prints.
    pub fn from_line(line: &str, other_cpu_ticks: u64, host_cpu_ticks: u64) -> Self {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let field = |name: &str| json[name].as_f64().unwrap_or_else(|| panic!("no {name}: {line}"));
        let count = field("count");
        #[expect(clippy::cast_precision_loss, reason = "ticks of minutes")]
        let ms = |ticks: u64| ticks as f64 * 10.0 / count;
        Self {
            per_second: count / field("seconds"),
            p50_us: field("p50_us"),
            p99_us: field("p99_us"),
            net_bytes: field("net_bytes") / count,
            cpu_ms: field("cpu_ticks") * 10.0 / count,
            other_cpu_ms: ms(other_cpu_ticks),
            host_cpu_ms: ms(host_cpu_ticks),
        }
    }

    /// Of several rounds: means, and the worst 99th percentile.
    pub fn of_rounds(rounds: &[Self]) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a few rounds")]
        let count = rounds.len() as f64;
        let mean = |field: fn(&Self) -> f64| rounds.iter().map(field).sum::<f64>() / count;
        Self {
            per_second: mean(|seen| seen.per_second),
            p50_us: mean(|seen| seen.p50_us),
            p99_us: rounds.iter().map(|seen| seen.p99_us).fold(0.0, f64::max),
            net_bytes: mean(|seen| seen.net_bytes),
            cpu_ms: mean(|seen| seen.cpu_ms),
            other_cpu_ms: mean(|seen| seen.other_cpu_ms),
            host_cpu_ms: mean(|seen| seen.host_cpu_ms),
        }
    }
}
