//! The installed release, looked at by Helm: its own test, and the refusal of a second one.

use crate::support::{
    cluster::SYSTEM,
    env,
    release::{must, run},
};

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn helm_test_finds_the_controller_and_a_supervisor_on_each_node() {
    let text = must("helm", &["test", "agent-operator", "--namespace", SYSTEM, "--logs"]).await;
    assert!(text.contains("ok      controller serves gRPC with TLS"), "{text}");
    for node in env("AO_NODES").split(' ') {
        let line = format!("ok      supervisor of node {node} is connected");
        assert!(text.contains(&line), "{line:?} is missing in:\n{text}");
    }
    assert!(!text.contains("FAILED"), "{text}");
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn second_release_in_the_same_cluster_is_refused_with_the_place_of_the_first() {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/helm/agent-operator");
    let dry = ["--dry-run=server", "--namespace"];
    for (release, namespace) in [("second", SYSTEM), ("agent-operator", "default")] {
        let line = [&["install", release, chart][..], &dry, &[namespace]].concat();
        let refused = run("helm", &line).await;
        let text = refused.expect_err("a second release");
        let place = format!("as release agent-operator in namespace {SYSTEM}");
        assert!(text.contains(&place) && text.contains("helm uninstall"), "{text}");
    }
}
