//! A gateway that is killed between two turns of the model, with the real Claude Code CLI.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE},
    eventually, processes,
    task::{task, unique},
};

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn claude_goes_on_when_the_gateway_is_killed_between_two_turns() {
    let cluster = Cluster::connect().await;
    let name = unique("kill-gateway-turns");
    let prompt = format!("Add a /healthz endpoint that returns 200 OK ({name})");
    cluster.create(NAMESPACE, &task(&name, &prompt, &json!({}))).await;
    let running = cluster.run_in_phase(NAMESPACE, &name, "implement", "Running").await;
    let before = cluster.model.requests_with(&name).await.len();
    eventually("the model was asked for the step's first turn", Duration::from_mins(1), || async {
        let asked = cluster.model.requests_with(&name).await.len();
        if asked > before { Ok(()) } else { Err(format!("{asked} requests")) }
    })
    .await;

    let label = "app.kubernetes.io/component=supervisor";
    let node = Some(running.spec.node_name.as_str());
    let killed = processes::kill_program(&cluster, label, node, "supervisor gateway").await;
    assert_eq!(killed, 1, "one gateway was killed");

    cluster.complete(NAMESPACE, &name).await;
    let runs = cluster.runs(NAMESPACE, &name).await;
    let steps: Vec<&str> = runs.iter().map(|run| run.spec.step.as_str()).collect();
    let described = cluster.describe(NAMESPACE, &name).await;
    assert_eq!(steps, ["plan", "implement", "test", "pull-request"], "{described}");
    assert_eq!(cluster.task_pods(NAMESPACE, &name).await.len(), 4, "one pod a step");
}
