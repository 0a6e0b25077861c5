//! Scenario 4: a step that does not end by itself.

use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE, phase},
    processes,
    task::{command_agent, merge, task, unique},
};

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_sleeping_agent_ends_at_its_step_timeout_with_nothing_left_running() {
    let cluster = Cluster::connect().await;
    let name = unique("sleeper");
    // Ignores SIGTERM and leaves a daemon behind: both must be gone.
    let mut overrides = command_agent("trap '' TERM; setsid sleep 7919 & sleep 7919; sleep 7919");
    merge(&mut overrides, &json!({"stepTimeout": "5s", "maxRetries": 0}));
    cluster.create(NAMESPACE, &task(&name, "Sleep.", &overrides)).await;

    let running = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let pod_name = running.status.and_then(|status| status.pod_name).expect("a pod");
    let pod = cluster.pods(NAMESPACE).get(&pod_name).await.expect("the pod");
    let uid = pod.metadata.uid.expect("a uid");

    let done = cluster.finished(NAMESPACE, &name).await;
    assert_eq!(phase(&done), "Failed");
    let runs = cluster.runs(NAMESPACE, &name).await;
    assert_eq!(runs.len(), 1, "{}", cluster.describe(NAMESPACE, &name).await);
    let status = runs[0].status.clone().expect("a status");
    assert_eq!(status.reason.as_deref(), Some("TimedOut"));
    let took =
        status.completion_time.expect("an end").duration_since(status.start_time.expect("a start"));
    // 5 s, 10 s of grace, and the second that reliability's I4 allows, plus one for rounding.
    assert!((5..=17).contains(&took.as_secs()), "took {took}");
    let left: Vec<_> =
        processes::of_pod(&uid).into_iter().filter(|(_, comm)| comm != "pause").collect();
    assert!(left.is_empty(), "left running: {left:?}");
}
