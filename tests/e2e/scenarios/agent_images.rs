//! Agent images that know nothing of us: any glibc image with git will do, and of another one the
//! task says what it lacks and goes on once it has a better one.

use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::start_faults::{assert_helps, assert_no_harm, goes_on, held_up};
use crate::support::{
    cluster::{Cluster, NAMESPACE},
    images,
    task::{command_agent, merge, task, unique},
};

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_bare_image_of_somebody_else_completes_a_task_of_claude_code() {
    let cluster = Cluster::connect().await;
    let name = unique("bare-image");
    let image = images::debian_with_git().await;
    // Nothing but git and a shell is in it: no node to run the repository's own tests with.
    let spec = json!({"agentImage": image, "test": {"command": ["grep", "healthz", "HEALTHZ.md"]}});
    let prompt = format!("Write down what /healthz does. Marker {name}. [[script:shell-only]]");
    cluster.create(NAMESPACE, &task(&name, &prompt, &spec)).await;
    let done = cluster.complete(NAMESPACE, &name).await;
    let branch = done.status.expect("a status").repositories[0].work_branch.clone();
    assert_eq!(cluster.forge.pull_requests(&branch.expect("a work branch")).await.len(), 1);
    let pods = cluster.task_pods(NAMESPACE, &name).await;
    assert_eq!(pods.len(), 4, "a pod a step");
    for pod in pods {
        assert_eq!(images::delivery_of(&pod), "imageVolume", "found out by nodes that can");
        let containers = pod.spec.expect("a spec").containers;
        assert_eq!(containers[0].image.as_deref(), Some(image.as_str()));
    }
}

/// Gives the task an image that has what it needs.
async fn change_image(cluster: &Cluster, name: &str) {
    let patch = json!({"spec": {"agentImage": images::debian_with_git().await}});
    let tasks = cluster.tasks(NAMESPACE);
    tasks.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a new image");
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn an_image_without_git_is_named_and_the_task_goes_on_with_another_one() {
    let cluster = Cluster::connect().await;
    let name = unique("no-git");
    let mut spec = command_agent("echo step $AGENT_STEP");
    merge(&mut spec, &json!({"agentImage": images::debian_without_git().await}));
    cluster.create(NAMESPACE, &task(&name, "Say something.", &spec)).await;
    let message = held_up(&cluster, NAMESPACE, &name, "ImageNotRunnable").await;
    assert_helps(&message, &["the agent image has no git", "/usr/bin", "spec.agentImage"]);
    assert!(!message.contains("needs glibc"), "no Claude Code runs there: {message}");
    change_image(&cluster, &name).await;
    goes_on(&cluster, NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_musl_image_is_named_as_such_before_claude_code_fails_in_it() {
    let cluster = Cluster::connect().await;
    let name = unique("musl");
    let spec = json!({"agentImage": images::musl().await});
    let prompt = format!("Add a /healthz endpoint. Marker {name}.");
    cluster.create(NAMESPACE, &task(&name, &prompt, &spec)).await;
    let message = held_up(&cluster, NAMESPACE, &name, "ImageNotRunnable").await;
    assert_helps(&message, &["Claude Code needs glibc", "has musl (/lib/ld-musl-", "no git"]);
    assert!(cluster.model.requests_with(&name).await.is_empty(), "no model request was made");
    assert_no_harm(&cluster, NAMESPACE, &name).await;
    change_image(&cluster, &name).await;
    goes_on(&cluster, NAMESPACE, &name).await;
}
