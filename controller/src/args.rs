//! Command line and environment, with bounds checked before anything starts.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use agent_operator::{
    domain::GoDuration,
    telemetry::{TelemetryArgs, logs::LogFormat},
};
use clap::{Args, Parser, Subcommand};

/// Longest name of a Kubernetes object.
const NAME_BYTES_MAX: usize = 253;

/// Controller of agent-operator: reconciles coding tasks, assigns their steps to nodes, and serves
/// their logs and events over gRPC.
///
/// Without a subcommand it runs: inside a cluster with its service account, outside by kubeconfig.
#[derive(Debug, Parser)]
#[command(name = "controller", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` when left out.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller (the default).
    Run(Box<RunArgs>),
    /// Look whether an installed release works, as `helm test` does.
    Check(CheckArgs),
    /// Prepare the release for its removal: cancel tasks, stop the controller, remove agent pods and
    /// what the controller made at run time. The chart runs it in front of `helm uninstall`.
    Uninstall(UninstallArgs),
    /// Wait until the pods of a DaemonSet have removed what the release kept on its nodes. The chart
    /// runs it after `uninstall` where `uninstall.purgeNodes` is set.
    AwaitPurge(AwaitPurgeArgs),
    /// Print the custom resource definitions as YAML, for `kubectl apply --server-side -f -`.
    Crd,
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Settings file (YAML) that the chart writes; left out: built-in defaults.
    #[arg(long, env = "AO_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Namespace of the release: of the Lease, the TLS Secret and the CA ConfigMap.
    #[arg(long, env = "AO_NAMESPACE", default_value = "agent-operator-system", value_parser = name)]
    pub namespace: String,
    /// Service account of the supervisors, as NAME (in the release namespace) or NAMESPACE:NAME.
    /// Only its tokens, bound to a node, may open sessions.
    #[arg(
        long,
        env = "AO_SUPERVISOR_SERVICE_ACCOUNT",
        default_value = "agent-operator-supervisor",
        value_parser = service_account
    )]
    pub supervisor_service_account: String,
    /// Address of the gRPC port (TLS, reflection, health).
    #[arg(long, env = "AO_GRPC_ADDRESS", default_value = "[::]:8443", value_name = "IP:PORT")]
    pub grpc_address: SocketAddr,
    /// Address at which nodes and other replicas reach the gRPC port while this one leads; its port is
    /// that of --grpc-address. Left out: they find the leader through the Service alone.
    #[arg(long, env = "POD_IP", value_name = "IP")]
    pub advertise_ip: Option<IpAddr>,
    /// Address of the plain HTTP port: /livez, /readyz, /metrics.
    #[arg(long, env = "AO_HTTP_ADDRESS", default_value = "[::]:8080", value_name = "IP:PORT")]
    pub http_address: SocketAddr,
    /// Folder of the stream store. A cache: what is lost here is asked of the nodes again.
    #[arg(
        long,
        env = "AO_DATA_DIR",
        default_value = "/var/lib/agent-operator",
        value_name = "FOLDER"
    )]
    pub data_dir: PathBuf,
    /// Most MiB of logs and events in the stream store; the oldest finished runs go first.
    #[arg(
        long,
        env = "AO_STREAM_STORE_MIB",
        default_value_t = 2048,
        value_parser = clap::value_parser!(u64).range(64..=1_048_576)
    )]
    pub stream_store_mib: u64,
    /// Name of the Lease that elects the leading replica.
    #[arg(
        long,
        env = "AO_LEASE_NAME",
        default_value = "agent-operator-controller",
        value_parser = name
    )]
    pub lease_name: String,
    /// Name of the Service in front of the gRPC port: goes into the certificate, and names its
    /// Secret (NAME-tls).
    #[arg(
        long,
        env = "AO_TLS_SERVICE_NAME",
        default_value = "agent-operator-controller",
        value_parser = name
    )]
    pub tls_service_name: String,
    /// Further DNS name or IP address of the gRPC port, for the certificate. May be repeated; in the
    /// environment separated by commas.
    #[arg(
        long,
        env = "AO_TLS_EXTRA_SANS",
        value_delimiter = ',',
        value_name = "NAME|IP",
        value_parser = name
    )]
    pub tls_extra_san: Vec<String>,
    /// ConfigMap that publishes the CA (key ca.crt); left out: the service name with -ca in place of
    /// -controller.
    #[arg(long, env = "AO_CA_CONFIG_MAP", value_parser = name)]
    pub ca_config_map: Option<String>,
    /// Kubeconfig file; left out: the service account inside a cluster, else KUBECONFIG or
    /// ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this process in the Lease and in events.
    #[arg(long, env = "POD_NAME", default_value = "controller", value_parser = name)]
    pub identity: String,
    /// Logs and traces.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}

/// Options of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Namespace of the release.
    #[arg(long, value_parser = name)]
    pub namespace: String,
    /// The controller's Service.
    #[arg(long, value_parser = name)]
    pub service: String,
    /// ConfigMap with the controller's CA (key ca.crt).
    #[arg(long, value_parser = name)]
    pub ca_config_map: String,
    /// DaemonSet of the supervisors.
    #[arg(long, value_parser = name)]
    pub daemon_set: String,
    /// Seconds to wait for everything to come up.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub patience_seconds: u64,
}

/// Options of what runs once, as a Job.
#[derive(Clone, Debug, Args)]
pub struct JobArgs {
    /// Kubeconfig file; left out: the service account inside a cluster, else KUBECONFIG or
    /// ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Form of log lines on standard error.
    #[arg(long, env = "AO_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged, for example info or info,kube=debug.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// Options of `uninstall`.
#[derive(Clone, Debug, Args)]
pub struct UninstallArgs {
    /// Namespace of the release.
    #[arg(long, env = "AO_NAMESPACE", default_value = "agent-operator-system", value_parser = name)]
    pub namespace: String,
    /// Namespace whose tasks are cancelled and whose agent pods are removed. May be repeated.
    #[arg(long, value_parser = name)]
    pub task_namespace: Vec<String>,
    /// Deployment of the controller, in the release namespace.
    #[arg(long, default_value = "agent-operator-controller", value_parser = name)]
    pub deployment: String,
    /// Lease of the controller.
    #[arg(long, default_value = "agent-operator-controller", value_parser = name)]
    pub lease_name: String,
    /// Service of the gRPC port, after which the certificate's Secret is named (NAME-tls).
    #[arg(long, default_value = "agent-operator-controller", value_parser = name)]
    pub tls_service_name: String,
    /// ConfigMap that publishes the CA.
    #[arg(long, default_value = "agent-operator-ca", value_parser = name)]
    pub ca_config_map: String,
    /// How long cancelled tasks have to end, for example 60s; then their pods are deleted.
    #[arg(long, default_value = "60s")]
    pub wait: GoDuration,
    /// DaemonSet of the supervisors, to be deleted as well, so that nobody writes to the folders on
    /// the nodes any more; left out: it stays for Helm to delete.
    #[arg(long, value_parser = name)]
    pub stop_daemon_set: Option<String>,
    /// How it reaches the cluster, and what it says.
    #[command(flatten)]
    pub job: JobArgs,
}

/// Options of `await-purge`.
#[derive(Clone, Debug, Args)]
pub struct AwaitPurgeArgs {
    /// Namespace of the release.
    #[arg(long, value_parser = name)]
    pub namespace: String,
    /// DaemonSet whose pods remove the folders; a pod that is ready has done so.
    #[arg(long, value_parser = name)]
    pub daemon_set: String,
    /// How long they have.
    #[arg(long, default_value = "2m")]
    pub wait: GoDuration,
    /// How it reaches the cluster, and what it says.
    #[command(flatten)]
    pub job: JobArgs,
}

impl RunArgs {
    /// User name of the supervisors' service account.
    pub fn supervisor_user(&self) -> String {
        let account = &self.supervisor_service_account;
        let (namespace, name) =
            account.split_once(':').unwrap_or((self.namespace.as_str(), account));
        format!("system:serviceaccount:{namespace}:{name}")
    }

    /// `host:port` of the gRPC port for others.
    pub fn advertised_address(&self) -> Option<String> {
        let port = self.grpc_address.port();
        self.advertise_ip.map(|ip| SocketAddr::new(ip, port).to_string())
    }

    /// Name of the ConfigMap with the CA.
    pub fn ca_config_map(&self) -> String {
        self.ca_config_map.clone().unwrap_or_else(|| {
            let service = self.tls_service_name.as_str();
            format!("{}-ca", service.strip_suffix("-controller").unwrap_or(service))
        })
    }
}

fn name(text: &str) -> Result<String, String> {
    let characters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':');
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(characters) {
        return Err(format!("must have 1 to {NAME_BYTES_MAX} letters, digits, dots or dashes"));
    }
    Ok(text.to_owned())
}

fn service_account(text: &str) -> Result<String, String> {
    if text.matches(':').count() > 1 || text.starts_with(':') || text.ends_with(':') {
        return Err("must be NAME or NAMESPACE:NAME".to_owned());
    }
    name(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<RunArgs, clap::Error> {
        let cli = Cli::try_parse_from(["controller"].iter().chain(arguments))?;
        Ok(match cli.command {
            Some(Command::Run(args)) => *args,
            _ => cli.run,
        })
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_work_with_and_without_run() {
        for prefix in [&[][..], &["run"]] {
            let line = [prefix, &["--namespace", "x", "--tls-extra-san=a,10.0.0.1"]].concat();
            let args = parse(&line).unwrap();
            assert_eq!(args.namespace, "x");
            assert_eq!(args.tls_extra_san, ["a", "10.0.0.1"]);
            assert_eq!(args.supervisor_user(), "system:serviceaccount:x:agent-operator-supervisor");
            assert_eq!(args.ca_config_map(), "agent-operator-ca");
        }
    }

    #[test]
    fn the_advertised_address_has_the_port_of_the_service_and_brackets_where_needed() {
        let args = parse(&["--advertise-ip=10.244.0.7", "--grpc-address=0.0.0.0:9443"]).unwrap();
        assert_eq!(args.advertised_address().as_deref(), Some("10.244.0.7:9443"));
        let args = parse(&["--advertise-ip=fd00::7"]).unwrap();
        assert_eq!(args.advertised_address().as_deref(), Some("[fd00::7]:8443"));
    }

    #[test]
    fn a_service_account_may_be_in_another_namespace() {
        let args = parse(&["--supervisor-service-account=other:sup"]).unwrap();
        assert_eq!(args.supervisor_user(), "system:serviceaccount:other:sup");
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for line in [
            &["--namespace="][..],
            &["--lease-name=a b"],
            &["--grpc-address=8443"],
            &["--stream-store-mib=1"],
            &["--supervisor-service-account=a:b:c"],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
