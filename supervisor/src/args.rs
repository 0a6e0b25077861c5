//! Arguments of the supervisor; everything is checked here, once, at the start.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use agent_operator::{domain::GoDuration, telemetry::TelemetryArgs};

use crate::ledger::Delivery;

/// Port of the controller's Service.
const CONTROLLER_PORT: u16 = 8443;
/// Port of the gateway's Service.
const GATEWAY_PORT: u16 = 8080;
/// Port of every kubelet.
const KUBELET_PORT: u16 = 10250;

/// Supervisor and gateway of agent-operator.
#[derive(Debug, clap::Parser)]
#[command(name = "supervisor", version, about)]
pub struct Cli {
    /// Logs and traces.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The processes of this binary.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The node's supervisor.
    Run(Box<Args>),
    /// The node's gateway.
    Gateway(Box<crate::gateway::Args>),
    /// The node's enforcer.
    Enforcer(Box<crate::enforcer::Args>),
}

/// How the runner gets into pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "camelCase")]
pub enum RunnerDelivery {
    /// By image volume, and by init container once that has failed on this node.
    Auto,
    /// By image volume.
    ImageVolume,
    /// By init container.
    InitContainer,
}

impl RunnerDelivery {
    /// The delivery that is set; none for `Auto`.
    pub fn fixed(self) -> Option<Delivery> {
        match self {
            Self::Auto => None,
            Self::ImageVolume => Some(Delivery::ImageVolume),
            Self::InitContainer => Some(Delivery::InitContainer),
        }
    }
}

/// Arguments of `supervisor run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of this node.
    #[arg(long, env = "NODE_NAME", value_parser = not_empty)]
    pub node_name: String,
    /// Namespace of this pod, with the controller's CA bundle.
    #[arg(long, env = "POD_NAMESPACE", value_parser = not_empty)]
    pub pod_namespace: String,
    /// Controller, as host:port; an https URL and a missing port (8443) are understood.
    #[arg(
        long,
        alias = "controller",
        env = "CONTROLLER_ADDRESS",
        value_parser = |text: &str| host_port(text, CONTROLLER_PORT)
    )]
    pub controller_address: String,
    /// `ConfigMap` with the controller's CA bundle under the key ca.crt.
    #[arg(
        long,
        alias = "ca-config-map",
        env = "CONTROLLER_CA_CONFIGMAP",
        value_parser = not_empty
    )]
    pub controller_ca_configmap: String,
    /// File with the projected token of audience agent-operator.
    #[arg(long, env = "TOKEN_FILE")]
    pub token_file: PathBuf,
    /// Namespace of tasks; repeat it for more than one.
    #[arg(
        long = "task-namespace",
        env = "TASK_NAMESPACES",
        required = true,
        value_delimiter = ',',
        value_parser = not_empty
    )]
    pub task_namespaces: Vec<String>,
    /// Directory for ledger and streams, on the host.
    #[arg(long, env = "DATA_DIR")]
    pub data_dir: PathBuf,
    /// Unix socket of the gateway.
    #[arg(long, env = "GATEWAY_SOCKET")]
    pub gateway_socket: PathBuf,
    /// The gateway's Service, as host:port; without a port it is 8080.
    #[arg(
        long,
        env = "GATEWAY_SERVICE",
        value_parser = |text: &str| host_port(text, GATEWAY_PORT)
    )]
    pub gateway_service: String,
    /// The kubelet's folder of pod logs.
    #[arg(long, env = "POD_LOG_DIR", default_value = "/var/log/pods")]
    pub pod_log_dir: PathBuf,
    /// The node's cgroups, read-only.
    #[arg(long, env = "CGROUP_ROOT", default_value = "/sys/fs/cgroup")]
    pub cgroup_root: PathBuf,
    /// Image with agent-runner and the agent CLI.
    #[arg(long, env = "RUNNER_IMAGE", value_parser = not_empty)]
    pub runner_image: String,
    /// How that image gets into pods.
    #[arg(long, env = "RUNNER_DELIVERY", value_enum, default_value = "auto")]
    pub runner_delivery: RunnerDelivery,
    /// Priority class of agent pods.
    #[arg(long, env = "AGENT_PRIORITY_CLASS", value_parser = not_empty)]
    pub agent_priority_class: Option<String>,
    /// Most agent pods at once on this node.
    #[arg(
        long,
        env = "SLOTS",
        default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    pub slots: u32,
    /// How long the pod of a finished and recorded run stays, so that its log can be read.
    #[arg(long, env = "POD_RETENTION", default_value = "10m")]
    pub pod_retention: GoDuration,
    /// How long the streams of a finished attempt stay on the node.
    #[arg(long, env = "STREAM_RETENTION", default_value = "24h")]
    pub stream_retention: GoDuration,
    /// Most MiB of streams on the node; the oldest finished attempts go first.
    #[arg(
        long,
        env = "STREAMS_MIB",
        default_value_t = 2048,
        value_parser = clap::value_parser!(u64).range(64..=1_048_576)
    )]
    pub streams_mib: u64,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "[::]:9090")]
    pub http_address: SocketAddr,
    /// Unix socket of the node's enforcer; without it nothing on the node closes the network of pods.
    #[arg(long, env = "ENFORCER_SOCKET")]
    pub enforcer_socket: Option<PathBuf>,
    /// Address of this pod: agent pods must not reach its HTTP port, and prove so before they start.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: Option<IpAddr>,
    /// Address of the node: agent pods must not reach its kubelet.
    #[arg(long, env = "HOST_IP")]
    pub host_ip: Option<IpAddr>,
    /// Address of the API server's Service, which agent pods must not reach either.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST")]
    pub api_server_ip: Option<IpAddr>,
    /// Its port.
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", default_value_t = 443)]
    pub api_server_port: u16,
}

impl Args {
    /// What agent pods try before they start, and must not reach. The canary comes first: a port of
    /// this very process, on the address on which the gateway answers them.
    pub fn forbidden(&self) -> Vec<SocketAddr> {
        let Some(own) = self.pod_ip else { return Vec::new() };
        let others = [
            self.api_server_ip.map(|ip| SocketAddr::new(ip, self.api_server_port)),
            self.host_ip.map(|ip| SocketAddr::new(ip, KUBELET_PORT)),
        ];
        let others = others.into_iter().flatten().filter(|at| at.is_ipv4() == own.is_ipv4());
        [SocketAddr::new(own, self.http_address.port())].into_iter().chain(others).collect()
    }

    /// The gateway beside this process, by the address of the pod.
    pub fn own_gateway(&self) -> Option<SocketAddr> {
        let (_, port) = self.gateway_service.rsplit_once(':')?;
        Some(SocketAddr::new(self.pod_ip?, port.parse().ok()?))
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// Reads `host`, `host:port` or `https://host:port`. TLS is used in any case.
fn host_port(text: &str, default_port: u16) -> Result<String, String> {
    let wrong = || "must be host:port".to_owned();
    let rest = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    if rest.contains('/') {
        return Err(wrong());
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().map_err(|_| wrong())?),
        None => (rest, default_port),
    };
    if host.is_empty() || port == 0 { Err(wrong()) } else { Ok(format!("{host}:{port}")) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(extra: &[&str]) -> Result<Args, clap::Error> {
        let line = [
            "supervisor",
            "--node-name=node-a",
            "--pod-namespace=agent-operator-system",
            "--controller-ca-configmap=ca",
            "--token-file=/t",
            "--task-namespace=a",
            "--task-namespace=b",
            "--data-dir=/d",
            "--gateway-socket=/s",
            "--gateway-service=gateway.agent-operator-system.svc:8080",
            "--runner-image=r",
        ];
        Line::try_parse_from(line.iter().chain(extra)).map(|line| line.args)
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let args = parse(&["--controller-address=controller.svc:8443"]).unwrap();
        assert_eq!((args.slots, args.runner_delivery.fixed()), (16, None));
        assert_eq!(args.pod_retention, GoDuration::from_secs(600));
        assert_eq!(args.task_namespaces, ["a", "b"]);
    }

    #[test]
    fn an_address_without_tls_or_with_a_path_is_refused() {
        let address = |text: &str| {
            parse(&[&format!("--controller-address={text}")]).map(|args| args.controller_address)
        };
        assert_eq!(address("https://controller.svc:8443").unwrap(), "controller.svc:8443");
        assert_eq!(address("controller.svc").unwrap(), "controller.svc:8443");
        for text in ["http://controller.svc:80", "controller.svc:8443/x", "c:0", "c:port", ""] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pods_are_probed_with_a_port_of_this_process_first() {
        let args = parse(&[
            "--controller-address=c:1",
            "--http-address=0.0.0.0:8081",
            "--pod-ip=10.244.0.3",
            "--host-ip=10.77.0.1",
            "--api-server-ip=10.96.0.1",
        ]);
        let args = args.unwrap();
        let forbidden: Vec<_> = args.forbidden().iter().map(ToString::to_string).collect();
        assert_eq!(forbidden, ["10.244.0.3:8081", "10.96.0.1:443", "10.77.0.1:10250"]);
        assert_eq!(args.own_gateway().unwrap().to_string(), "10.244.0.3:8080");
    }

    #[test]
    fn delivery_is_spelled_as_in_the_chart() {
        let address = "--controller-address=c:1";
        let args = parse(&[address, "--runner-delivery=initContainer"]).unwrap();
        assert_eq!(args.runner_delivery.fixed(), Some(Delivery::InitContainer));
    }
}
