//! Scenarios 2 and 3: what a failing test leads to.

use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE, phase},
    task::{task, unique},
};

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_broken_test_goes_back_to_implement_with_its_output_and_is_mended() {
    let cluster = Cluster::connect().await;
    let name = unique("break-once");
    let marker = format!("[[script:break-once]] marker {name}");
    cluster
        .create(NAMESPACE, &task(&name, &format!("Add a /healthz endpoint. {marker}"), &json!({})))
        .await;

    let done = cluster.complete(NAMESPACE, &name).await;
    let status = done.status.expect("a status");
    assert_eq!(status.retry_count, Some(1));

    let runs = cluster.runs(NAMESPACE, &name).await;
    let steps: Vec<&str> = runs.iter().map(|run| run.spec.step.as_str()).collect();
    assert_eq!(steps, ["plan", "implement", "test", "implement", "test", "pull-request"]);
    let failed = runs[2].status.clone().expect("the first test's status");
    assert_eq!(failed.reason.as_deref(), Some("VerifyFailed"));
    assert_ne!(failed.exit_code, Some(0));

    let output = failed.output.expect("the failing output");
    let line = output
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("not ok") || line.starts_with('✖'))
        .unwrap_or_else(|| panic!("a failing line in\n{output}"));
    let escaped = json!(line).to_string();
    let asked = cluster.model.requests_with(&name).await;
    let with_feedback = asked
        .iter()
        .filter(|request| request.to_string().contains(escaped.trim_matches('"')))
        .count();
    assert!(with_feedback > 0, "no model request carries {line:?}");

    let branch = status.repositories[0].work_branch.clone().expect("a work branch");
    assert_eq!(cluster.forge.pull_requests(&branch).await.len(), 1);
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn tests_that_never_pass_fail_the_task_and_keep_the_branch() {
    let cluster = Cluster::connect().await;
    let name = unique("never-green");
    let prompt = "Add a /healthz endpoint. [[script:never-green]]";
    cluster.create(NAMESPACE, &task(&name, prompt, &json!({"maxRetries": 1}))).await;

    let done = cluster.finished(NAMESPACE, &name).await;
    assert_eq!(phase(&done), "Failed", "{}", cluster.describe(NAMESPACE, &name).await);
    let status = done.status.expect("a status");
    let message = status.message.clone().unwrap_or_default();
    assert!(message.contains("test"), "names the step: {message}");
    assert!(message.contains("npm test"), "names the command: {message}");
    assert!(message.contains("exit code 1"), "names the exit code: {message}");
    assert!(message.lines().count() > 1, "has the last lines: {message}");
    let finished = status.conditions.iter().find(|c| c.type_ == "Finished").expect("Finished");
    assert_eq!(finished.status, "True");
    let succeeded = status.conditions.iter().find(|c| c.type_ == "Succeeded").expect("Succeeded");
    assert_eq!(succeeded.status, "False");

    let branch = status.repositories[0].work_branch.clone().expect("a work branch");
    assert!(cluster.forge.branch(&branch).await.is_some(), "the work branch is kept");
    assert!(cluster.forge.pull_requests(&branch).await.is_empty(), "no pull request");
    let tests = cluster.runs(NAMESPACE, &name).await;
    assert_eq!(tests.iter().filter(|run| run.spec.step == "test").count(), 2);
}
