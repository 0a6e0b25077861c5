//! What the chart prints after an installation is a script, and here it is run as it stands. It
//! makes the sample task in the usual namespace, so it runs alone.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM, phase},
    eventually,
    release::must,
};

/// A whole task of the real CLI, and pods and streams around it, on a busy machine.
const LIMIT: Duration = Duration::from_mins(8);
/// Name of the task in the notes.
const TASK: &str = "add-healthcheck";

async fn forget_task(cluster: &Cluster) {
    let tasks = cluster.tasks(NAMESPACE);
    if tasks.get_opt(TASK).await.expect("a look at tasks").is_some() {
        cluster.delete(NAMESPACE, TASK).await;
    }
    eventually("the task is gone", Duration::from_mins(1), || async {
        match tasks.get_opt(TASK).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn commands_of_the_chart_notes_lead_from_installation_to_pull_request() {
    let cluster = Cluster::connect().await;
    forget_task(&cluster).await;
    let notes = must("helm", &["get", "notes", "agent-operator", "--namespace", SYSTEM]).await;
    let script = notes.trim_start().strip_prefix("NOTES:").unwrap_or(&notes);
    for part in ["helm test", "create secret", "grpcurl", "create serviceaccount viewer"] {
        assert!(script.contains(part), "the notes lack {part}:\n{script}");
    }
    // What the Secret holds already is what a person would have in these variables.
    let (key, token) = cluster.agent_secrets().await;
    let folder = tempfile::tempdir().expect("a folder");
    let whole = format!("trap 'kill $(jobs -p)' EXIT\n{script}");
    let run = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &whole])
        .current_dir(folder.path())
        .env("ANTHROPIC_API_KEY", key)
        .env("GITHUB_TOKEN", token)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, run).await.expect("the notes end in time");
    let output = output.expect("bash runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("is connected"), "helm test showed nothing:\n{said}");
    assert!(said.contains("\"cursor\""), "the stream showed nothing:\n{said}");
    let task = cluster.tasks(NAMESPACE).get(TASK).await.expect("the task of the notes");
    assert_eq!(phase(&task), "Complete", "{said}\n{errors}");
    forget_task(&cluster).await;
}
