//! Timers on the boot-time clock, driven by the kernel (timerfd): they go on in suspend. A thread of
//! its own waits for the kernel, and the runner that it wakes has a thread and a runtime of its own
//! too, so a blocked worker elsewhere in the process delays no deadline.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agent_operator::domain::RunKey;
use nix::{
    errno::Errno,
    sys::{
        time::{TimeSpec, TimeValLike as _},
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use tokio::sync::Notify;

use super::{event::Timer, moment::BootTime};
use crate::clock;

/// The kernel's timer failed.
#[derive(Debug, thiserror::Error)]
pub enum DeadlineError {
    /// The timer could not be made or set.
    #[error("could not use a boot-time timer")]
    Timer(#[from] nix::Error),
    /// The thread that waits for the kernel could not be started.
    #[error("could not start the thread for deadlines")]
    Start(#[source] std::io::Error),
}

/// What the waiting thread shares with [`Deadlines`].
struct Shared {
    timer: TimerFd,
    fired: Notify,
    closed: AtomicBool,
}

/// All timers of all attempts over one kernel timer.
pub struct Deadlines {
    /// None in a simulation, where tokio's time takes the kernel's place.
    shared: Option<Arc<Shared>>,
    armed: HashMap<(RunKey, Timer), BootTime>,
}

impl Drop for Deadlines {
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        shared.closed.store(true, Ordering::Release);
        let at_once = Expiration::OneShot(TimeSpec::nanoseconds(1));
        let _ = shared.timer.set(at_once, TimerSetTimeFlags::TFD_TIMER_ABSTIME);
    }
}

/// Turns expirations of the kernel's timer into notifications until the owner is gone.
fn wait_for_kernel(shared: &Shared) {
    while !shared.closed.load(Ordering::Acquire) {
        match shared.timer.wait() {
            Ok(()) | Err(Errno::EAGAIN) => shared.fired.notify_one(),
            // The owner still polls once a second (see the runner); a broken timer is no reason to spin.
            Err(_) => return,
        }
    }
}

impl Deadlines {
    /// No timer yet.
    pub fn new() -> Result<Self, DeadlineError> {
        if clock::is_simulated() {
            return Ok(Self { shared: None, armed: HashMap::new() });
        }
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC)?;
        let shared =
            Arc::new(Shared { timer, fired: Notify::new(), closed: AtomicBool::new(false) });
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("deadlines".to_owned())
            .spawn(move || wait_for_kernel(&of_thread))
            .map_err(DeadlineError::Start)?;
        Ok(Self { shared: Some(shared), armed: HashMap::new() })
    }

    /// Arms a timer; one of the same kind of the same attempt is replaced.
    pub fn arm(&mut self, run: RunKey, timer: Timer, at: BootTime) -> Result<(), DeadlineError> {
        self.armed.insert((run, timer), at);
        self.set()
    }

    /// Drops all timers of an attempt.
    pub fn forget(&mut self, run: &RunKey) {
        // The kernel's timer may fire once for nothing; that is cheaper than setting it again.
        self.armed.retain(|(key, _), _| key != run);
    }

    /// Takes out every timer that is due at `now`, earliest first.
    pub fn due(&mut self, now: BootTime) -> Result<Vec<(RunKey, Timer)>, DeadlineError> {
        let mut due: Vec<_> = self
            .armed
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(k, at)| (*at, k.clone()))
            .collect();
        due.sort();
        for (_, key) in &due {
            self.armed.remove(key);
        }
        self.set()?;
        Ok(due.into_iter().map(|(_, key)| key).collect())
    }

    /// Sets the kernel's timer to the earliest of ours.
    fn set(&self) -> Result<(), DeadlineError> {
        let Some(Shared { timer, .. }) = self.shared.as_deref() else { return Ok(()) };
        match self.armed.values().min() {
            // A time of zero would disarm: a moment before this boot is due at once.
            Some(at) => timer.set(
                Expiration::OneShot(TimeSpec::nanoseconds(at.0.max(1))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            )?,
            None => timer.unset()?,
        }
        Ok(())
    }

    /// Waits until a timer may be due; the caller then asks [`Self::due`]. Cancel-safe.
    pub async fn wait(&self) {
        match (&self.shared, self.next(clock::boot())) {
            (Some(shared), _) => shared.fired.notified().await,
            (None, Some(wait)) => tokio::time::sleep(wait).await,
            (None, None) => std::future::pending().await,
        }
    }

    /// Time until the earliest timer; none when none is armed.
    pub fn next(&self, now: BootTime) -> Option<Duration> {
        self.armed.values().min().map(|at| at.since(now))
    }
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::{Attempt, RunUid};

    use super::*;

    fn key(uid: &str) -> RunKey {
        RunKey { uid: RunUid::from(uid), attempt: Attempt(1) }
    }

    #[tokio::test]
    async fn the_earliest_timer_fires_first_and_none_fires_early() {
        let mut timers = Deadlines::new().unwrap();
        let start = clock::boot();
        timers.arm(key("b"), Timer::Grace, start.plus(Duration::from_millis(60))).unwrap();
        timers.arm(key("a"), Timer::Deadline, start.plus(Duration::from_millis(20))).unwrap();
        let mut fired = Vec::new();
        while fired.len() < 2 {
            tokio::time::timeout(Duration::from_secs(5), timers.wait()).await.unwrap();
            let now = clock::boot();
            for due in timers.due(now).unwrap() {
                fired.push((due, now.since(start)));
            }
        }
        assert_eq!(fired[0].0, (key("a"), Timer::Deadline));
        assert!(fired[0].1 >= Duration::from_millis(20), "{fired:?}");
        assert_eq!(fired[1].0, (key("b"), Timer::Grace));
        assert!(fired[1].1 >= Duration::from_millis(60), "{fired:?}");
    }

    #[tokio::test]
    async fn a_deadline_in_the_past_fires_at_once() {
        let mut timers = Deadlines::new().unwrap();
        timers.arm(key("a"), Timer::Deadline, BootTime(-5)).unwrap();
        tokio::time::timeout(Duration::from_secs(5), timers.wait()).await.unwrap();
        assert_eq!(timers.due(clock::boot()).unwrap(), vec![(key("a"), Timer::Deadline)]);
    }

    #[tokio::test]
    async fn a_forgotten_attempt_fires_nothing() {
        let mut timers = Deadlines::new().unwrap();
        timers.arm(key("a"), Timer::Deadline, BootTime(1)).unwrap();
        timers.forget(&key("a"));
        assert_eq!(timers.due(clock::boot()).unwrap(), vec![]);
        assert_eq!(timers.next(clock::boot()), None);
    }
}
