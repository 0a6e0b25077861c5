//! Recovery from the first day: each process is killed once in mid-step; the task completes, with
//! one run per step, one pull request and no second pod.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE},
    eventually, processes,
    task::{command_agent, merge, task, unique},
};

/// Long enough for a kill and a restart within the step.
const SCRIPT: &str = "echo begin $AGENT_STEP; [ \"$AGENT_STEP\" = implement ] && { date > change.txt; for i in 1 2 3 4 5 6 7 8; do echo tick $i; sleep 1; done; }; echo end $AGENT_STEP; exit 0";

/// The release's label and part of the command line of each process.
struct Victim {
    label: &'static str,
    argument: &'static str,
    /// Only the instance on the step's own node.
    on_node: bool,
}

async fn task_survives_the_kill_of(prefix: &str, victim: Victim) {
    let cluster = Cluster::connect().await;
    let name = unique(prefix);
    let mut spec = command_agent(SCRIPT);
    merge(&mut spec, &json!({"test": {"command": ["test", "-s", "change.txt"]}}));
    cluster.create(NAMESPACE, &task(&name, "Survive.", &spec)).await;
    let running = cluster.run_in_phase(NAMESPACE, &name, "implement", "Running").await;
    let pod = running.status.and_then(|status| status.pod_name).expect("a pod");
    eventually("the step is in its middle", Duration::from_secs(30), || async {
        let log = cluster.log(NAMESPACE, &pod).await;
        if log.contains("tick 2") { Ok(()) } else { Err(log) }
    })
    .await;

    let node = victim.on_node.then_some(running.spec.node_name.as_str());
    let killed = processes::kill_program(&cluster, victim.label, node, victim.argument).await;
    assert_eq!(killed, 1, "one process was killed");

    let done = cluster.complete(NAMESPACE, &name).await;
    let runs = cluster.runs(NAMESPACE, &name).await;
    let steps: Vec<&str> = runs.iter().map(|run| run.spec.step.as_str()).collect();
    assert_eq!(
        steps,
        ["plan", "implement", "test", "pull-request"],
        "{}",
        cluster.describe(NAMESPACE, &name).await
    );
    assert_eq!(cluster.task_pods(NAMESPACE, &name).await.len(), 4, "one pod a step");
    let branch = done.status.expect("a status").repositories[0].work_branch.clone();
    let branch = branch.expect("a work branch");
    assert_eq!(cluster.forge.pull_requests(&branch).await.len(), 1);
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_task_completes_when_the_controller_is_killed_in_mid_step() {
    let label = "app.kubernetes.io/component=controller";
    task_survives_the_kill_of(
        "kill-controller",
        Victim { label, argument: "controller", on_node: false },
    )
    .await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_task_completes_when_the_supervisor_is_killed_in_mid_step() {
    let label = "app.kubernetes.io/component=supervisor";
    task_survives_the_kill_of(
        "kill-supervisor",
        Victim { label, argument: "supervisor run", on_node: true },
    )
    .await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_task_completes_when_the_gateway_is_killed_in_mid_step() {
    let label = "app.kubernetes.io/component=supervisor";
    task_survives_the_kill_of(
        "kill-gateway",
        Victim { label, argument: "supervisor gateway", on_node: true },
    )
    .await;
}
