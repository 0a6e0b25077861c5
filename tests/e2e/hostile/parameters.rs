//! What the attack program is told: targets that all listen, so that only a wall can keep it from them.

use k8s_openapi::api::core::v1::{Node, Service};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use super::{
    place::address_of,
    sink::{Metadata, Sink},
};
use crate::support::{
    cluster::{Cluster, SYSTEM},
    env,
};

/// The node on which attacks run.
pub(super) const NODE: &str = "node-a";
/// Where the supervisor serves its metrics.
const SUPERVISOR_PORT: u16 = 8081;
/// Where a gateway listens.
const GATEWAY_PORT: u16 = 8080;
/// Where kube-proxy says that it is well, on the node's address.
const PROXY_HEALTH_PORT: u16 = 10256;
const KUBELET_PORT: u16 = 10250;

/// `podPidsLimit` of the local nodes' kubelets.
const PROCESSES: u64 = 1024;
/// Limits of the steps that take too much, and what they take: a quarter more. `/tmp` has 4 GiB.
pub(super) const MEMORY_LIMIT: &str = "512Mi";
const MEMORY_BYTES: u64 = 640 << 20;
pub(super) const WORKSPACE_LIMIT: &str = "64Mi";
const WORKSPACE_BYTES: u64 = 80 << 20;
const TMP_BYTES: u64 = 4352 << 20;

/// A canary in halves: what holds it whole is a leak.
pub(super) fn halves(canary: &str) -> Value {
    let (head, tail) = canary.split_at(canary.len() / 2);
    json!([head, tail])
}

/// Targets and canaries. `peers` are the addresses of plain pods, on the attacks' node and on another one.
pub(super) async fn parameters(
    cluster: &Cluster,
    marker: &str,
    sink: &Sink,
    peers: &[String; 2],
    canaries: &[String],
) -> Value {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let nodes = nodes.list(&ListParams::default()).await.expect("nodes").items;
    let of_nodes = |port: u16| -> Vec<String> {
        let internal = |node: &Node| {
            let addresses = node.status.clone().unwrap_or_default().addresses.unwrap_or_default();
            addresses.into_iter().find(|address| address.type_ == "InternalIP")
        };
        let with_port = |node| internal(node).map(|found| format!("{}:{port}", found.address));
        nodes.iter().filter_map(with_port).collect()
    };
    let by_label = ListParams::default().labels("app.kubernetes.io/component=supervisor");
    let supervisors = cluster.pods(SYSTEM).list(&by_label).await.expect("supervisors").items;
    let supervisors_of = |own: bool, port: u16| -> Vec<String> {
        let on = |pod: &&k8s_openapi::api::core::v1::Pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            (node == Some(NODE)) == own
        };
        supervisors.iter().filter(on).map(|pod| format!("{}:{port}", address_of(pod))).collect()
    };
    let url = kube::Config::infer().await.expect("a kubeconfig").cluster_url;
    let plain = |name: &str| vec![env(name).trim_start_matches("http://").to_owned()];
    let host_ports = [of_nodes(PROXY_HEALTH_PORT), plain("AO_GRPC")].concat();
    json!({
        "marker": marker,
        "canaries": canaries.iter().map(|canary| halves(canary)).collect::<Vec<_>>(),
        "sinks": [sink.address()],
        "models": plain("AO_MODEL_URL"),
        "forges": plain("AO_FORGE_URL"),
        "registries": plain("AO_REGISTRY"),
        "metadata": [Metadata::address()],
        "dns": service(cluster, "kube-system", |service| port_of(service, 53)).await,
        "apiServices": service(cluster, "default", |service| port_of(service, 443)).await,
        "apiServers": [url.authority().map(ToString::to_string)],
        "kubelets": of_nodes(KUBELET_PORT),
        "hostPorts": host_ports,
        "podsSame": [format!("{}:8080", peers[0])],
        "podsOther": [format!("{}:8080", peers[1])],
        "controllers": service(cluster, SYSTEM, |service| port_of(service, 8443)).await,
        "supervisors": supervisors_of(true, SUPERVISOR_PORT),
        "gatewaysOther": supervisors_of(false, GATEWAY_PORT),
        "repository": "main",
        "processes": PROCESSES,
        "memoryBytes": MEMORY_BYTES,
        "diskBytes": {
            "disk-workspace": WORKSPACE_BYTES,
            "disk-tmp": TMP_BYTES,
        },
    })
}

/// `address:port` of each service of the namespace that has the port.
async fn service(
    cluster: &Cluster,
    namespace: &str,
    port: impl Fn(&Service) -> Option<i32>,
) -> Vec<String> {
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    let services = services.list(&ListParams::default()).await.expect("services").items;
    let addressed = |service: &Service| {
        let address = service.spec.as_ref()?.cluster_ip.clone().filter(|ip| ip != "None")?;
        Some(format!("{address}:{}", port(service)?))
    };
    let found: Vec<String> = services.iter().filter_map(addressed).collect();
    let names: Vec<String> = services.iter().map(ResourceExt::name_any).collect();
    assert!(!found.is_empty(), "no such port in {namespace}: {names:?}");
    found
}

fn port_of(service: &Service, wanted: i32) -> Option<i32> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    ports.iter().map(|port| port.port).find(|port| *port == wanted)
}
