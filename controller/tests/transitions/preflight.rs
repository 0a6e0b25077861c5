//! What stands in the way of a task: refused before anything is made, and gone on with once it is mended.

use agent_operator::domain::{
    Reason, StepName,
    preflight::{Finding, Problem},
};
use agent_operator_controller::decide::{CredentialState, PreflightAsked, PreflightView};

use crate::{decide::Model, until};

#[test]
fn a_namespace_that_is_not_enabled_is_refused_with_the_remedy() {
    let mut model = Model::new();
    model.task.namespace = "default".to_owned();
    model.settle();
    assert_eq!(model.phase(), "Pending");
    assert_eq!(model.condition("Accepted"), Some(("False", "NamespaceNotEnabled")));
    assert!(model.message().contains("taskNamespaces"), "{}", model.message());
    assert!(model.runs.is_empty());
}

#[test]
fn f26_a_bad_duration_is_a_condition_and_not_a_default() {
    let mut model = Model::new();
    model.task.spec.step_timeout = Some("1y".to_owned());
    model.settle();
    assert_eq!(model.condition("Accepted"), Some(("False", "Invalid")));
    assert!(model.message().contains("spec.stepTimeout"), "{}", model.message());
    assert!(model.runs.is_empty());
}

#[test]
fn f25_a_missing_secret_holds_the_task_up_until_its_deadline() {
    let mut model = Model::new();
    let message = "Secret agent-secrets does not exist".to_owned();
    model.credentials = CredentialState::Refused { reason: "SecretMissing", message };
    model.settle();
    assert_eq!(model.condition("Accepted"), Some(("False", "SecretMissing")));
    assert!(model.runs.is_empty());
    let waits: Vec<_> = [0, 60, 3600]
        .into_iter()
        .map(|seconds| {
            model.advance(seconds);
            model.pass().requeue_after.map(|wait| wait.as_secs())
        })
        .collect();
    assert_eq!(waits, [Some(5), Some(30), Some(300)]);
    let mut cured = model.clone();
    cured.credentials = CredentialState::Ready;
    cured.settle();
    assert_eq!(cured.phase(), "Planning");
    assert_eq!(cured.condition("Accepted"), Some(("True", "Accepted")));
    model.advance(6 * 3600);
    model.settle();
    assert_eq!(model.phase(), "Failed");
    assert_eq!(model.condition("Finished"), Some(("True", "TaskTimedOut")));
    assert!(model.message().contains("agent-secrets"), "{}", model.message());
}

fn stands_in_the_way(problem: Problem) -> Vec<Finding> {
    vec![Finding { problem, message: "the server said: no".to_owned() }]
}

#[test]
fn nothing_is_created_or_written_before_the_preflight_is_answered() {
    let mut model = Model::new();
    let plan = model.pass();
    assert!(plan.preflight.is_some() && !plan.writes(), "{plan:#?}");
    model.settle();
    assert_eq!(model.condition("Preflighted"), Some(("True", "Passed")));
    assert_eq!(model.phase(), "Planning");
}

#[test]
fn f36_whatever_stands_in_the_way_is_said_with_remedy_and_pace_and_starts_nothing() {
    for &problem in Problem::ALL {
        let mut model = Model::new();
        model.findings = stands_in_the_way(problem);
        assert_eq!(model.settle().len(), 1, "{problem}");
        assert_eq!(model.condition("Preflighted"), Some(("False", problem.as_str())));
        assert_eq!(model.condition("Finished"), Some(("False", problem.as_str())));
        assert_eq!(model.phase(), "Pending");
        for part in ["the server said: no", problem.remedy(), "Tried again in 5s"] {
            assert!(model.message().contains(part), "{part} in {}", model.message());
        }
        assert!(model.runs.is_empty());
        model.findings.clear();
        model.advance(5);
        model.settle();
        assert_eq!(model.phase(), "Planning", "{problem}: mended, it goes on by itself");
        assert_eq!(model.condition("Preflighted"), Some(("True", "Passed")));
    }
}

#[test]
fn a_refused_preflight_is_asked_again_ever_more_seldom_and_ends_with_the_task() {
    let mut model = Model::new();
    model.findings = stands_in_the_way(Problem::RepositoryMissing);
    model.settle();
    let mut waits = Vec::new();
    while !model.finished() {
        let wait = model.pass().requeue_after.expect("a clock").as_secs().max(1);
        waits.push(wait);
        model.advance(wait);
        model.settle();
        assert!(waits.len() < 200, "never ends");
    }
    assert_eq!(waits[..8], [5, 10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(model.condition("Finished"), Some(("True", "TaskTimedOut")));
    assert!(model.message().contains("the server said: no"), "{}", model.message());
    assert!(model.runs.is_empty());
}

#[test]
fn a_changed_spec_is_looked_at_at_once() {
    let mut model = Model::new();
    model.findings = stands_in_the_way(Problem::TestCommandMissing);
    model.settle();
    assert!(model.pass().preflight.is_none(), "it waits");
    model.task.generation += 1;
    model.preflight = PreflightView::default();
    assert!(model.pass().preflight.is_some());
}

#[test]
fn a_question_without_an_answer_is_shown_and_put_again() {
    let mut model = Model::new();
    let node = model.pass().preflight.expect("a node is asked");
    let asked = PreflightAsked { node, since: model.now, last: model.now };
    model.preflight = PreflightView { asked: Some(asked), answer: None };
    assert!(!model.pass().writes(), "most answers take a moment");
    model.advance(5);
    model.settle();
    assert_eq!(model.condition("Preflighted"), Some(("False", "Checking")));
    assert!(model.pass().preflight.is_none());
    model.advance(25);
    assert!(model.pass().preflight.is_some());
}

#[test]
fn a_restarted_controller_asks_again_only_what_has_not_passed() {
    let mut model = Model::new();
    model.findings = stands_in_the_way(Problem::ModelKeyRejected);
    model.settle();
    model.preflight = PreflightView::default();
    let plan = model.pass();
    assert!(plan.preflight.is_some() && !plan.writes(), "the condition stays: {plan:#?}");

    // Passed, but there is no room: the condition alone says so from now on.
    let mut model = Model::new();
    model.pass();
    for node in &mut model.nodes {
        node.used.slots = 2;
    }
    model.settle();
    assert_eq!(model.condition("Preflighted"), Some(("True", "Passed")));
    assert_eq!(model.condition("Scheduled"), Some(("False", "NoCapacity")));
    model.preflight = PreflightView::default();
    for node in &mut model.nodes {
        node.used.slots = 0;
    }
    assert!(model.pass().preflight.is_none());
    assert_eq!(model.phase(), "Planning");
}

#[test]
fn a_run_whose_status_write_was_lost_shows_that_the_preflight_had_passed() {
    let mut model = Model::new();
    model.findings = stands_in_the_way(Problem::BaseBranchMissing);
    model.settle();
    let before = model.task.status.clone();
    model.findings.clear();
    model.advance(5);
    model.settle();
    model.task.status = before;
    model.settle();
    assert_eq!(model.condition("Preflighted"), Some(("True", "Passed")));
}

#[test]
fn f21_an_image_that_cannot_be_had_takes_the_preflight_back_until_a_pod_has_started() {
    let mut model = until(StepName::Plan);
    model.end_live(Reason::Unstarted, None);
    let message = "the image registry.test/agent:1 cannot be pulled: ImagePullBackOff";
    model.runs[0].status.message = Some(message.to_owned());
    model.settle();
    assert_eq!(model.condition("Preflighted"), Some(("False", "ImageNotPullable")));
    model.advance(2);
    model.settle();
    assert!(model.live().is_some(), "it is placed again");
    assert_eq!(model.condition("Preflighted"), Some(("False", "ImageNotPullable")));
    model.start_live();
    model.settle();
    assert_eq!(model.condition("Preflighted"), Some(("True", "Passed")));
}

#[test]
fn a_node_of_an_older_version_starts_tasks_without_a_preflight() {
    let mut model = Model::new();
    for session in model.nodes.iter_mut().filter_map(|node| node.session.as_mut()) {
        session.asks_preflights = false;
    }
    assert!(model.pass().preflight.is_none());
    assert_eq!(model.phase(), "Planning");
    assert_eq!(model.condition("Preflighted"), Some(("True", "Passed")));
}
