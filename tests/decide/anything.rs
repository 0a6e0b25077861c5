//! Any task that the schema accepts, and many that it would not, is read, decided until it ends, and
//! made into orders and pods without a panic.

use agent_operator::{
    crd::CodingTaskSpec,
    domain::{Assignment, Epoch, Reason, Secret},
    proto::v1,
};
use agent_operator_controller::assignment::assignment;
use agent_operator_supervisor::{
    gateway::upstream::UpstreamMap,
    ledger::Delivery,
    pod::build::{NodeSettings, pod},
};
use proptest::prelude::*;
use serde_json::json;

use super::{
    clocked,
    decide::Model,
    schema::{Manner, names, quantities, specs},
};

/// Tasks that are tried; each is decided some hundred times.
const CASES: u32 = 96;
/// Steps towards a smaller example after a failure: each costs as much as a case.
const SHRINKS_MAX: u32 = 200;
/// Rounds in which the longest task, which waits for a node all of its 30 days, is over.
const ROUNDS_MAX: usize = 400;
/// Time that passes in a round without a live run, in seconds.
const IDLE_SECONDS: u64 = 6 * 3600;

/// Builds everything that a node makes of the live run.
fn build(model: &Model) {
    let Some(run) = model.live() else { return };
    let order = assignment(&model.observed(), run, Epoch(1));
    let wire = v1::Assignment::from(&order);
    assert_eq!(Assignment::try_from(wire).unwrap(), order, "lost on the wire");
    for delivery in [Delivery::ImageVolume, Delivery::InitContainer] {
        let settings = NodeSettings {
            gateway: "10.96.0.10:8080".parse().unwrap(),
            runner_image: "registry.test/runner:1".to_owned(),
            delivery,
            priority_class: None,
        };
        let pod = pod(&order, &settings, &Secret::new("one-time"));
        let name = pod.metadata.name.as_deref().unwrap();
        assert!(name.len() <= 63, "{name}");
        for (label, value) in pod.metadata.labels.iter().flatten() {
            assert!(value.len() <= 63, "{label}={value}");
        }
        serde_json::to_vec(&pod).unwrap();
    }
    if model.task.spec.repository.work_branch.is_none() {
        let branch = &order.repository.work_branch;
        // A task's own tail may follow, and git's `.lock`.
        assert!(branch.rsplit('/').next().unwrap().len() <= 244, "git cannot store {branch}");
    }
    // Whatever the URL is, the gateway has an answer.
    let _ = UpstreamMap::default().resolve(&order.repository.url);
}

#[test]
fn what_the_schema_does_not_say_of_older_objects_is_a_condition_with_a_sentence() {
    let cases = [
        (json!({"stepTimeout": "1y"}), "spec.stepTimeout: \"1y\" is not a duration"),
        (json!({"taskTimeout": "0s"}), "spec.taskTimeout: a duration must be longer than zero"),
        (json!({"agent": {"type": "Command"}}), "spec.agent.type Command needs spec.agent.command"),
        (json!({"agent": {"type": "Command", "command": []}}), "needs spec.agent.command"),
        (json!({"resources": {"memory": ""}}), "spec.resources.memory: \"\" is not a quantity"),
        (json!({"resources": {"cpu": 0}}), "spec.resources.cpu: \"0\" is not a quantity"),
        (
            json!({"budget": {"maxCostUSD": "NaN"}}),
            "spec.budget.maxCostUSD: \"NaN\" is not a quantity",
        ),
    ];
    for (change, sentence) in cases {
        let mut model = Model::new();
        let mut spec = serde_json::to_value(&model.task.spec).unwrap();
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        model.task.spec = serde_json::from_value(spec).unwrap();
        model.settle();
        assert_eq!(model.condition("Accepted"), Some(("False", "Invalid")), "{change}");
        assert!(model.message().contains(sentence), "{change}: {}", model.message());
        assert!(model.created.is_empty(), "{change}: a run was made of it");
        // It holds up nobody and does not wait for ever.
        drive(&mut model, &[Reason::Completed]);
        assert!(model.finished(), "{change}");
    }
}

#[test]
fn every_form_of_a_quantity_that_the_schema_accepts_is_read() {
    for form in quantities("memory").chain(quantities("cpu")).chain(quantities("maxCostUSD")) {
        let mut model = Model::new();
        let mut spec = serde_json::to_value(&model.task.spec).unwrap();
        spec["resources"] = json!({"storage": form});
        spec["budget"] = json!({"maxCostUSD": form});
        model.task.spec = serde_json::from_value(spec).unwrap();
        model.settle();
        assert_eq!(model.condition("Accepted"), Some(("True", "Accepted")), "{form}");
    }
}

/// Runs the task until it ends.
fn drive(model: &mut Model, reasons: &[Reason]) {
    for reason in reasons.iter().cycle().take(ROUNDS_MAX) {
        model.settle();
        if model.finished() {
            return;
        }
        // Only waiting for a person has no clock; this one does not let the task wait.
        model.task.spec.suspend = None;
        if model.live().is_some() {
            build(model);
            model.through(*reason, Some("some output"));
            // What never started is tried again every few minutes, for the week that a task may take: in
            // steps of hours, or it would be thousands of rounds.
            model.advance(if *reason == Reason::Unstarted { IDLE_SECONDS } else { 700 });
        } else {
            model.advance(IDLE_SECONDS);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, max_shrink_iters: SHRINKS_MAX, ..ProptestConfig::default() })]

    #[test]
    fn every_task_is_read_and_ends_and_panics_nobody(
        spec in prop_oneof![specs(Manner::Wild), specs(Manner::Plausible)],
        name in names(),
        reasons in prop::collection::vec(prop::sample::select(clocked()), 1..12),
    ) {
        let spec: CodingTaskSpec = serde_json::from_value(spec.clone())
            .map_err(|error| TestCaseError::fail(format!("{error}: {spec}")))?;
        // What is written back is what was read: no field is lost.
        let again: CodingTaskSpec =
            serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
        prop_assert_eq!(&again, &spec);
        let mut model = Model::new();
        model.task.name = name;
        model.task.spec = spec;
        drive(&mut model, &reasons);
        prop_assert!(model.finished(), "no end in sight: {}", model.message());
    }
}
