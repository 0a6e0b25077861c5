//! Nodes that are drained or full.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use tokio::process::Command;

use crate::support::{
    cluster::{Cluster, NAMESPACE, TASK_LIMIT},
    eventually,
    task::{command_agent, task, unique},
};

async fn kubectl(arguments: &[&str]) -> String {
    let output = Command::new("kubectl").args(arguments).output().await.expect("kubectl runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if output.status.success() { String::new() } else { text.into_owned() }
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f19_a_drained_node_gives_its_step_to_the_other_one() {
    let cluster = Cluster::connect().await;
    let name = unique("drained");
    let spec = command_agent("echo in step $AGENT_STEP; sleep 7909");
    cluster.create(NAMESPACE, &task(&name, "Wait.", &spec)).await;
    let run = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let node = run.spec.node_name;

    let selector = format!("--pod-selector=agents.wearn.dev/task={name}");
    let drained = kubectl(&[
        "drain",
        &node,
        &selector,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=60s",
    ])
    .await;
    let second = tokio::time::timeout(
        TASK_LIMIT,
        eventually("a second attempt runs", TASK_LIMIT, || async {
            let runs = cluster.runs(NAMESPACE, &name).await;
            let running = |run: &&agent_operator::crd::AgentRun| {
                let status = run.status.clone().unwrap_or_default();
                run.spec.attempt == 2 && status.phase.as_deref() == Some("Running")
            };
            let second = runs.iter().find(running).cloned();
            second.ok_or(cluster.describe(NAMESPACE, &name).await)
        }),
    )
    .await;
    assert_eq!(kubectl(&["uncordon", &node]).await, "");
    assert_eq!(drained, "", "the drain went through");

    let second = second.expect("a second attempt");
    assert_ne!(second.spec.node_name, node, "a cordoned node gets no step");
    let first = cluster.runs(NAMESPACE, &name).await.remove(0).status.expect("a status");
    assert_eq!(first.reason.as_deref(), Some("Disrupted"), "{first:?}");
    let task = cluster.tasks(NAMESPACE).get(&name).await.expect("the task");
    let retries = task.status.and_then(|status| status.retries).expect("counts");
    assert_eq!((retries.application, retries.infrastructure), (0, 1));
    cluster.delete(NAMESPACE, &name).await;
}

/// A pod that leaves too little CPU on `node` for any agent pod.
async fn fill(cluster: &Cluster, node: &str) -> String {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let allocatable = nodes.get(node).await.expect("the node").status.and_then(|s| s.allocatable);
    let cpu = allocatable.expect("amounts")["cpu"].0.clone();
    let milli: u64 = cpu.strip_suffix('m').map_or_else(
        || cpu.parse::<u64>().expect("whole CPUs") * 1000,
        |milli| milli.parse().expect("thousandths"),
    );
    let pods: Api<Pod> = cluster.pods("default");
    // What runs there already is not known: the largest filler that still fits is the one.
    for left in (1..=20).map(|step| step * 50) {
        let name = unique("filler");
        let request = json!({"cpu": format!("{}m", milli.saturating_sub(left))});
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "containers": [{"name": "c", "image": "example.invalid/none:1", "resources": {"requests": request}}],
                "tolerations": [{"operator": "Exists"}],
                "nodeSelector": {"kubernetes.io/hostname": node},
            },
        }))
        .expect("a pod");
        pods.create(&PostParams::default(), &pod).await.expect("a filler");
        let placed = eventually("the scheduler has looked", TASK_LIMIT, || async {
            let pod = pods.get(&name).await.map_err(|e| e.to_string())?;
            let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
            let found = conditions.into_iter().find(|c| c.type_ == "PodScheduled");
            found.map(|c| c.status == "True").ok_or_else(|| "not yet".to_owned())
        })
        .await;
        if placed {
            return name;
        }
        pods.delete(&name, &DeleteParams::default()).await.expect("its end");
    }
    panic!("nothing fits on {node}");
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f20_a_step_that_its_node_cannot_take_is_placed_on_the_other_one() {
    let cluster = Cluster::connect().await;
    let node = "node-a";
    let filler = fill(&cluster, node).await;
    // One after the other: the controller counts runs alone, so the second one goes where the first one is not.
    let names = [unique("full-a"), unique("full-b")];
    for name in &names {
        let spec = command_agent("echo in step $AGENT_STEP; sleep 7911");
        cluster.create(NAMESPACE, &task(name, "Wait.", &spec)).await;
        cluster.run_in_phase(NAMESPACE, name, "plan", "Running").await;
    }
    let mut moved = 0;
    for name in &names {
        let run = cluster.run_in_phase(NAMESPACE, name, "plan", "Running").await;
        assert_ne!(run.spec.node_name, node, "nothing fits there");
        for first in
            cluster.runs(NAMESPACE, name).await.into_iter().filter(|run| run.spec.node_name == node)
        {
            let status = first.status.expect("a status");
            assert_eq!(status.reason.as_deref(), Some("Unstarted"), "{status:?}");
            assert!(status.message.expect("a message").contains("Insufficient cpu"));
            moved += 1;
        }
        let task = cluster.tasks(NAMESPACE).get(name).await.expect("the task");
        let retries = task.status.and_then(|status| status.retries).expect("counts");
        assert_eq!((retries.application, retries.infrastructure), (0, 0), "no attempt was charged");
    }
    let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    cluster.pods("default").delete(&filler, &params).await.expect("the filler's end");
    assert!(moved > 0, "one of two was given to the full node");
    for name in &names {
        eventually("no dead pod is left", Duration::from_mins(1), || async {
            match cluster.task_pods(NAMESPACE, name).await.len() {
                1 => Ok(()),
                count => Err(format!("{count} pods")),
            }
        })
        .await;
        cluster.delete(NAMESPACE, name).await;
    }
}
