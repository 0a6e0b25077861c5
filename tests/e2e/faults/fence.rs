//! A node is lost in mid-step, fenced by a person, and comes back (classes 7, 8 and 24).

use std::time::Duration;

use agent_operator::crd::AgentRun;
use kube::ResourceExt as _;
use serde_json::json;

use super::trial::Trial;
use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM, phase},
    eventually, processes,
    release::{self, must, run},
    task::{command_agent, merge, task, unique},
};

/// Ends at once anywhere but on the node that is lost, which the test tells by a file.
const SCRIPT: &str = "echo in step $AGENT_STEP; [ \"$AGENT_STEP\" = implement ] || exit 0; date > change.txt; i=0; until [ -e go.txt ] || [ $i -ge 900 ]; do i=$((i+1)); sleep 1; done; exit 0";
/// Lease of the node, replacement and finalizer, each within this on a busy machine.
const LIMIT: Duration = Duration::from_mins(2);
const LOST: &str = "node-b";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn a_fenced_nodes_step_is_replaced_and_stopped_when_the_node_is_back() {
    let ended = tokio::spawn(lose_and_fence()).await;
    let _ = run("kubectl", &["uncordon", "node-a"]).await;
    let _ = run("kubectl", &["annotate", "node", LOST, "agents.wearn.dev/fence-"]).await;
    if let Ok(lost) = &ended {
        lost.trial.trusts(LOST);
    }
    release::part("start", "kubelet-b").await;
    must("kubectl", &["wait", "--for=condition=Ready", "node", LOST, "--timeout=180s"]).await;
    release::rolled_out(SYSTEM).await;
    let old = ended.expect("the test itself");
    eventually("the lost step's processes are stopped", LIMIT, || async {
        let left = processes::of_pod(&old.pod_uid);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    let pulls = old.trial.cluster.forge.pull_requests(&old.branch).await;
    assert_eq!(pulls.len(), 1, "nothing was published twice");
    // Not before the old attempt has come to its end, which is a part of the history.
    old.trial.judge(false).await;
}

struct Lost {
    trial: Trial,
    pod_uid: String,
    branch: String,
}

async fn lose_and_fence() -> Lost {
    must("kubectl", &["cordon", "node-a"]).await;
    let name = unique("fenced");
    let trial = Trial::watch(&name).await;
    let cluster = &trial.cluster;
    let mut spec = command_agent(SCRIPT);
    merge(&mut spec, &json!({"test": {"command": ["test", "-s", "change.txt"]}}));
    cluster.create(NAMESPACE, &task(&name, "Survive.", &spec)).await;
    trial.adopt(&name, None).await;
    let running = cluster.run_in_phase(NAMESPACE, &name, "implement", "Running").await;
    assert_eq!(running.spec.node_name, LOST, "the other node is cordoned");
    let pod_name = running.status.and_then(|status| status.pod_name).expect("a pod");
    let pod = cluster.pods(NAMESPACE).get(&pod_name).await.expect("the pod");
    let pod_uid = pod.uid().expect("a uid");
    must("kubectl", &["uncordon", "node-a"]).await;

    release::part("stop", "kubelet-b").await;
    let label = "app.kubernetes.io/component=supervisor";
    for program in ["supervisor run", "supervisor gateway"] {
        assert_eq!(processes::kill_program(cluster, label, Some(LOST), program).await, 1);
    }
    eventually("the silence is visible", LIMIT, || async {
        let task = cluster.tasks(NAMESPACE).get(&name).await.map_err(|e| e.to_string())?;
        let conditions = task.status.map(|status| status.conditions).unwrap_or_default();
        let scheduled = conditions.iter().find(|condition| condition.type_ == "Scheduled");
        match scheduled {
            Some(found) if found.status == "False" && found.reason == "NodeUnknown" => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
    assert_eq!(cluster.runs(NAMESPACE, &name).await.len(), 2, "silence alone replaces nothing");

    trial.fences(LOST);
    let again = fence_and_wait(cluster, &name).await;
    assert_eq!(again.spec.node_name, "node-a");
    eventually("the lost pod's finalizer is off", LIMIT, || async {
        let pod = cluster.pods(NAMESPACE).get_opt(&pod_name).await.map_err(|e| e.to_string())?;
        let held = pod.map(|pod| pod.finalizers().to_vec()).unwrap_or_default();
        if held.is_empty() { Ok(()) } else { Err(format!("{held:?}")) }
    })
    .await;
    let pod = again.status.and_then(|status| status.pod_name).expect("a pod");
    let pod = cluster.pods(NAMESPACE).get(&pod).await.expect("the pod").uid().expect("a uid");
    // The gate is open, but the repository may still be on its way.
    let shell = eventually("the step's script runs", LIMIT, || async {
        let pids = processes::of_pod(&pod);
        let shell = pids.iter().find(|(_, name)| name == "sh").cloned();
        shell.ok_or_else(|| format!("{pids:?}"))
    })
    .await;
    std::fs::write(format!("/proc/{}/cwd/go.txt", shell.0), "go").expect("the step is let go");
    let done = cluster.complete(NAMESPACE, &name).await;
    assert_eq!(phase(&done), "Complete");
    let status = done.status.expect("a status");
    assert_eq!(status.retries.map(|retries| retries.infrastructure), Some(1));
    let branch = status.repositories[0].work_branch.clone().expect("a work branch");
    Lost { trial, pod_uid, branch }
}

/// A person fences the lost node; the attempt that takes the place of the lost one.
async fn fence_and_wait(cluster: &Cluster, name: &str) -> AgentRun {
    let uid = must("kubectl", &["get", "node", LOST, "-o", "jsonpath={.metadata.uid}"]).await;
    let fence = format!("agents.wearn.dev/fence={uid}");
    must("kubectl", &["annotate", "node", LOST, &fence]).await;
    eventually("the step runs on the other node", LIMIT, || async {
        let runs = cluster.runs(NAMESPACE, name).await;
        let again = runs.into_iter().find(|run| {
            let phase = run.status.as_ref().and_then(|status| status.phase.clone());
            run.spec.attempt == 2 && phase.as_deref() == Some("Running")
        });
        match again {
            Some(run) => Ok(run),
            None => Err(cluster.describe(NAMESPACE, name).await),
        }
    })
    .await
}
