//! The preflight: nothing of a task is started before a node has asked the task's upstreams what
//! stands in the way. The condition `Preflighted` is the only memory of it; what a node was asked and
//! what it answered is lost with this process, and asked again.

use std::time::Duration;

use agent_operator::{
    crd::conditions::{self, PREFLIGHTED, preflighted},
    domain::{GoDuration, NodeName, Reason, RunPhase, StepName},
};
use jiff::Timestamp;

use super::{
    Observed, PreflightAnswer, deadline,
    progress::Progress,
    run::requeue,
    status::{Draft, TaskPhase},
};
use crate::plan::Plan;

/// First wait after a refusal; doubled with each further one.
const BACKOFF: Duration = Duration::from_secs(5);
/// Longest such wait.
const BACKOFF_MAX: Duration = Duration::from_mins(5);
/// A question without an answer is put again at this pace; the gateway does it once.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// An answer that takes longer than this is worth a write of the status: most take a second.
const SLOW: Duration = Duration::from_secs(5);
/// Words by which kubelets and runtimes say that an image cannot be had.
const IMAGE_TROUBLE: [&str; 6] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "exec format error",
];

/// Whether the task still needs one: it has not started anything and none has passed.
pub(super) fn is_due(observed: &Observed, progress: &Progress<'_>) -> bool {
    progress.history.is_empty()
        && conditions::find(&observed.task.status.conditions, PREFLIGHTED)
            .is_none_or(|known| known.status != "True")
}

/// Whether the task may start. Otherwise orders the preflight, if it is time, and says what the task
/// waits for. `node` is where the first step would run, and so whose mirror it warms.
pub(super) fn passes(
    observed: &Observed,
    step: StepName,
    node: Option<&NodeName>,
    now: Timestamp,
    draft: &mut Draft<'_>,
    plan: &mut Plan,
) -> bool {
    let view = &observed.preflight;
    if let Some(answer) = view.answer.as_ref().filter(|answer| answer.report.findings.is_empty()) {
        draft.condition(PREFLIGHTED, true, preflighted::PASSED, &answer.report.notes.join("; "));
        return true;
    }
    if let Some(node) = node.filter(|node| is_too_old(observed, node)) {
        let text = format!("the supervisor of node {node} is of an older version and asks nothing");
        draft.condition(PREFLIGHTED, true, preflighted::PASSED, &text);
        return true;
    }
    let next = next_question(observed);
    match node {
        Some(node) if now >= next => {
            plan.preflight = Some(node.clone());
            requeue(plan, SLOW);
        }
        Some(_) => requeue(plan, deadline::until(now, next)),
        // There is no node to ask: the caller says so, unless there is a refusal to show.
        None if view.answer.is_none() => return true,
        None => plan.waits_for_node = true,
    }
    say(observed, step, now, draft, plan);
    false
}

/// When the next question is due.
fn next_question(observed: &Observed) -> Timestamp {
    let view = &observed.preflight;
    let asked = view.asked.as_ref().map(|asked| deadline::after(asked.last, ASK_AGAIN));
    let refused = view.answer.as_ref().map(|answer| deadline::after(answer.at, wait(answer.tries)));
    asked.or(refused).unwrap_or(Timestamp::MIN)
}

/// Says what the task waits for.
fn say(
    observed: &Observed,
    step: StepName,
    now: Timestamp,
    draft: &mut Draft<'_>,
    plan: &mut Plan,
) {
    let (reason, text) = match (&observed.preflight.answer, &observed.preflight.asked) {
        (Some(answer), _) => refusal(answer),
        (None, Some(asked)) => {
            let slow = deadline::after(asked.since, SLOW);
            if now < slow {
                requeue(plan, deadline::until(now, slow));
                return draft.hold_back();
            }
            let text = format!(
                "node {} asks for repository, credentials and model; a first clone takes its time",
                asked.node
            );
            (preflighted::CHECKING, text)
        }
        (None, None) => return draft.hold_back(),
    };
    draft.summary(TaskPhase::Pending, step, &text);
    draft.condition(PREFLIGHTED, false, reason, &text);
    draft.unfinished(reason, &text);
}

/// Reason and sentence: what was found, what puts it right, and when it is tried again.
fn refusal(answer: &PreflightAnswer) -> (&'static str, String) {
    let findings = &answer.report.findings;
    let reason = findings.first().map_or(preflighted::CHECKING, |first| first.problem.as_str());
    let told =
        findings.iter().map(|found| format!("{}; {}", found.message, found.problem.remedy()));
    let told = told.collect::<Vec<_>>().join(". Also: ");
    let wait = GoDuration::from_secs(wait(answer.tries).as_secs());
    let text = format!("{told}. Tried again in {wait}: a mended task goes on by itself");
    (reason, text)
}

fn wait(tries: u32) -> Duration {
    BACKOFF.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1))).min(BACKOFF_MAX)
}

/// During an upgrade a node's supervisor may not know the question yet.
fn is_too_old(observed: &Observed, node: &NodeName) -> bool {
    let session = observed.node(node).and_then(|facts| facts.session.as_ref());
    session.is_some_and(|session| !session.asks_preflights)
}

/// That its image can be had shows with a task's first pod: trouble with it takes the condition back
/// until a pod has started.
pub(super) fn note_first_pod(observed: &Observed, progress: &Progress<'_>, draft: &mut Draft<'_>) {
    let Some(last) = progress.history.last() else { return };
    let before = &observed.task.status;
    let known = conditions::find(&before.conditions, PREFLIGHTED);
    let of_image = known.is_some_and(|known| known.reason == preflighted::IMAGE_NOT_PULLABLE);
    // A run exists, so the preflight had passed: this process or the one before ended between the
    // two writes that say so. A task that lists runs and has no condition is older than preflights.
    let unwritten =
        !of_image && known.map_or(before.agent_runs.is_empty(), |known| known.status != "True");
    let started = progress.history.iter().any(|record| {
        matches!(record.phase, RunPhase::Running | RunPhase::Succeeded)
            || record.run.is_some_and(|run| run.status.start_time.is_some())
    });
    if !started
        && last.reason == Some(Reason::Unstarted)
        && let Some(message) = last.run.and_then(|run| run.status.message.as_deref())
        && IMAGE_TROUBLE.iter().any(|word| message.contains(word))
    {
        return draft.condition(PREFLIGHTED, false, preflighted::IMAGE_NOT_PULLABLE, message);
    }
    if unwritten || (of_image && started) {
        draft.condition(PREFLIGHTED, true, preflighted::PASSED, "the first pod was started");
    }
}
