//! The clocks of a simulation: tokio's paused time, and a wall clock that can be stepped.

use std::{cell::Cell, time::Duration};

use agent_operator::domain::ids::BootId;
use agent_operator_controller::clock as of_controller;
use agent_operator_supervisor::{
    clock as of_supervisor,
    steps::moment::{BootTime, Now},
};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// What the wall clock shows when a simulation begins.
const BEGIN_SECONDS: i64 = 1_800_000_000;
/// What the boot-time clock shows then.
const BOOTED_SECONDS: i64 = 1000;

thread_local! {
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static STEPPED_SECONDS: Cell<i64> = const { Cell::new(0) };
    static BOOT: Cell<u32> = const { Cell::new(0) };
}

/// Begins a simulation on this thread, inside its runtime.
pub fn begin() {
    BEGAN.set(Some(Instant::now()));
    STEPPED_SECONDS.set(0);
    of_controller::simulate(wall);
    of_supervisor::simulate(of_supervisor::Simulated { now, boot_id });
}

/// Nanoseconds since the beginning.
fn elapsed_nanos() -> i64 {
    let began = BEGAN.get().expect("a simulation has begun on this thread");
    i64::try_from(began.elapsed().as_nanos()).unwrap()
}

/// Milliseconds since the beginning, for the history.
pub fn millis() -> u64 {
    u64::try_from(elapsed_nanos() / 1_000_000).unwrap()
}

/// The wall clock.
pub fn wall() -> Timestamp {
    let begin = Timestamp::from_second(BEGIN_SECONDS + STEPPED_SECONDS.get()).unwrap();
    begin + SignedDuration::from_nanos(elapsed_nanos())
}

/// Steps the wall clock.
pub fn step(seconds: i64) {
    STEPPED_SECONDS.set(STEPPED_SECONDS.get() + seconds);
}

/// How far the wall clock is behind where it would be without steps.
pub fn behind() -> Duration {
    Duration::from_secs(u64::try_from(-STEPPED_SECONDS.get()).unwrap_or(0))
}

/// The boot that a supervisor reads that starts next.
pub fn set_boot(boot: u32) {
    BOOT.set(boot);
}

fn now() -> Now {
    Now { boot: BootTime(BOOTED_SECONDS * 1_000_000_000 + elapsed_nanos()), wall: wall() }
}

fn boot_id() -> BootId {
    BootId::new(format!("boot-{}", BOOT.get()))
}
