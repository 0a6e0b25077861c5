//! F33: statuses that the API server refuses for what is in them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_operator::{
    crd::AgentRun,
    domain::{
        Reason, StepName,
        report::{Report, RunState},
    },
};
use agent_operator_controller::fleet::NodeEvent;
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use super::support::{Controller, Fleet, Ground, eventually, from_json, ground, hang_at, outcome};

const GROUP: &str = "admissionregistration.k8s.io";
/// No second try within half a minute; this much of it is watched.
const WATCHED: Duration = Duration::from_secs(8);

fn kind(ground: &Ground, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1", kind));
    Api::all_with(ground.client.clone(), &resource)
}

/// A policy that answers 422 to every status of a run in this namespace for which `refused` holds.
struct Policy {
    name: String,
}

impl Policy {
    async fn install(ground: &Ground, refused: &str) -> Self {
        let name = format!("refuse-{}", ground.namespace);
        let version = format!("{GROUP}/v1");
        let policy = json!({
            "apiVersion": version, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConditions": [{"name": "here",
                    "expression": format!("request.namespace == '{}'", ground.namespace)}],
                "matchConstraints": {"resourceRules": [{"apiGroups": ["agents.wearn.dev"],
                    "apiVersions": ["v1alpha1"], "operations": ["UPDATE"], "resources": ["agentruns/status"]}]},
                "validations": [{"expression": format!("!({refused})"), "message": "too much"}],
            },
        });
        let binding = json!({
            "apiVersion": version, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        });
        let create = async |of: &str, object: Value| {
            let object: DynamicObject = from_json(object);
            kind(ground, of).create(&PostParams::default(), &object).await.unwrap();
        };
        create("ValidatingAdmissionPolicy", policy).await;
        create("ValidatingAdmissionPolicyBinding", binding).await;
        Self { name }
    }

    async fn remove(self, ground: &Ground) {
        for of in ["ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy"] {
            let params = DeleteParams::default();
            kind(ground, of).delete(&self.name, &params).await.unwrap();
        }
    }
}

/// The live run of the step that hangs, once its policy refuses what it shall refuse.
async fn hanging_run(
    ground: &Ground,
    fleet: &Fleet,
    probe: Value,
) -> agent_operator::domain::Assignment {
    ground.task("sample", json!({})).await;
    let hanging =
        eventually("the step is handed out", async || fleet.hanging().into_iter().next()).await;
    eventually("it runs", async || {
        let run = ground.runs().get(&hanging.run.name).await.unwrap();
        run.status.and_then(|status| status.phase).filter(|phase| phase == "Running")
    })
    .await;
    eventually("the policy is in force", async || {
        let params = kube::api::PatchParams { dry_run: true, ..Default::default() };
        let patch = kube::api::Patch::Merge(json!({"status": probe}));
        ground.runs().patch_status(&hanging.run.name, &params, &patch).await.err()
    })
    .await;
    hanging
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f33_an_outcome_that_is_refused_is_written_once_more_with_the_least_of_it() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let policy = Policy::install(&ground, "has(object.status.output)").await;
    let fleet = Fleet::new(&["node-a"], hang_at(StepName::Plan));
    let controller = Controller::start(&ground, fleet.clone()).await;
    let hanging = hanging_run(&ground, &fleet, json!({"output": "x"})).await;

    fleet.finish(&hanging, outcome(&hanging, Reason::Cancelled)).await;
    let run: AgentRun = eventually("the run has ended", async || {
        let run = ground.runs().get(&hanging.run.name).await.unwrap();
        let phase = run.status.clone().and_then(|status| status.phase);
        (phase.as_deref() == Some("Failed")).then_some(run)
    })
    .await;
    let status = run.status.unwrap();
    assert_eq!((status.reason.as_deref(), status.exit_code), (Some("Cancelled"), Some(1)));
    assert_eq!(status.output, None);
    assert!(status.message.unwrap().contains("refused by the API server"));
    controller.stop().await;
    policy.remove(&ground).await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f33_a_task_completes_although_the_record_of_its_pull_request_was_refused() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let refused = "object.spec.step == 'pull-request' && has(object.status.output)";
    let policy = Policy::install(&ground, refused).await;
    let fleet = Fleet::new(&["node-a"], hang_at(StepName::PullRequest));
    let controller = Controller::start(&ground, fleet.clone()).await;
    let hanging = hanging_run(&ground, &fleet, json!({"output": "x"})).await;

    fleet.finish(&hanging, outcome(&hanging, Reason::Completed)).await;
    let task = ground.phase("sample", "Complete").await;
    let request = task.status.and_then(|status| status.pull_request);
    assert_eq!(request.map(|request| request.number), Some(7));
    let status = ground.runs().get(&hanging.run.name).await.unwrap().status.unwrap();
    assert!(status.message.unwrap().contains("refused by the API server"));
    assert_eq!(status.output, None);
    assert!(status.usage.is_some_and(|usage| usage.input_tokens == 100));
    controller.stop().await;
    policy.remove(&ground).await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f33_a_status_that_is_refused_for_good_is_tried_twice_in_half_a_minute_at_most() {
    let Some(mut ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let policy = Policy::install(&ground, "object.status.phase == 'Failed'").await;
    let writes = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&writes);
    ground
        .watch_requests(move |method, path| {
            if method == "PATCH" && path.contains("/agentruns/") && path.ends_with("/status") {
                count.fetch_add(1, Ordering::SeqCst);
            }
        })
        .await;
    let fleet = Fleet::new(&["node-a"], hang_at(StepName::Plan));
    let controller = Controller::start(&ground, fleet.clone()).await;
    let hanging = hanging_run(&ground, &fleet, json!({"phase": "Failed"})).await;

    let before = writes.load(Ordering::SeqCst);
    let report = || Report {
        run: hanging.run.clone(),
        attempt: hanging.attempt,
        epoch: hanging.epoch,
        sequence: 3,
        state: RunState::Finished(Box::new(outcome(&hanging, Reason::Cancelled))),
    };
    // As a node does that gets no acknowledgement.
    for _ in 0..5 {
        let (node, report) = (hanging.node.clone(), Box::new(report()));
        fleet.say(NodeEvent::Report { node, report }).await;
        tokio::time::sleep(WATCHED / 5).await;
    }
    let tried = writes.load(Ordering::SeqCst) - before;
    assert!((1..=2).contains(&tried), "the whole, then the least of it: {tried} writes");
    controller.stop().await;
    policy.remove(&ground).await;
}
