//! What people may do with the chart's roles, and the definitions as people install them.

use k8s_openapi::{
    api::rbac::v1::RoleBinding,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams, ValidationDirective},
};
use serde_json::{Value, json};

use super::{
    policies::Installed,
    refusals::create,
    server::{admin, client, eventually, from_json, refusal, sample, untyped},
};

/// A client of a person with the chart's `role` in the namespace.
async fn person(installed: &Installed, role: &str) -> Client {
    let namespace = &installed.namespace;
    let binding: RoleBinding = from_json(json!({
        "metadata": {"name": role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": format!("{}-{role}", installed.release())},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": format!("{role}-{namespace}")}],
    }));
    let bindings: Api<RoleBinding> = Api::namespaced(installed.admin.clone(), namespace);
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    let mut config = admin().await.unwrap();
    config.auth_info.impersonate = Some(format!("{role}-{namespace}"));
    Client::try_from(config).unwrap()
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn no_user_writes_a_status_and_only_editors_write_tasks() {
    let Some(installed) = Installed::new().await else { return };
    let namespace = installed.namespace.clone();
    let editor = person(&installed, "edit").await;
    let viewer = person(&installed, "view").await;
    let body = serde_json::to_vec(&sample("codingtask", &namespace)).unwrap();
    eventually("the editor's right is in force", async || {
        create(&editor, "codingtasks", &namespace, body.clone()).await.ok()
    })
    .await;
    let tasks = untyped(&viewer, "CodingTask", &namespace);
    eventually("the viewer's right is in force", async || tasks.get("add-healthcheck").await.ok())
        .await;
    let status = Patch::Merge(json!({"status": {"phase": "Complete"}}));
    let spec = Patch::Merge(json!({"spec": {"suspend": true}}));
    let params = PatchParams::default();
    for (who, client) in [("edit", &editor), ("view", &viewer)] {
        let tasks = untyped(client, "CodingTask", &namespace);
        let message = refusal(tasks.patch_status("add-healthcheck", &params, &status).await);
        assert!(
            message.contains("cannot patch resource \"codingtasks/status\""),
            "{who}: {message}"
        );
        let run = serde_json::to_vec(&sample("agentrun", &namespace)).unwrap();
        let message = refusal(create(client, "agentruns", &namespace, run).await);
        assert!(message.contains("cannot create resource \"agentruns\""), "{who}: {message}");
    }
    let message = refusal(tasks.patch("add-healthcheck", &params, &spec).await);
    assert!(message.contains("cannot patch resource \"codingtasks\""), "{message}");
    let tasks = untyped(&editor, "CodingTask", &namespace);
    tasks.patch("add-healthcheck", &params, &spec).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn the_install_file_applies_as_it_is() {
    let Some(client) = client().await else { return };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crds/install.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    assert_eq!(documents.len(), 2);
    let api: Api<CustomResourceDefinition> = Api::all(client);
    for document in documents {
        let name = document["metadata"]["name"].as_str().unwrap();
        // As `kubectl apply --server-side` does: unknown fields are errors.
        let mut params = PatchParams::apply("kubectl");
        params.field_validation = Some(ValidationDirective::Strict);
        let applied = api.patch(name, &params, &Patch::Apply(&document)).await.unwrap();
        let conditions = applied.status.unwrap_or_default().conditions.unwrap_or_default();
        assert!(conditions.iter().all(|c| c.type_ != "NonStructuralSchema" || c.status == "False"));
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_whole_number_written_with_a_fraction_is_read_by_our_types() {
    let Some(client) = client().await else { return };
    let namespace = super::server::namespace(&client).await;
    let mut object = sample("codingtask", &namespace);
    object["spec"]["maxRetries"] = json!(424_242);
    let body = object.to_string().replace("424242", "3.0").into_bytes();
    // Accepted or refused: what the server keeps must be readable.
    if create(&client, "codingtasks", &namespace, body).await.is_ok() {
        let tasks: Api<agent_operator::crd::CodingTask> = Api::namespaced(client, &namespace);
        assert_eq!(tasks.get("add-healthcheck").await.unwrap().spec.max_retries, Some(3));
    }
}
