//! Nodes that are drained, full, or wanted by somebody more important.

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use agent_operator::{crd::AgentRun, domain::names::LABEL_TASK};
use agent_operator_controller::settings::quantity_milli;
use futures::FutureExt as _;
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    scheduling::v1::PriorityClass,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use serde_json::json;
use tokio::process::Command;

use crate::support::{
    cluster::{Cluster, NAMESPACE, TASK_LIMIT, run_phase},
    eventually,
    task::{command_agent, task, unique},
};

/// Shorter than what panics within, so that the node is given back before the test fails.
const MOVED_LIMIT: Duration = Duration::from_mins(3);

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
    let second = tokio::time::timeout(MOVED_LIMIT, another_attempt(&cluster, &name)).await;
    assert_eq!(kubectl(&["uncordon", &node]).await, "");
    assert_eq!(drained, "", "the drain went through");

    let second = second.expect("a second attempt");
    assert_ne!(second.spec.node_name, node, "a cordoned node gets no step");
    charged_to_the_infrastructure(&cluster, &name, "").await;
    cluster.delete(NAMESPACE, &name).await;
}

/// Waits until another attempt at the task's first step runs. It need not be the second: one that was given to a
/// node that had no room for it never started.
async fn another_attempt(cluster: &Cluster, name: &str) -> AgentRun {
    eventually("another attempt runs", TASK_LIMIT, || async {
        let runs = cluster.runs(NAMESPACE, name).await;
        match runs.into_iter().find(|run| run.spec.attempt > 1 && run_phase(run) == "Running") {
            Some(running) => Ok(running),
            None => Err(cluster.describe(NAMESPACE, name).await),
        }
    })
    .await
}

/// The first attempt was disrupted, in these words among others, and nobody's agent pays for it.
async fn charged_to_the_infrastructure(cluster: &Cluster, name: &str, words: &str) {
    let first = cluster.runs(NAMESPACE, name).await.remove(0).status.expect("a status");
    assert_eq!(first.reason.as_deref(), Some("Disrupted"), "{first:?}");
    assert!(first.message.as_deref().unwrap_or_default().contains(words), "{first:?}");
    let task = cluster.tasks(NAMESPACE).get(name).await.expect("the task");
    let retries = task.status.and_then(|status| status.retries).expect("counts");
    assert_eq!((retries.application, retries.infrastructure), (0, 1));
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f19_a_step_that_a_more_important_pod_preempts_is_replaced_at_the_cost_of_the_infrastructure()
 {
    let cluster = Cluster::connect().await;
    let name = unique("preempted");
    let spec = command_agent("echo in step $AGENT_STEP; sleep 7910");
    cluster.create(NAMESPACE, &task(&name, "Wait.", &spec)).await;
    let run = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let node = run.spec.node_name;

    // Fits once a single small pod is gone; of equals the youngest goes first, and that is the step's.
    let classes: Api<PriorityClass> = Api::all(cluster.client.clone());
    let class = PriorityClass {
        metadata: ObjectMeta { name: Some(unique("important")), ..ObjectMeta::default() },
        value: 1000,
        ..PriorityClass::default()
    };
    let class = classes.create(&PostParams::default(), &class).await.expect("a class").name_any();
    others_are_gone(&cluster, &node, &name).await;
    let free = milli_of(&cluster, &node).await - milli_requested(&cluster, &node).await;
    let (pods, important) = (cluster.pods("default"), unique("important"));
    let pod = pod_of_size(&important, &node, free + 1, Some(&class));
    pods.create(&PostParams::default(), &pod).await.expect("the important pod");
    let second = tokio::time::timeout(MOVED_LIMIT, another_attempt(&cluster, &name)).await;
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete(&important, &at_once).await.expect("its end");
    classes.delete(&class, &DeleteParams::default()).await.expect("the end of its class");

    second.expect("a second attempt");
    charged_to_the_infrastructure(&cluster, &name, "preempted by a pod of higher priority").await;
    cluster.delete(NAMESPACE, &name).await;
}

/// Thousandths of a CPU that the node has for pods.
async fn milli_of(cluster: &Cluster, node: &str) -> u64 {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let allocatable = nodes.get(node).await.expect("the node").status.and_then(|s| s.allocatable);
    quantity_milli(&allocatable.expect("amounts")["cpu"].0).expect("an amount")
}

/// Thousandths of a CPU that the pods on the node have requested.
async fn milli_requested(cluster: &Cluster, node: &str) -> u64 {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let there = ListParams::default()
        .fields(&format!("spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed"));
    let pods = pods.list(&there).await.expect("its pods").items;
    let containers = pods.iter().flat_map(|pod| &pod.spec.as_ref().expect("a spec").containers);
    containers
        .filter_map(|container| container.resources.as_ref()?.requests.as_ref()?.get("cpu"))
        .map(|cpu| quantity_milli(&cpu.0).expect("an amount"))
        .sum()
}

/// A pod that only takes up room: so much CPU on `node`, and with this class of priority.
fn pod_of_size(name: &str, node: &str, milli: u64, class: Option<&str>) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "containers": [{
                "name": "c",
                "image": "example.invalid/none:1",
                "resources": {"requests": {"cpu": format!("{milli}m")}},
            }],
            "tolerations": [{"operator": "Exists"}],
            "nodeSelector": {"kubernetes.io/hostname": node},
            "priorityClassName": class,
        },
    }))
    .expect("a pod")
}

/// Waits until no step of any task but this one takes up room on `node`: what one of them gives back later would be
/// room that was not counted.
async fn others_are_gone(cluster: &Cluster, node: &str, task: &str) {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let others = ListParams::default()
        .labels(&format!("{LABEL_TASK},{LABEL_TASK}!={task}"))
        .fields(&format!("spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed"));
    eventually("no other step is left on the node", TASK_LIMIT, || async {
        let left = pods.list(&others).await.map_err(|e| e.to_string())?.items;
        if left.is_empty() { Ok(()) } else { Err(format!("{} pods", left.len())) }
    })
    .await;
}

/// A pod that leaves no CPU on `node`.
async fn fill(cluster: &Cluster, node: &str) -> String {
    others_are_gone(cluster, node, "").await;
    let free = milli_of(cluster, node).await - milli_requested(cluster, node).await;
    let name = unique("filler");
    let (pods, pod) = (cluster.pods("default"), pod_of_size(&name, node, free, None));
    pods.create(&PostParams::default(), &pod).await.expect("a filler");
    eventually("the scheduler has placed the filler", TASK_LIMIT, || async {
        let pod = pods.get(&name).await.map_err(|e| e.to_string())?;
        let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
        let found = conditions.into_iter().find(|c| c.type_ == "PodScheduled");
        match found {
            Some(condition) if condition.status == "True" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    name
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f20_a_step_that_its_node_cannot_take_is_placed_on_the_other_one() {
    let cluster = Cluster::connect().await;
    let node = "node-a";
    let filler = fill(&cluster, node).await;
    // One after the other: the controller counts runs alone, so the second one goes where the first one is not.
    let names = [unique("full-a"), unique("full-b")];
    let seen = AssertUnwindSafe(placed_elsewhere(&cluster, node, &names)).catch_unwind().await;
    // Whatever was seen: a node that stays full fails the tests that follow.
    let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    cluster.pods("default").delete(&filler, &params).await.expect("the filler's end");
    let moved = seen.unwrap_or_else(|failure| resume_unwind(failure));
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

/// Creates a task of each name and waits until its first step runs on another node than the full one. The answer is
/// how many attempts were given to the full one before.
async fn placed_elsewhere(cluster: &Cluster, node: &str, names: &[String]) -> usize {
    for name in names {
        let spec = command_agent("echo in step $AGENT_STEP; sleep 7911");
        cluster.create(NAMESPACE, &task(name, "Wait.", &spec)).await;
        cluster.run_in_phase(NAMESPACE, name, "plan", "Running").await;
    }
    let mut moved = 0;
    for name in names {
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
    moved
}
