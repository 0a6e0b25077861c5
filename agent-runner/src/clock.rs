//! The only place that reads clocks or sleeps by one.

use std::time::Duration;

use jiff::Timestamp;
use nix::{
    sys::{
        time::TimeSpec,
        timer::{Expiration, TimerSetTimeFlags},
        timerfd::{ClockId, TimerFd, TimerFlags},
    },
    time::{ClockId as Clock, clock_gettime},
};

/// Time since boot, suspend included: the clock of every deadline.
pub(crate) fn boot_now() -> Duration {
    clock_gettime(Clock::CLOCK_BOOTTIME)
        .map(Duration::from)
        .expect("CLOCK_BOOTTIME exists since Linux 2.6.39 and the pointer is ours")
}

/// Wall-clock time, for display only.
#[allow(clippy::disallowed_methods, reason = "the clock module")]
pub(crate) fn wall_now() -> Timestamp {
    Timestamp::now()
}

/// Blocks until the boot-time clock shows `at`.
pub(crate) fn sleep_until(at: Duration) -> nix::Result<()> {
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC)?;
    // An absolute time of zero would disarm the timer.
    let at = at.max(Duration::from_nanos(1));
    timer.set(
        Expiration::OneShot(TimeSpec::from_duration(at)),
        TimerSetTimeFlags::TFD_TIMER_ABSTIME,
    )?;
    timer.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_until_a_time_reaches_it_and_the_past_returns_at_once() {
        let start = boot_now();
        sleep_until(start + Duration::from_millis(20)).unwrap();
        assert!(boot_now() >= start + Duration::from_millis(20));
        sleep_until(Duration::ZERO).unwrap();
    }
}
