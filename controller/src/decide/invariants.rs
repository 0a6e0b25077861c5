//! What every plan must keep, checked by all tests of decisions.

use agent_operator::{
    crd::conditions::{self, PREFLIGHTED},
    domain::StepName,
};

use super::{Observed, prepare, run, status::is_finished};
use crate::plan::{Order, Plan};

/// A broken invariant; numbers as in docs/reliability.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// I1: more than one live attempt.
    #[error("I1: {0}")]
    OneLiveAttempt(String),
    /// I2: a recorded outcome is touched, or one is recorded that nobody has told.
    #[error("I2: {0}")]
    OutcomeStays(String),
    /// I7: a second pull request.
    #[error("I7: {0}")]
    OnePullRequest(String),
    /// The first pod of a task whose preflight has not passed.
    #[error("preflight: {0}")]
    Preflight(String),
    /// I8: a budget is exceeded or a count falls.
    #[error("I8: {0}")]
    RetryBudget(String),
}

/// All invariants that `plan` breaks for `observed`; empty when it keeps them.
pub fn violations(observed: &Observed, plan: &Plan) -> Vec<Violation> {
    let mut found = Vec::new();
    one_live_attempt(observed, plan, &mut found);
    outcome_stays(observed, plan, &mut found);
    one_pull_request(observed, plan, &mut found);
    preflight_first(observed, plan, &mut found);
    retry_budget(observed, plan, &mut found);
    found
}

fn one_live_attempt(observed: &Observed, plan: &Plan, found: &mut Vec<Violation>) {
    // What waits behind its gate is no live attempt.
    let (held, live): (Vec<_>, Vec<_>) = observed
        .runs
        .iter()
        .filter(|run| run.is_live())
        .partition(|run| prepare::is_held(observed, run));
    let (ahead, begun): (Vec<_>, Vec<_>) =
        plan.run_creates.iter().partition(|create| create.spec.prepared);
    for (made, beside) in [(begun, live.len()), (ahead, held.len())] {
        if !made.is_empty() && made.len() + beside > 1 {
            found.push(Violation::OneLiveAttempt(format!(
                "creates {} runs beside {beside} of their kind",
                made.len()
            )));
        }
    }
    for command in plan.commands.iter().filter(|command| command.order == Order::Assign) {
        let others = live.iter().filter(|run| run.run != command.run).count();
        if others > 0 || held.iter().any(|run| run.run == command.run) {
            let what = format!("{} begins before its turn", command.run.name);
            found.push(Violation::OneLiveAttempt(what));
        }
    }
    for create in &plan.run_creates {
        let newest = observed
            .runs
            .iter()
            .filter(|run| run.step.as_str() == create.spec.step)
            .map(|run| i64::from(run.attempt.0))
            .max()
            .unwrap_or(0);
        if i64::from(create.spec.attempt) <= newest {
            found.push(Violation::OneLiveAttempt(format!(
                "attempt {} of {} was used before",
                create.spec.attempt, create.spec.step
            )));
        }
    }
}

fn outcome_stays(observed: &Observed, plan: &Plan, found: &mut Vec<Violation>) {
    let of = |uid: &_| observed.runs.iter().find(|run| run.uid() == uid);
    for update in &plan.run_updates {
        if of(&update.run.uid).is_none_or(|run| !run.is_live()) {
            found.push(Violation::OutcomeStays(format!("updates ended run {}", update.run.name)));
        }
        if update.phase.is_terminal() != update.reason.is_some() {
            found.push(Violation::OutcomeStays(format!("{} ends without reason", update.run.name)));
        }
        // A ledger that was lost names nothing, so only a look can tell that there is nothing.
        if of(&update.run.uid).is_some_and(|run| run::holds(observed, run)) {
            found.push(Violation::OutcomeStays(format!(
                "{} becomes {} without a word of its node, which is connected",
                update.run.name, update.phase
            )));
        }
    }
    for command in &plan.commands {
        let live = of(&command.run.uid).is_some_and(super::RunView::is_live);
        if live == (command.order == Order::Forget) {
            found.push(Violation::OutcomeStays(format!(
                "{:?} for run {} (live: {live})",
                command.order, command.run.name
            )));
        }
    }
    if is_finished(&observed.task.status) && plan.writes() && plan.status.is_some() {
        found.push(Violation::OutcomeStays("writes the status of a finished task".to_owned()));
    }
    if is_finished(&observed.task.status) && !plan.run_creates.is_empty() {
        found.push(Violation::OutcomeStays("starts a run of a finished task".to_owned()));
    }
}

fn preflight_first(observed: &Observed, plan: &Plan, found: &mut Vec<Violation>) {
    let status = plan.status.as_deref().unwrap_or(&observed.task.status);
    let first = observed.runs.is_empty() && observed.task.status.agent_runs.is_empty();
    let passed = conditions::find(&status.conditions, PREFLIGHTED)
        .is_some_and(|known| known.status == "True");
    if let Some(create) = plan.run_creates.first().filter(|_| first && !passed) {
        found.push(Violation::Preflight(format!("{} is created before", create.name)));
    }
    if plan.preflight.is_some() && observed.runs.iter().any(super::RunView::is_live) {
        found.push(Violation::Preflight("asked beside a live run".to_owned()));
    }
}

fn one_pull_request(observed: &Observed, plan: &Plan, found: &mut Vec<Violation>) {
    let before = &observed.task.status.pull_request;
    if let (Some(before), Some(status)) = (before, &plan.status)
        && status.pull_request.as_ref() != Some(before)
    {
        found.push(Violation::OnePullRequest(format!("{} is replaced", before.url)));
    }
    let step = StepName::PullRequest.as_str();
    if before.is_some() && plan.run_creates.iter().any(|create| create.spec.step == step) {
        found.push(Violation::OnePullRequest("opens another one".to_owned()));
    }
}

fn retry_budget(observed: &Observed, plan: &Plan, found: &mut Vec<Violation>) {
    let Some(after) = plan.status.as_ref().and_then(|status| status.retries) else { return };
    let before = observed.task.status.retries.unwrap_or_default();
    let max = observed
        .task
        .spec
        .max_retries
        .unwrap_or_else(|| i32::try_from(observed.settings.max_retries).unwrap_or(i32::MAX));
    // A retry that was granted under a higher limit stays counted.
    if after.application > max.max(before.application) {
        found.push(Violation::RetryBudget(format!("{} of {max} retries", after.application)));
    }
    let max = i32::try_from(observed.settings.infrastructure_retries).unwrap_or(i32::MAX);
    if after.infrastructure > max.max(before.infrastructure) {
        found.push(Violation::RetryBudget(format!("{} of {max} retries", after.infrastructure)));
    }
    if after.application < before.application
        || after.infrastructure < before.infrastructure
        || after.provider < before.provider
    {
        found.push(Violation::RetryBudget(format!("counts fall: {before:?} to {after:?}")));
    }
}
