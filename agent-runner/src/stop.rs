//! The order to stop: given once, heard by everything that waits.

use std::{
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use agent_operator::domain::Reason;

use crate::{clock, result::exit_code_of};

/// Why the step has to stop, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stopping {
    /// Reason that the step ends with.
    pub(crate) reason: Reason,
    /// One sentence for people.
    pub(crate) message: String,
    /// Boot time at which SIGKILL follows SIGTERM.
    pub(crate) kill_at: Duration,
}

/// What ended a wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The condition holds.
    Done,
    /// The step has to stop.
    Stopping(Stopping),
    /// The limit has passed.
    TimedOut,
}

/// The step's stop order, and the condition variable that everything waits on.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    order: Mutex<Option<Stopping>>,
    changed: Condvar,
    /// Exit code of the step's end, once that is decided.
    decided: OnceLock<i32>,
}

impl Stop {
    /// Orders the stop. The first order stays; returns whether this was it.
    pub(crate) fn request(&self, stopping: Stopping) -> bool {
        let mut order = self.lock();
        let first = order.is_none();
        if first {
            *order = Some(stopping);
        }
        drop(order);
        self.changed.notify_all();
        first
    }

    /// The order, if one was given.
    pub(crate) fn order(&self) -> Option<Stopping> {
        self.lock().clone()
    }

    /// The step has come to its end, which a stop order no longer changes.
    pub(crate) fn decide(&self, exit_code: i32) {
        // There is one end; a second is none.
        let _ = self.decided.set(exit_code);
    }

    /// Exit code of a process that an order for `reason` ends: that of the step's own end, if it had come
    /// to one, for the report may have said so already.
    pub(crate) fn exit_code(&self, reason: Reason) -> i32 {
        self.decided.get().copied().unwrap_or_else(|| exit_code_of(reason))
    }

    /// Wakes every waiter, to look at its condition again.
    pub(crate) fn wake(&self) {
        // Taking the lock first: a waiter that has just looked is asleep before the call.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Waits until `done`, a stop order, or the boot time `until`.
    pub(crate) fn wait(&self, until: Option<Duration>, done: impl Fn() -> bool) -> Woken {
        self.wait_while(until, done, true)
    }

    /// As [`Stop::wait`], but does not end with a stop order.
    pub(crate) fn wait_regardless(
        &self,
        until: Option<Duration>,
        done: impl Fn() -> bool,
    ) -> Woken {
        self.wait_while(until, done, false)
    }

    fn wait_while(&self, until: Option<Duration>, done: impl Fn() -> bool, heed: bool) -> Woken {
        let mut order = self.lock();
        loop {
            if done() {
                return Woken::Done;
            }
            if let (true, Some(stopping)) = (heed, &*order) {
                return Woken::Stopping(stopping.clone());
            }
            order = match until.map(|at| at.saturating_sub(clock::boot_now())) {
                Some(Duration::ZERO) => return Woken::TimedOut,
                Some(rest) => {
                    self.changed.wait_timeout(order, rest).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(order).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Stopping>> {
        // The value is replaced whole, so a panic elsewhere cannot leave it half written.
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    fn stopping(reason: Reason) -> Stopping {
        Stopping { reason, message: String::new(), kill_at: Duration::ZERO }
    }

    #[test]
    fn the_first_order_stays() {
        let stop = Stop::default();
        assert!(stop.request(stopping(Reason::TimedOut)));
        assert!(!stop.request(stopping(Reason::Cancelled)));
        assert_eq!(stop.order(), Some(stopping(Reason::TimedOut)));
        assert_eq!(stop.wait(None, || false), Woken::Stopping(stopping(Reason::TimedOut)));
    }

    #[test]
    fn an_order_that_comes_behind_the_steps_end_does_not_change_its_exit_code() {
        let stop = Stop::default();
        assert_eq!(stop.exit_code(Reason::TimedOut), 124);
        stop.decide(0);
        stop.request(stopping(Reason::TimedOut));
        assert_eq!(stop.exit_code(Reason::TimedOut), 0);
    }

    #[test]
    fn a_wait_ends_by_its_condition_or_its_limit() {
        let stop = Arc::new(Stop::default());
        let flag = Arc::new(AtomicBool::new(false));
        let (other_stop, other_flag) = (Arc::clone(&stop), Arc::clone(&flag));
        let thread = std::thread::spawn(move || {
            other_flag.store(true, Ordering::SeqCst);
            other_stop.wake();
        });
        assert_eq!(stop.wait(None, || flag.load(Ordering::SeqCst)), Woken::Done);
        thread.join().unwrap();
        let soon = clock::boot_now() + Duration::from_millis(5);
        assert_eq!(stop.wait_regardless(Some(soon), || false), Woken::TimedOut);
    }
}
