//! The clocks that the controller looks at: the task's timeout, and overdue steps. The node enforces
//! a step's own deadline; here it is only noticed, with slack, when it did not.

use std::time::Duration;

use agent_operator::{
    crd::{AgentRunSpec, conditions},
    domain::{GoDuration, RunPhase},
};
use jiff::Timestamp;

use super::{Observed, RunView};
use crate::settings::{OVERRUN_SLACK, Settings};

/// `at` plus `duration`, at most the end of time.
pub fn after(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// Time from `now` until `at`; zero when it has passed.
pub fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

/// When the task ends whatever it is doing. It counts from the creation, so that a task which never
/// gets its Secret ends as well; a task that waited for a person starts its clock anew when it goes
/// on.
pub fn task_deadline(observed: &Observed, now: Timestamp) -> Timestamp {
    let created = observed.task.created;
    let start = match conditions::find(&observed.task.status.conditions, conditions::SUSPENDED) {
        Some(suspended) if suspended.status == "True" => now,
        Some(suspended) => suspended.last_transition_time.max(created),
        None => created,
    };
    after(start, observed.task_timeout())
}

/// Time from the acceptance of a run to its open gate. One that is made ahead waits for the end of the
/// step before, at most until that would have been stopped.
pub fn start_deadline(settings: &Settings, spec: &AgentRunSpec) -> Duration {
    let before = spec.timeout.parse::<GoDuration>().map_or(settings.step_timeout, |own| own).get();
    let held = if spec.prepared { before + settings.grace.get() } else { Duration::ZERO };
    settings.start_deadline.get() + held
}

/// When a live run should have been reported as ended by its node.
pub fn overdue_at(observed: &Observed, run: &RunView) -> Timestamp {
    let settings = &observed.settings;
    let timeout = run.spec.timeout.parse().map_or(settings.step_timeout, |timeout| timeout).get();
    let slack = settings.grace.get() + OVERRUN_SLACK;
    match (run.phase, run.status.start_time) {
        (RunPhase::Pending, _) | (_, None) => {
            after(run.created, start_deadline(settings, &run.spec) + slack)
        }
        (_, Some(started)) => after(started, timeout + slack),
    }
}
