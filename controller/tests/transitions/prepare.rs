//! The pod that is made ahead: when it is made, when it begins, and what becomes of it otherwise.

use agent_operator::domain::{NodeName, Reason, RunPhase, StepName};
use agent_operator_controller::{
    decide::{Delivery, RunView},
    plan::{NodeCommand, Order, Plan},
};

use crate::{OK, decide::Model};

/// A task that wants its next pods made ahead, with its plan step running.
fn planning() -> Model {
    let mut model = Model::new();
    model.task.spec.prepare_next_step = Some(true);
    model.settle();
    model.start_live();
    model
}

/// The same with implement behind its gate.
fn held() -> Model {
    let mut model = planning();
    model.settle();
    assert_eq!(the(&model, StepName::Implement).delivery, Delivery::Held);
    model
}

/// The newest run of a step.
fn the(model: &Model, step: StepName) -> &RunView {
    model.runs.iter().rfind(|run| run.step == step).expect("a run of the step")
}

fn attempts(model: &Model, step: StepName) -> usize {
    model.runs.iter().filter(|run| run.step == step).count()
}

fn orders(plan: &Plan) -> Vec<(&str, &Order)> {
    let told = |command: &'_ NodeCommand| command.run.name.contains("-impl-");
    plan.commands.iter().filter(|c| told(c)).map(|c| (c.node.as_str(), &c.order)).collect()
}

/// What was made ahead ends before its turn.
fn lose(model: &mut Model, step: StepName, reason: Reason) {
    let now = model.now;
    let run = model.runs.iter_mut().rfind(|run| run.step == step).expect("a run of the step");
    (run.phase, run.reason) = (RunPhase::Failed, Some(reason));
    run.status.phase = Some("Failed".to_owned());
    run.status.reason = Some(reason.as_str().to_owned());
    run.status.completion_time = Some(now);
}

#[test]
fn nothing_is_made_ahead_unless_the_task_asks_for_it() {
    for wish in [None, Some(false)] {
        let mut model = planning();
        model.task.spec.prepare_next_step = wish;
        assert!(model.settle().is_empty());
        assert_eq!(model.runs.len(), 1);
    }
}

#[test]
fn the_next_run_is_made_once_on_the_node_of_the_present_one_and_without_credentials() {
    let mut model = planning();
    let plan = model.pass();
    let made = &plan.run_creates[..];
    assert_eq!(made.len(), 1);
    let spec = &made[0].spec;
    assert!(spec.prepared && spec.step == "implement" && spec.attempt == 1);
    assert_eq!(NodeName::from(spec.node_name.as_str()), the(&model, StepName::Plan).node());
    assert!(!plan.needs_credentials() && plan.status.is_none(), "one write, and no Secret");
    assert!(model.settle().is_empty(), "once");
    assert_eq!(model.phase(), "Planning");
}

#[test]
fn it_is_made_when_the_present_step_runs_and_not_before() {
    let mut model = Model::new();
    model.task.spec.prepare_next_step = Some(true);
    model.settle();
    assert_eq!(model.runs.len(), 1, "the plan step's gate is closed");
    model.start_live();
    model.settle();
    assert_eq!(model.runs.len(), 2);
}

#[test]
fn it_begins_when_the_step_before_has_ended_well() {
    let mut model = held();
    model.advance(30);
    model.end_live(OK, Some("1. add the route"));
    let plan = model.pass();
    assert!(plan.run_creates.is_empty() && plan.needs_credentials());
    let node = the(&model, StepName::Plan).node();
    assert_eq!(orders(&plan), [(node.as_str(), &Order::Assign)]);
    assert!(plan.status.is_some());
    assert_eq!((model.phase(), attempts(&model, StepName::Implement)), ("Implementing", 1));
}

#[test]
fn plan_and_implement_prepare_and_the_other_steps_do_not() {
    let mut model = held();
    model.through(OK, Some("1. add the route"));
    model.start_live();
    model.settle();
    assert!(the(&model, StepName::Test).spec.prepared, "implement prepares test");
    model.through(OK, None);
    model.start_live();
    assert!(model.settle().is_empty(), "a test may fail, and a pull request is another right");
    model.through(OK, None);
    assert!(!the(&model, StepName::PullRequest).spec.prepared);
    model.through(OK, None);
    assert!(model.finished());
    assert!(model.runs.iter().all(|run| run.attempt.0 == 1), "each step once");
}

#[test]
fn a_step_that_is_tried_again_keeps_what_waits_for_it() {
    let mut model = held();
    model.through(Reason::AgentFailed, None);
    assert_eq!(the(&model, StepName::Plan).attempt.0, 2);
    model.start_live();
    model.settle();
    assert_eq!(attempts(&model, StepName::Implement), 1, "the first one waits on");
    assert_eq!(the(&model, StepName::Implement).delivery, Delivery::Held);
    model.through(OK, None);
    assert_eq!(model.live().map(|run| (run.step, run.attempt.0)), Some((StepName::Implement, 1)));
}

#[test]
fn failing_tests_lead_back_and_the_next_test_is_made_ahead_again() {
    let mut model = held();
    model.through(OK, None);
    model.start_live();
    model.settle();
    model.through(OK, None);
    model.through(Reason::VerifyFailed, Some("1 failing"));
    let again = the(&model, StepName::Implement);
    assert_eq!((again.attempt.0, again.spec.prepared), (2, false), "it knows what failed");
    assert!(again.spec.feedback_from.is_some());
    model.advance(2);
    model.start_live();
    model.settle();
    let test = the(&model, StepName::Test);
    assert_eq!((test.attempt.0, test.spec.prepared), (2, true));
}

#[test]
fn one_that_is_lost_behind_its_gate_costs_nothing_but_its_number() {
    for reason in [Reason::Unstarted, Reason::Disrupted, Reason::Deleted] {
        let mut model = held();
        lose(&mut model, StepName::Implement, reason);
        assert!(model.settle().is_empty(), "it is not made a second time beside the same attempt");
        model.end_live(OK, None);
        let plan = model.pass();
        assert_eq!(plan.run_creates.len(), 1, "{reason}: at once, and in the ordinary way");
        let spec = &plan.run_creates[0].spec;
        assert_eq!((spec.step.as_str(), spec.attempt, spec.prepared), ("implement", 2, false));
        let retries = model.task.status.retries.expect("counted");
        assert_eq!((retries.application, retries.infrastructure, retries.provider), (0, 0, 0));
    }
}

#[test]
fn a_full_node_holds_nothing() {
    let mut model = planning();
    let node = the(&model, StepName::Plan).node();
    for facts in model.nodes.iter_mut().filter(|facts| facts.name == node) {
        facts.used.slots = 1;
    }
    assert!(model.settle().is_empty());
    model.through(OK, None);
    let run = the(&model, StepName::Implement);
    assert!(!run.spec.prepared, "it starts in the ordinary way");
}

#[test]
fn a_supervisor_that_cannot_hold_is_given_nothing_to_hold() {
    let cannot = |model: &mut Model| {
        for session in model.nodes.iter_mut().filter_map(|node| node.session.as_mut()) {
            session.holds = false;
        }
    };
    let mut model = planning();
    cannot(&mut model);
    assert!(model.settle().is_empty());
    // Its supervisor was rolled back meanwhile.
    let mut model = held();
    cannot(&mut model);
    for run in &mut model.runs {
        run.delivery = Delivery::Known;
    }
    let plan = model.pass();
    assert!(matches!(orders(&plan)[..], [(_, Order::Cancel { reason: Reason::Unstarted, .. })]));
}

#[test]
fn a_suspended_task_holds_nothing_and_goes_on_in_the_ordinary_way() {
    let mut model = held();
    model.task.spec.suspend = Some(true);
    let plan = model.pass();
    assert!(matches!(orders(&plan)[..], [(_, Order::Cancel { reason: Reason::Unstarted, .. })]));
    lose(&mut model, StepName::Implement, Reason::Unstarted);
    model.through(OK, None);
    assert_eq!(model.condition("Suspended"), Some(("True", "Suspended")));
    model.task.spec.suspend = None;
    model.settle();
    let run = the(&model, StepName::Implement);
    assert_eq!((run.attempt.0, run.spec.prepared), (2, false));
}

#[test]
fn a_task_that_is_suspended_at_the_last_moment_begins_nothing() {
    let mut model = held();
    model.end_live(OK, None);
    model.task.spec.suspend = Some(true);
    let plan = model.pass();
    assert!(matches!(orders(&plan)[..], [(_, Order::Cancel { .. })]), "{:?}", plan.commands);
    assert_eq!(model.condition("Suspended"), Some(("True", "Suspended")));
}

#[test]
fn a_task_that_ends_or_is_deleted_ends_what_waits() {
    let mut model = held();
    model.task.deleting = true;
    assert_eq!(model.pass().commands.len(), 2, "both runs are ended");
    let mut model = held();
    model.task.cancel = Some("not wanted".to_owned());
    model.pass();
    model.end_live(Reason::Cancelled, None);
    model.settle();
    assert!(model.finished());
    assert_eq!(the(&model, StepName::Implement).delivery, Delivery::CancelSent);
}

#[test]
fn a_restarted_controller_has_it_held_again_and_not_begun() {
    for delivery in [Delivery::Unsent, Delivery::Known] {
        let mut model = held();
        for run in &mut model.runs {
            run.delivery = delivery;
        }
        let plan = model.pass();
        assert!(!plan.writes());
        assert!(matches!(orders(&plan)[..], [(_, Order::Hold)]), "{:?}", plan.commands);
        assert!(model.pass().commands.is_empty());
    }
}

#[test]
fn a_controller_that_died_before_it_said_begin_says_it_after_its_restart() {
    for delivery in [Delivery::Unsent, Delivery::Known] {
        let mut model = held();
        model.end_live(OK, None);
        for run in &mut model.runs {
            run.delivery = delivery;
        }
        assert!(matches!(orders(&model.pass())[..], [(_, Order::Assign)]));
        assert_eq!(the(&model, StepName::Implement).delivery, Delivery::Sent);
    }
}

#[test]
fn a_fenced_node_takes_both_and_only_what_ran_is_charged() {
    let mut model = held();
    let index = usize::from(the(&model, StepName::Plan).node().as_str() == "node-b");
    model.disconnect(index);
    model.advance(20);
    model.settle();
    assert_eq!(the(&model, StepName::Implement).phase, RunPhase::Pending);
    model.nodes[index].fenced = Some("its Node object is gone".to_owned());
    model.settle();
    model.advance(60);
    model.settle();
    assert!(
        model
            .runs
            .iter()
            .filter(|run| run.node() == model.nodes[index].name)
            .all(|run| !run.is_live())
    );
    let live = model.live().expect("placed anew");
    assert_eq!((live.step, live.attempt.0), (StepName::Plan, 2));
    assert_eq!(model.task.status.retries.map(|retries| retries.infrastructure), Some(1));
}
