//! What the metrics of all processes share: buckets, and the text that a scrape gets.

use prometheus_client::{
    encoding::text::encode, metrics::histogram::Histogram, registry::Registry,
};

use crate::domain::Usage;

/// Media type of a scrape.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds of waits, starts and hand-overs: fine around the parts of a second that an idle system
/// takes, coarse where somebody waits for room.
const WAIT_SECONDS: [f64; 15] =
    [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];

/// Seconds of steps and tasks: from a test suite of a second to the longest task.
const WORK_SECONDS: [f64; 13] =
    [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 21600.0];

/// Seconds of calls to other services, answers that take minutes included.
const CALL_SECONDS: [f64; 12] =
    [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0];

/// A histogram of waits.
pub fn waits() -> Histogram {
    Histogram::new(WAIT_SECONDS)
}

/// A histogram of work.
pub fn work() -> Histogram {
    Histogram::new(WORK_SECONDS)
}

/// A histogram of calls.
pub fn calls() -> Histogram {
    Histogram::new(CALL_SECONDS)
}

/// The text form of a registry.
pub fn text(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text)
}

/// Tokens by kind, as a label has it.
pub fn tokens(usage: &Usage) -> [(&'static str, u64); 4] {
    [
        ("input", usage.input_tokens),
        ("output", usage.output_tokens),
        ("cache_read", usage.cache_read_tokens),
        ("cache_write", usage.cache_write_tokens),
    ]
}

/// Millionths of a dollar as dollars. A counter of dollars is for people; what is enforced counts in
/// integers.
#[allow(clippy::cast_precision_loss, reason = "exact up to nine thousand million dollars")]
pub fn dollars(micro: u64) -> f64 {
    micro as f64 / 1e6
}

/// A gauge's value of a count that never comes near its bound.
pub fn gauge(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
