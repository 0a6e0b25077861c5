//! Whole plans for the named scenarios, so that a change of any effect is seen in review. Accept
//! changes with `INSTA_UPDATE=always cargo test --test golden_plans`.

#[path = "decide/mod.rs"]
mod decide;

use agent_operator::{
    crd::shared::LocalSecretRef,
    domain::{
        Reason, StepName,
        preflight::{Finding, Problem},
    },
};
use agent_operator_controller::{
    decide::{CredentialState, Delivery, HeldPod, RunFate, releases},
    plan::Plan,
};
use decide::Model;

/// A task whose present step is `step`, in its first attempt.
fn until(step: StepName) -> Model {
    let mut model = Model::new();
    model.settle();
    for done in StepName::ALL.into_iter().take_while(|done| *done != step) {
        let output = (done == StepName::Plan).then_some("1. add the route\n2. test it");
        model.through(Reason::Completed, output);
    }
    model
}

/// The plan after the live run ended.
fn after(model: &mut Model, reason: Reason, output: Option<&str>) -> Plan {
    model.start_live();
    model.advance(90);
    model.end_live(reason, output);
    model.pass()
}

#[test]
fn new_task() {
    let mut model = Model::new();
    let asks = model.pass();
    insta::assert_yaml_snapshot!([asks, model.pass()]);
}

#[test]
fn plan_ended_well() {
    let mut model = until(StepName::Plan);
    insta::assert_yaml_snapshot!(after(&mut model, Reason::Completed, Some("1. add the route")));
}

#[test]
fn tests_fail_and_the_work_goes_back() {
    let mut model = until(StepName::Test);
    let output = Some("1 failing\n  GET /healthz: expected 200, got 404");
    insta::assert_yaml_snapshot!(after(&mut model, Reason::VerifyFailed, output));
}

#[test]
fn tests_fail_for_the_last_time() {
    let mut model = until(StepName::Test);
    model.task.spec.max_retries = Some(0);
    let output = Some("1 failing\n  GET /healthz: expected 200, got 404");
    insta::assert_yaml_snapshot!(after(&mut model, Reason::VerifyFailed, output));
}

#[test]
fn pull_request_opened() {
    let mut model = until(StepName::PullRequest);
    insta::assert_yaml_snapshot!(after(&mut model, Reason::Completed, None));
}

#[test]
fn run_never_started() {
    let mut model = until(StepName::Plan);
    model.end_live(Reason::Unstarted, None);
    let waits = model.pass();
    model.advance(2);
    insta::assert_yaml_snapshot!([waits, model.pass()]);
}

#[test]
fn provider_unavailable() {
    let mut model = until(StepName::Implement);
    insta::assert_yaml_snapshot!(after(&mut model, Reason::ProviderUnavailable, None));
}

#[test]
fn node_silent_then_fenced() {
    let mut model = until(StepName::Implement);
    model.start_live();
    let index = usize::from(model.live().is_some_and(|run| run.node().as_str() == "node-b"));
    model.disconnect(index);
    model.advance(15);
    let silent = model.pass();
    model.settle();
    model.nodes[index].fenced = Some("its Node object is gone".to_owned());
    insta::assert_yaml_snapshot!([silent, model.pass(), model.pass()]);
}

#[test]
fn pods_of_a_fenced_node() {
    let mut model = Model::new();
    model.disconnect(1);
    model.advance(15);
    model.nodes[1].fenced = Some("it is annotated agents.wearn.dev/fence".to_owned());
    let pod = |name: &str, node: &str, run: RunFate| HeldPod {
        namespace: "agent-system".to_owned(),
        name: name.to_owned(),
        uid: format!("uid of {name}"),
        resource_version: "7".to_owned(),
        finalizers: vec!["agents.wearn.dev/outcome".to_owned(), "example.com/hold".to_owned()],
        node: node.into(),
        run,
    };
    let pods = [
        pod("recorded", "node-b", RunFate::Ended),
        pod("deleted", "node-b", RunFate::Absent),
        pod("outcome-to-come", "node-b", RunFate::Live),
        pod("of-a-connected-node", "node-a", RunFate::Absent),
    ];
    let node_lease = model.settings.node_lease.get();
    insta::assert_yaml_snapshot!(releases(&pods, &model.nodes, node_lease, model.now));
}

#[test]
fn preflight_refused_and_mended() {
    let mut model = Model::new();
    let problem = Problem::PushNotAllowed;
    let message = "the git credential may not write to https://forge.test/o/r.git: 403".to_owned();
    model.findings = vec![Finding { problem, message }];
    let (asks, refused) = (model.pass(), model.pass());
    model.findings.clear();
    model.advance(5);
    let asks_again = model.pass();
    insta::assert_yaml_snapshot!([asks, refused, asks_again, model.pass()]);
}

#[test]
fn secret_missing() {
    let mut model = Model::new();
    let message = "Secret agent-secrets does not exist in namespace agent-system; create it";
    let (reason, message) = ("SecretMissing", message.to_owned());
    model.credentials = CredentialState::Refused { reason, message };
    insta::assert_yaml_snapshot!(model.pass());
}

#[test]
fn task_timed_out() {
    let mut model = until(StepName::Implement);
    model.start_live();
    model.advance(6 * 3600);
    let cancels = model.pass();
    model.advance(120);
    insta::assert_yaml_snapshot!([cancels, model.pass()]);
}

#[test]
fn controller_restarted_in_mid_step() {
    let mut model = until(StepName::Implement);
    model.start_live();
    for run in &mut model.runs {
        run.delivery = Delivery::Known;
    }
    insta::assert_yaml_snapshot!(model.pass());
}

#[test]
fn cancelled_while_its_node_has_lost_its_ledger() {
    let mut model = until(StepName::Implement);
    model.start_live();
    for run in &mut model.runs {
        run.delivery = Delivery::Unsent;
    }
    model.task.cancel = Some("not needed any more".to_owned());
    insta::assert_yaml_snapshot!(model.pass());
}

#[test]
fn finished_ten_minutes_ago() {
    let mut model = until(StepName::PullRequest);
    after(&mut model, Reason::Completed, None);
    model.advance(600);
    insta::assert_yaml_snapshot!(model.pass());
}

#[test]
fn pull_secrets_of_the_chart_are_added_to_those_of_the_task() {
    let secret = |name: &str| LocalSecretRef { name: name.to_owned() };
    let mut model = Model::new();
    model.task.spec.image_pull_secrets = vec![secret("own"), secret("both")];
    model.settings.agent.image_pull_secrets = vec![secret("both"), secret("chart")];
    // The first pass asks for the preflight.
    let plan = serde_json::to_string(&[model.pass(), model.pass()]).unwrap();
    let all = r#"[{"name":"own"},{"name":"both"},{"name":"chart"}]"#;
    assert!(plan.contains(&format!("\"imagePullSecrets\":{all}")), "{plan}");
}
