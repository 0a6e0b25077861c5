//! When a failed pass is tried again: soon after a hiccup, seldom when nothing changes.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use agent_operator::crd::CodingTask;
use kube::{ResourceExt as _, runtime::controller::Action};

use super::task::ReconcileError;
use crate::apply::ApplyError;

/// First wait.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait: a quota or a webhook that is put right is noticed within it.
const MAX: Duration = Duration::from_mins(5);
/// Least wait after the API server refused a request for its contents: it will again.
const REFUSED_MIN: Duration = Duration::from_secs(30);

/// How often each task failed in a row.
#[derive(Default)]
pub(super) struct Failures(Mutex<HashMap<String, u32>>);

impl Failures {
    /// A pass went well.
    pub(super) fn forget(&self, task: &CodingTask) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&task.uid().unwrap_or_default());
    }

    /// Logs a failed pass, once with its whole chain, and says when to try again.
    pub(super) fn action(&self, task: &CodingTask, error: &ReconcileError) -> Action {
        let uid = task.uid().unwrap_or_default();
        if matches!(error, ReconcileError::Apply(ApplyError::NotLeading)) {
            // The next term looks at every task anyway.
            return Action::await_change();
        }
        let count = {
            let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = failures.entry(uid.clone()).or_default();
            *count = count.saturating_add(1);
            *count
        };
        let code = match error {
            ReconcileError::Apply(error) => error.code(),
            _ => None,
        };
        let wait = wait(count, code, &uid);
        // Outside of the pass, so with a context of its own.
        let _within = super::logs_of(task).entered();
        tracing::warn!(
            kind = error.kind(),
            wait_millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            error = %agent_operator::domain::text::error_chain(error),
            "a pass failed"
        );
        Action::requeue(wait)
    }
}

/// Doubled with each failure, spread by up to a quarter so that tasks that failed together do not
/// come back together.
fn wait(count: u32, code: Option<u16>, uid: &str) -> Duration {
    let doubled = FIRST.saturating_mul(2_u32.saturating_pow(count.saturating_sub(1))).min(MAX);
    let refused = matches!(code, Some(403 | 413 | 422));
    let mut hasher = DefaultHasher::new();
    (uid, count).hash(&mut hasher);
    let spread = u32::try_from(hasher.finish() % 256).unwrap_or(0);
    let spread_out = doubled.saturating_sub(doubled / 4 * spread / 256);
    if refused { spread_out.max(REFUSED_MIN) } else { spread_out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_cap_and_never_shrink_below_three_quarters() {
        for count in 1..40 {
            let wait = wait(count, None, "uid");
            assert!(wait <= MAX && wait >= FIRST * 3 / 4, "{count}: {wait:?}");
        }
        assert!(wait(30, None, "uid") >= MAX * 3 / 4);
    }

    #[test]
    fn a_refusal_is_not_repeated_within_thirty_seconds() {
        for code in [403, 413, 422] {
            assert!(wait(1, Some(code), "uid") >= REFUSED_MIN);
        }
        assert!(wait(1, Some(503), "uid") <= FIRST);
    }
}
