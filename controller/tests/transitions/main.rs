//! Every transition of a task, one by one. The model checks the invariants at each pass.

#[path = "../../../tests/decide/mod.rs"]
mod decide;
mod nodes;
mod preflight;
mod prepare;
mod retries;

use agent_operator::domain::{Reason, StepName};
use agent_operator_controller::{
    decide::{Delivery, RunView},
    plan::Order,
};
use decide::Model;

const OK: Reason = Reason::Completed;

fn until(step: StepName) -> Model {
    let mut model = Model::new();
    model.settle();
    for done in StepName::ALL.into_iter().take_while(|done| *done != step) {
        model.through(OK, (done == StepName::Plan).then_some("1. write it"));
    }
    assert_eq!(model.live().map(|run| run.step), Some(step));
    model
}

#[test]
fn a_new_task_starts_planning_in_one_pass_and_one_write() {
    let mut model = Model::new();
    let plans = model.settle();
    assert_eq!(plans.len(), 1);
    assert_eq!(plans[0].run_creates.len(), 1);
    assert_eq!(model.phase(), "Planning");
    assert_eq!(model.condition("Accepted"), Some(("True", "Accepted")));
    assert_eq!(model.condition("Scheduled"), Some(("True", "Assigned")));
    assert_eq!(model.condition("Finished"), Some(("False", "InProgress")));
}

#[test]
fn four_steps_that_end_well_complete_the_task_with_one_status_write_each() {
    let mut model = Model::new();
    model.settle();
    for (reason_phase, output) in [
        ("Implementing", Some("the plan")),
        ("Testing", None),
        ("PullRequest", None),
        ("Complete", None),
    ] {
        let plans = model.through(OK, output);
        assert_eq!(plans.len(), 1, "{reason_phase}");
        assert_eq!(model.phase(), reason_phase);
    }
    let status = &model.task.status;
    assert_eq!(status.pull_request.as_ref().map(|pull| pull.number), Some(7));
    assert_eq!(status.plan.as_ref().map(|plan| plan.text.as_str()), Some("the plan"));
    assert_eq!(status.agent_runs.len(), 4);
    assert_eq!(status.retry_count, Some(0));
    assert_eq!(status.usage.map(|usage| usage.turns), Some(4));
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    assert_eq!(model.condition("Finished"), Some(("True", "Completed")));
    assert_eq!(model.condition("Succeeded"), Some(("True", "Completed")));
    assert!(model.message().contains("/pull/7"), "{}", model.message());
}

#[test]
fn a_running_step_is_no_reason_to_write_the_task() {
    let mut model = Model::new();
    model.settle();
    model.start_live();
    assert!(model.settle().is_empty());
}

#[test]
fn suspend_stops_after_the_running_step_and_goes_on_later() {
    let mut model = until(StepName::Implement);
    model.task.spec.suspend = Some(true);
    assert!(model.settle().is_empty(), "the running step goes on");
    model.through(OK, None);
    assert_eq!(model.phase(), "Testing");
    assert!(model.live().is_none());
    assert_eq!(model.condition("Suspended"), Some(("True", "Suspended")));
    model.advance(30 * 3600);
    model.settle();
    assert!(!model.finished(), "a person's pause has no clock");
    model.task.spec.suspend = Some(false);
    model.settle();
    assert_eq!(model.live().map(|run| run.step), Some(StepName::Test));
    assert_eq!(model.condition("Suspended"), Some(("False", "Running")));
}

#[test]
fn a_task_over_its_time_ends_its_run_and_then_itself() {
    let mut model = until(StepName::Implement);
    model.start_live();
    model.advance(6 * 3600);
    let plan = model.pass();
    assert!(matches!(plan.commands[0].order, Order::Cancel { reason: Reason::Cancelled, .. }));
    assert!(plan.status.is_none());
    assert!(model.pass().commands.is_empty(), "ordered once");
    model.end_live(Reason::Cancelled, None);
    model.settle();
    assert_eq!(model.phase(), "Failed");
    assert_eq!(model.condition("Finished"), Some(("True", "TaskTimedOut")));

    let mut silent = until(StepName::Implement);
    silent.start_live();
    silent.advance(6 * 3600);
    silent.disconnect(0);
    silent.disconnect(1);
    silent.settle();
    assert_eq!(silent.phase(), "Failed", "a node that does not answer cannot hold the task up");
    assert_eq!(silent.condition("Finished"), Some(("True", "TaskTimedOut")));
}

#[test]
fn a_cancelled_task_ends_its_run_first_and_starts_nothing_any_more() {
    let mut model = until(StepName::Implement);
    model.start_live();
    model.task.cancel = Some("agent-operator is being uninstalled".to_owned());
    let plan = model.pass();
    assert!(matches!(plan.commands[0].order, Order::Cancel { reason: Reason::Cancelled, .. }));
    assert!(plan.status.is_none());
    assert!(model.pass().commands.is_empty(), "ordered once");
    model.end_live(Reason::Cancelled, None);
    model.settle();
    assert_eq!(model.phase(), "Failed");
    assert_eq!(model.condition("Finished"), Some(("True", "Cancelled")));

    let mut waiting = until(StepName::Implement);
    waiting.end_live(Reason::Unstarted, None);
    waiting.task.cancel = Some(String::new());
    waiting.settle();
    assert_eq!(waiting.condition("Succeeded"), Some(("False", "Cancelled")));
    assert!(waiting.live().is_none(), "nothing was started");

    let mut silent = until(StepName::Implement);
    silent.start_live();
    silent.disconnect(0);
    silent.disconnect(1);
    silent.advance(15);
    silent.task.cancel = Some("by hand".to_owned());
    silent.settle();
    assert_eq!(silent.phase(), "Failed", "a silent node cannot hold the task up");
}

#[test]
fn a_run_that_somebody_deleted_ends_the_task_and_its_number_is_not_used_again() {
    let mut model = until(StepName::Implement);
    model.runs.retain(|run| !run.is_live());
    model.settle();
    assert_eq!(model.phase(), "Failed");
    assert_eq!(model.condition("Finished"), Some(("True", "Deleted")));
}

#[test]
fn history_survives_the_loss_of_ended_runs() {
    let mut model = until(StepName::Test);
    model.through(Reason::VerifyFailed, Some("x"));
    model.runs.retain(RunView::is_live);
    assert!(model.settle().is_empty());
    model.through(OK, None);
    let run = model.live().expect("tested again");
    assert_eq!((run.step, run.attempt.0), (StepName::Test, 2));
    assert_eq!(model.task.status.retry_count, Some(1));
    assert_eq!(model.task.status.usage.map(|usage| usage.turns > 0), Some(true));
}

#[test]
fn p9_what_a_phase_waits_for_is_made_again_when_it_is_missing() {
    // The status was written, but its run never came to be: no summary names it.
    let mut model = Model::new();
    model.task.status.phase = Some("Planning".to_owned());
    model.settle();
    assert_eq!(model.live().map(|run| run.step), Some(StepName::Plan));
}

#[test]
fn a_finished_task_writes_nothing_and_forgets_its_runs_after_ten_minutes() {
    let mut model = until(StepName::PullRequest);
    model.through(OK, None);
    let plan = model.pass();
    assert!(!plan.writes() && plan.commands.is_empty());
    assert_eq!(plan.requeue_after.map(|wait| wait.as_secs()), Some(600));
    model.advance(600);
    let plan = model.pass();
    assert_eq!(plan.commands.len(), 4);
    assert!(plan.commands.iter().all(|command| command.order == Order::Forget));
    assert_eq!(model.pass(), agent_operator_controller::plan::Plan::default());
}

#[test]
fn a_node_that_comes_back_after_days_is_told_to_forget_what_it_names_and_nothing_else() {
    let mut model = until(StepName::PullRequest);
    model.through(OK, None);
    model.advance(3 * 24 * 3600);
    model.settle();
    for run in &mut model.runs {
        run.delivery = Delivery::Unsent;
    }
    model.runs[1].delivery = Delivery::Known;
    let (named, plan) = (model.runs[1].run.clone(), model.pass());
    let forgotten: Vec<_> = plan.commands.iter().map(|command| command.run.clone()).collect();
    assert_eq!(forgotten, [named]);
    assert_eq!(plan.commands[0].order, Order::Forget);
}

#[test]
fn a_pull_request_step_without_a_pull_request_does_not_complete_the_task() {
    let mut model = until(StepName::PullRequest);
    model.end_live(OK, None);
    for run in &mut model.runs {
        run.status.pull_request = None;
    }
    model.settle();
    assert_eq!(model.phase(), "Failed");
    assert_eq!(model.condition("Finished"), Some(("True", "NoPullRequest")));
}

#[test]
fn a_deleted_task_cancels_its_live_run_and_writes_no_status() {
    let mut model = until(StepName::Implement);
    model.task.deleting = true;
    let plan = model.pass();
    assert!(matches!(plan.commands[0].order, Order::Cancel { reason: Reason::Deleted, .. }));
    assert!(plan.status.is_none());
}

#[test]
fn settings_fill_in_what_a_task_leaves_out_and_nothing_else() {
    let mut model = Model::new();
    model.task.spec.model =
        Some(serde_json::from_str(r#"{"default":"m","plan":"p","planMaxTurns":5}"#).unwrap());
    model.task.spec.resources = Some(serde_json::from_str(r#"{"cpu":"50m"}"#).unwrap());
    model.settle();
    let spec = model.live().expect("live").spec.clone();
    assert_eq!((spec.model.as_deref(), spec.max_turns), (Some("p"), Some(5)));
    assert_eq!(spec.resources.cpu, "50m");
    assert_eq!(spec.resources.cpu_request, "50m", "a request never exceeds its limit");
    assert_eq!(spec.resources.memory, "8Gi");
    assert_eq!(spec.timeout, "30m");
    assert_eq!(spec.image, "registry.test/agent:1");
    assert_eq!(spec.sandbox.egress_policy, "Required");
}
