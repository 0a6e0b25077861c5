//! The decision for one task: status, next run, orders to nodes, and when to look again.

use std::time::Duration;

use agent_operator::{
    crd::conditions::{self, accepted, scheduled},
    domain::{Attempt, NodeName, Reason, RunPhase, StepName, names},
};
use jiff::Timestamp;

use super::{
    CredentialState, Delivery, Observed, RunView, deadline, message,
    observed::invalid,
    placement, preflight, prepare,
    progress::{Ending, Progress, Stand, Start, Unstarted, replay},
    resolve,
    run::{self, Contact, requeue},
    status::{Draft, TaskPhase, is_finished},
};
use crate::plan::{EventNote, NodeCommand, Order, Plan, RunCreate};

/// Wait for room on a node when no event announces any: a node may free memory without telling us.
const PLACEMENT_RETRY: Duration = Duration::from_secs(30);
/// First wait for a Secret to appear; half of the time waited so far later on.
const REFUSAL_RETRY: Duration = Duration::from_secs(5);
/// Longest such wait.
const REFUSAL_RETRY_MAX: Duration = Duration::from_mins(5);
/// How long a node is told to forget runs that it does not name: the word may come too often, but must
/// end. A node that was away for longer names what it has when it is back.
const FORGET_UNNAMED: Duration = Duration::from_hours(24);
/// Reason of `Finished` while the task goes on.
const IN_PROGRESS: &str = "InProgress";

/// Decides what is to be done for a task at `now`.
pub fn decide(observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if is_finished(&observed.task.status) {
        wind_down(observed, now, &mut plan);
        return plan;
    }
    if observed.task.deleting {
        for run in observed.runs.iter().filter(|run| run.is_live()) {
            let why = (Reason::Deleted, "the task was deleted");
            run::end(observed, run, why, now, &mut plan);
        }
        return plan;
    }
    let progress = replay(observed);
    let mut draft = Draft::new(observed, &progress, now);
    preflight::note_first_pod(observed, &progress, &mut draft);
    match (&progress.stand, &observed.task.cancel) {
        (Stand::Done(ending), None) if is_of_time(observed, ending, now) => {
            time_out(&mut draft, &progress, now);
        }
        (Stand::Done(ending), _) => finish(&mut draft, &progress, ending, now),
        (_, Some(why)) => cancel(observed, why, &progress, now, &mut draft, &mut plan),
        (stand, None) => go_on(observed, stand, &progress, now, &mut draft, &mut plan),
    }
    note_phase(observed, &draft, &mut plan);
    plan.status = draft.changed();
    if plan.status.as_deref().is_some_and(is_finished) {
        requeue(&mut plan, observed.settings.task_end_pod_ttl.get());
    }
    plan
}

/// What an unfinished task needs that nobody ends.
fn go_on(
    observed: &Observed,
    stand: &Stand<'_>,
    progress: &Progress<'_>,
    now: Timestamp,
    draft: &mut Draft<'_>,
    plan: &mut Plan,
) {
    let overdue = now >= deadline::task_deadline(observed, now);
    match stand {
        Stand::Start(_) | Stand::Live(_) if suspends(observed) => {
            prepare::end(observed, now, plan);
        }
        // What is paused has no clock, so nobody else would end what waits for it.
        Stand::BudgetPaused(_) => prepare::end(observed, now, plan),
        Stand::Start(_) | Stand::Live(_) if !overdue => {
            prepare::look_after(observed, stand, now, plan);
        }
        Stand::Start(_) | Stand::Live(_) | Stand::Done(_) => {}
    }
    match stand {
        Stand::Done(ending) => finish(draft, progress, ending, now),
        Stand::Start(_) if overdue && !suspends(observed) => time_out(draft, progress, now),
        Stand::Live(run) if overdue => {
            overdue_run(observed, run, progress, now, draft, plan);
        }
        Stand::Start(start) => begin(observed, start, progress, now, draft, plan),
        Stand::Live(run) if suspends(observed) && prepare::waits(run) => {
            suspend(draft, TaskPhase::of(run.step), run.step);
        }
        Stand::Live(run) => tend(observed, run, progress, now, draft, plan),
        Stand::BudgetPaused(why) => {
            accept(draft);
            draft.summary(TaskPhase::of(progress.step), progress.step, why);
            draft.condition(conditions::SUSPENDED, true, "BudgetExceeded", why);
            draft.unfinished("BudgetExceeded", why);
        }
    }
}

fn suspend(draft: &mut Draft<'_>, phase: TaskPhase, step: StepName) {
    let why = "spec.suspend is true; set it to false to go on";
    draft.summary(phase, step, why);
    draft.condition(conditions::SUSPENDED, true, "Suspended", why);
    draft.unfinished("Suspended", why);
}

fn suspends(observed: &Observed) -> bool {
    observed.task.spec.suspend == Some(true)
}

/// A finished task: live runs are ended, and after a while the nodes may forget all of them.
fn wind_down(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    for run in observed.runs.iter().filter(|run| run.is_live()) {
        let why = (Reason::Cancelled, "the task has ended");
        run::end(observed, run, why, now, plan);
    }
    let Some(ended) = observed.task.status.completion_time else { return };
    let ttl = observed.settings.task_end_pod_ttl.get();
    let forget_at = deadline::after(ended, ttl);
    if now < forget_at {
        return requeue(plan, deadline::until(now, forget_at));
    }
    // Later only what its node has named, which is then there for sure.
    let unnamed_too = now < deadline::after(forget_at, FORGET_UNNAMED);
    let due = |run: &&RunView| match run.delivery {
        Delivery::Forgotten => false,
        Delivery::Known => true,
        Delivery::Unsent | Delivery::Held | Delivery::Sent | Delivery::CancelSent => unnamed_too,
    };
    let connected =
        |run: &&RunView| observed.node(&run.node()).is_some_and(|node| node.session.is_some());
    let ended = observed.runs.iter().filter(|run| !run.is_live());
    for run in ended.filter(connected).filter(due) {
        plan.commands.push(NodeCommand {
            node: run.node(),
            run: run.run.clone(),
            attempt: run.attempt,
            order: Order::Forget,
        });
    }
}

/// A task that somebody ends. A live run is ended first, so that the task's last status shows how; a
/// node that is silent cannot hold the task up.
fn cancel(
    observed: &Observed,
    why: &str,
    progress: &Progress<'_>,
    now: Timestamp,
    draft: &mut Draft<'_>,
    plan: &mut Plan,
) {
    let why = if why.is_empty() { "no reason was given" } else { why };
    let message = message::bounded(&format!("cancelled: {why}"));
    if let Stand::Live(run) = &progress.stand {
        run::end(observed, run, (Reason::Cancelled, &message), now, plan);
        if matches!(run::contact(observed, run, now), Contact::Connected | Contact::Brief(_)) {
            return;
        }
    }
    let ending = Ending::Failed { reason: Reason::Cancelled.as_str().to_owned(), message };
    finish(draft, progress, &ending, now);
}

/// Why nothing may be started for the task: reason and sentence.
fn refusal(observed: &Observed) -> Option<(&'static str, String)> {
    if !observed.settings.enables(&observed.task.namespace) {
        return Some((
            accepted::NAMESPACE_NOT_ENABLED,
            format!(
                "namespace {} is not among the chart's taskNamespaces ({})",
                observed.task.namespace,
                observed.settings.task_namespaces.join(", ")
            ),
        ));
    }
    if let Some(problem) = invalid(&observed.task.spec) {
        return Some((accepted::INVALID, problem));
    }
    match &observed.credentials {
        CredentialState::Refused { reason, message } => Some((reason, message.clone())),
        CredentialState::Unread | CredentialState::Ready => None,
    }
}

fn accept(draft: &mut Draft<'_>) {
    draft.condition(conditions::ACCEPTED, true, accepted::ACCEPTED, "");
}

/// Starts the next attempt, or says what it waits for.
fn begin(
    observed: &Observed,
    start: &Start,
    progress: &Progress<'_>,
    now: Timestamp,
    draft: &mut Draft<'_>,
    plan: &mut Plan,
) {
    let first = progress.history.is_empty();
    let phase = if first { TaskPhase::Pending } else { TaskPhase::of(start.step) };
    if let Some((reason, why)) = refusal(observed) {
        draft.summary(phase, start.step, &why);
        draft.condition(conditions::ACCEPTED, false, reason, &why);
        draft.unfinished(reason, &why);
        wait_for_refusal(observed, now, plan);
        return wait_until_deadline(observed, now, plan);
    }
    accept(draft);
    if suspends(observed) {
        return suspend(draft, phase, start.step);
    }
    resume(draft);
    wait_until_deadline(observed, now, plan);
    if let Some(at) = start.not_before.filter(|at| *at > now) {
        requeue(plan, deadline::until(now, at));
        if let Some(unstarted) = &progress.unstarted {
            return held_up(draft, phase, start.step, unstarted);
        }
        let why = start.after_failure.clone().unwrap_or_default();
        draft.summary(phase, start.step, &format!("tried again soon: {why}"));
        return draft.unfinished("WaitingForRetry", &why);
    }
    let previous = progress.history.last().and_then(|last| last.run).map(RunView::node);
    let placed = placement::place(observed, start, previous.as_ref());
    if preflight::is_due(observed, progress)
        && !preflight::passes(observed, start.step, placed.as_ref().ok(), now, draft, plan)
    {
        return;
    }
    match placed {
        Ok(node) => create(observed, start, &node, progress.unstarted.as_ref(), draft, plan),
        Err(unplaced) => {
            let why = format!(
                "{}; {}",
                unplaced.message,
                message::waits_for_node(PLACEMENT_RETRY, observed.task_timeout())
            );
            draft.summary(phase, start.step, &why);
            draft.condition(conditions::SCHEDULED, false, unplaced.reason, &why);
            draft.unfinished(unplaced.reason, &why);
            plan.waits_for_node = true;
            requeue(plan, PLACEMENT_RETRY);
        }
    }
}

fn create(
    observed: &Observed,
    start: &Start,
    node: &NodeName,
    unstarted: Option<&Unstarted>,
    draft: &mut Draft<'_>,
    plan: &mut Plan,
) {
    let task = &observed.task;
    let name = names::run_name(&task.name, &task.uid, start.step, start.attempt);
    let spec = resolve::run_spec(observed, start, node);
    draft.created(&name, start.step, spec.attempt, node.as_str());
    match unstarted {
        // Until it runs, nothing is known to have been mended.
        Some(unstarted) => held_up(draft, TaskPhase::of(start.step), start.step, unstarted),
        None => with_node(draft, start.step, start.attempt, node),
    }
    plan.run_creates.push(RunCreate { name, spec });
}

/// A step that is with a node: the same words whether it was just created or goes on.
fn with_node(draft: &mut Draft<'_>, step: StepName, attempt: Attempt, node: &NodeName) {
    let text = message::handed_out(step, attempt, node);
    draft.summary(TaskPhase::of(step), step, &text);
    draft.condition(conditions::SCHEDULED, true, scheduled::ASSIGNED, &text);
    draft.unfinished(IN_PROGRESS, "");
}

/// A step that something keeps from starting: the same words over all its attempts, so that they change
/// only when the situation does.
fn held_up(draft: &mut Draft<'_>, phase: TaskPhase, step: StepName, unstarted: &Unstarted) {
    let text = message::held_up(step, &unstarted.message, draft.task_timeout());
    draft.summary(phase, step, &text);
    draft.condition(conditions::SCHEDULED, false, &unstarted.reason, &text);
    draft.unfinished(&unstarted.reason, &text);
}

/// Looks after the live run.
fn tend(
    observed: &Observed,
    run: &RunView,
    progress: &Progress<'_>,
    now: Timestamp,
    draft: &mut Draft<'_>,
    plan: &mut Plan,
) {
    run::tend(observed, run, now, plan);
    wait_until_deadline(observed, now, plan);
    let handed_out = plan.commands.iter().any(|command| command.order == Order::Assign);
    if let (true, Some((reason, why))) = (handed_out, refusal(observed)) {
        // A run that waits for its node to learn of it is held up; one that the node knows goes on
        // with the credentials that its gateway has.
        plan.commands.retain(|command| command.order != Order::Assign);
        draft.summary(TaskPhase::of(run.step), run.step, &why);
        draft.condition(conditions::ACCEPTED, false, reason, &why);
        draft.unfinished(reason, &why);
        return wait_for_refusal(observed, now, plan);
    }
    accept(draft);
    resume(draft);
    let silent = plan.run_updates.iter().any(|update| update.phase == RunPhase::Unknown)
        || (run.phase == RunPhase::Unknown
            && run::contact(observed, run, now) != Contact::Connected);
    if silent {
        let why = run::silent(run);
        draft.summary(TaskPhase::of(progress.step), progress.step, &why);
        draft.condition(conditions::SCHEDULED, false, scheduled::NODE_UNKNOWN, &why);
        draft.unfinished(scheduled::NODE_UNKNOWN, &why);
    } else if let Some(unstarted) = &progress.unstarted {
        held_up(draft, TaskPhase::of(run.step), run.step, unstarted);
    } else {
        with_node(draft, run.step, run.attempt, &run.node());
    }
}

/// A task that is over its time with a live run: the run is ended first, so that the task's last
/// status shows how; a node that does not answer cannot hold the task up.
fn overdue_run(
    observed: &Observed,
    run: &RunView,
    progress: &Progress<'_>,
    now: Timestamp,
    draft: &mut Draft<'_>,
    plan: &mut Plan,
) {
    let patience = observed.settings.grace.get() + crate::settings::OVERRUN_SLACK;
    let last = deadline::after(deadline::task_deadline(observed, now), patience);
    run::end(observed, run, (Reason::Cancelled, "the task's time is up"), now, plan);
    let connected = run::contact(observed, run, now) == Contact::Connected;
    if connected && now < last {
        requeue(plan, deadline::until(now, last));
    } else {
        time_out(draft, progress, now);
    }
}

/// Whether a task has ended because its last run was cancelled when the task's time was up: the words then
/// say what it was waiting for, as they do where there was no run.
fn is_of_time(observed: &Observed, ending: &Ending, now: Timestamp) -> bool {
    let cancelled =
        matches!(ending, Ending::Failed { reason, .. } if reason == Reason::Cancelled.as_str());
    cancelled && now >= deadline::task_deadline(observed, now)
}

fn time_out(draft: &mut Draft<'_>, progress: &Progress<'_>, now: Timestamp) {
    let waiting = draft.status.message.clone().unwrap_or_default();
    let message = format!("taskTimeout has passed during step {}: {waiting}", progress.step);
    let ending = Ending::Failed { reason: "TaskTimedOut".to_owned(), message };
    finish(draft, progress, &ending, now);
}

fn finish(draft: &mut Draft<'_>, progress: &Progress<'_>, ending: &Ending, now: Timestamp) {
    let (phase, reason, text) = match ending {
        Ending::Complete => {
            let url = draft.status.pull_request.as_ref().map(|pull| pull.url.clone());
            let text = format!("pull request {} is open", url.unwrap_or_default());
            (TaskPhase::Complete, "Completed".to_owned(), text)
        }
        Ending::Failed { reason, message } => (TaskPhase::Failed, reason.clone(), message.clone()),
    };
    let well = phase == TaskPhase::Complete;
    draft.summary(phase, progress.step, &text);
    resume(draft);
    draft.condition(conditions::FINISHED, true, &reason, &text);
    draft.condition(conditions::SUCCEEDED, well, &reason, &text);
    draft.status.completion_time.get_or_insert(now);
}

/// Takes back a suspension; a task that was never suspended gets no such condition.
fn resume(draft: &mut Draft<'_>) {
    if conditions::find(&draft.status.conditions, conditions::SUSPENDED).is_some() {
        draft.condition(conditions::SUSPENDED, false, "Running", "");
    }
}

fn wait_until_deadline(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    requeue(plan, deadline::until(now, deadline::task_deadline(observed, now)));
}

/// Looks again after half the time waited so far: soon at first, seldom later.
fn wait_for_refusal(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let since = conditions::find(&observed.task.status.conditions, conditions::ACCEPTED)
        .filter(|accepted| accepted.status == "False")
        .map_or(now, |accepted| accepted.last_transition_time);
    let wait = deadline::until(since, now) / 2;
    requeue(plan, wait.clamp(REFUSAL_RETRY, REFUSAL_RETRY_MAX));
}

/// An event for a changed phase.
fn note_phase(observed: &Observed, draft: &Draft<'_>, plan: &mut Plan) {
    let (old, new) = (&observed.task.status.phase, &draft.status.phase);
    if let Some(phase) = new.as_ref().filter(|_| old != new) {
        plan.events.push(EventNote {
            run: None,
            warning: phase == TaskPhase::Failed.as_str(),
            reason: phase.clone(),
            action: "AdvanceTask".to_owned(),
            note: draft.status.message.clone().unwrap_or_default(),
        });
    }
}
