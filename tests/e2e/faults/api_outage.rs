//! The API server is away for more than a minute (class 9): steps run on, end, time out and are told
//! to whoever follows; what became of them is recorded when it is back, and no task fails for it.

use std::time::Duration;

use agent_operator::crd::AgentRun;
use serde_json::json;
use tokio::time::Instant;

use crate::support::{
    cluster::{Cluster, NAMESPACE, phase},
    eventually,
    grpcurl::Following,
    logs, processes, release,
    task::{command_agent, merge, task, unique},
};

/// How long it is away at least.
const OUTAGE: Duration = Duration::from_secs(65);
/// Rows of a step that ends within the outage, one a second.
const ROWS: usize = 45;
/// Limit of each wait: the outage itself and a busy machine.
const LIMIT: Duration = Duration::from_mins(3);

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f9_steps_outlast_a_minute_without_the_api_server_and_no_task_fails() {
    let ended = tokio::spawn(Box::pin(outage())).await;
    release::part("start", "kube-apiserver").await;
    println!("{}", ended.expect("the test itself"));
}

/// A running plan step: its task, and the uid of its pod.
async fn running(cluster: &Cluster, prefix: &str, spec: serde_json::Value) -> (String, String) {
    let name = unique(prefix);
    cluster.create(NAMESPACE, &task(&name, "Go on.", &spec)).await;
    let run = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let pod = run.status.and_then(|status| status.pod_name).expect("a pod");
    let uid = cluster.pods(NAMESPACE).get(&pod).await.expect("the pod").metadata.uid;
    (name, uid.expect("a uid"))
}

/// Waits until nothing of the pod runs but the container that holds its namespaces.
async fn ends(uid: &str, what: &str) {
    eventually(what, LIMIT, || async {
        let mut left = processes::of_pod(uid);
        left.retain(|(_, comm)| comm != "pause");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

/// Whether no node ever had the attempt's pod. The node controller knows only heartbeats that are too
/// old after an outage, and may taint a healthy node for half a minute: a step that was just given to
/// that node goes to another one, at nobody's cost.
fn never_scheduled(run: &AgentRun) -> bool {
    let status = run.status.as_ref();
    status.is_some_and(|status| {
        status.reason.as_deref() == Some("Unstarted") && status.exit_code.is_none()
    })
}

/// Gives the figures of the outage.
async fn outage() -> String {
    let cluster = Cluster::connect().await;
    let token = logs::viewer_token(&cluster, &unique("outage")).await;
    let script = format!(
        "[ \"$AGENT_STEP\" = plan ] || {{ date > change.txt; exit 0; }}; \
         i=0; while [ $i -lt {ROWS} ]; do echo \"row $i \"; i=$((i+1)); sleep 1; done"
    );
    let mut works = command_agent(&script);
    merge(&mut works, &json!({"test": {"command": ["test", "-s", "change.txt"]}}));
    let mut hangs = command_agent("trap '' TERM; sleep 3613");
    merge(&mut hangs, &json!({"stepTimeout": "45s", "maxRetries": 0}));
    let (hanging, hanging_pod) = running(&cluster, "outage-hangs", hangs).await;
    let (working, working_pod) = running(&cluster, "outage-works", works).await;
    let request = json!({"namespace": NAMESPACE, "task": working, "follow": true});
    let mut following = Following::start(&token, &request);
    assert!(following.until("\"row 1 \"").await, "the follow has begun");

    let tasks = cluster.tasks(NAMESPACE);
    let look = Duration::from_secs(2);
    let began = Instant::now();
    release::part("stop", "kube-apiserver").await;
    let away = tokio::time::timeout(look, tasks.get(&working)).await;
    assert!(!matches!(away, Ok(Ok(_))), "nobody answers");
    let last = format!("\"row {} \"", ROWS - 1);
    let told = tokio::time::timeout(LIMIT, following.until(&last)).await;
    assert!(told.expect("rows in time"), "the step is told to its end meanwhile");
    let last_told = began.elapsed();
    ends(&working_pod, "the step has ended by itself").await;
    ends(&hanging_pod, "the step without an end was ended at its deadline").await;
    let both_ended = began.elapsed();
    tokio::time::sleep(OUTAGE.saturating_sub(began.elapsed())).await;
    release::part("start", "kube-apiserver").await;
    let lasted = began.elapsed();
    eventually("the API server is back", LIMIT, || async {
        let asked = tokio::time::timeout(look, tasks.get(&working)).await;
        asked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    })
    .await;

    let done = cluster.complete(NAMESPACE, &working).await;
    let described = cluster.describe(NAMESPACE, &working).await;
    let attempts = cluster.runs(NAMESPACE, &working).await;
    let began = attempts.iter().filter(|run| !never_scheduled(run));
    let steps: Vec<_> = began.map(|run| run.spec.step.as_str()).collect();
    assert_eq!(steps, ["plan", "implement", "test", "pull-request"], "{described}");
    let pods = cluster.task_pods(NAMESPACE, &working).await;
    let placed = pods.iter().filter(|pod| pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()));
    assert_eq!(placed.count(), 4, "{described}");
    let status = done.status.expect("a status");
    let branch = status.repositories[0].work_branch.clone().expect("a work branch");
    assert_eq!(cluster.forge.pull_requests(&branch).await.len(), 1);
    assert!(following.finish().await, "the follow went on to the end of the task");

    let late = cluster.finished(NAMESPACE, &hanging).await;
    let described = cluster.describe(NAMESPACE, &hanging).await;
    assert_eq!(phase(&late), "Failed", "{described}");
    let runs = cluster.runs(NAMESPACE, &hanging).await;
    assert_eq!(runs.len(), 1, "{described}");
    let reason = runs[0].status.clone().and_then(|status| status.reason);
    assert_eq!(reason.as_deref(), Some("TimedOut"), "its own deadline, and nothing else");
    format!(
        "API server away for {lasted:?}: last row told at {last_told:?}, both steps ended by {both_ended:?}"
    )
}
