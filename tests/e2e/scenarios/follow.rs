//! Scenario 6: grpcurl with reflection, live and afterwards, and who may.

use k8s_openapi::api::{core::v1::ServiceAccount, rbac::v1::RoleBinding};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use crate::support::{
    cluster::{Cluster, NAMESPACE},
    grpcurl::{self, Following},
    task::{command_agent, task, unique},
};

const FOLLOW: &str = "agentoperator.v1.StepService/Follow";

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn follow_shows_lines_while_the_step_runs_and_the_whole_afterwards() {
    let cluster = Cluster::connect().await;
    let token = viewer(&cluster, &unique("viewer"), true).await;
    let services = grpcurl::list(Some(&token)).await;
    assert!(services.contains("agentoperator.v1.StepService"), "{services}");

    let name = unique("followed");
    let script = "echo first-line; [ \"$AGENT_STEP\" = plan ] || echo change > change.txt; sleep 4; echo last-line";
    cluster.create(NAMESPACE, &task(&name, "Talk.", &command_agent(script))).await;
    cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let request = json!({"namespace": NAMESPACE, "task": name, "follow": true});
    let mut following = Following::start(&token, &request);
    assert!(following.until("first-line").await, "the stream ended before the first line");
    let plan = cluster.runs(NAMESPACE, &name).await.remove(0);
    assert_eq!(
        plan.status.and_then(|status| status.phase).as_deref(),
        Some("Running"),
        "the line came while its step ran"
    );
    cluster.complete(NAMESPACE, &name).await;
    assert!(following.finish().await, "a live Follow ends with the task");

    let whole = json!({"namespace": NAMESPACE, "task": name, "follow": true});
    let all = grpcurl::call(Some(&token), FOLLOW, &whole).await.expect("a finished task");
    let lines = log_lines(&all);
    assert_eq!(count(&lines, "first-line"), count(&lines, "last-line"));
    assert!(count(&lines, "first-line") >= 3, "plan, implement and pull-request: {lines:#?}");
    assert_eq!(all.last().map(|event| event["end"].is_object()), Some(true), "ends with end");

    let middle = all.len() / 2;
    let cursor = all[middle]["cursor"].as_str().expect("a cursor");
    let rest = json!({"namespace": NAMESPACE, "task": name, "follow": true, "cursor": cursor});
    let rest = grpcurl::call(Some(&token), FOLLOW, &rest).await.expect("the rest");
    assert_eq!(log_lines(&rest), log_lines(&all[middle + 1..]), "from a cursor comes the rest");
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn follow_refuses_without_a_token_with_a_wrong_one_and_without_the_right() {
    let cluster = Cluster::connect().await;
    let request = json!({"namespace": NAMESPACE, "task": "any"});
    let none = grpcurl::call(None, FOLLOW, &request).await.expect_err("no token");
    assert!(none.contains("Unauthenticated"), "{none}");
    let wrong = grpcurl::call(Some("not.a.token"), FOLLOW, &request).await.expect_err("wrong");
    assert!(wrong.contains("Unauthenticated"), "{wrong}");
    let stranger = viewer(&cluster, &unique("stranger"), false).await;
    let denied = grpcurl::call(Some(&stranger), FOLLOW, &request).await.expect_err("no right");
    assert!(denied.contains("PermissionDenied"), "{denied}");
}

/// A service account of its own, with the aggregated `view` role if asked; gives its token.
async fn viewer(cluster: &Cluster, name: &str, may_view: bool) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let account: ServiceAccount =
        serde_json::from_value(json!({"metadata": {"name": name}})).expect("an account");
    let _ = accounts.delete(name, &DeleteParams::default()).await;
    accounts.create(&PostParams::default(), &account).await.expect("a new account");
    if may_view {
        let bindings: Api<RoleBinding> = Api::namespaced(cluster.client.clone(), NAMESPACE);
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
        }))
        .expect("a binding");
        bindings.create(&PostParams::default(), &binding).await.expect("a new binding");
    }
    grpcurl::token(NAMESPACE, name).await
}

fn log_lines(events: &[Value]) -> Vec<String> {
    events.iter().filter_map(|event| event["log"]["text"].as_str()).map(str::to_owned).collect()
}

fn count(lines: &[String], needle: &str) -> usize {
    lines.iter().filter(|line| line.contains(needle)).count()
}
