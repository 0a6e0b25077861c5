//! A supervisor's token in other hands. Rights alone refuse most of what it could be used for; here
//! the token's account is given all rights on pods and `AgentRuns` besides, as by a mistake in a chart,
//! and the admission policies have to hold it.

use agent_operator::crd::AgentRun;
use k8s_openapi::api::{
    core::v1::Pod,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    policies::{Installed, agent_pod},
    server::{eventually, from_json, refusal, sample},
};

/// Gives the supervisors' account every right on pods and `AgentRuns` of the namespace.
async fn grant_everything(installed: &Installed) {
    let (namespace, system) = (&installed.namespace, &installed.system);
    let account = format!("{}-supervisor", installed.release());
    // Rights know no wildcard for the subresources of one resource.
    let on_pods = [
        "pods",
        "pods/status",
        "pods/ephemeralcontainers",
        "pods/resize",
        "pods/binding",
        "pods/eviction",
        "pods/exec",
        "pods/portforward",
        "pods/proxy",
    ];
    let role: Role = from_json(json!({
        "metadata": {"name": "mistake"},
        "rules": [
            {"apiGroups": [""], "resources": on_pods, "verbs": ["*"]},
            {"apiGroups": ["agents.wearn.dev"], "resources": ["*"], "verbs": ["*"]},
        ],
    }));
    let binding: RoleBinding = from_json(json!({
        "metadata": {"name": "mistake"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "mistake"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": system}],
    }));
    let (params, admin) = (PostParams::default(), &installed.admin);
    Api::<Role>::namespaced(admin.clone(), namespace).create(&params, &role).await.unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(admin.clone(), namespace);
    bindings.create(&params, &binding).await.unwrap();
}

/// The server's words for a request that it must refuse.
async fn refused(client: &Client, method: &str, path: &str, body: Value) -> String {
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
    let media = match method {
        "PATCH" => "application/strategic-merge-patch+json",
        _ => "application/json",
    };
    let request = http::Request::builder().method(method).uri(path);
    let request = request.header("content-type", media).body(body).unwrap();
    refusal(client.request_text(request).await)
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_stolen_supervisor_token_is_held_by_the_policies_though_its_rights_are_too_wide() {
    let Some(installed) = Installed::new().await else { return };
    let namespace = installed.namespace.clone();
    let admin: Api<Pod> = Api::namespaced(installed.admin.clone(), &namespace);
    for (name, node) in [("own", "node-a"), ("foreign", "node-b")] {
        admin.create(&PostParams::default(), &agent_pod(name, node)).await.unwrap();
    }
    let thief = installed.supervisor(Some("node-a")).await;
    let pods: Api<Pod> = Api::namespaced(thief.clone(), &namespace);
    grant_everything(&installed).await;
    let status = json!({"status": {"phase": "Succeeded"}});
    let params = PatchParams::default();
    eventually("the rights are in force", async || {
        let refused = pods.patch_status("own", &params, &Patch::Merge(&status)).await.err()?;
        (!refused.to_string().contains("cannot patch resource")).then_some(())
    })
    .await;

    let container = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "x"}]}});
    let binding = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "node-b"},
        })
    };
    let eviction = |name: &str| {
        json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace},
        })
    };
    for name in ["own", "foreign"] {
        let path = |sub: &str| format!("/api/v1/namespaces/{namespace}/pods/{name}/{sub}");
        for (method, sub, body) in [
            ("PATCH", "status", status.clone()),
            ("PATCH", "ephemeralcontainers", container.clone()),
            ("PATCH", "resize", json!({"spec": {"containers": []}})),
            ("POST", "binding", binding(name)),
            ("POST", "eviction", eviction(name)),
            ("POST", "exec?command=id&stdout=true", Value::Null),
            ("POST", "portforward", Value::Null),
            ("GET", "proxy/", Value::Null),
        ] {
            let message = refused(&thief, method, &path(sub), body).await;
            assert!(message.contains("-supervisor-node"), "{name} {sub}: {message}");
        }
    }
    let all = pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
    let message = all.err().unwrap().to_string();
    assert!(message.contains("-supervisor-node"), "{message}");
    let message = pods.delete("foreign", &DeleteParams::default()).await.unwrap_err().to_string();
    assert!(message.contains("own node"), "{message}");
    for name in ["own", "foreign"] {
        assert!(admin.get(name).await.unwrap().metadata.deletion_timestamp.is_none(), "{name}");
    }

    let runs: Api<AgentRun> = Api::namespaced(thief, &namespace);
    let run: AgentRun = from_json(sample("agentrun", &namespace));
    let message = refusal(runs.create(&PostParams::default(), &run).await);
    assert!(message.contains("by the controller alone"), "{message}");
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_supervisor_token_ends_with_the_pod_that_it_is_bound_to() {
    let Some(installed) = Installed::new().await else { return };
    let thief = installed.supervisor(Some("node-a")).await;
    let pods: Api<Pod> = Api::namespaced(thief, &installed.namespace);
    pods.list(&ListParams::default()).await.expect("it works while the pod is there");
    let admin: Api<Pod> = Api::namespaced(installed.admin.clone(), &installed.system);
    let now = DeleteParams::default().grace_period(0);
    admin.delete("supervisor-node-a", &now).await.unwrap();
    // The API server remembers a token for some seconds.
    eventually("the token is refused", async || {
        let error = pods.list(&ListParams::default()).await.err()?;
        error.to_string().contains("Unauthorized").then_some(())
    })
    .await;
}
