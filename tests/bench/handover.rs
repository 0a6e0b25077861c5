//! `handover`: what is lost between two steps on real nodes, from the end of one agent's process to the start of the
//! next one's. Beside it a Job of as many pods, one after the other, and the start of a bare pod whose image is there.

use std::time::Duration;

use agent_operator::crd::AgentRun;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

use crate::{
    measure::{ROUNDS, Samples, Scale, millis},
    nodes::{LIMIT, Nodes, Span, monotonic, program, stamp, task},
    on_cluster::{cluster::NAMESPACE, eventually, task::unique},
    plant::STEPS,
    processes::block_on,
    site::from_json,
    table::Row,
};

/// Limit of the whole bench.
const PATIENCE: Duration = Duration::from_mins(20);
/// Starts of bare pods in a round: as many as a task has hand-overs.
const STARTS: usize = 3;

/// An agent that ends at once, with a change to commit where a step needs one.
fn agent() -> Vec<String> {
    program(
        "stamp('begin'); if (($ENV{AGENT_STEP} // '') eq 'implement') { \
         open(my $f, '>', 'change.txt'); print $f \"change\\n\"; close($f); } stamp('end');",
    )
}

/// One that takes as long as the pod that is made ahead needs to get to its gate.
fn slow_agent() -> Vec<String> {
    program(
        "stamp('begin'); if (($ENV{AGENT_STEP} // '') eq 'implement') { \
         open(my $f, '>', 'change.txt'); print $f \"change\\n\"; close($f); } sleep(4); stamp('end');",
    )
}

/// One agent's process, and the container around it.
#[derive(Clone, Copy, Debug)]
struct Life {
    begin: Duration,
    end: Duration,
    container: Span,
}

/// One hand-over, and where its time went.
#[derive(Debug, Default)]
struct Parts {
    /// All of it.
    lost: Samples,
    /// From the agent's end to the container's: commit and push.
    closing: Samples,
    /// From there to the start of the next container: the kubelet, our two processes, the API server.
    between: Samples,
    /// From there to the agent's start: token, gate, clone.
    opening: Samples,
}

impl Parts {
    fn add(&mut self, lives: &[Life]) {
        for pair in lives.windows(2) {
            let (before, after) = (pair[0], pair[1]);
            let (ended, started) = (before.container.ended, after.container.started);
            // The runtime's clock and the agent's are read at different places: a moment between them may be negative.
            let from = |from: Option<Duration>, to: Option<Duration>| {
                Some((to?.as_secs_f64() - from?.as_secs_f64()) * 1000.0)
            };
            self.lost.add(millis(after.begin.saturating_sub(before.end)));
            for (samples, part) in [
                (&mut self.closing, from(Some(before.end), ended)),
                (&mut self.between, from(ended, started)),
                (&mut self.opening, from(started, Some(after.begin))),
            ] {
                samples.add(part.expect("the runtime told starts and ends"));
            }
        }
    }
}

async fn life(nodes: &Nodes, pods: &Api<Pod>, pod: &str) -> Life {
    let log = nodes.log(pods, pod).await;
    let at = |word| stamp(&log, word).unwrap_or_else(|| panic!("{pod} printed no {word}: {log}"));
    let container = nodes.span(&pods.get(pod).await.unwrap()).await;
    Life { begin: at("begin"), end: at("end"), container }
}

/// The steps of one task of ours, whose next pods are made ahead or not.
async fn ours(nodes: &Nodes, ahead: bool) -> Vec<Life> {
    let name = unique("handover");
    let command = if ahead { slow_agent() } else { agent() };
    let spec = json!({
        "agent": {"type": "Command", "command": command}, "test": {"command": command},
        "prepareNextStep": ahead,
    });
    let cluster = &nodes.cluster;
    cluster.create(NAMESPACE, &task(&name, "Change nothing but one file.", &spec)).await;
    cluster.complete(NAMESPACE, &name).await;
    let pods = cluster.pods(NAMESPACE);
    let mut lives = Vec::new();
    for run in cluster.runs(NAMESPACE, &name).await {
        let pod = pod_of(&run);
        lives.push(life(nodes, &pods, &pod).await);
    }
    assert_eq!(lives.len(), usize::try_from(STEPS).unwrap(), "{name} needs no step twice");
    cluster.delete(NAMESPACE, &name).await;
    lives
}

fn pod_of(run: &AgentRun) -> String {
    run.status
        .as_ref()
        .and_then(|status| status.pod_name.clone())
        .expect("a run that ended had a pod")
}

/// The pods of one Job.
async fn peer(nodes: &Nodes) -> Vec<Life> {
    let name = unique("handover");
    let jobs: Api<Job> = nodes.peers();
    let job: Job = from_json(json!({
        "metadata": {"name": name},
        "spec": {"completions": STEPS, "parallelism": 1, "template": {"spec": nodes.pod_spec(&agent())}},
    }));
    jobs.create(&PostParams::default(), &job).await.unwrap();
    eventually("the Job has ended", LIMIT, || async {
        let job = jobs.get(&name).await.map_err(|error| error.to_string())?;
        let succeeded = job.status.and_then(|status| status.succeeded).unwrap_or_default();
        if succeeded == STEPS.cast_signed() { Ok(()) } else { Err(format!("{succeeded} pods")) }
    })
    .await;
    let pods = nodes.peers::<Pod>();
    let by_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
    let mut lives = Vec::new();
    for pod in pods.list(&by_job).await.unwrap() {
        lives.push(life(nodes, &pods, &pod.name_any()).await);
    }
    lives.sort_by_key(|life| life.begin);
    jobs.delete(&name, &DeleteParams::background()).await.unwrap();
    lives
}

/// From the order to make a bare pod to the first instruction in it; and the last part of it, in the container.
async fn floor(nodes: &Nodes) -> (f64, f64) {
    let name = unique("start");
    let spec = nodes.pod_spec(&agent());
    let ordered = monotonic();
    nodes.create_pod(&name, &spec).await;
    nodes.ended(&name).await;
    let Life { begin, container, .. } = life(nodes, &nodes.peers(), &name).await;
    nodes.delete_pod(&name).await;
    let started = container.started.expect("the runtime told the start");
    (millis(begin.saturating_sub(ordered)), (begin.as_secs_f64() - started.as_secs_f64()) * 1000.0)
}

#[derive(Debug, Default)]
struct Measured {
    ours: Parts,
    ahead: Parts,
    peer: Parts,
    start: Samples,
    start_opening: Samples,
}

async fn measure(scale: Scale) -> Measured {
    let nodes = Nodes::connect().await;
    let mut measured = Measured::default();
    // The first of each finds its way: the mirror of the repository, what a node has learned of images.
    for round in 0..=scale.pick(ROUNDS, 1) {
        let (of_task, of_job) = (ours(&nodes, false).await, peer(&nodes).await);
        let of_ahead = ours(&nodes, true).await;
        let mut starts = Vec::new();
        for _ in 0..STARTS {
            starts.push(floor(&nodes).await);
        }
        if round == 0 {
            continue;
        }
        measured.ours.add(&of_task);
        // The last step is never made ahead.
        measured.ahead.add(&of_ahead[..of_ahead.len() - 1]);
        measured.peer.add(&of_job);
        for (start, opening) in starts {
            measured.start.add(start);
            measured.start_opening.add(opening);
        }
    }
    measured
}

pub fn run(scale: Scale) -> Vec<Row> {
    let measured = block_on(async { tokio::time::timeout(PATIENCE, measure(scale)).await });
    let Measured { ours, ahead, peer, start, start_opening } =
        measured.expect("the hand-overs end in time");
    let lost = |name, of: fn(&Samples) -> Option<f64>| {
        Row::new(name, "ms, an agent's end to the next one's start", of(&ours.lost))
            .floor(of(&start))
            .peer(of(&peer.lost))
    };
    let part = |name, unit, ours: &Samples, peer: &Samples| {
        Row::new(name, unit, ours.median()).peer(peer.median())
    };
    vec![
        lost("handover", Samples::median).at_most_of_floor(1.3),
        lost("handover p99", Samples::p99),
        part(
            "handover, closing",
            "ms, agent's end to container's end",
            &ours.closing,
            &peer.closing,
        ),
        part(
            "handover, between",
            "ms, to the next container's start",
            &ours.between,
            &peer.between,
        ),
        part("handover, opening", "ms, to the agent's start", &ours.opening, &peer.opening)
            .floor(start_opening.median()),
        Row::new(
            "handover to a pod made ahead",
            "ms, an agent's end to the next one's start",
            ahead.lost.median(),
        )
        .at_most(100.0),
        Row::new("handover to a pod made ahead, p99", "ms", ahead.lost.p99()),
        Row::new(
            "handover to a pod made ahead, closing",
            "ms, agent's end to container's end",
            ahead.closing.median(),
        ),
    ]
}
