//! How a pod's end is told apart: memory, eviction, deletion by hand. Each is charged to its own budget,
//! and the two records of an exit agree wherever nobody killed anything between them.

use std::{fs, time::Duration};

use agent_operator::crd::{AgentRun, AgentRunStatus};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, EvictParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::support::{
    cluster::{Cluster, NAMESPACE, TASK_LIMIT, phase},
    eventually, processes,
    task::{command_agent, merge, task, unique},
};

/// The kubelet's record follows the runner's report by a second or two.
const RECORD_LIMIT: Duration = Duration::from_secs(30);
/// Allocates far more than the limit of [`small`], page by page.
const ALLOCATE: &str = "python3 -c 'x = bytearray(1 << 30)'";

/// A task whose pods have little memory.
fn small(script: &str) -> Value {
    let mut spec = command_agent(script);
    merge(&mut spec, &json!({"resources": {"cpu": "1", "memory": "256Mi"}, "maxRetries": 0}));
    spec
}

async fn sleeper(cluster: &Cluster, prefix: &str) -> (String, AgentRun, String) {
    let name = unique(prefix);
    let spec = command_agent("echo in step $AGENT_STEP; sleep 7901");
    cluster.create(NAMESPACE, &task(&name, "Wait.", &spec)).await;
    let run = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let pod = run.status.as_ref().and_then(|status| status.pod_name.clone()).expect("a pod");
    (name, run, pod)
}

/// The first run of a task once it has ended.
async fn ended(cluster: &Cluster, name: &str) -> AgentRunStatus {
    eventually(&format!("the first run of {name} has ended"), TASK_LIMIT, || async {
        let run = cluster.runs(NAMESPACE, name).await.into_iter().next();
        let status = run.and_then(|run| run.status).unwrap_or_default();
        match status.phase.as_deref() {
            Some("Succeeded" | "Failed") => Ok(status),
            _ => Err(cluster.describe(NAMESPACE, name).await),
        }
    })
    .await
}

fn mismatch(status: &AgentRunStatus) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == "ExitMismatch")
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f18_a_pod_that_runs_out_of_memory_as_a_whole_is_the_applications_failure() {
    let cluster = Cluster::connect().await;
    let name = unique("oom-all");
    // Goes on once the test has made the runner the kernel's first choice, as a cgroup that is killed
    // as a whole does by itself.
    let script = format!(
        "until [ \"$(cat /proc/self/oom_score_adj)\" -lt 500 ]; do sleep 0.2; done; {ALLOCATE}; sleep 7903"
    );
    cluster.create(NAMESPACE, &task(&name, "Use memory.", &small(&script))).await;
    let run = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let pod = run.status.and_then(|status| status.pod_name).expect("a pod");
    let uid = cluster.pods(NAMESPACE).get(&pod).await.expect("the pod").uid().expect("a uid");
    let victim_chosen = eventually("the agent runs", RECORD_LIMIT, || async {
        let all = processes::of_pod(&uid);
        let runner = all.iter().find(|(_, comm)| comm == "agent-runner").map(|(pid, _)| *pid);
        let agents: Vec<_> = all.iter().filter(|(_, comm)| comm == "sh").collect();
        match (runner, agents.is_empty()) {
            (Some(runner), false) => Ok((runner, agents.iter().map(|(pid, _)| *pid).collect())),
            _ => Err(format!("{all:?}")),
        }
    })
    .await;
    let (runner, agents): (i32, Vec<i32>) = victim_chosen;
    let set =
        |pid: i32, score: i32| fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
    set(runner, 1000).expect("the runner's score");
    for agent in agents {
        set(agent, 0).expect("the agent's score");
    }

    let status = ended(&cluster, &name).await;
    assert_eq!(status.reason.as_deref(), Some("OOMKilled"), "{status:?}");
    assert_eq!(status.exit_code, Some(137));
    let done = cluster.finished(NAMESPACE, &name).await;
    assert_eq!(phase(&done), "Failed", "no retry was left");
    assert!(processes::of_pod(&uid).iter().all(|(_, comm)| comm == "pause"), "nothing is left");
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f18_a_child_that_runs_out_of_memory_does_not_end_the_step() {
    let cluster = Cluster::connect().await;
    let name = unique("oom-child");
    let script = format!("{ALLOCATE}; echo the child ended with $?; exit 0");
    cluster.create(NAMESPACE, &task(&name, "Use memory.", &small(&script))).await;
    let status = ended(&cluster, &name).await;
    assert_eq!(status.reason.as_deref(), Some("Completed"), "{status:?}");
    assert_eq!(status.exit_code, Some(0));
    let pod = status.pod_name.expect("a pod");
    let log = cluster.log(NAMESPACE, &pod).await;
    assert!(log.contains("the child ended with 137"), "{log}");

    // The kubelet's record, whatever reason it gives, agrees about the code: no mismatch.
    eventually("the kubelet has its record", RECORD_LIMIT, || async {
        let pod = cluster.pods(NAMESPACE).get(&pod).await.map_err(|e| e.to_string())?;
        let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
        if phase == "Succeeded" { Ok(()) } else { Err(phase) }
    })
    .await;
    assert!(
        !cluster
            .runs(NAMESPACE, &name)
            .await
            .iter()
            .filter_map(|run| run.status.as_ref())
            .any(mismatch)
    );
    cluster.delete(NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f19_an_evicted_pod_is_replaced_at_the_cost_of_the_infrastructure() {
    let cluster = Cluster::connect().await;
    let (name, _, pod) = sleeper(&cluster, "evicted").await;
    cluster.pods(NAMESPACE).evict(&pod, &EvictParams::default()).await.expect("an eviction");
    let status = ended(&cluster, &name).await;
    assert_eq!(status.reason.as_deref(), Some("Disrupted"), "{status:?}");
    assert!(
        status.message.clone().expect("a message").contains("EvictionByEvictionAPI"),
        "{status:?}"
    );
    assert!(status.exit_code.is_none_or(|code| code != 0), "{status:?}");
    assert!(!mismatch(&status) || status.exit_code == Some(137), "{status:?}");

    eventually("a second attempt runs", TASK_LIMIT, || async {
        let runs = cluster.runs(NAMESPACE, &name).await;
        let second = runs.get(1).and_then(|run| run.status.clone()).unwrap_or_default();
        if second.phase.as_deref() == Some("Running") { Ok(()) } else { Err(format!("{runs:?}")) }
    })
    .await;
    let task = cluster.tasks(NAMESPACE).get(&name).await.expect("the task");
    let retries = task.status.and_then(|status| status.retries).expect("counts");
    assert_eq!((retries.application, retries.infrastructure), (0, 1));
    cluster.delete(NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f23_a_pod_that_is_deleted_by_hand_ends_the_task_as_deleted() {
    let cluster = Cluster::connect().await;
    let (name, _, pod) = sleeper(&cluster, "hand").await;
    cluster.pods(NAMESPACE).delete(&pod, &DeleteParams::default()).await.expect("a deletion");
    let status = ended(&cluster, &name).await;
    assert_eq!(status.reason.as_deref(), Some("Deleted"), "{status:?}");
    assert!(status.exit_code.is_some_and(|code| code != 0), "the exit was seen: {status:?}");
    assert!(status.message.expect("a message").contains("audit log"));
    let done = cluster.finished(NAMESPACE, &name).await;
    assert_eq!(phase(&done), "Failed");
    assert_eq!(cluster.runs(NAMESPACE, &name).await.len(), 1, "not tried again");
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f23_a_pod_that_is_torn_away_without_its_finalizer_never_counts_as_a_success() {
    let cluster = Cluster::connect().await;
    let (name, _, pod) = sleeper(&cluster, "torn").await;
    let pods = cluster.pods(NAMESPACE);
    let uid = pods.get(&pod).await.expect("the pod").uid().expect("a uid");
    let strip = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    pods.patch(&pod, &PatchParams::default(), &strip).await.expect("no finalizer");
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete(&pod, &at_once).await.expect("a deletion");

    let status = ended(&cluster, &name).await;
    assert_eq!(status.reason.as_deref(), Some("Deleted"), "{status:?}");
    assert_ne!(status.exit_code, Some(0));
    assert_eq!(phase(&cluster.finished(NAMESPACE, &name).await), "Failed");
    eventually("no process of the pod is left", RECORD_LIMIT, || async {
        match processes::of_pod(&uid) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await;
}
