//! Rounds, medians and clocks.

use std::time::{Duration, Instant};

use agent_operator_supervisor::clock;

/// Rounds of each measurement: the median of seven bears three that a busy machine spoiled.
pub const ROUNDS: usize = 7;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// For the table.
    Full,
    /// Whether the benches work and the counts are right; its times mean little.
    Quick,
}

impl Scale {
    /// One of two sizes.
    pub fn pick<T>(self, full: T, quick: T) -> T {
        if self == Self::Full { full } else { quick }
    }

    /// Limit of one bench as a whole: several times what a busy machine takes, since only what hangs is to end by it.
    /// All quick ones together take five minutes, and the longest full one half an hour.
    pub fn limit(self) -> Duration {
        self.pick(Duration::from_mins(90), Duration::from_mins(8))
    }
}

/// Values of one thing.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value that `part` of all are not above.
    pub fn at(&self, part: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let index = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(index.max(1) - 1).copied()
    }

    pub fn median(&self) -> Option<f64> {
        self.at(0.5)
    }

    pub fn p99(&self) -> Option<f64> {
        self.at(0.99)
    }

    pub fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }
}

/// Milliseconds of a time.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Now, by the monotonic clock.
pub fn now() -> Instant {
    clock::instant()
}

/// Repeats `attempt` until it gives something; the bench is broken when nothing comes.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> T {
    let repeat = async {
        loop {
            if let Some(result) = attempt().await {
                return result;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(limit, repeat).await.unwrap_or_else(|_| panic!("not in {limit:?}: {what}"))
}
