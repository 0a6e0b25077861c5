//! `log-latency`: from the moment a line is written in a pod to the moment a follower has it, on real nodes with ten
//! pods of a thousand lines a second; ours by `Follow`, and `kubectl logs -f` of the same pods.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use agent_operator::{
    crd::AgentRun,
    proto::v1::{
        FollowRequest, follow_request::Target, step_event::Event,
        step_service_client::StepServiceClient,
    },
};
use futures::{StreamExt as _, future::join_all, stream};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::Instant,
};
use tonic::{
    Request, Streaming,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    log_floor::Floor,
    measure::{ROUNDS, Samples, Scale, millis},
    nodes::{monotonic, parse_stamp, program, task},
    on_cluster::{
        cluster::{Cluster, NAMESPACE},
        env, logs,
        task::unique,
    },
    processes::block_on,
    table::Row,
};

/// Who talks, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub pods: usize,
    /// From line to line in a pod.
    pub pace: Duration,
}

/// What the goal is about.
const BUSY: Load = Load { pods: 10, pace: Duration::from_millis(1) };
/// A pod as agents are: the way alone, without waiting for a core.
const CALM: Load = Load { pods: 1, pace: Duration::from_millis(20) };
/// After this time a follower has what was there before it.
const SETTLE: Duration = Duration::from_secs(2);
/// Limit of the whole bench.
const PATIENCE: Duration = Duration::from_mins(15);
/// A stalled follower is to move nobody: beyond this factor it is more than two windows differ by themselves.
const MOVED: f64 = 1.1;

/// Lines as they came to followers.
#[derive(Debug, Default)]
pub struct Heard {
    pub latency: Samples,
    next: BTreeMap<usize, u64>,
    /// Lines that did not come behind the one before.
    pub breaks: u64,
}

impl Heard {
    /// A line `row N SECONDS.NANOS` of a pod.
    pub fn line(&mut self, pod: usize, line: &str) {
        let now = monotonic();
        let Some(rest) = line.strip_prefix("row ") else { return };
        let Some((number, at)) = rest.split_once(' ') else { return };
        let (Ok(number), Some(at)) = (number.parse::<u64>(), parse_stamp(at)) else { return };
        self.latency.add(millis(now.saturating_sub(at)));
        let expected = self.next.insert(pod, number + 1);
        self.breaks += expected.map_or(0, |expected| u64::from(expected != number));
    }

    pub fn join(&mut self, other: &Self) {
        self.latency.extend(&other.latency);
        self.breaks += other.breaks;
    }
}

/// Prints a line at this pace, for as long as it lives.
fn talker(pace: Duration) -> Vec<String> {
    program(&format!(
        "my $due = now(); for (my $i = 0; ; $i++) {{ stamp(\"row $i\"); $due += {}; \
         my $rest = $due - now(); select(undef, undef, undef, $rest) if $rest > 0; }}",
        pace.as_secs_f64()
    ))
}

/// The tasks whose first step talks.
struct Pods {
    cluster: Cluster,
    tasks: Vec<String>,
    runs: Vec<AgentRun>,
    token: String,
}

impl Pods {
    async fn start(load: Load) -> Self {
        let cluster = Cluster::connect().await;
        let token = logs::viewer_token(&cluster, &unique("listener")).await;
        let tasks: Vec<_> = (0..load.pods).map(|_| unique("talker")).collect();
        let spec = json!({
            "agent": {"type": "Command", "command": talker(load.pace)}, "resources": {"cpu": "500m"}, "stepTimeout": "1h",
        });
        for name in &tasks {
            cluster.create(NAMESPACE, &task(name, "Talk.", &spec)).await;
        }
        let runs =
            tasks.iter().map(|name| cluster.run_in_phase(NAMESPACE, name, "plan", "Running"));
        let runs = join_all(runs).await;
        Self { cluster, tasks, runs, token }
    }

    async fn end(self) {
        for name in &self.tasks {
            self.cluster.delete(NAMESPACE, name).await;
        }
    }

    /// A connection of its own to the controller.
    async fn connect(&self) -> StepServiceClient<Channel> {
        let ca = std::fs::read(env("AO_GRPC_CA")).unwrap();
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        let endpoint = Endpoint::from_shared(format!("https://{}", env("AO_GRPC"))).unwrap();
        let endpoint = endpoint.tcp_nodelay(true).tls_config(tls).unwrap();
        StepServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// Follows one run from its present end.
    async fn follow(
        &self,
        client: &StepServiceClient<Channel>,
        pod: usize,
    ) -> Streaming<agent_operator::proto::v1::StepEvent> {
        let run = self.runs[pod].metadata.name.clone().unwrap();
        let mut request = Request::new(FollowRequest {
            namespace: NAMESPACE.to_owned(),
            target: Some(Target::Run(run)),
            tail: Some(1),
            cursor: String::new(),
            follow: true,
        });
        let token: MetadataValue<_> = format!("Bearer {}", self.token).parse().unwrap();
        request.metadata_mut().insert("authorization", token);
        client.clone().follow(request).await.unwrap().into_inner()
    }

    /// All pods by `Follow` for a while.
    async fn ours(&self, window: Duration) -> Heard {
        let client = self.connect().await;
        let mut streams = Vec::new();
        for pod in 0..self.runs.len() {
            streams.push(self.follow(&client, pod).await.map(move |event| (pod, event)));
        }
        let mut all = stream::select_all(streams);
        let from = Instant::now() + SETTLE;
        let (mut heard, until) = (Heard::default(), from + window);
        while let Ok(event) = tokio::time::timeout_at(until, all.next()).await {
            let (pod, event) = event.expect("a Follow of a run that goes on goes on");
            let log = event.expect("no Follow fails").event;
            if let Some(Event::Log(line)) = log
                && Instant::now() >= from
            {
                heard.line(pod, &line.text);
            }
        }
        heard
    }

    /// All pods by `kubectl logs -f` for a while.
    async fn kubectl(&self, window: Duration) -> Heard {
        let (from, mut all) = (Instant::now() + SETTLE, Vec::new());
        let mut children = Vec::new();
        for (number, run) in self.runs.iter().enumerate() {
            let pod = run.status.as_ref().and_then(|status| status.pod_name.clone()).unwrap();
            let mut command = Command::new("kubectl");
            command.args(["logs", "--follow", "--tail=1", "--namespace", NAMESPACE, &pod]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
            let mut child = command.spawn().expect("kubectl runs: deploy/local/env sets its path");
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            children.push(child);
            all.push(Box::pin(stream::unfold(lines, move |mut lines| async move {
                let line = lines.next_line().await.ok()??;
                Some(((number, line), lines))
            })));
        }
        let (mut all, mut heard, until) =
            (stream::select_all(all), Heard::default(), from + window);
        while let Ok(Some((pod, line))) = tokio::time::timeout_at(until, all.next()).await {
            if Instant::now() >= from {
                heard.line(pod, &line);
            }
        }
        for mut child in children {
            child.kill().await.unwrap();
        }
        heard
    }

    /// The same as [`Self::ours`] beside a follower that takes nothing of what it asked for.
    async fn beside_a_stalled_one(&self, window: Duration) -> Heard {
        let stalled = self.connect().await;
        let nothing_is_read = self.follow(&stalled, 0).await;
        let heard = self.ours(window).await;
        drop(nothing_is_read);
        heard
    }
}

#[derive(Debug, Default)]
struct Measured {
    ours: Heard,
    peer: Heard,
    floor: Heard,
    /// p99 of each window, without and with a stalled follower.
    alone: Samples,
    beside: Samples,
}

async fn measure(scale: Scale, load: Load) -> Measured {
    let window = scale.pick(Duration::from_secs(4), Duration::from_secs(2));
    let pods = Pods::start(load).await;
    let mut measured = Measured::default();
    for _ in 0..scale.pick(ROUNDS, 1) {
        let ours = pods.ours(window).await;
        measured.alone.add(ours.latency.p99().expect("lines came to followers"));
        measured.ours.join(&ours);
        measured.peer.join(&pods.kubectl(window).await);
        let beside = pods.beside_a_stalled_one(window).await;
        measured.beside.add(beside.latency.p99().expect("lines came beside a stalled follower"));
        measured.ours.breaks += beside.breaks;
        measured.floor.join(&Floor::start(load).await.hear(window).await);
    }
    pods.end().await;
    measured
}

pub fn run(scale: Scale) -> Vec<Row> {
    let both = async { (measure(scale, CALM).await, measure(scale, BUSY).await) };
    let measured = block_on(async { tokio::time::timeout(PATIENCE, both).await });
    let (calm, busy) = measured.expect("the lines come in time");
    let row = |name, measured: &Measured, of: fn(&Samples) -> Option<f64>| {
        Row::new(name, "ms, written to followed", of(&measured.ours.latency))
            .floor(of(&measured.floor.latency))
            .peer(of(&measured.peer.latency))
    };
    let moved = busy.beside.median().zip(busy.alone.median()).map(|(beside, alone)| beside / alone);
    let lost = calm.ours.breaks + busy.ours.breaks;
    vec![
        row("log-latency p50", &busy, Samples::median).at_most(1.0),
        row("log-latency p99", &busy, Samples::p99).at_most(10.0).at_most_of_peer(0.5),
        row("log-latency, one pod of 50 lines/s, p50", &calm, Samples::median),
        row("log-latency, one pod of 50 lines/s, p99", &calm, Samples::p99),
        Row::new("log-latency moved", "of the p99, by a stalled follower", moved).at_most(MOVED),
        Row::new("log-latency lost", "lines lost or doubled", Some(lost as f64))
            .at_most(0.0)
            .counted(0.0),
    ]
}
