//! `controller check`, the pod of `helm test`: whether the controller answers, and whether the
//! supervisor of each node that shall have one is connected. Says what to do about what it finds.

use std::{fmt, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Pod},
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{args::CheckArgs, clock};

/// Port of the controller's Service.
const GRPC_PORT: u16 = 8443;
/// Port of a supervisor's metrics.
const METRICS_PORT: u16 = 8081;
/// Time for one answer: everything asked is in the same cluster and has nothing to compute.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest page of metrics that is read: usual ones have a few KiB.
const METRICS_BYTES_MAX: u64 = 1024 * 1024;
/// Pause between two rounds.
const PAUSE: Duration = Duration::from_secs(2);
/// Most pods that are listed at once: above the 5,000 nodes that Kubernetes supports.
const PODS_MAX: u32 = 10_000;

/// What was found, a line each.
#[derive(Debug, Default)]
pub struct Findings(Vec<Result<String, Problem>>);

/// Something that does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    what: String,
    remedy: String,
}

impl Findings {
    /// Whether everything works.
    pub fn good(&self) -> bool {
        self.0.iter().all(Result::is_ok)
    }

    fn add(&mut self, result: anyhow::Result<String>, what: &str, remedy: String) {
        self.0.push(result.map_err(|error| Problem { what: format!("{what}: {error:#}"), remedy }));
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.0 {
            match finding {
                Ok(line) => writeln!(formatter, "ok      {line}")?,
                Err(problem) => {
                    writeln!(
                        formatter,
                        "FAILED  {}\n        next: {}",
                        problem.what, problem.remedy
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// Looks until everything works or the patience is at its end; then tells what it saw last.
pub async fn run(args: &CheckArgs) -> anyhow::Result<Findings> {
    let client = Client::try_default().await.context("read the cluster's address")?;
    let end = clock::instant() + Duration::from_secs(args.patience_seconds);
    loop {
        let findings = look(args, &client).await;
        if findings.good() || clock::instant() + PAUSE >= end {
            return Ok(findings);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(args: &CheckArgs, client: &Client) -> Findings {
    let mut findings = Findings::default();
    let CheckArgs { namespace, service, .. } = args;
    let remedy = format!("kubectl -n {namespace} logs deployment/{service}");
    findings.add(controller(args, client).await, "the controller does not serve gRPC", remedy);
    match nodes(args, client).await {
        Ok(nodes) => findings.0.extend(nodes),
        Err(error) => {
            let remedy = format!("kubectl -n {namespace} describe daemonset {}", args.daemon_set);
            findings.add(Err(error), "the supervisors cannot be looked at", remedy);
        }
    }
    findings
}

/// Asks the gRPC port for its health, under the CA that supervisors and users are given.
async fn controller(args: &CheckArgs, client: &Client) -> anyhow::Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &args.namespace);
    let map = maps.get(&args.ca_config_map).await.context("read the CA")?;
    let bundle = map.data.unwrap_or_default().remove("ca.crt");
    let bundle = bundle.context("the ConfigMap of the CA has no ca.crt yet")?;
    let host = format!("{}.{}.svc", args.service, args.namespace);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(bundle))
        .domain_name(host.clone());
    let channel = Endpoint::from_shared(format!("https://{host}:{GRPC_PORT}"))?
        .tls_config(tls)?
        .connect_timeout(ANSWER_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        .connect()
        .await
        .with_context(|| format!("connect to {host}:{GRPC_PORT}"))?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    let status = answer.context("ask for its health")?.into_inner().status();
    anyhow::ensure!(status == ServingStatus::Serving, "it says {}", status.as_str_name());
    Ok(format!("controller serves gRPC with TLS at {host}:{GRPC_PORT}"))
}

type NodeFindings = Vec<Result<String, Problem>>;

/// One line a node that the DaemonSet is for, and one for nodes without a pod.
async fn nodes(args: &CheckArgs, client: &Client) -> anyhow::Result<NodeFindings> {
    let namespace = args.namespace.as_str();
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let set = sets.get(&args.daemon_set).await.context("read the DaemonSet")?;
    let labels = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.as_ref());
    let selector: Vec<_> =
        labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    let wanted = ListParams::default().labels(&selector.join(",")).limit(PODS_MAX);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = pods.list(&wanted).await.context("list the supervisors")?.items;
    let desired = set.status.map_or(0, |status| status.desired_number_scheduled);
    let mut findings = vec![count(args, desired, pods.len())];
    for pod in &pods {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        findings.push(match supervisor(pod).await {
            Ok(()) => Ok(format!("supervisor of node {node} is connected")),
            Err(problem) => Err(Problem {
                what: format!("supervisor of node {node}: {problem}"),
                remedy: format!("kubectl -n {namespace} logs {} --all-containers", pod.name_any()),
            }),
        });
    }
    Ok(findings)
}

/// Whether there is a pod for each node.
fn count(args: &CheckArgs, desired: i32, found: usize) -> Result<String, Problem> {
    let found = i32::try_from(found).unwrap_or(i32::MAX);
    let remedy = format!("kubectl -n {} describe daemonset {}", args.namespace, args.daemon_set);
    if desired == 0 {
        let what = "no node is eligible for a supervisor, so no step can run anywhere";
        let remedy = format!("check supervisor.nodeSelector and supervisor.tolerations; {remedy}");
        return Err(Problem { what: what.to_owned(), remedy });
    }
    if found < desired {
        let what = format!("{found} of {desired} eligible nodes have a supervisor");
        return Err(Problem { what, remedy });
    }
    Ok(format!("{desired} eligible nodes have a supervisor"))
}

/// Asks one supervisor whether it has its session and its gateway.
async fn supervisor(pod: &Pod) -> Result<(), String> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
    let Some(ip) = ip else { return Err(format!("its pod is {phase} and has no address")) };
    let ip = ip.parse().map_err(|_| format!("its address {ip} is none"))?;
    let page = timeout(ANSWER_TIMEOUT, metrics(SocketAddr::new(ip, METRICS_PORT))).await;
    let page = page
        .map_err(|_| format!("no answer from {ip} in {} s", ANSWER_TIMEOUT.as_secs()))?
        .map_err(|error| format!("cannot ask {ip} ({error}); its pod is {phase}"))?;
    if gauge(&page, "session_up") != Some(1) {
        return Err("it has no session with the controller".to_owned());
    }
    if gauge(&page, "link_up") != Some(1) {
        return Err("it has no link to its gateway".to_owned());
    }
    Ok(())
}

/// The page of metrics. A request this plain needs no client library.
async fn metrics(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.take(METRICS_BYTES_MAX).read_to_string(&mut page).await?;
    Ok(page)
}

/// The value of a gauge without labels, whatever prefix its name has.
fn gauge(page: &str, name: &str) -> Option<i64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).find_map(|(key, value)| {
        let rest = key.strip_suffix(name)?;
        (rest.is_empty() || rest.ends_with('_')).then(|| value.trim().parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn args() -> CheckArgs {
        CheckArgs {
            namespace: "system".to_owned(),
            service: "ao-controller".to_owned(),
            ca_config_map: "ao-ca".to_owned(),
            daemon_set: "ao-supervisor".to_owned(),
            patience_seconds: 1,
        }
    }

    #[test]
    fn a_gauge_is_found_by_the_end_of_its_name() {
        let page = "HTTP/1.0 200 OK\r\n\r\n# HELP ao_session_up x\nao_session_up 1\nao_link_up 0\n";
        assert_eq!(gauge(page, "session_up"), Some(1));
        assert_eq!(gauge(page, "link_up"), Some(0));
        assert_eq!(gauge(page, "up"), Some(1), "the first whose last words are these");
        assert_eq!(gauge(page, "ion_up"), None);
    }

    #[test]
    fn every_problem_comes_with_the_next_command() {
        let mut findings = Findings(vec![count(&args(), 2, 1), count(&args(), 0, 0)]);
        findings.0.push(count(&args(), 2, 2));
        assert!(!findings.good());
        let text = findings.to_string();
        assert!(text.contains("FAILED  1 of 2 eligible nodes have a supervisor"), "{text}");
        assert!(text.contains("FAILED  no node is eligible"), "{text}");
        assert!(text.contains("ok      2 eligible nodes have a supervisor"), "{text}");
        assert_eq!(text.matches("next: ").count(), 2);
        assert!(text.contains("kubectl -n system describe daemonset ao-supervisor"), "{text}");
    }

    #[tokio::test]
    async fn metrics_are_read_to_their_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 256];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nx_session_up 1\n").await.unwrap();
        });
        assert_eq!(gauge(&metrics(address).await.unwrap(), "session_up"), Some(1));
    }

    #[tokio::test]
    async fn a_supervisor_without_an_address_is_named_with_its_phase() {
        let error = supervisor(&Pod::default()).await.unwrap_err();
        assert!(error.contains("Unknown"), "{error}");
    }
}
