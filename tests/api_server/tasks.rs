//! Tasks that are right: accepted as written, frozen where they must be.

use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams, ValidationDirective},
};
use serde_json::{Value, json};

use super::server::{client, eventually, from_json, namespace, refusal, sample, set, untyped};
use agent_operator::crd::CodingTask;

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn sample_applies_unchanged_and_gains_no_defaults() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let wanted = sample("codingtask", &namespace);
    let api = untyped(&client, "CodingTask", &namespace);
    let mut params = PatchParams::apply("kubectl");
    params.field_validation = Some(ValidationDirective::Strict);
    api.patch("add-healthcheck", &params, &Patch::Apply(&wanted)).await.unwrap();
    let found = serde_json::to_value(api.get("add-healthcheck").await.unwrap()).unwrap();
    assert_eq!(found["spec"], wanted["spec"], "what was left out must stay left out");
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn misspelled_field_is_refused_by_name() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let mut object = sample("codingtask", &namespace);
    set(&mut object, "/spec/promt", json!("x"));
    let mut params = PatchParams::apply("kubectl");
    params.field_validation = Some(ValidationDirective::Strict);
    let api = untyped(&client, "CodingTask", &namespace);
    let message = refusal(api.patch("add-healthcheck", &params, &Patch::Apply(&object)).await);
    assert!(message.contains("promt"), "{message}");
}

/// Every optional setting at once, in the forms that users write.
fn full() -> Value {
    json!({
        "source": {"type": "github-issue", "github": {"owner": "o", "repo": "r", "issueNumber": 7}},
        "repository": {"url": "https://git.example.com:8443/group/sub/repo.git", "branch": "release/1.x", "workBranch": "ai/it"},
        "prompt": "ü".repeat(32_768),
        "agentImage": "registry.example.com/agent@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "imagePullSecrets": [{"name": "pull"}],
        "agent": {"type": "Command", "command": ["sh", "-c", "true"]},
        "model": {"default": "claude-x", "plan": "claude-y", "maxTurns": 50, "planMaxTurns": 10},
        "resources": {"cpu": 2, "memory": "1.5Gi", "storage": "500Mi"},
        "anthropicApiKeyRef": {"name": "s", "key": "K_1.x"},
        "gitCredentialsRef": {"name": "s", "key": "k"},
        "maxRetries": 0, "stepTimeout": "1h30m", "taskTimeout": "90s",
        "test": {"command": ["make", "test"], "onUnverifiable": "Proceed"},
        "suspend": true,
        "budget": {"maxTokens": 1000, "maxCostUSD": "1500m", "onExceeded": "Fail"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "sandbox": {"runtimeClassName": "gvisor", "egressPolicy": "Required", "requirePidsLimit": true, "allowedHosts": ["registry.example.com", "x.example.com:8443"]},
    })
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn every_setting_is_accepted_and_read_back_by_our_types() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let mut object = sample("codingtask", &namespace);
    object["spec"] = full();
    let created = untyped(&client, "CodingTask", &namespace)
        .create(&PostParams::default(), &from_json(object))
        .await
        .unwrap();
    let typed: CodingTask = from_json(serde_json::to_value(created).unwrap());
    assert_eq!(typed.spec.resources.unwrap().cpu.unwrap().as_str(), "2");
    assert_eq!(typed.spec.budget.unwrap().max_cost_usd.unwrap().as_str(), "1500m");
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn null_means_the_same_as_a_field_left_out() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let mut object = sample("codingtask", &namespace);
    for field in ["budget", "agent", "test", "maxRetries", "stepTimeout", "sandbox", "resources"] {
        object["spec"][field] = Value::Null;
    }
    let api = untyped(&client, "CodingTask", &namespace);
    let created = api.create(&PostParams::default(), &from_json(object)).await.unwrap();
    let expected = sample("codingtask", &namespace);
    assert_eq!(serde_json::to_value(created).unwrap()["spec"], expected["spec"]);
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn frozen_fields_name_themselves_and_the_rest_may_change() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let mut object = sample("codingtask", &namespace);
    object["spec"] = full();
    let api = untyped(&client, "CodingTask", &namespace);
    api.create(&PostParams::default(), &from_json(object)).await.unwrap();
    let change = async |spec: Value| {
        let patch = Patch::Merge(json!({"spec": spec}));
        api.patch("add-healthcheck", &PatchParams::default(), &patch).await
    };
    for (spec, field) in [
        (json!({"source": {"github": {"issueNumber": 8}}}), "spec.source cannot change"),
        (json!({"repository": {"branch": "main"}}), "spec.repository cannot change"),
        (json!({"prompt": "other"}), "spec.prompt cannot change"),
        (json!({"anthropicApiKeyRef": {"key": "x"}}), "spec.anthropicApiKeyRef cannot change"),
        (json!({"gitCredentialsRef": {"name": "x"}}), "spec.gitCredentialsRef cannot change"),
        (json!({"agent": {"command": ["x"]}}), "spec.agent cannot change"),
        (json!({"agent": null}), "spec.agent cannot change"),
        (json!({"test": {"onUnverifiable": "Fail"}}), "spec.test cannot change"),
        (json!({"test": null}), "spec.test cannot change"),
        (json!({"budget": {"maxTokens": 999}}), "spec.budget.maxTokens may only be raised"),
        (json!({"budget": {"maxCostUSD": "1"}}), "spec.budget.maxCostUSD may only be raised"),
        (json!({"budget": {"maxCostUSD": null}}), "spec.budget.maxCostUSD may only be raised"),
        (json!({"budget": null}), "spec.budget may only be raised"),
    ] {
        let message = refusal(change(spec.clone()).await);
        assert!(message.contains(field), "{spec}: {message}");
    }
    for spec in [
        json!({"suspend": false}),
        json!({"maxRetries": 5, "stepTimeout": "1h", "taskTimeout": "12h"}),
        json!({"budget": {"maxTokens": 2000, "maxCostUSD": 2, "onExceeded": "Pause"}}),
        json!({"resources": null, "model": {"default": "other"}, "agentImage": "other:1"}),
        json!({"nodeSelector": null, "tolerations": [], "sandbox": {"allowedHosts": []}}),
    ] {
        change(spec.clone()).await.unwrap_or_else(|error| panic!("{spec}: {error}"));
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn tasks_are_selected_by_phase() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let api: Api<CodingTask> = Api::namespaced(client.clone(), &namespace);
    for (name, phase) in [("one", "Planning"), ("two", "Failed")] {
        let mut object = sample("codingtask", &namespace);
        set(&mut object, "/metadata/name", json!(name));
        api.create(&PostParams::default(), &from_json(object)).await.unwrap();
        let status = Patch::Merge(json!({"status": {"phase": phase}}));
        api.patch_status(name, &PatchParams::default(), &status).await.unwrap();
    }
    let found = api.list(&ListParams::default().fields("status.phase=Failed")).await.unwrap();
    assert_eq!(found.items.len(), 1);
    assert_eq!(found.items[0].metadata.name.as_deref(), Some("two"));
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn kubectl_explain_finds_our_words() {
    let Some(client) = client().await else { return };
    eventually("the schema is published", async || {
        let request = http::Request::get("/openapi/v3/apis/agents.wearn.dev/v1alpha1");
        let text = client.request_text(request.body(Vec::new()).unwrap()).await.ok()?;
        (text.contains("Instructions for the agent") && text.contains("What has become of a run"))
            .then_some(())
    })
    .await;
}
