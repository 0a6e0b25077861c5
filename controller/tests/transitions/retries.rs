//! What a step that ended badly costs, and what its end costs the task: retries, placements, budgets.

use agent_operator::domain::{Budget, Epoch, Reason, StepName};
use agent_operator_controller::{assignment::assignment, decide::Delivery, plan::Order};
use serde_json::json;

use crate::{OK, decide::Model, until};

#[test]
fn p1_p11_a_failing_test_goes_back_to_implement_with_its_output_and_the_plan() {
    let mut model = until(StepName::Test);
    model.through(Reason::VerifyFailed, Some("expected 200, got 404"));
    assert_eq!(model.phase(), "Implementing");
    assert_eq!(model.task.status.retry_count, Some(1));
    let run = model.live().expect("a retry").clone();
    assert_eq!((run.step, run.attempt.0), (StepName::Implement, 2));
    let order = assignment(&model.observed(), &run, Epoch(4));
    assert_eq!(order.work.feedback.as_deref(), Some("expected 200, got 404"));
    assert_eq!(order.work.plan.as_deref(), Some("1. write it"));
    assert_eq!(order.repository.work_branch, "ai/add-healthcheck");
    assert_eq!(order.repository.base_commit, Some("b".repeat(40)));
    assert_eq!(order.repository.head_commit, Some(format!("{:040}", 1)));
    assert_eq!(order.epoch, Epoch(4));
}

#[test]
fn p4_tests_that_never_pass_end_the_task_after_max_retries() {
    let mut model = until(StepName::Test);
    for _ in 0..3 {
        model.through(Reason::VerifyFailed, Some("1 failing\n  GET /healthz"));
        model.through(OK, None);
        assert_eq!(model.live().map(|run| run.step), Some(StepName::Test));
    }
    model.through(Reason::VerifyFailed, Some("1 failing\n  GET /healthz"));
    assert_eq!(model.phase(), "Failed");
    assert_eq!(model.task.status.retry_count, Some(3));
    for part in ["3 retries", "step test (attempt 4)", "npm test", "exit code 1", "GET /healthz"] {
        assert!(model.message().contains(part), "{part} in {}", model.message());
    }
    assert_eq!(model.condition("Finished"), Some(("True", "VerifyFailed")));
    assert_eq!(model.condition("Succeeded"), Some(("False", "VerifyFailed")));
    assert!(model.task.status.pull_request.is_none());
}

#[test]
fn no_retries_means_the_first_failure_ends_the_task() {
    let mut model = until(StepName::Test);
    model.task.spec.max_retries = Some(0);
    model.through(Reason::VerifyFailed, None);
    assert_eq!(model.phase(), "Failed");
    assert_eq!(model.task.status.retry_count, Some(0));
}

#[test]
fn each_reason_leads_where_its_budget_says_from_each_step() {
    for step in StepName::ALL {
        for &reason in Reason::ALL.iter().filter(|reason| **reason != OK) {
            let mut model = until(step);
            model.through(reason, Some("output"));
            let next = model.live().map(|run| (run.step, run.attempt.0));
            match reason.budget() {
                Budget::Application if step == StepName::Test => {
                    assert_eq!(next, Some((StepName::Implement, 2)), "{step} {reason}");
                }
                Budget::Application => assert_eq!(next, Some((step, 2)), "{step} {reason}"),
                Budget::Infrastructure | Budget::Provider | Budget::Replace => {
                    assert_eq!(next, None, "{step} {reason}: a wait comes first");
                    assert!(!model.finished());
                    model.advance(700);
                    model.settle();
                    let next = model.live().map(|run| (run.step, run.attempt.0));
                    assert_eq!(next, Some((step, 2)), "{step} {reason}");
                    assert_eq!(model.task.status.retry_count, Some(0));
                }
                Budget::None => {
                    assert!(!model.finished() || model.phase() == "Failed", "{step} {reason}");
                }
            }
        }
    }
}

#[test]
fn reasons_without_a_budget_end_the_task_at_once() {
    for reason in [Reason::InvalidTask, Reason::Cancelled, Reason::Deleted] {
        let mut model = until(StepName::Implement);
        model.through(reason, None);
        assert_eq!(model.phase(), "Failed", "{reason}");
        assert_eq!(model.condition("Finished"), Some(("True", reason.as_str())));
    }
}

#[test]
fn an_unverifiable_repository_fails_or_goes_on_as_the_task_says() {
    let mut model = until(StepName::Test);
    model.through(Reason::Unverifiable, None);
    assert_eq!(model.phase(), "Failed");

    let mut model = until(StepName::Test);
    model.task.spec.test = Some(serde_json::from_str(r#"{"onUnverifiable":"Proceed"}"#).unwrap());
    model.through(Reason::Unverifiable, None);
    assert_eq!(model.phase(), "PullRequest");
    assert_eq!(model.live().map(|run| run.step), Some(StepName::PullRequest));
    let run = model.live().unwrap().clone();
    assert!(assignment(&model.observed(), &run, Epoch(1)).work.unverified, "the request says so");
}

#[test]
fn what_passed_its_tests_in_the_end_is_not_called_unverified() {
    let mut model = until(StepName::PullRequest);
    model.task.spec.test = Some(serde_json::from_str(r#"{"onUnverifiable":"Proceed"}"#).unwrap());
    let run = model.live().unwrap().clone();
    assert!(!assignment(&model.observed(), &run, Epoch(1)).work.unverified);
}

#[test]
fn infrastructure_failures_have_their_own_budget() {
    let mut model = until(StepName::Implement);
    for count in 1..=3 {
        model.through(Reason::Disrupted, None);
        model.advance(60);
        model.settle();
        assert_eq!(model.task.status.retries.map(|retries| retries.infrastructure), Some(count));
        assert_eq!(model.task.status.retry_count, Some(0));
    }
    model.through(Reason::ExitCodeUnknown, None);
    assert_eq!(model.phase(), "Failed");
    assert_eq!(model.condition("Finished"), Some(("True", "ExitCodeUnknown")));
}

#[test]
fn a_provider_outage_is_waited_out_for_its_budget_of_time_only() {
    let mut model = until(StepName::Plan);
    let mut tries = 0;
    while !model.finished() {
        model.through(Reason::ProviderUnavailable, None);
        model.advance(600);
        model.settle();
        tries += 1;
        assert!(tries < 100, "never ends");
    }
    assert!(tries > 8, "{tries}");
    assert_eq!(model.task.status.retry_count, Some(0));
    assert!(model.message().contains("gave up waiting"), "{}", model.message());
}

#[test]
fn f20_a_run_that_never_started_is_placed_elsewhere_under_a_new_number() {
    let mut model = until(StepName::Plan);
    let first = model.live().expect("live").node();
    model.end_live(Reason::Unstarted, None);
    model.advance(2);
    model.settle();
    let run = model.live().expect("placed again");
    assert_eq!(run.attempt.0, 2);
    assert_ne!(run.node(), first);
    assert_eq!(model.task.status.retry_count, Some(0));
}

#[test]
fn a_replaced_retry_keeps_its_feedback() {
    let mut model = until(StepName::Test);
    model.through(Reason::VerifyFailed, Some("broken"));
    let feedback = model.live().expect("retry").spec.feedback_from.clone();
    assert!(feedback.is_some());
    model.end_live(Reason::Unstarted, None);
    model.advance(10);
    model.settle();
    assert_eq!(model.live().expect("again").spec.feedback_from, feedback);
    model.end_live(Reason::Disrupted, None);
    model.advance(10);
    model.settle();
    assert_eq!(model.live().expect("again").spec.feedback_from, feedback);
}

#[test]
fn lowered_retries_do_not_take_back_one_that_was_granted() {
    let mut model = until(StepName::Test);
    model.through(Reason::VerifyFailed, None);
    model.task.spec.max_retries = Some(0);
    model.settle();
    assert!(!model.finished());
    model.through(OK, None);
    model.through(Reason::VerifyFailed, None);
    assert_eq!(model.phase(), "Failed");
}

#[test]
fn an_exceeded_budget_pauses_until_it_is_raised_or_fails_as_asked() {
    let mut model = until(StepName::Implement);
    model.task.spec.budget = Some(serde_json::from_str(r#"{"maxTokens": 20}"#).unwrap());
    model.through(Reason::BudgetExceeded, None);
    assert!(!model.finished());
    assert_eq!(model.condition("Suspended"), Some(("True", "BudgetExceeded")));
    assert!(model.message().contains("spec.budget"), "{}", model.message());
    model.task.spec.budget = Some(serde_json::from_str(r#"{"maxTokens": 500}"#).unwrap());
    model.settle();
    let run = model.live().expect("goes on").clone();
    assert_eq!((run.step, run.attempt.0), (StepName::Implement, 2));
    let left = assignment(&model.observed(), &run, Epoch(1)).budget.and_then(|left| left.tokens);
    assert_eq!(left, Some(480));

    let mut model = until(StepName::Implement);
    model.task.spec.budget =
        Some(serde_json::from_str(r#"{"maxTokens": 20, "onExceeded": "Fail"}"#).unwrap());
    model.through(Reason::BudgetExceeded, None);
    assert_eq!(model.phase(), "Failed");
}

#[test]
fn a_budget_that_is_raised_in_mid_step_reaches_the_live_run_once() {
    let budget = |tokens: i64| Some(serde_json::from_value(json!({"maxTokens": tokens})).unwrap());
    let mut model = Model::new();
    model.task.spec.budget = budget(100);
    model.settle();
    model.start_live();
    model.settle();
    assert!(model.pass().commands.is_empty(), "the order has said what is left");
    model.task.spec.budget = budget(700);
    let plan = model.pass();
    let Order::Budget { left } = plan.commands[0].order else { panic!("{plan:#?}") };
    assert_eq!(left.and_then(|left| left.tokens), Some(700));
    assert!(model.pass().commands.is_empty(), "once");
    // A controller that was started anew does not know what was told, and says all of it again.
    for run in &mut model.runs {
        (run.delivery, run.told_budget) = (Delivery::Known, None);
    }
    assert!(matches!(model.pass().commands[0].order, Order::Confirm));
    assert!(model.pass().commands.is_empty());
}
