//! The one place where this crate reads clocks. Everything pure gets the time as an argument.

use std::time::Instant;

use agent_operator::domain::ids::BootId;
use jiff::Timestamp;
use nix::time::ClockId;

use crate::steps::moment::{BootTime, Now};

/// Where the kernel names the present boot.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

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
    Now { boot: boot(), wall: Timestamp::now() }
}

/// The boot-time clock: monotonic, and it goes on in suspend.
pub fn boot() -> BootTime {
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
    let text = std::fs::read_to_string(BOOT_ID_FILE).map_err(ClockError::ReadBootId)?;
    Ok(BootId::new(text.trim()))
}
