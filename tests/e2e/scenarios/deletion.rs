//! Scenario 5: the task is deleted in the middle of a step.

use std::time::Duration;

use crate::support::{
    cluster::{Cluster, NAMESPACE},
    eventually, processes,
    task::{command_agent, task, unique},
};

/// Everything of a deleted task is gone within this time (reliability, F24).
const GONE_LIMIT: Duration = Duration::from_mins(1);

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn deleting_a_task_in_mid_step_leaves_no_pod_no_branch_and_no_finalizer() {
    let cluster = Cluster::connect().await;
    let name = unique("deleted");
    // Changes the tree first, so that a late push would be seen as a branch.
    let script = "echo in step $AGENT_STEP; [ \"$AGENT_STEP\" = plan ] && exit 0; echo x > x.txt; sleep 7907";
    cluster.create(NAMESPACE, &task(&name, "Wait.", &command_agent(script))).await;
    let running = cluster.run_in_phase(NAMESPACE, &name, "implement", "Running").await;
    let pod_name = running.status.and_then(|status| status.pod_name).expect("a pod");
    let uid = cluster.pods(NAMESPACE).get(&pod_name).await.expect("the pod").metadata.uid;
    let uid = uid.expect("a uid");

    cluster.delete(NAMESPACE, &name).await;
    eventually("pods, runs and the task are gone", GONE_LIMIT, || async {
        let pods = cluster.task_pods(NAMESPACE, &name).await.len();
        let runs = cluster.runs(NAMESPACE, &name).await.len();
        let task = cluster.tasks(NAMESPACE).get_opt(&name).await.map_err(|e| e.to_string())?;
        if pods == 0 && runs == 0 && task.is_none() {
            Ok(())
        } else {
            Err(format!("{pods} pods, {runs} runs, task {}", task.is_some()))
        }
    })
    .await;
    assert!(processes::of_pod(&uid).is_empty(), "processes of the pod are left");
    assert!(cluster.forge.branches(&format!("ai/{name}")).await.is_empty(), "a branch was written");
}
