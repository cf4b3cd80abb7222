//! Values on the command line: sizes, rates, lists of processors.

use crate::error::StartError;
use crate::limits::MAX_CPUS;
use crate::throttle::Rate;

/// Bytes of a size that `option` gives, such as `512`, `64K`, `256M`, `8G`, `1T`.
///
/// # Errors
/// When it is none.
pub fn parse_size(option: &str, text: &str) -> Result<u64, StartError> {
    let bad =
        || StartError::Usage(format!("{option} {text}: a size is a number and K, M, G or T, such as 256M"));
    parse_bytes(text).ok_or_else(bad)
}

fn parse_bytes(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0 && i64::try_from(*bytes).is_ok())
}

/// First byte and first byte behind of a range such as `64M-128M` or `0-4096`.
///
/// # Errors
/// When it is none.
pub fn parse_range(text: &str) -> Result<(u64, u64), StartError> {
    let bad = || StartError::Usage(format!("{text}: a range is START-END in bytes, such as 64M-128M"));
    let (start, end) = text.split_once('-').ok_or_else(bad)?;
    let start = if start == "0" { Some(0) } else { parse_bytes(start) };
    start.zip(parse_bytes(end)).filter(|(start, end)| start < end).ok_or_else(bad)
}

/// A rate a second and what may come at once: `1000` or `1000:200`. The burst is a tenth of a second's rate if not said.
#[must_use]
pub fn parse_rate(text: &str) -> Option<Rate> {
    let (rate, burst) = text.split_once(':').map_or((text, None), |(rate, burst)| (rate, Some(burst)));
    let per_second = parse_bytes(rate)?;
    let burst = burst.map_or(Some(per_second.div_ceil(10)), parse_bytes)?;
    Some(Rate { per_second, burst })
}

/// Numbers and ranges, divided by commas: `2,4-6`.
///
/// # Errors
/// When it is no such list.
pub fn parse_cpus(text: &str) -> Result<Vec<usize>, StartError> {
    let bad = || StartError::Usage(format!("--cpus {text}: a list of processors is such as 2,4-6"));
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |digits: &str| digits.parse::<usize>().ok().filter(|cpu| *cpu < MAX_CPUS);
        let (first, last) = (number(first).ok_or_else(bad)?, number(last).ok_or_else(bad)?);
        if first > last {
            return Err(bad());
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}
