//! The namespace of the control, the image with the attack program, and the targets' own pods.

use std::{fs, path::Path, time::Duration};

use k8s_openapi::api::{
    core::v1::{Namespace, Pod, ServiceAccount},
    rbac::v1::RoleBinding,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

use crate::support::{
    cluster::Cluster,
    env, eventually,
    images::{crane, of_release},
    release::must,
    task::unique,
};

/// Where the program lies in the image.
pub(super) const PROGRAM: &str = "/hostile/attack.py";
/// A pod of a small image on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(2);

/// The agent image with the attack program on top, in the local registry.
pub(super) async fn image() -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("root/hostile");
    fs::create_dir_all(&root).expect("a folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile");
    for entry in fs::read_dir(source.join("attack")).expect("the program").flatten() {
        if entry.path().extension().is_some_and(|end| end == "py") {
            fs::copy(entry.path(), root.join(entry.file_name())).expect("a copy");
        }
    }
    fs::copy(source.join("attacks.list"), root.join("attacks.list")).expect("a copy");
    append(&of_release("agent"), folder.path(), "agent-operator-hostile").await
}

/// `base` with what lies in `root/` of `folder` as one more layer, under its digest.
pub(super) async fn append(base: &str, folder: &Path, name: &str) -> String {
    let (root, layer) = (folder.join("root"), folder.join("layer.tar"));
    let (root, layer) = (root.to_string_lossy(), layer.to_string_lossy());
    let plain = ["--owner=0", "--group=0", "--mode=a+rX", "--mtime=@0", "--sort=name"];
    must("tar", &[&plain[..], &["-C", &*root, "-cf", &*layer, "."]].concat()).await;
    let repository = format!("{}/{name}", env("AO_REGISTRY"));
    let tag = format!("{repository}:{}", unique("tag"));
    crane(&["append", "--base", base, "--new_layer", &layer, "--new_tag", &tag]).await;
    format!("{repository}@{}", crane(&["digest", &tag]).await)
}

/// A namespace in which pods may do what they like, and an account that may do so too.
pub(super) struct Place {
    pub(super) name: String,
}

impl Place {
    pub(super) async fn make(cluster: &Cluster) -> Self {
        let name = unique("no-walls");
        let spaces: Api<Namespace> = Api::all(cluster.client.clone());
        let privileged = json!({"pod-security.kubernetes.io/enforce": "privileged"});
        let space = json!({"metadata": {"name": name, "labels": privileged}});
        let space: Namespace = serde_json::from_value(space).expect("a namespace");
        spaces.create(&PostParams::default(), &space).await.expect("a new namespace");
        let bindings: Api<RoleBinding> = Api::namespaced(cluster.client.clone(), &name);
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": "anything"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": name}],
        }))
        .expect("a binding");
        bindings.create(&PostParams::default(), &binding).await.expect("a new binding");
        let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), &name);
        eventually("the namespace has its account", START_LIMIT, || async {
            accounts.get("default").await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        // The kubelet asks for a right that no role in a namespace gives.
        let line = ["create", "clusterrolebinding", &name, "--clusterrole=cluster-admin"];
        let account = format!("--serviceaccount={name}:default");
        must("kubectl", &[&line[..], &[&account]].concat()).await;
        Self { name }
    }

    /// Starts a pod and waits until it runs.
    pub(super) async fn start(&self, cluster: &Cluster, pod: &Value) -> Pod {
        let pods = cluster.pods(&self.name);
        let pod: Pod = serde_json::from_value(pod.clone()).expect("a pod");
        pods.create(&PostParams::default(), &pod).await.expect("a new pod");
        let name = pod.name_any();
        eventually(&format!("{name} runs"), START_LIMIT, || async {
            let pod = pods.get(&name).await.map_err(|error| error.to_string())?;
            let status = pod.status.clone().unwrap_or_default();
            let running = matches!(status.phase.as_deref(), Some("Running" | "Succeeded"));
            if running && status.pod_ip.is_some() { Ok(pod) } else { Err(format!("{status:?}")) }
        })
        .await
    }

    /// Takes everything away again.
    pub(super) async fn remove(self, cluster: &Cluster) {
        let now = DeleteParams::default().grace_period(0);
        let _ = cluster.pods(&self.name).delete_collection(&now, &ListParams::default()).await;
        must("kubectl", &["delete", "clusterrolebinding", &self.name]).await;
        let spaces: Api<Namespace> = Api::all(cluster.client.clone());
        spaces.delete(&self.name, &DeleteParams::default()).await.expect("the namespace");
    }
}

/// The IP address of a pod that runs.
pub(super) fn address_of(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).expect("an address")
}
