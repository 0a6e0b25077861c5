//! Scenario 1: the sample of the README, unchanged, with the real Claude Code CLI.

use std::{collections::BTreeSet, time::Duration};

use agent_operator::crd::CodingTask;

use crate::support::{
    cluster::{Cluster, NAMESPACE, run_phase},
    eventually,
};

const SAMPLE: &str = include_str!("../../../deploy/samples/codingtask.yaml");

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn the_sample_applies_unchanged_and_ends_as_a_pull_request() {
    let cluster = Cluster::connect().await;
    let sample: CodingTask = serde_saphyr::from_str(SAMPLE).expect("the sample parses");
    let name = sample.metadata.name.clone().expect("the sample has a name");
    cluster.forget(NAMESPACE, &name).await;
    cluster.create(NAMESPACE, &sample).await;

    let task = cluster.complete(NAMESPACE, &name).await;
    let status = task.status.expect("a status");
    let usage = status.usage.expect("usage");
    assert!(usage.turns > 0 && usage.input_tokens > 0 && usage.output_tokens > 0, "{usage:?}");
    assert_eq!(status.retry_count.unwrap_or(0), 0);
    assert!(status.plan.expect("a plan").digest.starts_with("sha256:"));

    let runs = cluster.runs(NAMESPACE, &name).await;
    let steps: Vec<&str> = runs.iter().map(|run| run.spec.step.as_str()).collect();
    assert_eq!(steps, ["plan", "implement", "test", "pull-request"]);
    for run in &runs {
        let status = run.status.clone().expect("a status");
        assert_eq!(run_phase(run), "Succeeded");
        assert_eq!(status.exit_code, Some(0));
        assert!(status.pod_name.is_some() && !run.spec.node_name.is_empty());
    }

    let repository = &status.repositories[0];
    let branch = repository.work_branch.clone().expect("a work branch");
    let pulls = cluster.forge.pull_requests(&branch).await;
    assert_eq!(pulls.len(), 1, "one pull request for {branch}");
    assert_eq!(pulls[0]["base"]["ref"], "main");
    assert_eq!(pulls[0]["html_url"], status.pull_request.expect("a pull request").url);
    assert_commits_are_the_tasks(&cluster, &task.metadata.uid.expect("a uid"), &branch, repository)
        .await;

    let test_pod = runs[2].status.as_ref().and_then(|s| s.pod_name.clone()).expect("a test pod");
    let log = cluster.log(NAMESPACE, &test_pod).await;
    assert!(log.contains("# pass") || log.contains("ℹ pass"), "the tests' own output:\n{log}");
    assert!(!log.contains("# fail 1") && !log.contains("ℹ fail 1"), "{log}");
    assert!(cluster.forge.file("server.js", &branch).await.expect("the file").contains("healthz"));
    assert_events(&cluster, &name).await;
}

/// The pull request's head is the work branch, whose new commits all are this task's.
async fn assert_commits_are_the_tasks(
    cluster: &Cluster,
    uid: &str,
    branch: &str,
    repository: &agent_operator::crd::coding_task::RepositoryStatus,
) {
    let tip = cluster.forge.branch(branch).await.expect("the work branch");
    assert_eq!(repository.head_commit.as_deref(), Some(tip.as_str()));
    let commits = cluster.forge.commits_ahead(branch).await;
    assert!(!commits.is_empty());
    for commit in &commits {
        let message = commit["commit"]["message"].as_str().expect("a message");
        assert!(message.contains(&format!("Agent-Operator-Task-Uid: {uid}")), "{message}");
    }
}

/// Every phase change of the task is an event.
async fn assert_events(cluster: &Cluster, name: &str) {
    eventually("an event for each phase", Duration::from_secs(20), || async {
        let said: BTreeSet<String> = cluster
            .events(NAMESPACE)
            .await
            .into_iter()
            .filter(|event| event.involved_object.name.as_deref() == Some(name))
            .filter_map(|event| event.reason)
            .collect();
        let expected = ["Planning", "Implementing", "Testing", "PullRequest", "Complete"];
        if expected.iter().all(|reason| said.contains(*reason)) {
            Ok(())
        } else {
            Err(format!("{said:?}"))
        }
    })
    .await;
}
