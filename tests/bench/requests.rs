//! `requests` and `gap`: whole tasks through the real controller and the real supervisor, each a process, on a real API
//! server, beside Kubernetes' own Jobs. Both are read from the server's audit log.

use std::{path::PathBuf, process::Child, sync::Arc, time::Duration};

use agent_operator::crd::AgentRun;
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Namespace, Pod, ServiceAccount},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    audit::{self, Request},
    gateway::Gateway,
    kubelet::{HANG, Kubelet, serve_link},
    measure::{ROUNDS, Samples, Scale, eventually, millis, now},
    processes::{Process, block_on},
    site::{CONTROLLER, Controller, JOBS, SUPERVISOR, SYSTEM, Site, TASKS, free_port, patience},
    table::Row,
};

/// The one node.
const NODE: &str = "node-a";
/// Namespace of the Jobs.
const PEERS: &str = "peers";
/// Steps of a task, and pods of a Job.
const STEPS: u32 = 4;
/// Writes that a step needs by the design: run, pod, Running, outcome, task, finalizer, deletion.
const FLOOR_WRITES: f64 = 28.0;
/// After this time nothing of a round is still to be written.
const SETTLE: Duration = Duration::from_secs(2);
/// Kubernetes waits at most so long for one Job.
const LIMIT: Duration = Duration::from_mins(2);

/// Everything that runs for this bench. Dropping it ends all of it.
struct Plant {
    site: Site,
    _controller: Process,
    _supervisor: Process,
    jobs: Child,
    _around: JoinSet<()>,
}

impl Drop for Plant {
    fn drop(&mut self) {
        let _ = self.jobs.kill();
        let _ = self.jobs.wait();
    }
}

impl Plant {
    async fn start() -> Self {
        let site = Site::start().await;
        site.create::<Namespace>(
            &Api::all(site.client.clone()),
            json!({"metadata": {"name": PEERS}}),
        )
        .await;
        let accounts: Api<ServiceAccount> = Api::namespaced(site.client.clone(), PEERS);
        site.create(&accounts, json!({"metadata": {"name": "default"}})).await;
        let token = site.node(NODE).await;
        let (gateway, cgroups, mut around) = (Gateway::new(), site.path("cgroup"), JoinSet::new());
        let socket = site.path("gateway.sock");
        around.spawn(serve_link(Arc::clone(&gateway), socket.clone()));
        for namespace in [TASKS, PEERS] {
            let gateway = Arc::clone(&gateway);
            around
                .spawn(Kubelet::new(site.client.clone(), namespace, NODE, gateway, &cgroups).run());
        }
        let controller = Controller::new(&site);
        let process = controller.start();
        let supervisor = supervisor(&site, &controller.address, &token, &socket, &cgroups);
        let jobs = job_controller(&site);
        Self { site, _controller: process, _supervisor: supervisor, jobs, _around: around }
    }

    /// One task; the times of the server between which all of it was written.
    async fn task(&self, name: &str) -> (Timestamp, Timestamp) {
        let made = self.site.task(name, "Add a /healthz endpoint that returns 200 OK").await;
        let began = made.metadata.creation_timestamp.unwrap().0;
        let tasks = self.site.tasks();
        eventually("the task completes", LIMIT, async || {
            let status = tasks.get(name).await.unwrap().status?;
            let phase = status.phase?;
            assert_ne!(phase, "Failed", "{:?}", status.message);
            (phase == "Complete").then_some(())
        })
        .await;
        self.no_pods(TASKS).await;
        tokio::time::sleep(SETTLE).await;
        (began, self.clock().await)
    }

    /// One Job of as many pods.
    async fn job(&self, name: &str) -> (Timestamp, Timestamp) {
        let jobs: Api<Job> = Api::namespaced(self.site.client.clone(), PEERS);
        let job = json!({
            "metadata": {"name": name},
            "spec": {"completions": STEPS, "parallelism": 1, "template": {"spec": {
                "restartPolicy": "Never", "automountServiceAccountToken": false,
                "containers": [{"name": "agent", "image": "registry.test/agent:1"}],
            }}},
        });
        let made = self.site.create(&jobs, job).await;
        let began = made.metadata.creation_timestamp.unwrap().0;
        eventually("the Job completes", LIMIT, async || {
            let status = jobs.get(name).await.unwrap().status?;
            let complete =
                status.conditions?.iter().any(|c| c.type_ == "Complete" && c.status == "True");
            complete.then_some(())
        })
        .await;
        tokio::time::sleep(SETTLE).await;
        let ended = self.clock().await;
        let pods: Api<Pod> = Api::namespaced(self.site.client.clone(), PEERS);
        pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
        (began, ended)
    }

    /// Two writes of which the second needs the first, by a client that does nothing else.
    async fn floor(&self, number: usize, of: &AgentRun) -> Duration {
        let runs: Api<AgentRun> = Api::namespaced(self.site.client.clone(), PEERS);
        let pods: Api<Pod> = Api::namespaced(self.site.client.clone(), PEERS);
        let name = format!("floor-{number}");
        let spec = serde_json::to_value(&of.spec).unwrap();
        let run = json!({"apiVersion": "agents.wearn.dev/v1alpha1", "kind": "AgentRun",
            "metadata": {"name": name}, "spec": spec});
        let pod = json!({"metadata": {"name": name}, "spec": {
            // Of a node that does not exist, so that no kubelet of ours takes it.
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "containers": [{"name": "agent", "image": "registry.test/agent:1"}]}});
        let began = now();
        self.site.create(&runs, run).await;
        self.site.create(&pods, pod).await;
        let took = began.elapsed();
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await.unwrap();
        runs.delete(&name, &DeleteParams::default()).await.unwrap();
        took
    }

    async fn no_pods(&self, namespace: &str) {
        let pods: Api<Pod> = Api::namespaced(self.site.client.clone(), namespace);
        eventually("the pods are deleted", LIMIT, async || {
            pods.list(&ListParams::default()).await.unwrap().items.is_empty().then_some(())
        })
        .await;
    }

    /// The server's clock is this machine's.
    async fn clock(&self) -> Timestamp {
        // Audit lines are written as they are answered; a moment for the last of them.
        tokio::time::sleep(Duration::from_millis(200)).await;
        agent_operator_supervisor::clock::now().wall
    }

    /// Requests of our processes while a step runs and nothing happens.
    async fn idle(&self, period: Duration) -> Vec<Request> {
        self.site.task("idle", HANG).await;
        let runs: Api<AgentRun> = Api::namespaced(self.site.client.clone(), TASKS);
        eventually("the idle step runs", LIMIT, async || {
            let all = runs.list(&ListParams::default()).await.unwrap();
            let running = |run: &AgentRun| {
                run.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
            };
            all.items.iter().any(running).then_some(())
        })
        .await;
        tokio::time::sleep(SETTLE).await;
        let from = self.clock().await;
        tokio::time::sleep(period).await;
        ours(&audit::read(&self.site.audit_log()), from, self.clock().await)
    }
}

fn supervisor(
    site: &Site,
    address: &str,
    token: &PathBuf,
    socket: &PathBuf,
    cgroups: &PathBuf,
) -> Process {
    let argument = |name: &str, path: &PathBuf| format!("--{name}={}", path.display());
    let arguments = [
        "supervisor".to_owned(),
        "run".to_owned(),
        format!("--node-name={NODE}"),
        format!("--pod-namespace={SYSTEM}"),
        format!("--controller-address={address}"),
        "--controller-ca-configmap=agent-operator-ca".to_owned(),
        argument("token-file", token),
        format!("--task-namespace={TASKS}"),
        argument("data-dir", &site.path("supervisor")),
        argument("gateway-socket", socket),
        "--gateway-service=10.96.0.7:8080".to_owned(),
        argument("pod-log-dir", &site.path("pods")),
        argument("cgroup-root", cgroups),
        "--runner-image=registry.test/runner:1".to_owned(),
        "--runner-delivery=imageVolume".to_owned(),
        "--pod-retention=1s".to_owned(),
        format!("--http-address=127.0.0.1:{}", free_port()),
    ];
    let kubeconfig = site.kubeconfig(SUPERVISOR);
    let environment = [("KUBECONFIG", kubeconfig.to_str().unwrap())];
    Process::start(&arguments, &environment, site.path("supervisor.log"))
}

/// Kubernetes' controller manager with nothing but its controller of Jobs.
fn job_controller(site: &Site) -> Child {
    let log = std::fs::File::create(site.path("jobs.log")).unwrap();
    std::process::Command::new("kube-controller-manager")
        .arg(format!("--kubeconfig={}", site.kubeconfig(JOBS).display()))
        .args(["--leader-elect=false", "--controllers=job-controller", "--bind-address=127.0.0.1"])
        .arg(format!("--secure-port={}", free_port()))
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("kube-controller-manager is on PATH; tests/bench/run builds it")
}

fn within(request: &Request, from: Timestamp, to: Timestamp) -> bool {
    request.received >= from && request.received < to
}

/// Requests of controller and supervisor.
fn ours(all: &[Request], from: Timestamp, to: Timestamp) -> Vec<Request> {
    let ours = |r: &&Request| (r.is_of(CONTROLLER) || r.is_of(SUPERVISOR)) && within(r, from, to);
    all.iter().filter(ours).cloned().collect()
}

/// Requests by what they are counted as.
#[derive(Default)]
struct Counts {
    writes: Samples,
    reads: Samples,
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
        } else if request.verb == "create" && request.target() == "pods" && request.worked() {
            if let Some(gap) =
                ended.take().and_then(|ended| audit::between(ended, request.answered))
            {
                gaps.add(millis(gap));
            }
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

/// The kubelet of the bench writes as the administrator.
fn is_end_of_pod(all: &[Request], request: &Request) -> bool {
    let _ = all;
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
    let idle_period = scale.pick(Duration::from_mins(1), Duration::from_secs(10));
    let idle = plant.idle(idle_period).await;
    let all = audit::read(&plant.site.audit_log());
    let (mut ours_counts, mut peer, mut gap, mut gap_of_peer) = Default::default();
    for (from, to) in of_tasks {
        let requests = ours(&all, from, to);
        Counts::add(&mut ours_counts, &requests);
        Samples::extend(&mut gap, &gaps(&requests, is_outcome));
        if scale == Scale::Full && std::env::var_os("AO_BENCH_SHOW").is_some() {
            eprintln!("{:#?}", audit::kinds(requests.iter()));
        }
    }
    for (from, to) in of_jobs {
        let requests: Vec<_> = all.iter().filter(|r| within(r, from, to)).cloned().collect();
        let of_peer: Vec<_> = requests.iter().filter(|r| r.is_of(JOBS)).cloned().collect();
        Counts::add(&mut peer, &of_peer);
        Samples::extend(&mut gap_of_peer, &gaps(&requests, |r| is_end_of_pod(&all, r)));
    }
    Measured { ours: ours_counts, peer, gap, gap_of_floor, gap_of_peer, idle, idle_period }
}

pub fn run(scale: Scale) -> Vec<Row> {
    let limit = patience(scale);
    let measured = block_on(async { tokio::time::timeout(limit, measure(scale)).await })
        .expect("the bench of requests ends in time");
    let Measured { ours, peer, gap, gap_of_floor, gap_of_peer, idle, idle_period } = measured;
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
        Row::new("requests writes", "writes a task of four steps, worst", ours.writes.at(1.0))
            .floor(Some(FLOOR_WRITES))
            .peer(peer.writes.at(1.0))
            .at_most(30.0)
            .counted(),
        Row::new("requests reads", "GET and LIST a task, worst", ours.reads.at(1.0))
            .peer(peer.reads.at(1.0))
            .at_most(0.0)
            .counted(),
        Row::new("requests idle", "requests a live task-hour", Some(idle.len() as f64 / hours))
            .at_most(0.0)
            .counted(),
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
