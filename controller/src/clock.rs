//! The only place where the controller reads clocks, so that tests under paused time stay in charge.

use std::cell::Cell;

use jiff::Timestamp;
use tokio::time::Instant;

thread_local! {
    /// Wall clock of this thread; none is the system's.
    static WALL: Cell<Option<fn() -> Timestamp>> = const { Cell::new(None) };
}

/// Sets the wall clock of the calling thread, for simulations that run whole on one thread.
pub fn simulate(wall: fn() -> Timestamp) {
    WALL.set(Some(wall));
}

/// Monotonic time; follows tokio's paused clock in tests.
pub fn instant() -> Instant {
    Instant::now()
}

/// Wall-clock time, for status fields and for decisions that outlive a process.
#[allow(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn timestamp() -> Timestamp {
    WALL.get().map_or_else(Timestamp::now, |wall| wall())
}
