//! The step's deadline inside the sandbox: it holds when supervisor and gateway are dead.

use std::{process, sync::Arc, thread, time::Duration};

use agent_operator::domain::Reason;

use crate::{
    clock,
    stop::{Stop, Stopping},
};

/// Time after the last kill in which the result is still sent. Then PID 1 exits whatever it waits
/// for, and the kernel ends the rest of the pod.
pub(crate) const LAST_WORDS: Duration = Duration::from_millis(800);

/// Stops the step at the boot time `at`.
pub(crate) fn start(stop: Arc<Stop>, at: Duration, grace: Duration) {
    thread::spawn(move || {
        if clock::sleep_until(at).is_ok() {
            let message = "the step's timeout has passed".to_owned();
            order(&stop, Stopping { reason: Reason::TimedOut, message, kill_at: at + grace });
        }
    });
}

/// Gives the stop order, and makes sure that the process ends even if it hangs somewhere.
pub(crate) fn order(stop: &Arc<Stop>, stopping: Stopping) {
    let (reason, kill_at) = (stopping.reason, stopping.kill_at);
    if !stop.request(stopping) {
        return;
    }
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        if clock::sleep_until(kill_at + LAST_WORDS).is_ok() {
            process::exit(stop.exit_code(reason));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::Woken;

    #[test]
    fn the_deadline_orders_the_stop_with_its_grace() {
        let stop = Arc::new(Stop::default());
        let at = clock::boot_now() + Duration::from_millis(10);
        // A grace far beyond the test: the last resort must not end the test's process.
        start(Arc::clone(&stop), at, Duration::from_hours(1));
        let Woken::Stopping(stopping) = stop.wait(Some(at + Duration::from_secs(5)), || false)
        else {
            panic!("no stop order came");
        };
        assert_eq!(stopping.reason, Reason::TimedOut);
        assert_eq!(stopping.kill_at, at + Duration::from_hours(1));
    }
}
