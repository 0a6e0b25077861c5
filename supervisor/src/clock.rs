//! The one place where this crate reads clocks. Everything pure gets the time as an argument.

use std::{cell::Cell, time::Instant};

use agent_operator::domain::ids::BootId;
use jiff::Timestamp;
use nix::time::ClockId;

use crate::steps::moment::{BootTime, Now};

/// Where the kernel names the present boot.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

thread_local! {
    /// Clocks of this thread; none are the system's.
    static SIMULATED: Cell<Option<Simulated>> = const { Cell::new(None) };
}

/// The clocks of a simulation, which runs whole on one thread under tokio's paused time.
#[derive(Clone, Copy, Debug)]
pub struct Simulated {
    /// Both clocks, now.
    pub now: fn() -> Now,
    /// The present boot.
    pub boot_id: fn() -> BootId,
}

/// Sets the clocks of the calling thread. Deadlines that are made on it follow tokio's time instead of
/// the kernel's timers.
pub fn simulate(clocks: Simulated) {
    SIMULATED.set(Some(clocks));
}

/// Whether this thread's clocks are those of a simulation.
pub(crate) fn is_simulated() -> bool {
    SIMULATED.get().is_some()
}

/// A clock could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The boot id is not readable.
    #[error("could not read {BOOT_ID_FILE}")]
    ReadBootId(#[source] std::io::Error),
}

/// Both clocks, now.
#[allow(clippy::disallowed_methods, reason = "this is the crate's clock module")]
pub fn now() -> Now {
    match SIMULATED.get() {
        Some(clocks) => (clocks.now)(),
        None => Now { boot: boot(), wall: Timestamp::now() },
    }
}

/// The boot-time clock: monotonic, and it goes on in suspend.
pub fn boot() -> BootTime {
    if let Some(clocks) = SIMULATED.get() {
        return (clocks.now)().boot;
    }
    let time = nix::time::clock_gettime(ClockId::CLOCK_BOOTTIME)
        .expect("every Linux since 2.6.39 has CLOCK_BOOTTIME");
    let nanos = time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec());
    BootTime(nanos)
}

/// A monotonic instant, for latencies and rate limits.
#[allow(clippy::disallowed_methods, reason = "this is the crate's clock module")]
pub fn instant() -> Instant {
    Instant::now()
}

/// The kernel's name of the present boot.
pub fn boot_id() -> Result<BootId, ClockError> {
    if let Some(clocks) = SIMULATED.get() {
        return Ok((clocks.boot_id)());
    }
    let text = std::fs::read_to_string(BOOT_ID_FILE).map_err(ClockError::ReadBootId)?;
    Ok(BootId::new(text.trim()))
}
