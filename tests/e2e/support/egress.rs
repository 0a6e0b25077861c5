//! What an agent tries to reach, as a script that an agent of type Command runs, and its findings.

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::{Api, api::ListParams};

use super::cluster::{Cluster, SYSTEM};

/// Tries everything of its arguments at once, and says `REACHED what` for each that answers.
const SCAN: &str = r#"
import socket, sys, threading
found, tried = [], []
def tcp(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(3)
        s.connect((host, int(port)))
def udp(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(3)
        s.connect((host, int(port)))
        # A question for the name kubernetes.default.svc.cluster.local.
        s.send(bytes.fromhex("abcd01000001000000000000") + b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01")
        s.recv(512)
def name(host, port):
    socket.getaddrinfo(host, int(port))
def attempt(kind, host, port):
    what = f"{kind} {host} {port}"
    tried.append(what)
    try:
        globals()[kind](host, port)
        found.append(what)
    except OSError:
        pass
threads = [threading.Thread(target=attempt, args=line.split(",")) for line in sys.argv[1:]]
[t.start() for t in threads]
[t.join() for t in threads]
[print("REACHED", what) for what in sorted(found)]
print(f"SCANNED {len(tried)}")
"#;

/// The addresses that no agent may reach: `kind,host,port`.
pub(crate) async fn targets(cluster: &Cluster) -> Vec<String> {
    let services: Api<Service> = Api::all(cluster.client.clone());
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let mut targets = Vec::new();
    let all = ListParams::default();
    for service in services.list(&all).await.expect("services") {
        let name = service.metadata.name.unwrap_or_default();
        let spec = service.spec.unwrap_or_default();
        let Some(ip) = spec.cluster_ip.filter(|ip| ip != "None") else { continue };
        // The gateway is what they may reach, on this one port.
        for port in spec.ports.unwrap_or_default().iter().filter(|_| !name.ends_with("-gateway")) {
            let kind = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
            targets.push(format!("{kind},{ip},{}", port.port));
        }
    }
    for pod in pods.list(&all).await.expect("pods") {
        let spec = pod.spec.unwrap_or_default();
        let ip = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();
        for port in
            spec.containers.iter().filter_map(|container| container.ports.as_ref()).flatten()
        {
            // The gateway's own port on its pod is the gateway too.
            if !ip.is_empty() && port.container_port != 8080 {
                targets.push(format!("tcp,{ip},{}", port.container_port));
            }
        }
    }
    for node in nodes.list(&all).await.expect("nodes") {
        let addresses = node.status.and_then(|status| status.addresses).unwrap_or_default();
        for at in addresses.iter().filter(|at| at.type_ == "InternalIP") {
            for port in [10250, 6443, 30443] {
                targets.push(format!("tcp,{},{port}", at.address));
            }
        }
    }
    targets.extend(
        [
            // The forge and the model of the tests, beside the nodes.
            "tcp,10.77.0.254,3000",
            "tcp,169.254.169.254,80",
            "tcp,1.1.1.1,443",
            "udp,1.1.1.1,53",
            "udp,10.96.0.10,53",
            "tcp,2606:4700:4700::1111,443",
            "udp,ff02::fb,5353",
            "name,kubernetes.default.svc.cluster.local,443",
            "name,example.com,443",
        ]
        .map(str::to_owned),
    );
    targets.sort();
    targets.dedup();
    targets
}

/// A command that scans `targets`.
pub(crate) fn scan(targets: &[String]) -> String {
    format!("python3 - {} <<'SCAN'\n{SCAN}\nSCAN\n", targets.join(" "))
}

/// What a log says was reached; the scan must have tried `count` addresses.
pub(crate) fn reached(log: &str, count: usize) -> Vec<String> {
    assert!(log.contains(&format!("SCANNED {count}")), "the scan did not run whole: {log}");
    let found = log.lines().filter_map(|line| line.split_once("REACHED "));
    found.map(|(_, what)| what.to_owned()).collect()
}
