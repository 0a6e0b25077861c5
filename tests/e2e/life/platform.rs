//! The release as a platform team sets it up: images from a registry with a password, nodes of their own behind
//! a taint, priority classes, room for the next steps, limits. Everything at once, and a task goes through.

use std::{collections::BTreeMap, fs, time::Duration};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Container, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
    eventually,
    pages::{Page, bash},
    registry::PrivateRegistry,
    release::{self, must, run},
    task::{command_agent, merge, task, unique},
};

const PAGE: &str = "docs/how-to/private-registry.md";
/// The only node for agents, and the taint that keeps others off.
const NODE: &str = "node-a";
const TAINT: &str = "agents=only:NoSchedule";

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn a_task_runs_from_a_private_registry_on_nodes_set_apart() {
    let undo = async {
        let _ = run("kubectl", &["taint", "node", NODE, &format!("{TAINT}-")]).await;
        for namespace in [SYSTEM, NAMESPACE] {
            let secret = ["-n", namespace, "delete", "secret/registry", "--ignore-not-found"];
            must("kubectl", &secret).await;
        }
    };
    release::restored(set_apart, undo).await;
}

/// Values of the page and of `docs/how-to/clusters.md`, and those that a platform team adds.
fn values(registry: &PrivateRegistry) -> serde_json::Value {
    let secrets = json!([{"name": "registry"}]);
    let tolerations = json!([{"key": "agents", "operator": "Exists", "effect": "NoSchedule"}]);
    let images =
        ["controller", "supervisor", "runner", "agent"].map(|name| (name, registry.image(name)));
    json!({
        "images": BTreeMap::from(images),
        "imagePullSecrets": secrets,
        "agent": {"imagePullSecrets": secrets, "tolerations": tolerations},
        "supervisor": {
            "nodeSelector": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": NODE},
            "tolerations": tolerations,
            "resources": {"requests": {"cpu": "20m", "memory": "48Mi"}, "limits": {"memory": "384Mi"}},
        },
        "controller": {"resources": {"requests": {"cpu": "30m"}, "limits": {"memory": "768Mi"}}},
        "priorityClasses": {"create": true},
        "headroom": {"enabled": true, "requests": {"cpu": "10m", "memory": "16Mi"}},
        "metrics": {"services": true},
    })
}

async fn set_apart(before: String) {
    let cluster = Cluster::connect().await;
    let registry = PrivateRegistry::start().await;
    for script in Page::read(PAGE).scripts(&[("registry.example.com", "$REGISTRY")]) {
        let environment =
            [("REGISTRY", registry.address()), ("PASSWORD", registry.password.as_str())];
        bash(&script, &environment).await.unwrap_or_else(|error| panic!("{error}"));
    }
    must("kubectl", &["taint", "node", NODE, TAINT, "--overwrite"]).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), values(&registry).to_string()).expect("the values");
    let more = ["--values", file.path().to_str().expect("UTF-8")];
    release::install(&release::chart().to_string_lossy(), SYSTEM, &before, &more).await;
    must("kubectl", &["-n", SYSTEM, "rollout", "status", "deployment/agent-operator-headroom"])
        .await;
    must("helm", &["test", "agent-operator", "--namespace", SYSTEM]).await;

    let name = unique("set-apart");
    let mut spec = command_agent(
        "echo in step $AGENT_STEP; [ \"$AGENT_STEP\" != implement ] || date > change.txt",
    );
    merge(&mut spec, &json!({"test": {"command": ["test", "-e", "change.txt"]}}));
    cluster.create(NAMESPACE, &task(&name, "Change a file.", &spec)).await;
    cluster.complete(NAMESPACE, &name).await;
    for pod in cluster.task_pods(NAMESPACE, &name).await {
        is_placed(&pod, "agent-operator-agent");
        let from = image_of(&pod);
        assert!(from.starts_with(registry.address()), "{} runs {from}", pod.name_any());
    }
    system_is_as_set(&cluster, &registry).await;
}

/// Supervisors, headroom, controller and its disruption budget.
async fn system_is_as_set(cluster: &Cluster, registry: &PrivateRegistry) {
    let pods = |component: &'static str| async move {
        let label = format!("app.kubernetes.io/component={component}");
        let pods = cluster.pods(SYSTEM).list(&ListParams::default().labels(&label)).await;
        let pods = pods.expect("the pods of the release").items;
        assert_eq!(pods.len(), 1, "one {component}");
        pods
    };
    is_placed(&pods("supervisor").await[0], "agent-operator-system");
    is_placed(&pods("headroom").await[0], "agent-operator-headroom");
    let controller = &pods("controller").await[0];
    assert!(image_of(controller).starts_with(registry.address()));
    assert_eq!(priority(controller).as_deref(), Some("agent-operator-system"));
    let limits = first_container(controller).resources.and_then(|resources| resources.limits);
    assert_eq!(limits.expect("limits")["memory"].0, "768Mi");

    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let replicas = deployments.get("agent-operator-headroom").await.expect("headroom").status;
    assert_eq!(replicas.and_then(|status| status.ready_replicas), Some(1));
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client.clone(), SYSTEM);
    eventually("a drain may take the controller", Duration::from_mins(1), || async {
        let budget = budgets.get("agent-operator-controller").await.map_err(|e| e.to_string())?;
        match budget.status {
            Some(status) if (status.expected_pods, status.disruptions_allowed) == (1, 1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

fn priority(pod: &Pod) -> Option<String> {
    pod.spec.as_ref().and_then(|spec| spec.priority_class_name.clone())
}

fn first_container(pod: &Pod) -> Container {
    pod.spec.as_ref().expect("a spec").containers[0].clone()
}

fn image_of(pod: &Pod) -> String {
    first_container(pod).image.expect("an image")
}

/// On the one node for agents, with this priority class.
fn is_placed(pod: &Pod, class: &str) {
    let name = pod.name_any();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    assert_eq!(node, Some(NODE), "{name}");
    assert_eq!(priority(pod).as_deref(), Some(class), "{name}");
}
