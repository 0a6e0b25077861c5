//! Runs: immutable spec, a terminal phase that stays, selectable fields.

use agent_operator::crd::AgentRun;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::server::{client, from_json, namespace, refusal, sample, set};

/// Creates the sample run under `name` with other values at some pointers.
async fn create(api: &Api<AgentRun>, namespace: &str, name: &str, changes: &[(&str, Value)]) {
    let mut object = sample("agentrun", namespace);
    set(&mut object, "/metadata/name", json!(name));
    for (pointer, value) in changes {
        set(&mut object, pointer, value.clone());
    }
    api.create(&PostParams::default(), &from_json(object)).await.unwrap();
}

async fn write_status(
    api: &Api<AgentRun>,
    name: &str,
    status: Value,
) -> Result<AgentRun, kube::Error> {
    let patch = Patch::Merge(json!({ "status": status }));
    api.patch_status(name, &PatchParams::default(), &patch).await
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn terminal_phase_reason_and_exit_code_never_change() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let api: Api<AgentRun> = Api::namespaced(client.clone(), &namespace);
    for (name, phase) in [("good", "Succeeded"), ("bad", "Failed")] {
        create(&api, &namespace, name, &[]).await;
        write_status(&api, name, json!({"phase": "Pending"})).await.unwrap();
        write_status(&api, name, json!({"phase": "Running", "podName": "p"})).await.unwrap();
        // A run that was lost may be found again: Unknown is not terminal.
        write_status(&api, name, json!({"phase": "Unknown"})).await.unwrap();
        let end = json!({"phase": phase, "reason": "AgentFailed", "exitCode": 7});
        write_status(&api, name, end).await.unwrap();
        for change in [
            json!({"phase": "Running"}),
            json!({"phase": if phase == "Failed" { "Succeeded" } else { "Failed" }}),
            json!({"phase": null}),
            json!({"reason": "TimedOut"}),
            json!({"reason": null}),
            json!({"exitCode": 0}),
            json!({"exitCode": null}),
        ] {
            let message = refusal(write_status(&api, name, change.clone()).await);
            assert!(message.contains("never change"), "{change}: {message}");
        }
        // What is learned later may be added.
        let later =
            json!({"usage": {"turns": 3}, "message": "more", "log": {"bytes": 10, "gaps": 0}});
        write_status(&api, name, later).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn phase_reason_and_exit_code_of_a_run_cannot_be_taken_back_with_the_whole_status() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let api: Api<AgentRun> = Api::namespaced(client.clone(), &namespace);
    create(&api, &namespace, "whole", &[]).await;
    write_status(&api, "whole", json!({"phase": "Failed", "reason": "TimedOut"})).await.unwrap();
    let patch = Patch::Merge(json!({ "status": null }));
    let result = api.patch_status("whole", &PatchParams::default(), &patch).await;
    let message = refusal(result);
    assert!(message.contains("status"), "{message}");
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn spec_of_a_run_is_immutable() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let api: Api<AgentRun> = Api::namespaced(client.clone(), &namespace);
    create(&api, &namespace, "fixed", &[]).await;
    for change in [json!({"nodeName": "node-b"}), json!({"epoch": 4}), json!({"model": "x"})] {
        let patch = Patch::Merge(json!({ "spec": change }));
        let message = refusal(api.patch("fixed", &PatchParams::default(), &patch).await);
        assert!(message.contains("spec of an AgentRun cannot change"), "{message}");
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn runs_are_selected_by_task_node_and_phase() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let api: Api<AgentRun> = Api::namespaced(client.clone(), &namespace);
    create(&api, &namespace, "one", &[("/spec/nodeName", json!("node-b"))]).await;
    create(&api, &namespace, "two", &[("/spec/taskRef/name", json!("other"))]).await;
    write_status(&api, "two", json!({"phase": "Running"})).await.unwrap();
    for (selector, name) in [
        ("spec.nodeName=node-b", "one"),
        ("spec.taskRef.name=other", "two"),
        ("status.phase=Running", "two"),
        ("spec.taskRef.name=add-healthcheck,spec.nodeName=node-b", "one"),
    ] {
        let found = api.list(&ListParams::default().fields(selector)).await.unwrap();
        let names: Vec<_> =
            found.items.iter().filter_map(|run| run.metadata.name.as_deref()).collect();
        assert_eq!(names, [name], "{selector}");
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn wrong_status_is_refused_by_field() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let api: Api<AgentRun> = Api::namespaced(client.clone(), &namespace);
    create(&api, &namespace, "wrong", &[]).await;
    for (status, field) in [
        (json!({"exitCode": 256}), "status.exitCode"),
        (json!({"output": "x".repeat(16_385)}), "status.output"),
        (json!({"usage": {"turns": -1}}), "status.usage.turns"),
    ] {
        let message = refusal(write_status(&api, "wrong", status).await);
        assert!(message.contains(field), "{message}");
    }
}
