//! Scenario 7: many tasks at once, long names, the same name twice.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE},
    task::{command_agent, merge, task, unique},
};

/// The second namespace that `deploy/local/values.yaml` enables.
const SECOND_NAMESPACE: &str = "agent-second";
/// Ten tasks of four steps on two cores.
const LIMIT: Duration = Duration::from_mins(7);

/// Writes a file named after the prompt, so that mixed-up tasks would show.
const SCRIPT: &str = "echo in step $AGENT_STEP; [ \"$AGENT_STEP\" = implement ] && cp \"$AGENT_PROMPT_FILE\" mark.txt; exit 0";

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn ten_tasks_at_once_complete_without_mixing_names_branches_or_pull_requests() {
    let cluster = Cluster::connect().await;
    let mut names: Vec<String> = (0..9).map(|_| unique("many")).collect();
    let long = unique("long");
    names.push(format!("{long}-{}", "x".repeat(63 - long.len() - 1)));
    assert_eq!(names[9].len(), 63);
    for name in &names {
        let mut spec = command_agent(SCRIPT);
        merge(&mut spec, &json!({"test": {"command": ["test", "-s", "mark.txt"]}}));
        cluster.create(NAMESPACE, &task(name, &format!("mark of {name}"), &spec)).await;
    }
    let done =
        join_all(names.iter().map(|name| cluster.finished_within(NAMESPACE, name, LIMIT))).await;

    let (mut branches, mut nodes) = (BTreeSet::new(), BTreeSet::new());
    for (name, task) in names.iter().zip(done) {
        let status = task.status.expect("a status");
        let described = cluster.describe(NAMESPACE, name).await;
        assert_eq!(status.phase.as_deref(), Some("Complete"), "{described}");
        let branch = status.repositories[0].work_branch.clone().expect("a work branch");
        let mark = cluster.forge.file("mark.txt", &branch).await.expect("the mark");
        assert!(mark.contains(name.as_str()), "{branch} has the mark of another task: {mark}");
        let pulls = cluster.forge.pull_requests(&branch).await;
        assert_eq!(pulls.len(), 1, "pull requests of {branch}");
        assert_eq!(pulls[0]["number"], status.pull_request.expect("a pull request").number);
        assert!(branches.insert(branch), "two tasks share a branch");
        for run in cluster.runs(NAMESPACE, name).await {
            nodes.insert(run.spec.node_name);
        }
    }
    assert!(nodes.len() > 1, "all steps ran on {nodes:?}");
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn the_same_task_name_in_a_second_namespace_gets_its_own_branch() {
    let cluster = Cluster::connect().await;
    assert!(cluster.has_namespace(SECOND_NAMESPACE).await, "the chart makes {SECOND_NAMESPACE}");
    cluster.copy_secret("agent-secrets", SECOND_NAMESPACE).await;
    let name = unique("twin");
    let mut spec = command_agent(SCRIPT);
    merge(&mut spec, &json!({"test": {"command": ["true"]}}));
    let mut branches = BTreeSet::new();
    for namespace in [NAMESPACE, SECOND_NAMESPACE] {
        cluster.create(namespace, &task(&name, &format!("for {namespace}"), &spec)).await;
    }
    for namespace in [NAMESPACE, SECOND_NAMESPACE] {
        let done = cluster.complete(namespace, &name).await;
        let repository = done.status.expect("a status").repositories.remove(0);
        let branch = repository.work_branch.expect("a work branch");
        let mark = cluster.forge.file("mark.txt", &branch).await.expect("the mark");
        assert!(mark.contains(namespace), "{branch}: {mark}");
        assert!(branches.insert(branch), "both tasks used one branch");
    }
}
