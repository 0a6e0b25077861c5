//! Where a step goes, and what a node that is silent, back or full means for it.

use agent_operator::{
    crd::shared::TolerationSpec,
    domain::{RunPhase, StepName},
};
use agent_operator_controller::{
    decide::{Delivery, Taint},
    plan::Order,
};

use crate::{
    OK,
    decide::{Model, node},
    until,
};

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
