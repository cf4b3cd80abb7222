//! What a run costs, as the guest's kernel counts it.

use std::fs;
use std::time::Instant;

/// Counters at the start.
pub struct Meter {
    start: Instant,
    cpu_ticks: u64,
    net_bytes: u64,
}

impl Meter {
    /// From now.
    pub fn start() -> Self {
        Self { start: Instant::now(), cpu_ticks: cpu_ticks(), net_bytes: net_bytes() }
    }

    /// Prints one line of JSON.
    pub fn print(self, mut latencies_us: Vec<u64>) {
        let seconds = self.start.elapsed().as_secs_f64();
        latencies_us.sort_unstable();
        let percentile = |percent: usize| latencies_us[(latencies_us.len() - 1) * percent / 100];
        println!(
            "{{\"count\":{},\"seconds\":{seconds},\"p50_us\":{},\"p99_us\":{},\"cpu_ticks\":{},\"net_bytes\":{}}}",
            latencies_us.len(),
            percentile(50),
            percentile(99),
            cpu_ticks() - self.cpu_ticks,
            net_bytes() - self.net_bytes,
        );
    }
}

/// Processor time of the whole guest that was not idle, in ticks of 10 ms.
fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields = stat.lines().next().unwrap().split_whitespace().skip(1);
    // user nice system idle iowait irq softirq steal
    fields
        .take(8)
        .enumerate()
        .filter(|(at, _)| ![3, 4].contains(at))
        .map(|(_, n)| n.parse::<u64>().unwrap())
        .sum()
}

/// Bytes of all frames of the cable, both ways.
fn net_bytes() -> u64 {
    let count = |name: &str| {
        let text = fs::read_to_string(format!("/sys/class/net/eth0/statistics/{name}")).unwrap();
        text.trim().parse::<u64>().unwrap()
    };
    count("rx_bytes") + count("tx_bytes")
}
