//! Every transition of a task, one by one. The model checks the invariants at each pass.

#[path = "../../tests/decide/mod.rs"]
mod decide;

use agent_operator::{
    crd::shared::TolerationSpec,
    domain::{
        Budget, Epoch, Reason, RunPhase, StepName,
        preflight::{Finding, Problem},
    },
};
use agent_operator_controller::{
    assignment::assignment,
    decide::{CredentialState, Delivery, PreflightAsked, PreflightView, RunView, Taint},
    plan::Order,
};
use decide::{Model, node};
use serde_json::json;

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
fn f7_a_silent_node_is_visible_and_not_replaced_until_it_is_fenced() {
    let mut model = until(StepName::Implement);
    model.start_live();
    let index = usize::from(model.live().expect("live").node().as_str() == "node-b");
    model.disconnect(index);
    assert!(model.settle().is_empty(), "not yet");
    model.advance(15);
    model.settle();
    assert_eq!(model.live().map(|run| run.phase), Some(RunPhase::Unknown));
    assert_eq!(model.condition("Scheduled"), Some(("False", "NodeUnknown")));
    model.advance(3600);
    assert!(model.settle().is_empty());
    model.nodes[index].fenced = Some("its Node object is gone".to_owned());
    model.settle();
    model.advance(60);
    model.settle();
    let run = model.live().expect("replaced");
    assert_eq!((run.step, run.attempt.0), (StepName::Implement, 2));
    assert_ne!(run.node(), model.nodes[index].name);
    assert_eq!(model.task.status.retries.map(|retries| retries.infrastructure), Some(1));
    assert_eq!(model.task.status.retry_count, Some(0));
}

#[test]
fn a_node_that_comes_back_goes_on_with_its_run() {
    let mut model = until(StepName::Implement);
    model.start_live();
    let index = usize::from(model.live().expect("live").node().as_str() == "node-b");
    model.disconnect(index);
    model.advance(20);
    model.settle();
    model.connect(index);
    let plan = model.pass();
    assert!(matches!(plan.commands[0].order, Order::Confirm), "under the present term");
    assert!(!plan.needs_credentials(), "its gateway has them, or asks");
    model.settle();
    assert_eq!(model.condition("Scheduled"), Some(("True", "Assigned")));
    model.through(OK, None);
    assert_eq!(model.phase(), "Testing");
}

#[test]
fn a_restarted_controller_hands_live_runs_out_again_without_writing() {
    let mut model = until(StepName::Implement);
    for delivery in [Delivery::Unsent, Delivery::Known] {
        for run in &mut model.runs {
            run.delivery = delivery;
        }
        let plan = model.pass();
        assert_eq!(plan.commands.len(), 1);
        assert!(!plan.writes());
        assert!(model.pass().commands.is_empty());
    }
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
fn without_nodes_or_room_a_task_waits_and_says_why() {
    let mut model = Model::new();
    model.disconnect(0);
    model.disconnect(1);
    let plan = model.pass();
    assert!(plan.waits_for_node);
    assert_eq!(model.phase(), "Pending");
    assert_eq!(model.condition("Scheduled"), Some(("False", "NoNodes")));
    model.connect(0);
    model.nodes[0].used.slots = 2;
    model.settle();
    assert_eq!(model.condition("Scheduled"), Some(("False", "NoCapacity")));
    assert!(model.message().contains("no free slot"), "{}", model.message());
    model.nodes[0].used.slots = 1;
    model.settle();
    assert_eq!(model.phase(), "Planning");
}

#[test]
fn p21_selector_taints_cordons_and_requests_are_honoured() {
    let placed = |model: &mut Model| {
        model.settle();
        model.live().map(|run| run.node().to_string())
    };
    let fresh = || {
        let mut model = Model::new();
        model.nodes[0] = node("node-a");
        model
    };
    for wanted in ["node-a", "node-b"] {
        let mut model = fresh();
        let selector = [("kubernetes.io/hostname".to_owned(), wanted.to_owned())];
        model.task.spec.node_selector = selector.into();
        assert_eq!(placed(&mut model).as_deref(), Some(wanted));
    }
    let taint = |effect: &str| Taint {
        key: "dedicated".to_owned(),
        value: "gpu".to_owned(),
        effect: effect.to_owned(),
    };
    for effect in ["NoSchedule", "NoExecute", "PreferNoSchedule"] {
        let mut model = fresh();
        model.nodes[0].taints = vec![taint(effect)];
        assert_eq!(placed(&mut model).as_deref(), Some("node-b"), "{effect}");
    }
    let mut model = fresh();
    model.nodes[0].taints = vec![taint("NoSchedule")];
    model.nodes.truncate(1);
    assert_eq!(placed(&mut model), None);
    model.task.spec.tolerations = vec![TolerationSpec {
        key: Some("dedicated".to_owned()),
        value: Some("gpu".to_owned()),
        ..TolerationSpec::default()
    }];
    assert_eq!(placed(&mut model).as_deref(), Some("node-a"));
    let mut model = fresh();
    model.nodes[0].unschedulable = true;
    assert_eq!(placed(&mut model).as_deref(), Some("node-b"));
    let mut model = fresh();
    model.nodes[1].used.amounts.cpu_milli = 1901;
    assert_eq!(placed(&mut model).as_deref(), Some("node-a"));
}

#[test]
fn the_next_step_prefers_the_node_of_the_step_before() {
    let mut model = Model::new();
    model.settle();
    let first = model.live().expect("live").node();
    for _ in 0..3 {
        model.through(OK, None);
        assert_eq!(model.live().expect("live").node(), first);
    }
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
