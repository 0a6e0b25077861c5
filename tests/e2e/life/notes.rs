//! What the chart prints after an installation is a script, and here it is run as it stands. It
//! makes the sample task in the usual namespace, so it runs alone.

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM, phase},
    pages::bash,
    release::must,
};

/// Name of the task in the notes.
const TASK: &str = "add-healthcheck";

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn commands_of_the_chart_notes_lead_from_installation_to_pull_request() {
    let cluster = Cluster::connect().await;
    cluster.forget(NAMESPACE, TASK).await;
    let notes = must("helm", &["get", "notes", "agent-operator", "--namespace", SYSTEM]).await;
    let script = notes.trim_start().strip_prefix("NOTES:").unwrap_or(&notes);
    for part in ["helm test", "create secret", "grpcurl", "create serviceaccount viewer"] {
        assert!(script.contains(part), "the notes lack {part}:\n{script}");
    }
    // What the Secret holds already is what a person would have in these variables.
    let (key, token) = cluster.agent_secrets().await;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().to_str().expect("UTF-8");
    let script = format!("cd {folder}\n{script}");
    let environment = [("ANTHROPIC_API_KEY", key.as_str()), ("GITHUB_TOKEN", token.as_str())];
    let said = bash(&script, &environment).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(said.contains("is connected"), "helm test showed nothing:\n{said}");
    assert!(said.contains("\"cursor\""), "the stream showed nothing:\n{said}");
    let task = cluster.tasks(NAMESPACE).get(TASK).await.expect("the task of the notes");
    assert_eq!(phase(&task), "Complete", "{said}");
    cluster.forget(NAMESPACE, TASK).await;
}
