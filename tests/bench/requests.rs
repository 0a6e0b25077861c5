//! `requests` and `gap`: whole tasks through the real controller and the real supervisor, each a process, on a real API
//! server, beside Kubernetes' own Jobs. Both are read from the server's audit log.

use std::time::Duration;

use agent_operator::crd::AgentRun;
use jiff::Timestamp;
use kube::{Api, ResourceExt as _, api::ListParams};

use crate::{
    audit::{self, Request},
    measure::{ROUNDS, Samples, Scale, millis},
    plant::{Plant, STEPS},
    processes::block_on,
    site::{CONTROLLER, JOBS, SUPERVISOR, TASKS},
    table::Row,
};

/// Writes that a step needs by the design: run, pod, Running, outcome, task, finalizer, deletion.
const FLOOR_WRITES: f64 = 28.0;
/// More writes than this are a defect.
const WRITES_KNOWN: f64 = 30.0;
/// Reads of the task's Secret: one for the preflight and one for each step (`docs/performance.md`).
const SECRETS_KNOWN: f64 = 5.0;
/// With four of chance: a pod that a busy machine has not placed within seconds is looked at by name.
const READS_KNOWN: f64 = SECRETS_KNOWN + 4.0;

fn within(request: &Request, from: Timestamp, to: Timestamp) -> bool {
    request.received >= from && request.received < to
}

/// Requests of controller and supervisor.
fn ours(all: &[Request], from: Timestamp, to: Timestamp) -> Vec<Request> {
    let ours = |r: &&Request| {
        (audit::is_of(r, CONTROLLER) || audit::is_of(r, SUPERVISOR)) && within(r, from, to)
    };
    all.iter().filter(ours).cloned().collect()
}

/// Requests by what they are counted as.
#[derive(Default)]
struct Counts {
    writes: Samples,
    reads: Samples,
    secrets: Samples,
    events: Samples,
    reviews: Samples,
    leases: Samples,
}

impl Counts {
    fn add(&mut self, requests: &[Request]) {
        let count = |wanted: &dyn Fn(&Request) -> bool| {
            requests.iter().filter(|request| wanted(request)).count() as f64
        };
        self.writes.add(count(&|r| r.apart().is_none() && r.is_write()));
        self.reads.add(count(&|r| r.apart().is_none() && r.is_read()));
        self.secrets.add(count(&|r| r.target() == "secrets" && r.is_read()));
        for (samples, of) in [
            (&mut self.events, "events"),
            (&mut self.reviews, "reviews"),
            (&mut self.leases, "leases"),
        ] {
            samples.add(count(&|r| r.apart() == Some(of)));
        }
    }
}

/// From the answer to the end of each step to the answer to the creation of the next pod.
fn gaps(requests: &[Request], ends: impl Fn(&Request) -> bool) -> Samples {
    let mut gaps = Samples::default();
    let mut ended: Option<Timestamp> = None;
    for request in requests {
        if ends(request) {
            ended = Some(request.answered);
        } else if request.verb == "create"
            && request.target() == "pods"
            && request.worked()
            && let Some(gap) =
                ended.take().and_then(|ended| audit::between(ended, request.answered))
        {
            gaps.add(millis(gap));
        }
    }
    gaps
}

fn is_outcome(request: &Request) -> bool {
    let phase = request.response_object["status"]["phase"].as_str();
    let is_status =
        request.target() == "agentruns/status" && request.is_write() && request.worked();
    is_status && matches!(phase, Some("Succeeded" | "Failed"))
}

/// The kubelet of the bench tells the end of a pod.
fn is_end_of_pod(request: &Request) -> bool {
    request.target() == "pods/status" && request.verb == "patch" && request.worked()
}

struct Measured {
    ours: Counts,
    peer: Counts,
    gap: Samples,
    gap_of_floor: Samples,
    gap_of_peer: Samples,
    idle: Vec<Request>,
    idle_period: Duration,
}

async fn measure(scale: Scale) -> Measured {
    let plant = Plant::start().await;
    // The first of each finds its way: sessions, caches, connections.
    plant.task("warm").await;
    plant.job("warm").await;
    let runs: Api<AgentRun> = Api::namespaced(plant.site.client.clone(), TASKS);
    let run = runs.list(&ListParams::default()).await.unwrap().items.remove(0);
    let (mut of_tasks, mut of_jobs, mut gap_of_floor) =
        (Vec::new(), Vec::new(), Samples::default());
    let rounds = scale.pick(2 * ROUNDS, 3);
    for round in 0..rounds {
        of_tasks.push(plant.task(&format!("task-{round}")).await);
        of_jobs.push(plant.job(&format!("job-{round}")).await);
        for number in 0..STEPS {
            let number = round * 10 + usize::try_from(number).unwrap();
            gap_of_floor.add(millis(plant.floor(number, &run).await));
        }
    }
    tell_failures(&runs).await;
    let idle_period = scale.pick(Duration::from_mins(1), Duration::from_secs(10));
    plant.live_tasks(1).await;
    let from = plant.clock().await;
    tokio::time::sleep(idle_period).await;
    let until = plant.clock().await;
    let all = audit::read(&plant.site.audit_log());
    let idle = ours(&all, from, until);
    let (mut ours_counts, mut peer, mut gap, mut gap_of_peer) = Default::default();
    let mut worst = Vec::new();
    for (from, to) in of_tasks {
        let requests = ours(&all, from, to);
        Counts::add(&mut ours_counts, &requests);
        Samples::extend(&mut gap, &gaps(&requests, is_outcome));
        if requests.len() > worst.len() {
            worst = requests;
        }
    }
    // Whoever looks for the one too many, or for where the time goes, finds it here.
    eprintln!("requests of the worst task: {:#?}", audit::kinds(worst.iter()));
    if std::env::var_os("AO_BENCH_SHOW").is_some() {
        eprint!("{}", audit::story(&worst));
    }
    for (from, to) in of_jobs {
        let requests: Vec<_> = all.iter().filter(|r| within(r, from, to)).cloned().collect();
        let of_peer: Vec<_> = requests.iter().filter(|r| audit::is_of(r, JOBS)).cloned().collect();
        Counts::add(&mut peer, &of_peer);
        Samples::extend(&mut gap_of_peer, &gaps(&requests, is_end_of_pod));
    }
    Measured { ours: ours_counts, peer, gap, gap_of_floor, gap_of_peer, idle, idle_period }
}

/// Names the runs that had to be repeated: their requests are counted, too.
async fn tell_failures(runs: &Api<AgentRun>) {
    for run in runs.list(&ListParams::default()).await.unwrap() {
        let status = run.status.clone().unwrap_or_default();
        if status.phase.as_deref() == Some("Failed") {
            let why = (status.reason, status.message);
            eprintln!("{} failed and was repeated: {why:?}", run.name_any());
        }
    }
}

pub fn run(scale: Scale) -> Vec<Row> {
    let Measured { ours, peer, gap, gap_of_floor, gap_of_peer, idle, idle_period } =
        block_on(measure(scale));
    let idle: Vec<_> =
        idle.iter().filter(|r| r.apart().is_none() && (r.is_write() || r.is_read())).collect();
    if !idle.is_empty() {
        eprintln!("requests while nothing happens: {:#?}", audit::kinds(idle.iter().copied()));
    }
    let hours = idle_period.as_secs_f64() / 3600.0;
    let apart = |name, samples: &Samples, peer: &Samples| {
        Row::new(name, "requests a task, apart", samples.median()).peer(peer.median())
    };
    vec![
        // A step that had to be repeated costs what a step costs, so one such task among many is no defect of
        // the count: medians are counted, and the worst stands beside them.
        Row::new("requests writes", "writes a task of four steps", ours.writes.median())
            .floor(Some(FLOOR_WRITES))
            .peer(peer.writes.median())
            .at_most(30.0)
            .counted(WRITES_KNOWN),
        Row::new("requests writes, worst", "writes a task of four steps", ours.writes.at(1.0))
            .peer(peer.writes.at(1.0)),
        Row::new("requests reads", "GET and LIST a task", ours.reads.median())
            .peer(peer.reads.median())
            .at_most(0.0)
            .counted(READS_KNOWN),
        Row::new("requests reads of Secrets", "of these, a task", ours.secrets.median())
            .peer(peer.secrets.median())
            .counted(SECRETS_KNOWN),
        Row::new("requests idle", "requests a live task-hour", Some(idle.len() as f64 / hours))
            .at_most(0.0)
            .counted(0.0),
        apart("requests events", &ours.events, &peer.events),
        apart("requests reviews", &ours.reviews, &peer.reviews),
        apart("requests leases", &ours.leases, &peer.leases),
        Row::new("gap p50", "ms", gap.median())
            .floor(gap_of_floor.median())
            .peer(gap_of_peer.median())
            .at_most_of_floor(1.5)
            .at_most_of_peer(0.01),
        Row::new("gap p99", "ms", gap.p99())
            .floor(gap_of_floor.p99())
            .peer(gap_of_peer.p99())
            .at_most_of_floor(5.0),
    ]
}
