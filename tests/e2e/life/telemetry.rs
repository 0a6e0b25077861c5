//! What a platform team sees of a task beside its status: a trace that a collector gets, counts that Prometheus scrapes,
//! lines of the three processes that name task and run, and among them the audit.

use std::{collections::BTreeMap, time::Duration};

use agent_operator::{crd::shared::UsageStatus, domain::TaskUid, telemetry::ids};
use agent_operator_doubles::collector::{Collected, Collector};
use kube::{ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::{
    hostile::{haystacks::Needles, tokens},
    support::{
        cluster::{Cluster, NAMESPACE, SYSTEM},
        eventually,
        release::{self, must},
        task::{task, unique},
    },
};

/// The machine's own address on the bridge of the local cluster: pods reach a collector here.
const HOST: &str = "10.77.0.254:0";
/// Spans are sent in batches of some seconds.
const LIMIT: Duration = Duration::from_mins(1);

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn a_task_is_traced_counted_named_in_the_logs_of_all_processes_and_audited() {
    release::restored(observed, async {}).await;
}

async fn observed(values: String) {
    let collector = Collector::start(HOST.parse().expect("an address")).await.expect("it listens");
    let endpoint = format!("tracing.endpoint={}", collector.url());
    let chart = release::chart();
    release::install(&chart.to_string_lossy(), SYSTEM, &values, &["--set", &endpoint]).await;
    let cluster = Cluster::connect().await;
    let before = scrape(&cluster).await;

    let name = unique("observed");
    let created = cluster
        .create(NAMESPACE, &task(&name, "Add a /healthz endpoint that returns 200 OK", &json!({})))
        .await;
    let uid = TaskUid::from(created.metadata.uid.expect("a uid").as_str());
    let done = cluster.complete(NAMESPACE, &name).await;

    traced(&collector, &uid).await;
    without_credentials(&cluster, &collector, &name).await;
    counted(&cluster, &before, &done.status.and_then(|status| status.usage).expect("usage")).await;
    let lines = logged(&name, &ids::trace_of(&uid).to_string()).await;
    audited(&lines);
}

/// Names of spans that a task of four steps has, and how many of each.
const SPANS: [(&str, &str, usize); 7] = [
    ("task", "controller", 1),
    ("step plan", "controller", 1),
    ("step implement", "controller", 1),
    ("step test", "controller", 1),
    ("step pull-request", "controller", 1),
    ("start", "supervisor", 4),
    ("work", "supervisor", 4),
];
/// Of these there is at least one, told by a gateway.
const AT_THE_GATEWAY: [&str; 4] = ["prepare", "publish", "pull request", "model call"];

/// The trace bears the task's uid, has every span, and hangs together.
async fn traced(collector: &Collector, uid: &TaskUid) {
    let trace = ids::trace_of(uid).to_string();
    let complete = |spans: &[Collected]| missing(spans).is_empty();
    let Some(spans) = collector.wait_for(&trace, LIMIT, complete).await else {
        let have: Vec<Collected> =
            collector.spans().into_iter().filter(|span| span.trace == trace).collect();
        panic!("missing {:?} in {have:#?}", missing(&have));
    };
    let root = ids::span_of_task(uid).to_string();
    let by_id: BTreeMap<&str, &Collected> =
        spans.iter().map(|span| (span.id.as_str(), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "no span was told twice");
    for span in &spans {
        if span.id == root {
            assert_eq!(span.parent, "", "{span:?}");
            continue;
        }
        let parent =
            by_id.get(span.parent.as_str()).unwrap_or_else(|| panic!("an orphan: {span:?}"));
        let wanted = if span.name.starts_with("step ") { "task" } else { "step " };
        assert!(parent.name.starts_with(wanted), "{span:?} below {parent:?}");
        assert!(span.start <= span.end, "{span:?}");
        let told = format!("{:?}", span.attributes);
        assert!(!told.contains("/healthz"), "no word of the prompt: {span:?}");
    }
}

/// No span of anybody holds a credential of the task or of the release.
async fn without_credentials(cluster: &Cluster, collector: &Collector, task: &str) {
    let mut known = tokens::of_release(cluster).await;
    let (model_key, git_token) = cluster.agent_secrets().await;
    known.extend([model_key, git_token]);
    let told = format!("{:?}", collector.spans());
    assert!(Needles::of(&[task]).are_in(&told), "what spans say can be found");
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    assert!(!Needles::of(&known).are_in(&told), "a credential stands in a span");
}

fn missing(spans: &[Collected]) -> Vec<&'static str> {
    let count = |name: &str, service: &str| {
        spans.iter().filter(|span| span.name == name && span.service.contains(service)).count()
    };
    let counted = SPANS.iter().filter(|(name, service, number)| count(name, service) != *number);
    let some = AT_THE_GATEWAY.iter().filter(|name| count(name, "gateway") == 0);
    counted.map(|(name, ..)| *name).chain(some.copied()).collect()
}

/// The sums over all pods of each counter without the labels that are not named here.
pub(crate) struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// The sum of all series of this name whose labels have all of `labels`.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let series = self.0.iter().filter(|(key, _)| {
            key.split('{').next() == Some(name) && labels.iter().all(|label| key.contains(label))
        });
        series.map(|(_, value)| value).sum()
    }
}

/// What the pods of the release say at their ports; the API server passes the request on. One that is on its way out, as
/// after a rollout, is asked no more: it may be gone before it is reached.
pub(crate) async fn scrape(cluster: &Cluster) -> Scrape {
    let ports: [(&str, &[u16]); 2] = [("controller", &[8080]), ("supervisor", &[8081, 8082])];
    let mut sums = BTreeMap::new();
    for (component, ports) in ports {
        let selector = format!("app.kubernetes.io/component={component}");
        let pods = cluster.pods(SYSTEM).list(&ListParams::default().labels(&selector)).await;
        let mut pods = pods.expect("list of pods").items;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        assert!(!pods.is_empty(), "no {component}");
        for pod in pods.iter().map(ResourceExt::name_any) {
            for port in ports {
                let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:{port}/proxy/metrics");
                add(&mut sums, &must("kubectl", &["get", "--raw", &path]).await);
            }
        }
    }
    Scrape(sums)
}

/// Adds what one page says to the sums.
fn add(sums: &mut BTreeMap<String, f64>, page: &str) {
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        if let Ok(value) = value.parse::<f64>() {
            *sums.entry(series.to_owned()).or_insert(0.0) += value;
        }
    }
}

/// One task more, four steps more, and its tokens by controller and gateways alike. Nothing else runs meanwhile.
async fn counted(cluster: &Cluster, before: &Scrape, usage: &UsageStatus) {
    let tokens = usage.input_tokens.to_string().parse::<f64>().expect("a number");
    let wanted = [
        ("agent_operator_steps_total", vec!["reason=\"Completed\""], 4.0),
        ("agent_operator_step_seconds_count", vec!["phase=\"Succeeded\""], 4.0),
        ("agent_operator_task_seconds_count", vec!["phase=\"Complete\""], 1.0),
        ("agent_operator_supervisor_outcomes_total", vec!["reason=\"Completed\""], 4.0),
        ("agent_operator_supervisor_start_seconds_count", vec![], 4.0),
        ("agent_operator_supervisor_enforcer_orders_total", vec!["answer=\"closed\""], 4.0),
        ("agent_operator_gateway_requests_total", vec!["route=\"redeem\"", "class=\"2xx\""], 4.0),
        ("agent_operator_tokens_total", vec!["kind=\"input\""], tokens),
        ("agent_operator_gateway_tokens_total", vec!["kind=\"input\""], tokens),
    ];
    eventually("the task is counted", LIMIT, || async {
        let after = scrape(cluster).await;
        for (name, labels, more) in &wanted {
            let rise = after.sum(name, labels) - before.sum(name, labels);
            if (rise - more).abs() > 0.5 {
                return Err(format!("{name}{labels:?} rose by {rise}, not {more}"));
            }
        }
        Ok(())
    })
    .await;
}

/// The lines of the task. Each names the trace, and those of a run name its step. Both processes on the node have some;
/// the controller, whose acts are events, writes none for a task that goes well.
async fn logged(task: &str, trace: &str) -> Vec<Value> {
    let mut of_task = Vec::new();
    for (component, container, speaks) in [
        ("controller", "controller", false),
        ("supervisor", "supervisor", true),
        ("supervisor", "gateway", true),
    ] {
        let selector = format!("app.kubernetes.io/component={component}");
        let logs = ["-n", SYSTEM, "logs", "-l", &selector, "-c", container, "--tail=-1"];
        let text = must("kubectl", &logs).await;
        let mut of_run = 0;
        for line in text.lines() {
            let line: Value = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{container} wrote {line:?}: {error}"));
            if line["task"] == task {
                assert_eq!(line["trace_id"], trace, "{container}: {line}");
                assert_eq!(line["namespace"], NAMESPACE, "{container}: {line}");
                assert_eq!(
                    line["run"].is_string(),
                    line["step"].is_string(),
                    "{container}: {line}"
                );
                of_run += usize::from(line["run"].is_string());
                of_task.push(line);
            }
        }
        assert!(of_run > 0 || !speaks, "{container} says nothing of the runs of {task}:\n{text}");
    }
    of_task
}

/// Each act of the task has one record: four assignments, credentials once for each run, one pull request.
fn audited(lines: &[Value]) {
    let mut acts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line["target"] == "audit") {
        let about =
            ["run", "credential", "key", "commit", "url"].map(|field| line[field].to_string());
        assert!(line["run"].is_string() && line["attempt"].is_number(), "{line}");
        // What was read for a preflight is of no run; asked again, it is read again.
        if line["run"] == "" {
            continue;
        }
        acts.entry(line["act"].as_str().unwrap_or_default().to_owned())
            .or_default()
            .push(about.concat());
    }
    for (act, records) in &mut acts {
        records.sort();
        let twice = records.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None, "{act} is recorded twice");
    }
    let count = |act: &str| acts.get(act).map_or(0, Vec::len);
    assert_eq!(count("assigned"), 4, "{acts:#?}");
    // Both credentials for three of the steps, one for the test step.
    assert_eq!(count("secret_read"), 7, "{acts:#?}");
    assert_eq!(count("pull_request_opened"), 1, "{acts:#?}");
    assert!(count("pushed") >= 1 && count("credential_handed_out") >= 4, "{acts:#?}");
    assert_eq!(count("refused"), 0, "nothing of ours is refused: {acts:#?}");
}
