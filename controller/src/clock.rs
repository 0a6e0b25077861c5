//! The only place where the controller reads clocks, so that tests under paused time stay in charge.

use jiff::Timestamp;
use tokio::time::Instant;

/// Monotonic time; follows tokio's paused clock in tests.
pub fn instant() -> Instant {
    Instant::now()
}

/// Wall-clock time, for status fields and for decisions that outlive a process.
#[allow(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn timestamp() -> Timestamp {
    Timestamp::now()
}
